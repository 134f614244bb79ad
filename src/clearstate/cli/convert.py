"""clearstate convert: weights that others have published."""

from pathlib import Path
from typing import Annotated

import typer

from clearstate.cli.terminal import note


def run(
    checkpoint: Annotated[Path, typer.Argument(help="The published file.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="The model it is of.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write. Default: named after the file."),
    ] = None,
) -> None:
    """Convert a published checkpoint to weights that every other verb takes.

    For SEMamba (`--to semamba-advanced`), RT-SEMamba (`--to semamba-causal-8`, or -1, -2, -4), MP-SENet
    (`--to mp-senet`) and its hybrid (`--to mp-senet-mamba`, or -small). Every tensor must have its place and its shape;
    one that has not is named, and nothing is written.

    **Example**

    `clearstate convert SEMamba_advanced.pth --to semamba-advanced -o semamba`

    `clearstate enhance talk.wav --model semamba`
    """
    from clearstate.models.convert import convert

    outcome = convert(checkpoint, to, output or checkpoint.with_suffix(""))
    note(f"{outcome.tensors} tensors, {outcome.parameters:,} parameters")
    print(outcome.folder)
