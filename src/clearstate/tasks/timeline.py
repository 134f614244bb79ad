"""The timeline of a separation: when each speaker is active, from the power of the separated signals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME_SECONDS = 0.05  # of the timeline
OWN_RANGE_DB = 30.0  # a speaker is silent this far below their own loud parts
OTHER_RANGE_DB = 10.0  # and this far below the loudest speaker at that time, which is leakage
NOISE_SHARE = 0.1  # of the frames are pauses: so loud is the noise
NOISE_DB = 8.0  # above the noise is speech; but what is less than SPEECH_RANGE_DB below the loud parts is speech anyway
SPEECH_RANGE_DB = 15.0
FLOOR_DBFS = -70.0
GAP_SECONDS = 0.3  # shorter pauses do not end a segment
LEAST_SECONDS = 0.15  # shorter sounds are not a segment


class Activity:
    """Find active segments from each speaker's power in frames of FRAME_SECONDS (160 bytes per second of audio)."""

    def __init__(self, speakers: int, sample_rate: int) -> None:
        self.size = max(1, round(FRAME_SECONDS * sample_rate))
        self.seconds = self.size / sample_rate  # of a frame
        self.sample_rate = sample_rate
        self._held = np.zeros((speakers, 0))  # squares of an incomplete frame
        self._powers: list[NDArray[np.float32]] = []  # (speakers, frames)
        self._samples = 0

    def push(self, voices: NDArray[Any]) -> None:
        """Process the next samples (speakers, channels, n)."""
        self._samples += voices.shape[2]
        squares = np.concatenate([self._held, np.square(voices).mean(1)], axis=1)
        whole = squares.shape[1] // self.size * self.size
        frames = squares[:, :whole].reshape(len(squares), -1, self.size)
        self._powers.append(frames.mean(2).astype(np.float32))
        self._held = squares[:, whole:]

    def segments(self) -> list[list[tuple[float, float]]]:
        """The active segments of each speaker: start and end in seconds."""
        last = [self._held.mean(1, keepdims=True)] if self._held.shape[1] else []
        power = np.concatenate([*self._powers, *last], axis=1)  # (speakers, frames)
        level, least = 10 * np.log10(power + 1e-20), speech_level(10 * np.log10(power.sum(0) + 1e-20))
        segments = []
        for row in level:
            audible = row[row > FLOOR_DBFS]
            own = float(np.percentile(audible, 95)) - OWN_RANGE_DB if len(audible) else 0.0
            segments.append(self._in_seconds(row > np.maximum(level.max(0) - OTHER_RANGE_DB, max(own, least))))
        return segments

    def _in_seconds(self, active: NDArray[np.bool_]) -> list[tuple[float, float]]:
        total = self._samples / self.sample_rate
        found = runs(active, GAP_SECONDS / self.seconds, min(LEAST_SECONDS, total) / self.seconds)
        return [(round(start * self.seconds, 2), round(min(end * self.seconds, total), 2)) for start, end in found]


def speech_level(level: NDArray[Any]) -> float:
    """The level in dB above which frames are speech, from the levels of all frames (t,)."""
    audible = level[level > FLOOR_DBFS]
    if not len(audible):
        return FLOOR_DBFS
    noise, loud = np.quantile(audible, [NOISE_SHARE, 0.95])
    return float(max(FLOOR_DBFS, min(noise + NOISE_DB, loud - SPEECH_RANGE_DB)))


def runs(active: NDArray[np.bool_], gap: float, least: float) -> list[tuple[int, int]]:
    """Runs of active frames: the first, and the one after the last.

    Args:
        gap: frames; a shorter gap does not end a run.
        least: frames of a run.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    found: list[list[int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if found and start - found[-1][1] < gap:
            found[-1][1] = end
        else:
            found.append([start, end])
    return [(start, end) for start, end in found if end - start >= least]
