"""The loss of a recipe: the weighted sum of its terms, with shared spectra."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clearstate.train import losses
from clearstate.train.networks import PredictsSpectrum
from clearstate.train.recipe import LossRecipe, loss_weights


class Judged(NamedTuple):
    """The loss of a batch and its terms."""

    total: Tensor  # scalar: the mean over the items of the weighted sum
    terms: dict[str, Tensor]  # scalar of each term, unweighted, detached


class Objective:
    """Weighted sum of the terms of `clearstate.train.losses` whose weight in the recipe is not zero.

    All signals are first brought to a common level (`loss.level`). With the default, the noisy signal has an RMS of 1,
    so every item has the same weight, independent of its level and its batch.

    Args:
        model: a model that predicts a spectrum is judged in its own frames and window, so that the weights of the terms
            mean what they mean in its paper; other models in a window of unit energy with the recipe's n_fft and hop.
    """

    def __init__(self, recipe: LossRecipe, model: nn.Module | None = None):
        self.recipe = recipe
        self.weights = {name: weight for name, weight in loss_weights(recipe).items() if weight > 0}
        self.stft: Callable[[Tensor], Tensor] = partial(losses.spectrum, n_fft=recipe.n_fft, hop=recipe.hop)
        if isinstance(model, PredictsSpectrum):
            self.stft = model.spectrum

    def level(self, noisy: Tensor, known: Tensor | None = None) -> Tensor:
        """The gain (b, 1) that noisy signals (b, n) and their partners are judged with.

        Args:
            known: 1 / RMS of the whole utterances that these are crops of.
        """
        if known is not None:
            return known
        return losses.level(noisy) if self.recipe.level != "none" else torch.ones_like(noisy[:, :1])

    def __call__(
        self,
        estimate: Tensor,
        clean: Tensor,
        noisy: Tensor,
        extra: dict[str, Tensor] | None = None,
        predicted: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> Judged:
        """Judge a batch: estimate and clean (b, n), or (b, sources, n) with `snr_pit` alone; noisy (b, n).

        Args:
            extra: per-item values (b,) of terms that are computed elsewhere (metric, distill), by name; on top of the
                terms computed here.
            predicted: the spectrum (b, t, f) that the model predicted, at the level of the estimate.
            gain: see `level`; measured if None.
        """
        gain = self.level(noisy, gain)  # (b, 1)
        if estimate.ndim == 3:
            items = self.separation_terms(estimate * gain[:, None], clean * gain[:, None])
        else:
            predicted = predicted if predicted is None else predicted * gain[..., None]
            items = self.enhancement_terms(estimate * gain, clean * gain, noisy * gain, predicted)
        items.update(extra or {})
        total = sum((self.weights[name] * value.mean() for name, value in items.items()), estimate.new_zeros(()))
        return Judged(total, {name: value.detach().mean() for name, value in items.items()})

    def separation_terms(self, estimates: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms for models with several outputs, (b,) each."""
        mixture = targets.sum(1)[:, None, None]
        snr = partial(losses.negative_snr, ceiling=30.0, mixture=mixture)  # dB; above it the other voice is inaudible
        return {"snr_pit": losses.permutation_invariant(snr, estimates, targets).loss}

    def enhancement_terms(self, y: Tensor, s: Tensor, x: Tensor, predicted: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of models with one output y, for target s and input x, (b,) each."""
        wanted, recipe = self.weights, self.recipe
        terms: dict[str, Tensor] = {}
        if {"magnitude", "complex", "phase", "log_magnitude"} & set(wanted):
            if predicted is None or recipe.spectra == "output":
                terms = self.spectral_terms(self.stft(y), self.stft(s), losses.FLOOR, losses.FLOOR)
            else:
                terms = self.spectral_terms(predicted, self.stft(s), losses.PREDICTED_FLOOR, losses.ANY_PHASE)
        if "consistency" in wanted and predicted is not None:
            terms["consistency"] = losses.consistency_loss(predicted, self.stft(y), recipe.exponent)
        if "multi_resolution" in wanted:
            terms["multi_resolution"] = losses.multi_resolution_loss(y, s, exponent=recipe.exponent)
        if "perceptual" in wanted:
            terms["perceptual"] = losses.perceptual_loss(y, s)
        if "log_spectral" in wanted:
            terms["log_spectral"] = losses.log_spectral_loss(y, s, x)
        if "added_error" in wanted:
            terms["added_error"] = losses.added_error(y, s, x)
        if "log_error" in wanted:
            terms["log_error"] = losses.log_error(y, s, x)
        if "l1" in wanted:
            terms["l1"] = losses.l1(y, s)
        if "si_sdr" in wanted:
            terms["si_sdr"] = losses.negative_si_sdr(y, s)
        return terms

    def spectral_terms(self, ours: Tensor, theirs: Tensor, floor: float, phase_floor: float) -> dict[str, Tensor]:
        """The terms that compare a spectrum with that of the target, both (b, t, f); (b,) each.

        Args:
            floor, phase_floor: power below which the magnitude is compressed linearly, and below which a bin has no
                phase.
        """
        wanted, recipe = self.weights, self.recipe
        a, b = (losses.compress(spec, recipe.exponent, floor) for spec in (ours, theirs))
        terms: dict[str, Tensor] = {}
        if "magnitude" in wanted:
            terms["magnitude"] = losses.magnitude_loss(a, b)
        if "complex" in wanted:
            terms["complex"] = losses.complex_loss(a, b)
        if "phase" in wanted:
            found, wished = (losses.phase(spec, phase_floor) for spec in (ours, theirs))
            parts = losses.phase_losses(found, wished, edges=recipe.phase_edges)
            terms["phase"] = parts.instantaneous + parts.group_delay + parts.frequency
        if "log_magnitude" in wanted:
            terms["log_magnitude"] = losses.log_magnitude_loss(ours, theirs, floor)
        return terms


def own_loss(terms: dict[str, Tensor], weight: float) -> Judged:
    """The loss of a model with its own `training_loss`: the weighted sum of its terms (b,)."""
    total = torch.stack([value.mean() for value in terms.values()]).sum()
    return Judged(weight * total, {name: value.detach().mean() for name, value in terms.items()})


def uses_prediction(loss: LossRecipe, model: nn.Module) -> bool:
    """Whether the loss needs the spectrum that the model predicts."""
    terms = (loss.magnitude, loss.complex, loss.phase, loss.log_magnitude, loss.distill)
    spectral = max(terms) > 0 and loss.spectra != "output"
    return isinstance(model, PredictsSpectrum) and (spectral or loss.consistency > 0 or sees_prediction(loss))


def sees_prediction(loss: LossRecipe) -> bool:
    """Whether the discriminator judges the predicted spectrum, not that of the output."""
    return loss.metric > 0 and loss.metric_sees == "prediction"
