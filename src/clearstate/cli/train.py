"""clearstate train: a model from a recipe and audio."""

from pathlib import Path
from typing import Annotated

import typer

from clearstate.cli.terminal import UsageError, note


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/live.yaml.", show_default=False)],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Values that differ from the recipe's.")
    ] = None,
    preview: Annotated[
        int, typer.Option(min=0, metavar="N", help="Write N training items to listen to, and do not train.")
    ] = 0,
) -> None:
    """Train a model from a recipe; on from where it stood, if its run folder holds a checkpoint.

    `clearstate train recipes/live.yaml audio=FOLDER run=runs/mine schedule.max_minutes=60`

    The run folder holds `best/`, the weights that `clearstate enhance --model` takes; `checkpoint.pt`; `log.jsonl`; and
    pictures. Ctrl-C and SIGTERM write a checkpoint first. Exit code 0: the schedule ended; 130 or 143: stopped by a
    signal, the same command goes on.
    """
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
        note(f"stopped at step {outcome.step}; the same command goes on from there")
        raise typer.Exit(128 + outcome.signal)
