"""Run a recipe: check the machine, build the model, open the audio, train. Used by `clearstate train`."""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearstate.nearest import nearest
from clearstate.train.recipe import Recipe, RecipeError, load_recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clearstate.train.loop import Outcome


def run_recipe(recipe: Recipe, *, quiet: bool = False) -> "Outcome":
    """Build the model, open the audio, train.

    Raises:
        RecipeError: for a recipe that cannot run here.   MissingExtra: for a library that training needs.
    """
    from clearstate.metrics.extras import need

    for library in ("lightning.fabric", "scipy", "matplotlib"):
        need(library, "train", "training")
    import torch

    check_machine(recipe)
    check_folder(Path(recipe.run))
    torch.manual_seed(recipe.seed)
    model = build_model(recipe)

    from clearstate.train.doubts import doubts
    from clearstate.train.items import Drawn
    from clearstate.train.loop import Run
    from clearstate.train.plan import resolve

    plan = resolve(recipe, model)
    if isinstance(plan.items, Drawn):
        for doubt in doubts(recipe, model, plan.items.dataset):
            warnings.warn(doubt)
    return Run(plan, quiet).run()


def check_machine(recipe: Recipe) -> None:
    """Raise RecipeError for missing devices; torchrun has already counted the processes."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if recipe.accelerator == "cuda" and not gpus:
        raise RecipeError(
            f"accelerator=cuda, but torch {torch.__version__} finds no GPU: set accelerator=auto or cpu, "
            "or install the driver and a torch with CUDA"
        )
    on_gpu = gpus and recipe.accelerator != "cpu"
    most, what = (gpus, "GPUs") if on_gpu else (max(2, os.cpu_count() or 1), "processes at most on this processor")
    if recipe.devices > most and "LOCAL_WORLD_SIZE" not in os.environ:
        raise RecipeError(f"devices={recipe.devices}, but there are {most} {what}: set devices={most} or fewer")


def check_folder(folder: Path) -> None:
    """Raise RecipeError for a run folder that cannot be created or written, before any work starts."""
    nearest_there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not nearest_there.is_dir():
        raise RecipeError(f"run={folder}: {nearest_there} is not a folder; choose another one with run=FOLDER")
    if not os.access(nearest_there, os.W_OK | os.X_OK):
        raise RecipeError(
            f"run={folder}: cannot write into {nearest_there}; check its permissions, or choose another folder "
            "with run=FOLDER"
        )


def write_preview(recipe: Recipe, count: int) -> list[Path]:
    """Write `count` training items to preview/ in the run folder; see clearstate.data.preview."""
    from clearstate import models
    from clearstate.data import preview
    from clearstate.train.items import open_dataset
    from clearstate.train.networks import rate_of

    rate, task = rate_of(build_model(recipe)), models.find(recipe.model.name).task
    return preview(open_dataset(recipe, task, rate), count, Path(recipe.run) / "preview")


def build_model(recipe: Recipe) -> "nn.Module":
    """Build the model of a recipe, with the weights of model.start if given.

    Raises:
        RecipeError: for an unknown model or an unknown field of its configuration.
    """
    from clearstate import models

    name, config = recipe.model.name, recipe.model.config
    if name not in models.PRESETS:
        raise RecipeError(f"unknown model model.name={name!r}; {nearest(name, models.PRESETS)}")
    known = vars(models.build(name).config)
    for key in config:
        if key not in known:
            raise RecipeError(f"unknown key model.config.{key}; {nearest(key, known)}")
    model = models.build(name, **config)
    if recipe.model.start is not None:
        try:
            weights = models.load_model(recipe.model.start).state_dict()
        except (ValueError, OSError) as error:
            raise RecipeError(f"model.start={recipe.model.start}: {error}") from error
        start_from(model, weights, recipe.model.start)
    return model


def start_from(model: "nn.Module", weights: dict[str, "Tensor"], origin: str) -> None:
    """Take every tensor of a model from `weights`, which may have more: a student of one block starts as its teacher.

    Raises:
        RecipeError: naming a tensor that is missing or of another shape.
    """
    ours = model.state_dict()
    for name, value in ours.items():
        found = "no such tensor" if name not in weights else tuple(weights[name].shape)
        if found != tuple(value.shape):
            raise RecipeError(
                f"model.start={origin} does not fit: {name} is {tuple(value.shape)} here, there it is {found}"
            )
    model.load_state_dict({name: weights[name] for name in ours})


def main(arguments: Sequence[str] | None = None) -> int:
    """`RECIPE [key=value ...]`; the exit code is 0 if finished, 1 for work that failed, 2 for a bad recipe, 128 + n
    if signal n stopped it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print("usage: python -m clearstate.train RECIPE [key=value ...]", file=sys.stderr)
        return 0 if given else 2
    try:
        outcome = run_recipe(load_recipe(given[0], given[1:]))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        if os.environ.get("CLEARSTATE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0 if outcome.finished else 128 + outcome.signal
