"""Train models from recipes: a loop on Lightning Fabric with validation and checkpoints.

from clearstate.train import train
train("recipes/live.yaml", ["schedule.max_minutes=60"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearstate.train.loop import Outcome


def train(recipe: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> Outcome:
    """Train a recipe to the end of its schedule, or resume from the checkpoint in its run folder.

    Args:
        recipe: a YAML file.
        overrides: `key=value` with dotted keys, as on the command line.
    Raises:
        RecipeError: if the recipe is invalid or its audio is missing.
    """
    from clearstate.train.command import run_recipe
    from clearstate.train.recipe import load_recipe

    return run_recipe(load_recipe(recipe, overrides), quiet=quiet)
