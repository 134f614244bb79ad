"""What the page plays: copies of recordings at equal loudness, in a format that every browser plays."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from clearstate.audio.info import Block, converted
from clearstate.audio.inspection.loudness import Loudness
from clearstate.audio.io import open_reader, until_broken

MOST_RATE = 48_000  # Hz
MOST_CHANNELS = 2
MOST_CHANGE_DB = 12.0  # of loudness: what is left of a recording without speech stays quiet
PEAK = 0.98

Progress = Callable[[float], None]  # seconds of audio that are done


def equally_loud(
    recordings: Sequence[Path], folder: Path, progress: Progress, as_first: Sequence[Path] = ()
) -> list[Path]:
    """Copies of recordings, in FLAC files in `folder`, with the loudness of the first one.

    All are turned down together where one of them would exceed full scale.

    Args:
        as_first: more recordings, which get the gain of the first one.
        progress: called with the seconds of audio that are done, of twice the length of all recordings.
    """
    every = [*recordings, *as_first]
    done = Counter(progress)
    measured = [_measure(path, done) for path in every]
    target = measured[0][0]
    gains = [_gain(target, loudness) for loudness, _ in measured[: len(recordings)]]
    gains += [gains[0]] * len(as_first)
    loudest = max(gain * peak for gain, (_, peak) in zip(gains, measured, strict=True))
    turned_down = min(1.0, PEAK / loudest) if loudest else 1.0
    copies = [folder / f"{number}.{path.stem}.flac" for number, path in enumerate(every, 1)]
    for path, gain, copy in zip(every, gains, copies, strict=True):
        _write(path, gain * turned_down, copy, done)
    return copies


class Counter:
    """Adds up the seconds of audio of several passes."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.seconds = progress, 0.0

    def counted(self, blocks: Iterator[Block], rate: int) -> Iterator[Block]:
        """The same blocks; each one is reported."""
        for block in blocks:
            self.seconds += block.shape[1] / rate
            self.progress(self.seconds)
            yield block


def _measure(path: Path, done: Counter) -> tuple[float, float]:
    """Loudness in LUFS and peak of what the player gets."""
    with open_reader(path) as source:
        rate, channels = _form(source.info.sample_rate, source.info.channels)
        loudness, peak = Loudness(rate, channels), 0.0
        blocks = done.counted(until_broken(source.blocks(), []), source.info.sample_rate)
        for block in converted(blocks, source.info.sample_rate, rate, channels):
            loudness.push(block)
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
    return loudness.integrated(), peak


def _gain(target: float, loudness: float) -> float:
    """The factor that brings a loudness to the target; 1 where one of them is silence."""
    change = target - loudness
    return float(10 ** (np.clip(change, -MOST_CHANGE_DB, MOST_CHANGE_DB) / 20)) if np.isfinite(change) else 1.0


def _write(path: Path, gain: float, copy: Path, done: Counter) -> None:
    with open_reader(path) as source:
        rate, channels = _form(source.info.sample_rate, source.info.channels)
        blocks = done.counted(until_broken(source.blocks(), []), source.info.sample_rate)
        with soundfile.SoundFile(copy, "w", rate, channels, "PCM_16", format="FLAC") as file:
            for block in converted(blocks, source.info.sample_rate, rate, channels):
                file.write(np.clip(gain * block.T, -1, 1))


def _form(rate: int, channels: int) -> tuple[int, int]:
    return min(rate, MOST_RATE), min(channels, MOST_CHANNELS)
