"""Pictures of sound: the spectrogram before and after, on one scale.

Only numpy and soundfile do arithmetic here; matplotlib (extra `demo`) is imported when a picture is drawn, with the Agg
canvas, so that no screen is needed.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

WINDOW = 0.032  # seconds: about two pitch periods of a low voice
HOP = 0.008  # seconds
COLUMNS = 1600  # as many columns as a picture shows; frames of longer recordings are averaged down to them
RANGE = 80.0  # dB from the brightest colour to the darkest
FLOOR = 1e-14  # power of what is drawn as digital silence: -140 dB


class Spectrogram(NamedTuple):
    """Levels in dB relative to a full-scale sine; the first bin is 0 Hz, the last half the rate."""

    level: npt.NDArray[np.float64]  # (f, t) dB
    seconds: float  # length of the recording
    rate: int  # Hz


def spectrogram(path: str | Path, *, columns: int = COLUMNS) -> Spectrogram:
    """The levels of a recording of any length, read in pieces; channels are averaged in power.

    Args:
        columns: at most so many frames come back: neighbours are averaged (in power) until they fit.
    Raises:
        ValueError: if the file cannot be read as audio, or holds no samples.
    """
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as sound:
            rate, samples = sound.samplerate, len(sound)
            n_fft, hop = max(2, round(WINDOW * rate)), max(1, round(HOP * rate))
            frames = 1 + max(0, samples - n_fft + hop - 1) // hop
            together = -(-frames // columns)  # frames averaged into one column
            power = np.array(list(_columns(sound, n_fft, hop, together)))  # (t, f)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path}: cannot be read as audio ({error}); expected WAV, FLAC, OGG, Opus or MP3") from error
    if not samples:
        raise ValueError(f"{path}: holds no samples, so there is nothing to draw")
    if not np.isfinite(power).all():
        raise ValueError(f"{path}: holds NaN or infinite samples; expected finite ones, write the file again")
    return Spectrogram(10 * np.log10(np.maximum(power.T, FLOOR)), samples / rate, rate)


def _columns(sound, n_fft: int, hop: int, together: int) -> Iterator[npt.NDArray[np.float64]]:
    """Mean power (f,) of each group of `together` frames, in order; the last group may be smaller."""
    window = np.hanning(n_fft + 1)[:-1]
    scale = (2 / window.sum()) ** 2  # a full-scale sine comes out as 1
    held = np.zeros((0, sound.channels))
    block = (together * hop) * max(1, (1 << 16) // (together * hop))
    last = False
    while not last:
        fresh = sound.read(block, dtype="float64", always_2d=True)  # (samples, channels)
        last = len(fresh) < block
        held = np.concatenate([held, fresh])
        if last:  # zeros complete the last frame; a recording shorter than a window still gives one
            held = np.concatenate(
                [held, np.zeros((max(n_fft - len(held), -(len(held) - n_fft) % hop), sound.channels))]
            )
        count = (len(held) - n_fft) // hop + 1
        if not last:
            count -= count % together
        if count <= 0:
            continue
        cut = np.lib.stride_tricks.sliding_window_view(held, n_fft, axis=0)[: count * hop : hop]  # (t, channels, n_fft)
        power = scale * (np.abs(np.fft.rfft(cut * window)) ** 2).mean(axis=1)  # (t, f)
        for start in range(0, count, together):
            yield power[start : start + together].mean(axis=0)
        held = held[count * hop :]


def before_and_after(before: str | Path, after: str | Path, picture: str | Path) -> None:
    """Draw two recordings one above the other, with one colour scale, into a PNG, SVG or PDF file.

    The picture appears under its name only when it is whole.

    Raises:
        ValueError: if a recording cannot be read.
        ImportError: if matplotlib is missing.
    """
    pair = (spectrogram(before), spectrogram(after))
    figure = _draw(pair, (f"before: {Path(before).name}", f"after: {Path(after).name}"))
    picture = Path(picture)
    picture.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix=picture.suffix, prefix=f".{picture.stem}.", dir=picture.parent)
    os.close(handle)
    try:
        figure.savefig(partial, dpi=130)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, picture)
    except BaseException:
        os.unlink(partial)
        raise


def _draw(pair: tuple[Spectrogram, Spectrogram], titles: tuple[str, str]):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "drawing a spectrogram needs matplotlib, which is not installed: pip install 'clearstate[demo]'"
        raise ImportError(message) from error

    brightest = np.ceil(max(np.percentile(one.level, 99.9) for one in pair) / 5) * 5
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for axis, one, title in zip(axes, pair, titles, strict=True):
        image = axis.imshow(
            one.level,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=(0, one.seconds, 0, one.rate / 2000),
            cmap="magma",
            vmin=brightest - RANGE,
            vmax=brightest,
        )
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_ylabel("frequency (kHz)")
    axes[0].set_xlim(0, max(one.seconds for one in pair))
    axes[0].set_ylim(0, max(one.rate for one in pair) / 2000)
    axes[1].set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="level (dB re full scale)", pad=0.02, extend="both")
    return figure


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
