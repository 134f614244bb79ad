"""Short-time power spectra of a signal that arrives in blocks: Hann frames of 40 ms every 20 ms, bins of 25 Hz."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Block = NDArray[np.float64]  # (channels, n)
Floats = NDArray[np.float32]

HOPS_PER_SECOND = 50
BIN_HZ = 25.0  # distance of the bins at any rate that is a multiple of 50 Hz


class Frames:
    """Cut a signal into frames; yields power (t, f), the mean over channels. The sum over f is the mean square."""

    def __init__(self, rate: int, channels: int) -> None:
        self.hop = max(1, rate // HOPS_PER_SECOND)
        self.rate = rate
        self._window = np.hanning(2 * self.hop + 1)[:-1].astype(np.float32)
        self._held = np.zeros((channels, 0), dtype=np.float32)
        weights = np.full(self.hop + 1, 2.0)  # the bins of negative frequencies
        weights[[0, -1]] = 1.0
        self._weights = (weights / (2 * self.hop * np.square(self._window).sum() * channels)).astype(np.float32)

    def push(self, x: Block, last: bool = False) -> Floats:
        """Power of the frames that the next samples complete; with `last`, a signal without a whole frame is padded."""
        held = np.concatenate([self._held, x.astype(np.float32)], axis=1)
        size = 2 * self.hop
        count = max(0, (held.shape[1] - size) // self.hop + 1)
        if last and not count and held.shape[1]:
            held, count = np.pad(held, ((0, 0), (0, max(0, size - held.shape[1])))), 1
        self._held = held[:, count * self.hop :]
        if not count:
            return np.zeros((0, self.hop + 1), dtype=np.float32)
        cut = sliding_window_view(held, size, axis=1)[:, :: self.hop][:, :count]  # (c, t, size)
        spectra = np.fft.rfft(cut * self._window)
        power = spectra.real**2 + spectra.imag**2
        return (power.sum(0) * self._weights).astype(np.float32, copy=False)
