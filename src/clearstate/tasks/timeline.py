"""The timeline of a separation: when each speaker is active, from the power of the separated signals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME_SECONDS = 0.05  # of the timeline
OWN_RANGE_DB = 30.0  # a speaker is silent this far below their own loud parts
OTHER_RANGE_DB = 15.0  # and this far below the loudest speaker at that time, which is leakage
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
        level = 10 * np.log10(np.concatenate([*self._powers, *last], axis=1) + 1e-20)  # (speakers, frames)
        segments = []
        for row in level:
            audible = row[row > FLOOR_DBFS]
            loud = float(np.percentile(audible, 95)) if len(audible) else 0.0
            least = np.maximum(level.max(0) - OTHER_RANGE_DB, max(loud - OWN_RANGE_DB, FLOOR_DBFS))
            segments.append(self._runs(row > least))
        return segments

    def _runs(self, active: NDArray[np.bool_]) -> list[tuple[float, float]]:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
        runs: list[list[float]] = []
        for start, end in edges.reshape(-1, 2) * self.seconds:
            if runs and start - runs[-1][1] < GAP_SECONDS:
                runs[-1][1] = end
            else:
                runs.append([start, end])
        total = self._samples / self.sample_rate
        kept = [(start, min(end, total)) for start, end in runs if end - start >= min(LEAST_SECONDS, total)]
        return [(round(float(start), 2), round(float(end), 2)) for start, end in kept]
