"""Remove mains hum: subtract steady tones at 50 or 60 Hz and their multiples.

For each tone, the complex amplitude of every 20 ms is averaged over four seconds, and the tone with this amplitude is
subtracted. That is a notch filter 1 Hz wide, without delay. Quiet frames have more weight, because speech is an error
of the amplitude. At the ends of the signal the average has fewer terms, so hum is removed there, too.

c channels, t frames, n samples of a frame, k tones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Block = NDArray[np.float64]  # (channels, n)
Complex = NDArray[np.complexfloating[Any, Any]]

HALF = 100  # frames of 20 ms on each side of the average
SILENT = 1e-10  # mean square of a frame without hum


class HumRemover:
    """Remove tones from a signal that arrives in blocks. The result does not depend on the blocks.

    Args:
        tones: frequencies in Hz.
    """

    def __init__(self, rate: int, channels: int, tones: Sequence[float]) -> None:
        self.size = max(1, round(rate / 50))
        self.turns = 2j * np.pi * np.array(tones) / rate  # per sample
        self.basis = np.exp(self.turns[:, None] * np.arange(self.size))  # (k, n)
        self.window = np.hanning(2 * HALF + 3)[1:-1]
        self._rest = np.zeros((channels, 0))  # incomplete frame
        self._frames = np.zeros((channels, 0, self.size))  # that wait for their output
        self._amplitudes = np.zeros((channels, len(tones), HALF), dtype=complex)  # from HALF frames before these
        self._weights = np.zeros(HALF)  # of these; 0 before the start of the signal
        self._start = 0  # of the first waiting frame, in frames
        self._received = 0  # frames

    def push(self, x: Block) -> Block:
        """The next samples (channels, n); returns what they complete."""
        rest = np.concatenate([self._rest, x], axis=1)
        count = rest.shape[1] // self.size
        frames = rest[:, : count * self.size].reshape(len(rest), count, self.size)
        self._rest = rest[:, count * self.size :]
        self._take(frames, np.ones(count))
        return self._give(self._frames.shape[1] - HALF)

    def finish(self) -> Block:
        """Return the remaining samples."""
        left = self._rest.shape[1]
        if left:  # its amplitude would be inexact; the neighbours have a better one
            frame = np.pad(self._rest, ((0, 0), (0, self.size - left)))[:, None]
            self._take(frame, np.zeros(1))
        waiting = self._frames.shape[1]
        self._take(np.zeros((len(self._rest), HALF, self.size)), np.zeros(HALF))
        y = self._give(waiting)
        return y[:, : y.shape[1] - (self.size - left)] if left else y

    def _take(self, frames: NDArray[np.float64], valid: NDArray[np.float64]) -> None:
        at = self._received + np.arange(frames.shape[1])
        turned = np.exp(-self.turns[:, None] * at * self.size)  # (k, t)
        own = np.einsum("ctn,kn->ckt", frames, self.basis.conj(), optimize=True) * turned * (2 / self.size)
        power = np.einsum("ctn,ctn->t", frames, frames) / self.size / len(frames)
        weights = np.where(power > SILENT, valid / np.maximum(power, SILENT) ** 2, 0.0)
        self._received += frames.shape[1]
        self._frames = np.concatenate([self._frames, frames], axis=1)
        self._amplitudes = np.concatenate([self._amplitudes, own * weights], axis=2)
        self._weights = np.concatenate([self._weights, weights])

    def _give(self, count: int) -> Block:
        """The first `count` waiting frames without the tones."""
        if count <= 0:
            return np.zeros((len(self._rest), 0))
        size = 2 * HALF + 1
        sums = sliding_window_view(self._amplitudes, size, axis=2)[:, :, :count] @ self.window  # (c, k, t)
        weights = sliding_window_view(self._weights, size)[:count] @ self.window
        at = self._start + np.arange(count)
        back = sums / np.maximum(weights, 1e-30) * np.exp(self.turns[:, None] * at * self.size)
        tones = np.einsum("ckt,kn->ctn", back, self.basis, optimize=True).real
        frames = self._frames[:, :count]
        y = np.where(frames.any(2, keepdims=True), frames - tones, 0.0).reshape(len(self._rest), -1)
        self._frames, self._amplitudes = self._frames[:, count:], self._amplitudes[:, :, count:]
        self._weights, self._start = self._weights[count:], self._start + count
        return y
