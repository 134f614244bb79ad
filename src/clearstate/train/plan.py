"""A recipe resolved into what a run works with: model, audio, loss, scores, checked against each other.

What a model is, has and needs is asked here, once; everything after it reads the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from clearstate.metrics.extras import need
from clearstate.models import find
from clearstate.train.batches import Items
from clearstate.train.items import Drawn, Pairs, open_items, open_pairs
from clearstate.train.networks import Frames, JudgesItself, PredictsSpectrum, blocks_of, rate_of
from clearstate.train.objective import Objective, sees_prediction
from clearstate.train.recipe import Recipe, RecipeError
from clearstate.train.scoring import metrics_of


@dataclass(frozen=True)
class Plan:
    """A recipe, and everything that follows from it."""

    recipe: Recipe
    folder: Path  # of the run
    model: nn.Module  # with the weights that it starts from
    sample_rate: int  # Hz, of the model and all audio
    items: Items  # to learn from
    pairs: Pairs  # held out; empty if there is no validation
    chosen: Sequence[int]  # numbers of the pairs that a validation scores
    metrics: Sequence[str]  # that a validation gives
    scorer: str  # where to find the function that gives them, "module:name"
    objective: Objective
    spectrum: Frames | None  # of the spectrum that the model predicts, if the loss has a use for it
    held: Sequence[nn.Parameter]  # what does not learn while schedule.hold lasts: all but the model's blocks


def resolve(recipe: Recipe, model: nn.Module, items: Items | None = None, pairs: Pairs | None = None) -> Plan:
    """The plan of a recipe, with the audio that it names, or with these items and pairs instead.

    Raises:
        RecipeError: if the recipe asks for what the model cannot give, or its audio is missing.
        MissingExtra: now, not at the first validation hours later, if a library that it uses is not installed.
    """
    check_model(recipe, model)
    task, rate = find(recipe.model.name).task, rate_of(model)
    if items is None:
        items, pairs = open_items(recipe, task, rate), open_pairs(recipe, task, rate)
    if pairs is not None:
        for library in ("pesq", "pystoi"):
            need(library, "metrics", "validation")
        if recipe.valid.pictures:
            need("matplotlib.figure", "train", "valid.pictures")
    held_out = Drawn([]) if pairs is None else pairs
    metrics, scorer = metrics_of(task)
    uses_spectrum = recipe.loss.consistency > 0 or sees_prediction(recipe.loss)
    return Plan(
        recipe, Path(recipe.run), model, rate, items, held_out, spread(len(held_out), recipe.valid.items),
        metrics, scorer, Objective(recipe.loss),
        spectrum=model.config if uses_spectrum and isinstance(model, PredictsSpectrum) else None,
        held=held_parameters(model, recipe),
    )  # fmt: skip


def check_model(recipe: Recipe, model: nn.Module) -> None:
    """Raise RecipeError if the recipe needs what the model does not give, or no validation gives what is to choose."""
    name, loss, valid, rate = recipe.model.name, recipe.loss, recipe.valid, rate_of(model)
    task, terms = find(name).task, set(Objective(loss).weights)
    metrics, _ = metrics_of(task)
    both = f"{name} with the loss {', '.join(sorted(terms))}"
    if recipe.data.pcs is not None and (task, rate) != ("enhance", 16_000):  # whose bands alone are published
        raise RecipeError(
            f"data.pcs stretches the targets of models that enhance at 16000 Hz; this one is there to {task} at "
            f"{rate}: leave data.pcs out"
        )
    if (valid.clean or valid.corpus) and valid.best not in metrics:
        raise RecipeError(f"valid.best={valid.best}: {name} is scored by {', '.join(metrics)}")
    if (task == "separate") != (terms == {"snr_pit"}):
        raise RecipeError(f"{both}: snr_pit, and nothing else, is the loss of models that separate sources")
    if isinstance(model, JudgesItself) and terms != {"own"}:
        raise RecipeError(f"{both}: own goes by itself, and a diffusion model has no other: set loss={{own: 1}}")
    if "own" in terms and not isinstance(model, JudgesItself):
        raise RecipeError(f"loss.own: {name} has no loss of its own, so name terms, such as loss.l1=1")
    if "perceptual" in terms and rate != 16_000:
        raise RecipeError(f"loss.perceptual measures as wide-band PESQ does, at 16000 Hz; the model runs at {rate}")
    if "metric" in terms:
        if rate != 16_000:
            raise RecipeError(f"loss.metric predicts wide-band PESQ, defined at 16000 Hz; the model runs at {rate}")
        need("pesq", "metrics", "loss.metric")
    frames = model.config if isinstance(model, PredictsSpectrum) else None
    for key, wanted, instead in (
        ("loss.consistency", "consistency" in terms, "loss.consistency=0"),
        ("loss.metric_sees=prediction", sees_prediction(loss), "loss.metric_sees=output"),
    ):
        if wanted and frames is None:
            raise RecipeError(
                f"{key} needs the spectrum that a model predicts, and {name} gives none "
                f"(its forward has no with_spectrum): set {instead}"
            )
    if frames and sees_prediction(loss) and (frames.n_fft, frames.hop) != (loss.n_fft, loss.hop):
        raise RecipeError(
            f"loss.metric_sees=prediction compares spectra of the model with those of the loss: set "
            f"loss.n_fft={frames.n_fft} and loss.hop={frames.hop}"
        )


def held_parameters(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """All parameters but those of the model's blocks; none without schedule.hold."""
    if not recipe.schedule.hold:
        return []
    blocks = {id(p) for block in blocks_of(model, "schedule.hold", recipe.model.name) for p in block.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in blocks]


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` indices, drawn once and always the same ones.

    Not at even distances: validation folders often go through their conditions in turn, and every fifth pair may be
    the one with the lowest SNR.

    >>> len(spread(100, 40)), spread(3, None)
    (40, [0, 1, 2])
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(drawn[:wanted].tolist())
