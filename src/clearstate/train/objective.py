"""The loss of a recipe: the weighted sum of its terms, with shared spectra."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from clearstate.train import losses
from clearstate.train.networks import Frames
from clearstate.train.recipe import LossRecipe, loss_weights


class Judged(NamedTuple):
    """The loss of a batch and its terms."""

    total: Tensor  # scalar: the mean over the items of the weighted sum
    terms: dict[str, Tensor]  # scalar of each term, unweighted, detached


class Objective:
    """Weighted sum of the terms of `clearstate.train.losses` whose weight in the recipe is not zero.

    All signals are first scaled so that the noisy signal has an RMS of 1. So every item has the same weight,
    independent of its level and its batch.
    """

    def __init__(self, recipe: LossRecipe):
        self.recipe = recipe
        self.weights = {name: weight for name, weight in loss_weights(recipe).items() if weight > 0}

    def __call__(
        self, estimate: Tensor, clean: Tensor, noisy: Tensor, extra: dict[str, Tensor] | None = None
    ) -> Judged:
        """Judge a batch: estimate and clean (b, n), or (b, sources, n) with `snr_pit` alone; noisy (b, n).

        Args:
            extra: per-item values (b,) of terms that are computed elsewhere (metric, distill, consistency), by name;
                on top of the terms computed here.
        """
        gain = losses.level(noisy)  # (b, 1)
        if estimate.ndim == 3:
            items = self.separation_terms(estimate * gain[:, None], clean * gain[:, None])
        else:
            items = self.enhancement_terms(estimate * gain, clean * gain, noisy * gain)
        items.update(extra or {})
        total = sum((self.weights[name] * value.mean() for name, value in items.items()), estimate.new_zeros(()))
        return Judged(total, {name: value.detach().mean() for name, value in items.items()})

    def separation_terms(self, estimates: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms for models with several outputs, (b,) each."""
        mixture = targets.sum(1)[:, None, None]
        snr = partial(losses.negative_snr, ceiling=30.0, mixture=mixture)  # dB; above it the other voice is inaudible
        return {"snr_pit": losses.permutation_invariant(snr, estimates, targets).loss}

    def enhancement_terms(self, y: Tensor, s: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Terms of models with one output y, for target s and input x, (b,) each."""
        wanted, recipe = self.weights, self.recipe
        terms: dict[str, Tensor] = {}
        if {"magnitude", "complex", "phase", "log_magnitude"} & set(wanted):
            ours, theirs = (losses.spectrum(signal, recipe.n_fft, recipe.hop) for signal in (y, s))  # (b, t, f)
            a, b = losses.compress(ours, recipe.exponent), losses.compress(theirs, recipe.exponent)
            if "magnitude" in wanted:
                terms["magnitude"] = losses.magnitude_loss(a, b)
            if "complex" in wanted:
                terms["complex"] = losses.complex_loss(a, b)
            if "phase" in wanted:
                parts = losses.phase_losses(losses.phase(ours), losses.phase(theirs))
                terms["phase"] = parts.instantaneous + parts.group_delay + parts.frequency
            if "log_magnitude" in wanted:
                terms["log_magnitude"] = losses.log_magnitude_loss(ours, theirs)
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


def own_loss(terms: dict[str, Tensor], weight: float) -> Judged:
    """The loss of a model with its own `training_loss`: the weighted sum of its terms (b,)."""
    total = torch.stack([value.mean() for value in terms.values()]).sum()
    return Judged(weight * total, {name: value.detach().mean() for name, value in terms.items()})


def at_common_level(spec: Tensor, noisy: Tensor, frames: Frames) -> Tensor:
    """A spectrum (b, t, f) that a model predicted with a Hann window, at the level of the loss's own spectra.

    Noisy signal of RMS 1, window of unit energy (3/8 n_fft for Hann).
    """
    return spec * (losses.level(noisy)[..., None] / math.sqrt(3 / 8 * frames.n_fft))


def predicted_consistency(spec: Tensor, noisy: Tensor, frames: Frames) -> Tensor:
    """`losses.consistency_loss` of a spectrum (b, t, f) that a model predicted with a Hann window."""
    unit = at_common_level(spec, noisy, frames)
    return losses.consistency_loss(unit, frames.n_fft, frames.hop, noisy.shape[-1])


def sees_prediction(loss: LossRecipe) -> bool:
    """Whether the discriminator judges the predicted spectrum, not that of the output."""
    return loss.metric > 0 and loss.metric_sees == "prediction"
