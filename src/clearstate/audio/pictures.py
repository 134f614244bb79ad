"""Draw spectrograms of a recording before and after processing, on one scale.

matplotlib (extra `demo`) is imported when a picture is drawn. The Agg canvas needs no screen.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.atomic import replacing
from clearstate.audio.io import BrokenOffError, open_reader, until_broken
from clearstate.audio.paths import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Array = NDArray[np.float64]

WINDOW = 0.032  # seconds: about two pitch periods of a low voice
HOP = 0.008  # seconds
COLUMNS = 1600  # columns of a picture; frames of longer recordings are averaged
RANGE = 80.0  # dB from the brightest colour to the darkest
FLOOR = 1e-14  # power of digital silence in the picture: -140 dB


class Spectrogram(NamedTuple):
    """Levels in dB relative to a full-scale sine. The first bin is 0 Hz, the last is half the rate."""

    level: Array  # (f, t) dB
    seconds: float  # length of the recording
    rate: int  # Hz


def spectrogram(path: str | Path, *, columns: int = COLUMNS, broken: list[BrokenOffError] | None = None) -> Spectrogram:
    """Compute the spectrogram of a recording of any length, in pieces. Channels are averaged in power.

    Args:
        columns: maximum number of columns; neighbouring frames are averaged (in power) until they fit.
        broken: receives the error of a truncated file, and its readable part is drawn; None raises the error.
    Raises:
        ValueError: if the file is not audio, is damaged, or has no samples or NaN or infinite samples.
    """
    with open_reader(path) as sound:
        blocks = sound.blocks() if broken is None else until_broken(sound.blocks(), broken)
        return _of_blocks(blocks, sound.info.sample_rate, columns)


def spectrogram_of(x: Array, rate: int, columns: int = COLUMNS) -> Spectrogram:
    """The spectrogram of a signal (n,)."""
    return _of_blocks(iter([x[None]]), rate, columns)


def _of_blocks(blocks: Iterator[Array], rate: int, columns: int) -> Spectrogram:
    samples, n_fft, hop = 0, max(2, round(WINDOW * rate)), max(1, round(HOP * rate))
    done = rest = np.zeros((0, n_fft // 2 + 1))  # complete columns, and frames of the next column
    together = 1  # frames per column; doubles if there are too many columns, so the length need not be known
    for power, fresh in _frames(blocks, n_fft, hop):
        samples += fresh
        rest = np.concatenate([rest, power])
        whole = len(rest) // together * together
        done = np.concatenate([done, rest[:whole].reshape(-1, together, rest.shape[1]).mean(axis=1)])
        rest = rest[whole:]
        while len(done) > columns:
            if len(done) % 2:  # an odd column becomes frames again; copies of a mean keep the mean
                done, rest = done[:-1], np.concatenate([np.repeat(done[-1:], together, axis=0), rest])
            done, together = (done[0::2] + done[1::2]) / 2, 2 * together
    if len(rest):
        done = np.concatenate([done, rest.mean(axis=0, keepdims=True)])
    return Spectrogram(10 * np.log10(np.maximum(done.T, FLOOR)), samples / rate, rate)


def _frames(blocks: Iterator[Array], n_fft: int, hop: int) -> Iterator[tuple[Array, int]]:
    """Yield power spectra (t, f) of blocks (channels, n), with the number of new samples.

    A full-scale sine has power 1. Zeros complete the last frame, so that even one sample gives a frame.
    """
    window = np.hanning(n_fft + 1)[:-1]
    scale = (2 / window.sum()) ** 2
    held: Array | None = None
    covered = 0  # samples at the start of `held` that a frame has covered
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=1)
        count = max(0, (held.shape[1] - n_fft) // hop + 1)
        if count:
            yield _power(held, window, hop, count) * scale, block.shape[1]
            held, covered = held[:, count * hop :], n_fft - hop
        else:
            yield np.zeros((0, len(window) // 2 + 1)), block.shape[1]
    if held is not None and held.shape[1] > covered:
        last = np.concatenate([held, np.zeros((len(held), n_fft - held.shape[1]))], axis=1)
        yield _power(last, window, hop, 1) * scale, 0


def _power(x: Array, window: Array, hop: int, count: int) -> Array:
    """Power (count, f) of the first `count` frames of x (channels, n), averaged over channels."""
    cut = np.lib.stride_tricks.sliding_window_view(x, len(window), axis=1)[:, : count * hop : hop][:, :count]
    return (np.abs(np.fft.rfft(cut * window)) ** 2).mean(axis=0)


def before_and_after(before: str | Path, after: str | Path, picture: str | Path) -> None:
    """Draw the spectrograms of two recordings, one above the other, into a PNG, SVG or PDF file.

    Both use one colour scale. The picture is written atomically.

    Raises:
        ValueError: if a recording cannot be read.
        BrokenOffError: if one is truncated or damaged; its readable part has been drawn.
        ImportError: if matplotlib is missing.
    """
    titles = {f"before: {drawn(Path(before).name)}": before, f"after: {drawn(Path(after).name)}": after}
    one_above_the_other(titles, picture)


def one_above_the_other(
    recordings: Mapping[str, str | Path], picture: str | Path, inches: tuple[float, float] = (10, 6)
) -> None:
    """Draw the spectrograms of some recordings, by title, on one scale. See `before_and_after`."""
    broken: list[BrokenOffError] = []
    figure = _draw({title: spectrogram(path, broken=broken) for title, path in recordings.items()}, inches)
    picture = Path(picture)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with replacing(picture, suffix=picture.suffix) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter of a file name that the font lacks becomes a box
        figure.savefig(temporary, dpi=130)
    if broken:
        raise broken[0].saved(picture)


def _draw(spectrograms: Mapping[str, Spectrogram], inches: tuple[float, float]) -> "Figure":
    every = spectrograms.values()
    brightest = np.ceil(max(np.percentile(one.level, 99.9) for one in every) / 5) * 5
    figure = new_figure(inches)
    axes = figure.subplots(len(every), 1, sharex=True, sharey=True)
    for axis, (title, one) in zip(axes, spectrograms.items(), strict=True):
        image = show(axis, one, brightest, RANGE)
        axis.set_title(title, loc="left", fontsize=11, parse_math=False)
        axis.set_ylabel("frequency (kHz)")
    axes[0].set_xlim(0, max(one.seconds for one in every))
    axes[0].set_ylim(0, max(one.rate for one in every) / 2000)
    axes[-1].set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="level (dB re full scale)", pad=0.02, extend="both")
    return figure


def new_figure(inches: tuple[float, float]) -> "Figure":
    """A figure that needs no screen.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "drawing needs matplotlib, which is not installed: pip install 'clearstate[demo]'"
        raise ImportError(message) from error
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show(axis: "Axes", spectrogram: Spectrogram, brightest: float, range_db: float) -> "AxesImage":
    """Draw a spectrogram over seconds and kHz. The colours cover `range_db` below `brightest` dB."""
    return axis.imshow(
        spectrogram.level, origin="lower", aspect="auto", interpolation="nearest", cmap="magma",
        extent=(0, spectrogram.seconds, 0, spectrogram.rate / 2000), vmin=brightest - range_db, vmax=brightest,
    )  # fmt: skip
