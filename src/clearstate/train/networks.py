"""Protocols for the extra features of models that some losses need, such as a predicted spectrum."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from clearstate.train.recipe import RecipeError


@runtime_checkable
class Sampled(Protocol):
    """Every model: it has a fixed sample rate."""

    sample_rate: int  # Hz


@runtime_checkable
class JudgesItself(Protocol):
    """A diffusion model. It trains only with its own loss, which returns (b,) per term."""

    def training_loss(self, narrow: Tensor, wide: Tensor) -> dict[str, Tensor]:
        """The terms of the own loss, (b,) each."""
        ...


@runtime_checkable
class PredictsSpectrum(Protocol):
    """forward(noisy, with_spectrum=True) returns the waveform and its predicted spectrum (b, t, f)."""

    predicts_spectrum: bool

    def spectrum(self, x: Tensor) -> Tensor:
        """The spectra (b, t, f) of signals (b, n), in the frames and window of the prediction."""
        ...


@runtime_checkable
class Normalises(Protocol):
    """forward(noisy, gain=...) takes the gain (b, 1) that brings a signal to its working level, or measures it."""

    normalises: bool


def rate_of(model: nn.Module) -> int:
    """The sample rate of a model, Hz."""
    assert isinstance(model, Sampled)
    return model.sample_rate


def blocks_of(model: nn.Module, key: str, name: str) -> list[nn.Module]:
    """The blocks of a model.

    Raises:
        RecipeError: naming `key`, if it has none.
    """
    blocks = dict(model.named_children()).get("blocks")
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise RecipeError(f"{key} needs a model with blocks, and {name} has none: set {key}=0")
    return list(blocks)
