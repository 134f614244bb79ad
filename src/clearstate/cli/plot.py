"""clearstate plot: draw the spectrograms of a recording before and after."""

from pathlib import Path
from typing import Annotated

import typer

from clearstate.audio.paths import why_no_file
from clearstate.cli.terminal import UsageError, note


def run(
    before: Annotated[Path, typer.Argument(metavar="IN", help="The noisy recording.")],
    after: Annotated[Path, typer.Argument(metavar="OUT", help="The processed recording.")],
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="Output file: .png, .svg or .pdf.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
) -> None:
    """Draw the spectrograms of two recordings, one above the other.

    Both use the same level scale (dB relative to full scale): darker areas in the lower picture show what was removed.
    Long recordings are read in pieces. Needs matplotlib (`pip install "clearstate[demo]"`).

    **Example**

    `clearstate plot talk.wav talk.clear.wav talk.png`
    """
    if picture.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"PICTURE {picture} ends in {picture.suffix!r}; expected .png, .svg or .pdf")
    if picture.exists() and not picture.is_file():  # never replace a device
        raise UsageError(f"{picture} {why_no_file(picture)}")
    if picture.exists() and not overwrite:
        raise UsageError(f"{picture} already exists; add --overwrite, or choose another name")
    from clearstate.audio.pictures import before_and_after

    before_and_after(before, after, picture)
    note(f"{picture}")
