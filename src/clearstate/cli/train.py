"""clearstate train: train a model from a recipe. The work itself is in `train/command.py` and `train/loop.py`."""

from pathlib import Path
from typing import Annotated

import typer

from clearstate.cli.terminal import UsageError, note
from clearstate.installed import need_torch


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/live.yaml.", show_default=False)],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Values that override the recipe.")
    ] = None,
    preview: Annotated[
        int, typer.Option(min=0, metavar="N", help="Write N training items as audio files to listen to, and exit.")
    ] = 0,
) -> None:
    """Train a model from a recipe, or resume if the run folder has a checkpoint.

    `clearstate train recipes/live.yaml audio=FOLDER run=runs/mine schedule.max_minutes=60`

    The run folder contains `best/` (the weights, for `clearstate enhance --model`), `checkpoint.pt`, `log.jsonl` and
    pictures. On Ctrl-C or SIGTERM, a checkpoint is written first.

    Exit codes: 0 the schedule is complete, 130 or 143 stopped by a signal; run the same command to resume.
    """
    need_torch("clearstate train")
    from clearstate.train.command import run_recipe, write_preview
    from clearstate.train.recipe import RecipeError, load_recipe

    try:
        loaded = load_recipe(recipe, changes or [])
        if preview:
            files = write_preview(loaded, preview)
            print(files[0].parent)
            return
        outcome = run_recipe(loaded)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    if outcome.weights is not None:
        print(outcome.weights)
    if not outcome.finished:
        note(f"stopped at step {outcome.step}; run the same command to resume")
        raise typer.Exit(128 + outcome.signal)
