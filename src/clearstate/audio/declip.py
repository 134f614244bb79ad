"""Restore clipped peaks: consistent iterative hard thresholding (Kitić et al. 2013, arXiv:1303.1023).

The samples at the clipping level are replaced, and all others stay. A frame of the restored signal has few large
components, agrees with the samples that are known, and lies beyond the clipping level where the peaks were cut. The
iteration alternates: keep the k largest bins of the spectrum, then enforce the known samples and the level. k grows
from one bin to half of them.

t frames, n samples of a frame, f bins.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Block = NDArray[np.float64]  # (channels, n)

FRAME_SECONDS = 0.032
OVERLAP = 4  # frames at each sample
ITERATIONS = 60  # 20 restore 3 dB less
SPARSE = 0.5  # share of the bins at the end
TOGETHER = 128  # frames, to bound the memory
TOLERANCE = 1e-4  # of full scale: samples this close to the level are clipped


class Declipper:
    """Restore a signal that arrives in blocks. The result does not depend on the blocks.

    Args:
        positive, negative: magnitudes of the levels at which peaks are cut; None if these are not.
    """

    def __init__(self, rate: int, channels: int, positive: float | None, negative: float | None) -> None:
        self.hop = max(4, round(FRAME_SECONDS * rate / OVERLAP))
        self.size = OVERLAP * self.hop
        self.window = np.hanning(self.size + 1)[:-1]
        self.top = np.inf if positive is None else positive - TOLERANCE
        self.bottom = -np.inf if negative is None else TOLERANCE - negative
        self._held = np.zeros((channels, self.size - self.hop))  # silence before the signal
        self._tail = np.zeros((channels, self.size - self.hop))
        self._early = self.size - self.hop  # samples to drop from the output

    def push(self, x: Block) -> Block:
        """The next samples (channels, n); returns what they complete."""
        held = np.concatenate([self._held, x], axis=1)
        count = max(0, (held.shape[1] - self.size) // self.hop + 1)
        if not count:
            self._held = held
            return x[:, :0]
        done = np.stack([self._restored(row, tail, count) for row, tail in zip(held, self._tail, strict=True)])
        known = held[:, : count * self.hop]
        clipped = (known >= self.top) | (known <= self.bottom)
        y = np.where(clipped, done[:, : count * self.hop], known)
        self._held, self._tail = held[:, count * self.hop :], done[:, count * self.hop :]
        early = min(self._early, y.shape[1])
        self._early -= early
        return y[:, early:]

    def finish(self) -> Block:
        """Return the remaining samples."""
        left = self._held.shape[1] - self._early
        rest = self.push(np.zeros((len(self._held), self.size + self.hop)))
        return rest[:, :left]

    def _restored(self, x: NDArray[np.float64], tail: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """Overlapped and added frames of one channel, (count hop + size - hop,)."""
        frames = sliding_window_view(x, self.size)[:: self.hop][:count]
        clipped = (frames >= self.top) | (frames <= self.bottom)
        out = np.zeros((count + OVERLAP - 1) * self.hop)
        out[: len(tail)] = tail
        need = np.flatnonzero(clipped.any(1))
        weight = self.window * (2 / 3 / (OVERLAP / 4))  # squares of the window add to 1.5 at four overlaps
        for some in np.split(need, range(TOGETHER, len(need), TOGETHER)):
            for at, frame in zip(some, self._frames(frames[some]), strict=True):
                out[at * self.hop : at * self.hop + self.size] += frame * weight
        return out

    def _frames(self, x: Block) -> Block:
        """Restore windowed frames (t, n)."""
        known = x * self.window
        high, low = x >= self.top, x <= self.bottom
        clipped = high | low
        top, bottom = (level * self.window if np.isfinite(level) else 0.0 for level in (self.top, self.bottom))
        y = known
        for i in range(ITERATIONS):
            spectrum = np.fft.rfft(y)
            keep = max(1, int(SPARSE * spectrum.shape[1] * (i + 1) / ITERATIONS))
            magnitude = np.abs(spectrum)
            spectrum[magnitude < np.partition(magnitude, -keep, axis=1)[:, -keep, None]] = 0
            sparse = np.fft.irfft(spectrum, n=self.size)
            limited = np.where(high, np.maximum(sparse, top), np.minimum(sparse, bottom))
            y = np.where(clipped, limited, known)
        return y
