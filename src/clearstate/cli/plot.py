"""clearstate plot: a picture of what was cleaned up."""

from pathlib import Path
from typing import Annotated

import typer

from clearstate.audio.paths import why_no_file
from clearstate.cli.terminal import UsageError, note


def run(
    before: Annotated[Path, typer.Argument(metavar="IN", help="The noisy recording.")],
    after: Annotated[Path, typer.Argument(metavar="OUT", help="What came out.")],
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The file to draw: .png, .svg or .pdf.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists.")] = False,
) -> None:
    """Draw the spectrograms of two recordings, one above the other.

    Both share the scale of level (dB relative to full scale), so that what is darker below has been taken away. Any
    length: a long recording is read in pieces. Needs matplotlib (`pip install "clearstate[demo]"`).

    **Example**

    `clearstate plot talk.wav talk.clear.wav talk.png`
    """
    if picture.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"PICTURE {picture} ends in {picture.suffix!r}; expected .png, .svg or .pdf")
    if picture.exists() and not picture.is_file():  # a device would be replaced
        raise UsageError(f"{picture} {why_no_file(picture)}")
    if picture.exists() and not overwrite:
        raise UsageError(f"{picture} exists already; add --overwrite, or give another name")
    from clearstate.audio.pictures import before_and_after

    before_and_after(before, after, picture)
    note(f"{picture}")
