"""The picture of a separation: when each speaker is active."""

from collections.abc import Sequence
from pathlib import Path

from clearstate.audio.pictures import new_figure

COLOURS = ("#b63679", "#4f46e5", "#0f766e", "#b45309")
INCHES = (6.5, 5.0)  # pictures of the page: their letters are large enough on a phone


def draw_timeline(segments: Sequence[Sequence[tuple[float, float]]], seconds: float, picture: Path) -> None:
    """Draw the segments of each speaker over time as a PNG file."""
    figure = new_figure((INCHES[0], 0.8 + 0.5 * len(segments)))
    axis = figure.subplots()
    for row, speaker in enumerate(segments):
        bars = [(start, end - start) for start, end in speaker]
        axis.broken_barh(bars, (row - 0.3, 0.6), color=COLOURS[row % len(COLOURS)])
    axis.set_yticks(range(len(segments)), [f"speaker {row + 1}" for row in range(len(segments))])
    axis.set_xlim(0, seconds)
    axis.set_ylim(len(segments) - 0.5, -0.5)
    axis.set_xlabel("time (s)")
    figure.savefig(picture, dpi=130)
