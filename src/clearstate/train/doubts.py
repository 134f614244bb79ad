"""Warn about questionable settings of a valid recipe, one line each, before the run starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearstate.train.recipe import Recipe, audio_path

if TYPE_CHECKING:
    from torch import nn

LIKELY_RATES = (1e-6, 0.1)  # learning rates outside of these have never done any good


def doubts(recipe: Recipe, model: "nn.Module", dataset: Any) -> list[str]:
    """What somebody should look at before hours are spent, a line each.

    Args:
        dataset: what the training items are drawn from, see `clearstate.train.items.open_items`.
    """
    found = [
        _without_noise(recipe, dataset),
        _without_validation(recipe),
        _validation_among_training(recipe),
        _too_narrow(model, dataset),
        _too_short(recipe, model),
        _learning_rate(recipe),
    ]
    return [line for line in found if line]


def _without_noise(recipe: Recipe, dataset: Any) -> str | None:
    recorded = getattr(getattr(dataset, "config", None), "recorded", 0.0)  # MixtureConfig has it: noisy speech
    if not recorded or len(dataset.sources.noise):
        return None
    return (
        f"data.sources names no noise, though data.mixture.recorded={recorded:g} asks for it: the model learns from "
        "made-up noise alone; name folders in data.sources.noise, or set data.mixture.recorded=0"
    )


def _without_validation(recipe: Recipe) -> str | None:
    if recipe.valid.clean is not None or recipe.valid.corpus is not None:
        return None
    return (
        "no validation set: the last weights are kept, which may not be the best; "
        "set valid.noisy and valid.clean, or valid.corpus"
    )


def _validation_among_training(recipe: Recipe) -> str | None:
    data, valid = recipe.data, recipe.valid
    if (valid.noisy, valid.clean) == (data.noisy, data.clean):
        return None  # one corpus, told apart by speaker
    named = [*_listed(data.sources.get("speech")), *_listed(data.noisy), *_listed(data.clean)]
    training = {folder: audio_path(recipe, folder).resolve() for folder in named}
    for folder in (*_listed(valid.noisy), *_listed(valid.clean)):
        place = audio_path(recipe, folder).resolve()
        for name, other in training.items():
            if _searched(other) and (place == other or other in place.parents):
                return (
                    f"the validation files in {folder} are among the training files in {name}: their scores "
                    "say nothing about new voices; hold out speakers"
                )
    return None


def _searched(folder: Path) -> bool:
    """Whether training reads every file below a folder, and not the shards or the corpus that it holds."""
    from clearstate.data import recognise

    return not any(folder.glob("*.jsonl")) and recognise(folder) is None


def _listed(paths: Any) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else [str(path) for path in paths]


def _too_narrow(model: "nn.Module", dataset: Any) -> str | None:
    """Speech below the model's rate has nothing in the upper part of the band that the model is to learn."""
    sets = getattr(getattr(getattr(dataset, "sources", None), "speech", None), "sets", [])
    if not sets or any(getattr(opened, "narrow", 0) < len(opened.clips) for opened in sets):
        return None
    return (
        f"all speech is below the {model.sample_rate} Hz of the model: it cannot learn the band above; "
        "add speech of that rate, or train a model of a lower rate"
    )


def _too_short(recipe: Recipe, model: "nn.Module") -> str | None:
    window = getattr(model.config, "n_fft", 0)
    samples = round(recipe.data.seconds * int(model.sample_rate))  # type: ignore[arg-type]  # every model has one
    if samples >= 2 * window:
        return None
    return (
        f"data.seconds={recipe.data.seconds:g} is {samples} samples, and one window of the model is {window}: "
        f"items have too little context; set data.seconds to 1 or more"
    )


def _learning_rate(recipe: Recipe) -> str | None:
    low, high = LIKELY_RATES
    if low <= recipe.optimiser.lr <= high:
        return None
    effect = "nothing is learnt" if recipe.optimiser.lr < low else "the loss grows without bound"
    return f"optimiser.lr={recipe.optimiser.lr:g}: {effect} at this rate; usual values are 1e-4 to 3e-3"
