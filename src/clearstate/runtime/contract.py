"""What a model offers to the tasks, one Protocol per task. Signals are NumPy float32 arrays with full scale at 1.

Whatever fulfils these runs in `clearstate.tasks`: a PyTorch network (`runtime/torch.py`), an ONNX file, your own code.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Advance = Callable[[Array], Array]  # the next samples (rows, m hop) of a stream in, as many out, `latency` samples late


KINDS = {  # of models by the task, and the default of each
    "enhance": ("an enhancement model", "live"),
    "separate": ("a separation model", "separate-fast"),
    "extend": ("an extension model", "extend-fast"),
}


def wrong_task(name: str, task: str, wanted: str) -> str:
    """The message for a model that was given to the functions of another task."""
    kind, default = KINDS[wanted]
    return f"{name} is {KINDS[task][0]}; `{wanted}` needs {kind}, such as {default}"


class Model(Protocol):
    """What every model tells about itself."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    @property
    def causal(self) -> bool:
        """Whether it runs as a stream: `open_stream`, `hop` and `latency` apply. Otherwise only `run` does."""
        ...

    @property
    def hop(self) -> int:
        """Samples: a stream takes any multiple of it."""
        ...

    @property
    def latency(self) -> int:
        """Samples by which the output of a stream trails its input."""
        ...


class EnhancementModel(Model, Protocol):
    """Takes noise away."""

    @property
    def wants_overview(self) -> bool:
        """Whether the blocks of a long signal should be enhanced with an overview of all of it."""
        ...

    def open_stream(self, rows: int, live: bool = False) -> Advance:
        """A new stream of so many independent signals; it holds the state.

        Args:
            live: chunks are short, so speed per call counts more than the time until the first.
        """
        ...

    def overview(self, pieces: Array, gain: Array) -> Any:
        """What `run` should know of a long signal: pieces (1, p, n) of it, and gain (1, 1) that brings it to RMS 1."""
        ...

    def run(self, noisy: Array, overview: Any = None) -> Array:
        """One block (n,) to the same, enhanced."""
        ...


class SeparationModel(Model, Protocol):
    """Tells speakers apart."""

    @property
    def speakers(self) -> int:
        """How many it tells apart."""
        ...

    def open_stream(self) -> Advance:
        """A new stream of one mixture, (1, m hop) to (speakers, m hop); it holds the state."""
        ...

    def run(self, mixture: Array) -> Array:
        """One block (n,) to its speakers (speakers, n)."""
        ...


class ExtensionModel(Model, Protocol):
    """Adds the band that a narrow signal lacks."""

    def run(self, narrow: Array, bandwidth_hz: float, position: int, progress: Callable[[int, int], None]) -> Array:
        """One block (n,) to the same with the missing band.

        Args:
            bandwidth_hz: up to where the signal reaches.
            position: of the block in the signal, in samples: where blocks overlap, a random model draws the same noise.
            progress: called with the steps done and in all by models that work in several.
        """
        ...
