"""Resolve a recipe into a plan: model, audio, loss and scores, checked against each other.

All questions about the model are answered here, once. The rest of the run reads the plan.
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
from clearstate.train.networks import JudgesItself, Normalises, PredictsSpectrum, blocks_of, rate_of
from clearstate.train.objective import Objective, sees_prediction, uses_prediction
from clearstate.train.recipe import Recipe, RecipeError
from clearstate.train.scoring import metrics_of


@dataclass(frozen=True)
class Plan:
    """A recipe with its model, audio, loss and scores."""

    recipe: Recipe
    folder: Path  # the run folder
    model: nn.Module  # with its initial weights
    sample_rate: int  # Hz, of model and audio
    items: Items  # for training
    pairs: Pairs  # for validation; empty without validation
    chosen: Sequence[int]  # indices of the pairs to score
    metrics: Sequence[str]  # computed by a validation
    scorer: str  # the function that computes them, "module:name"
    objective: Objective
    predicts: bool  # the loss uses the spectrum that the model predicts
    normalises: bool  # the model takes the gain of an utterance
    held: Sequence[nn.Parameter]  # frozen during schedule.hold: all parameters outside the blocks


def resolve(recipe: Recipe, model: nn.Module, items: Items | None = None, pairs: Pairs | None = None) -> Plan:
    """Resolve a recipe, with its audio or with the given items and pairs.

    Raises:
        RecipeError: if the model does not support the recipe, or audio is missing.
        MissingExtra: if a needed library is not installed, before the run starts.
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
    return Plan(
        recipe, Path(recipe.run), model, rate, items, held_out, spread(len(held_out), recipe.valid.items),
        metrics, scorer, Objective(recipe.loss, model),
        predicts=uses_prediction(recipe.loss, model), normalises=isinstance(model, Normalises),
        held=held_parameters(model, recipe),
    )  # fmt: skip


def check_model(recipe: Recipe, model: nn.Module) -> None:
    """Raise RecipeError if the model does not support the loss or the scores of the recipe."""
    name, loss, valid, rate = recipe.model.name, recipe.loss, recipe.valid, rate_of(model)
    task, terms = find(name).task, set(Objective(loss).weights)
    metrics, _ = metrics_of(task)
    both = f"{name} with the loss {', '.join(sorted(terms))}"
    if recipe.data.pcs is not None and (task, rate) != ("enhance", 16_000):  # whose bands alone are published
        raise RecipeError(
            f"data.pcs needs an enhancement model at 16000 Hz; the task of this one is {task}, at {rate} Hz: "
            "remove data.pcs"
        )
    if (valid.clean or valid.corpus) and valid.best not in metrics:
        raise RecipeError(f"valid.best={valid.best}: expected one of {', '.join(metrics)} for {name}")
    if (task == "separate") != (terms == {"snr_pit"}):
        raise RecipeError(f"{both}: separation models need snr_pit alone, and other models cannot use it")
    if isinstance(model, JudgesItself) and terms != {"own"}:
        raise RecipeError(f"{both}: a diffusion model needs its own loss alone: set loss={{own: 1}}")
    if "own" in terms and not isinstance(model, JudgesItself):
        raise RecipeError(f"loss.own: {name} has no own loss: set other terms, such as loss.l1=1")
    if "perceptual" in terms and rate != 16_000:
        raise RecipeError(f"loss.perceptual measures like wide-band PESQ, at 16000 Hz; the model runs at {rate}")
    if "metric" in terms:
        if rate != 16_000:
            raise RecipeError(
                f"loss.metric (wide-band PESQ) needs a model at 16000 Hz; this one runs at {rate}: set loss.metric=0"
            )
        need("pesq", "metrics", "loss.metric")
    for key, wanted, instead in (
        ("loss.consistency", "consistency" in terms, "loss.consistency=0"),
        ("loss.metric_sees=prediction", sees_prediction(loss), "loss.metric_sees=output"),
        ("loss.spectra=prediction", loss.spectra == "prediction", "loss.spectra=output"),
    ):
        if wanted and not isinstance(model, PredictsSpectrum):
            raise RecipeError(
                f"{key} needs a model that predicts a spectrum, and {name} does not "
                f"(its forward has no with_spectrum): set {instead}"
            )


def held_parameters(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """All parameters outside the model's blocks; none without schedule.hold."""
    if not recipe.schedule.hold:
        return []
    blocks = {id(p) for block in blocks_of(model, "schedule.hold", recipe.model.name) for p in block.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in blocks]


def spread(count: int, wanted: int | None) -> list[int]:
    """Select `wanted` of `count` indices at random, always the same ones.

    They are not evenly spaced, because validation folders often cycle through their conditions: every fifth pair might
    have the lowest SNR.

    >>> len(spread(100, 40)), spread(3, None)
    (40, [0, 1, 2])
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(drawn[:wanted].tolist())
