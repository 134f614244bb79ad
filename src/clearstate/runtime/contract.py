"""The interface between tasks and models: one Protocol per task. Signals are NumPy float32 arrays, full scale 1.

`clearstate.tasks` runs any object that implements one of them: a PyTorch network (`runtime/torch.py`), an ONNX file,
or your own class.
"""

from collections.abc import Callable, Collection
from typing import Any, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Advance = Callable[[Array], Array]  # next samples (rows, m hop) to as many output samples, delayed by `latency`


KINDS = {  # task to (kind of model, default model)
    "enhance": ("an enhancement model", "live"),
    "separate": ("a separation model", "separate-fast"),
    "extend": ("an extension model", "extend-fast"),
}
QUALITY = {"fast": "live", "best": "studio"}  # of `enhance`: which of our own models


def wrong_task(name: str, task: str, wanted: str) -> str:
    """The error message for a model of another task."""
    kind, default = KINDS[wanted]
    return f"{name} is {KINDS[task][0]}; `{wanted}` needs {kind}, such as {default}"


def given_sampling(steps: int | None, seed: int | None) -> dict[str, int]:
    """The settings of a diffusion model that are given."""
    return {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}


def no_sampling(name: str, given: Collection[str]) -> str:
    """The error message for settings of a diffusion model, given to a model of another kind."""
    return f"{name} works in one step: {' and '.join(given)} do not apply to it"


class Portable:
    """A model that is pickled as a call which opens it again, so that other processes receive no weights."""

    again: tuple[Callable[..., Any], tuple[Any, ...]] | None = None  # set by `open_model`

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.again or super().__reduce_ex__(protocol)


class Model(Protocol):
    """Properties of every model."""

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    @property
    def sample_rate(self) -> int:
        """Sample rate of the model's input in Hz."""
        ...

    @property
    def causal(self) -> bool:
        """Whether the model can stream. Only then do `open_stream`, `hop` and `latency` apply; otherwise only `run`."""
        ...

    @property
    def hop(self) -> int:
        """Samples; a stream accepts any multiple of it."""
        ...

    @property
    def latency(self) -> int:
        """Delay of a stream's output in samples."""
        ...


class EnhancementModel(Model, Protocol):
    """Removes noise."""

    @property
    def wants_overview(self) -> bool:
        """Whether `run` needs an overview of the whole signal for each block of a long signal."""
        ...

    def open_stream(self, rows: int, live: bool = False) -> Advance:
        """Open a stream for `rows` independent signals. The returned function holds the state.

        Args:
            live: chunks are short; optimise the time per call, not the start-up time.
        """
        ...

    def overview(self, pieces: Array, gain: Array) -> Any:
        """Compute an overview of a long signal from pieces (1, p, n) and the gain (1, 1) that scales it to RMS 1."""
        ...

    def run(self, noisy: Array, overview: Any = None) -> Array:
        """Enhance one block: (n,) to (n,)."""
        ...


class SeparationModel(Model, Protocol):
    """Separates speakers."""

    @property
    def speakers(self) -> int:
        """Number of speakers."""
        ...

    def open_stream(self) -> Advance:
        """Open a stream for one mixture, (1, m hop) to (speakers, m hop). The returned function holds the state."""
        ...

    def run(self, mixture: Array) -> Array:
        """Separate one block: (n,) to (speakers, n)."""
        ...


class ExtensionModel(Model, Protocol):
    """Adds the missing band of a narrowband signal."""

    def run(self, narrow: Array, bandwidth_hz: float, position: int, progress: Callable[[int, int], None]) -> Array:
        """Extend one block: (n,) to (n,).

        Args:
            bandwidth_hz: bandwidth of the signal.
            position: first sample of the block in the signal. Random models use it to draw the same noise where blocks
                overlap.
            progress: called with the number of steps done and the total, by models with several steps.
        """
        ...
