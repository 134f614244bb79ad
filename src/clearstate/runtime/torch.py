"""Wrap PyTorch networks for the tasks: NumPy arrays in and out, no gradients, on the network's device.

A network is any module with `sample_rate` (Hz), `causal` and `forward` on (b, n). Causal networks also have `hop`,
`latency`, `init_state` and `step`. Separators have `task = "separate"` and `speakers`. Extension models have
`task = "extend"` and `forward(narrow, bandwidth_hz=...)`; with `is_diffusion = True`, `forward` also accepts `steps`,
`seed`, `position` and `progress`.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from clearstate.kernels import live as fused
from clearstate.kernels.threads import inference
from clearstate.runtime.contract import Advance, Array, Portable, given_sampling, no_sampling, wrong_task


@runtime_checkable
class Surveyed(Protocol):
    """A network that needs an overview of a long signal to enhance its blocks."""

    def overview(self, pieces: Tensor, gain: Tensor) -> Any: ...


class TorchModel(Portable):
    """The part of the wrapper that all tasks share.

    Raises:
        ValueError: for a module that is not a network of this task.
    """

    task = ""

    def __init__(self, network: nn.Module) -> None:
        known: Any = network.eval()
        self.network, self.name = known, type(network).__name__
        self.hop, self.latency = 1, 0
        try:
            self.sample_rate, self.causal = int(known.sample_rate), bool(known.causal)
            if self.causal:
                self.hop, self.latency = int(known.hop), int(known.latency)
        except AttributeError as error:
            raise ValueError(
                f"{self.name} is not a clearstate model ({error}); choose one from `clearstate models`"
            ) from None
        task = getattr(network, "task", "enhance")
        if task != self.task:
            raise ValueError(wrong_task(self.name, task, self.task))
        self.device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))

    def tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(self.device)

    def stream_of(self, rows: int) -> Callable[[Tensor], Tensor]:
        """A function that calls the network's `step` and keeps the state."""
        state = self.network.init_state(rows)

        def advance(x: Tensor) -> Tensor:
            nonlocal state
            y, state = self.network.step(x, state)
            return y

        return advance


class TorchEnhancer(TorchModel):
    """An enhancement network; see `contract.EnhancementModel`."""

    task = "enhance"

    @property
    def wants_overview(self) -> bool:
        return not self.causal and isinstance(self.network, Surveyed)

    def open_stream(self, rows: int, live: bool = False) -> Advance:
        if live and fused.supports(self.network):
            return fused.open_stream(self.network, rows)
        advance = self.stream_of(rows)

        def run(x: Array) -> Array:
            with inference(self.network):
                return advance(self.tensor(x)).cpu().numpy()

        return run

    def overview(self, pieces: Array, gain: Array) -> Any:
        with inference(self.network):
            return self.network.overview(self.tensor(pieces), self.tensor(gain))

    def run(self, noisy: Array, overview: Any = None) -> Array:
        known = () if overview is None else (overview,)
        with inference(self.network):
            return self.network(self.tensor(noisy[None]), *known)[0].cpu().numpy()


class TorchSeparator(TorchModel):
    """A separation network; see `contract.SeparationModel`."""

    task = "separate"

    @property
    def speakers(self) -> int:
        return int(self.network.speakers)

    def open_stream(self) -> Advance:
        advance = self.stream_of(1)

        def run(x: Array) -> Array:
            with inference(self.network):
                return advance(self.tensor(x))[0].cpu().numpy()

        return run

    def run(self, mixture: Array) -> Array:
        with inference(self.network):
            return self.network(self.tensor(mixture[None]))[0].cpu().numpy()


class TorchExtender(TorchModel):
    """An extension network; see `contract.ExtensionModel`.

    Args:
        steps, seed: settings of a diffusion model; None keeps its defaults.
    """

    task = "extend"

    def __init__(self, network: nn.Module, *, steps: int | None = None, seed: int | None = None) -> None:
        super().__init__(network)
        self.diffuses = bool(getattr(network, "is_diffusion", False))
        self.sampling = given_sampling(steps, seed)
        if self.sampling and not self.diffuses:
            raise ValueError(no_sampling(self.name, self.sampling))
        if steps is not None and steps < 1:
            raise ValueError(f"steps {steps}: expected 1 or more, such as 6")

    def run(self, narrow: Array, bandwidth_hz: float, position: int, progress: Callable[[int, int], None]) -> Array:
        told: dict[str, Any] = {"position": position, "progress": progress} if self.diffuses else {}
        with inference(self.network):
            wide = self.network(self.tensor(narrow[None]), bandwidth_hz=bandwidth_hz, **self.sampling, **told)
            return wide[0].cpu().numpy()
