"""The loss of a recipe: its terms weighted and summed, spectra computed once."""

import inspect
import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clearstate.metrics.extras import need
from clearstate.models import find
from clearstate.train import losses
from clearstate.train.recipe import LossRecipe, Recipe, RecipeError, loss_weights
from clearstate.train.scoring import metrics_of


class Judged(NamedTuple):
    total: Tensor  # scalar: the mean over the items of the weighted sum
    terms: dict[str, Tensor]  # scalar of each term, unweighted, detached


class Objective:
    """Weighted sum of the terms of `clearstate.losses` whose weight in the recipe is not zero.

    All signals are first brought to the level at which the noisy one has an RMS of 1. Every item counts the same,
    whatever its level and whatever the batch it came in.
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
        mixture = targets.sum(1)[:, None, None]
        snr = partial(losses.negative_snr, ceiling=30.0, mixture=mixture)  # dB; beyond it nobody hears the other voice
        return {"snr_pit": losses.permutation_invariant(snr, estimates, targets).loss}

    def enhancement_terms(self, y: Tensor, s: Tensor, x: Tensor) -> dict[str, Tensor]:
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
    """The loss of a model that judges itself: the sum of the terms (b,) of its `training_loss`, weighted."""
    total = torch.stack([value.mean() for value in terms.values()]).sum()
    return Judged(weight * total, {name: value.detach().mean() for name, value in terms.items()})


def at_common_level(spec: Tensor, noisy: Tensor, config: Any) -> Tensor:
    """A spectrum (b, t, f) that a model predicted with a Hann window, at the level of the loss's own spectra.

    Noisy signal of RMS 1, window of unit energy (3/8 n_fft for Hann).
    """
    return spec * (losses.level(noisy)[..., None] / math.sqrt(3 / 8 * config.n_fft))


def predicted_consistency(spec: Tensor, noisy: Tensor, config: Any) -> Tensor:
    """`losses.consistency_loss` of a spectrum (b, t, f) that a model predicted with a Hann window."""
    unit = at_common_level(spec, noisy, config)
    return losses.consistency_loss(unit, config.n_fft, config.hop, noisy.shape[-1])


def check_extras(recipe: Recipe) -> None:
    """Raise MissingExtra now, not at the first validation hours later, if something it uses is not installed."""
    for library in ("pesq", "pystoi"):
        need(library, "metrics", "validation")
    if recipe.valid.pictures:
        need("matplotlib.figure", "train", "valid.pictures")


def check_model(recipe: Recipe, model: nn.Module) -> None:
    """Raise RecipeError if the loss needs what the model does not give, or no validation gives what is to choose."""
    known, _ = metrics_of(find(recipe.model.name).task)
    if recipe.valid.clean is not None and recipe.valid.best not in known:
        raise RecipeError(f"valid.best={recipe.valid.best}: {recipe.model.name} is scored by {', '.join(known)}")
    terms = {name for name, weight in loss_weights(recipe.loss).items() if weight > 0}
    if (find(recipe.model.name).task == "separate") != (terms == {"snr_pit"}):
        raise RecipeError(
            f"{recipe.model.name} with the loss {', '.join(sorted(terms))}: snr_pit, and nothing else, is the loss of "
            "models that separate sources"
        )
    diffuses = getattr(model, "is_diffusion", False)
    if (diffuses or "own" in terms) and terms != {"own"}:
        raise RecipeError(
            f"{recipe.model.name} with the loss {', '.join(sorted(terms))}: own goes by itself"
            + (", and a diffusion model has no other: set loss={own: 1}" if diffuses else "")
        )
    if "own" in terms and not hasattr(model, "training_loss"):
        raise RecipeError(f"loss.own: {recipe.model.name} has no loss of its own, so name terms, such as loss.l1=1")
    for key, wanted, instead in (
        ("loss.consistency", recipe.loss.consistency > 0, "loss.consistency=0"),
        ("loss.metric_sees=prediction", sees_prediction(recipe.loss), "loss.metric_sees=output"),
    ):
        if wanted and "with_spectrum" not in inspect.signature(model.forward).parameters:
            raise RecipeError(
                f"{key} needs the spectrum that a model predicts, and {recipe.model.name} gives none "
                f"(its forward has no with_spectrum): set {instead}"
            )
    config: Any = model.config
    if sees_prediction(recipe.loss) and (config.n_fft, config.hop) != (recipe.loss.n_fft, recipe.loss.hop):
        raise RecipeError(
            f"loss.metric_sees=prediction compares spectra of the model with those of the loss: set "
            f"loss.n_fft={config.n_fft} and loss.hop={config.hop}"
        )


def sees_prediction(loss: LossRecipe) -> bool:
    """Whether the discriminator judges the predicted spectrum, not that of the output."""
    return loss.metric > 0 and loss.metric_sees == "prediction"
