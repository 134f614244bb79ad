"""clearstate convert: turn published checkpoints into weights that every other verb accepts."""

from pathlib import Path
from typing import Annotated

import typer

from clearstate.cli.terminal import note


def run(
    checkpoint: Annotated[Path, typer.Argument(help="The published checkpoint file.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="The model of the checkpoint.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Output folder. Default: the name of the checkpoint without its extension.",
        ),
    ] = None,
) -> None:
    """Convert a published checkpoint to weights that every other verb accepts.

    Supported: SEMamba (`--to semamba-advanced`), RT-SEMamba (`--to semamba-causal-8`, or -1, -2, -4), MP-SENet
    (`--to mp-senet`) and its Mamba hybrid (`--to mp-senet-mamba`, or mp-senet-mamba-small). Every tensor must match the
    model by name and shape. If one does not, the error names it and nothing is written.

    `--to discriminator` converts the metric discriminator of SEMamba or MP-SENet, for training: a recipe starts from it
    with `loss.metric_start`.

    **Example**

    `clearstate convert SEMamba_advanced.pth --to semamba-advanced -o semamba`

    `clearstate enhance talk.wav --model semamba`
    """
    folder = output or checkpoint.with_suffix("")
    if to == "discriminator":
        from clearstate.train import discriminator

        outcome = discriminator.convert(checkpoint, folder)
    else:
        from clearstate.models.convert import convert

        outcome = convert(checkpoint, to, folder)
    note(f"{outcome.tensors} tensors, {outcome.parameters:,} parameters")
    print(outcome.folder)
