"""Loudness and true peak of a signal that arrives in blocks: ITU-R BS.1770-5.

Loudness is the power after the K filter (a high shelf for the head, a high-pass), in windows of 400 ms every 100 ms.
The integrated loudness is the mean over the windows above -70 LUFS, and of these only the windows within 10 LU of their
mean. The K filter is applied as a product of spectra: its response is below -100 dB after 60 ms.

The true peak is the peak of the signal at four times its rate.
"""

from functools import lru_cache
from math import pi, tan

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Block = NDArray[np.float64]  # (channels, n)

STEP_SECONDS = 0.1  # between windows
STEPS = 4  # of a window
TOGETHER = 9  # steps that are filtered at a time, after one step for the response of the K filter (60 ms)
GATE_LUFS, GATE_LU = -70.0, -10.0
OFFSET_DB = -0.691  # a 997 Hz sine of 0 dBFS in one channel has -3.01 LUFS
SURROUND = {5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41)}  # weights of channels: L R C (LFE) Ls Rs
OVERSAMPLING, TAPS = 4, 12  # of the true peak; taps of each phase
PIECE = 2048  # samples


class Loudness:
    """Measure the loudness over time and of the whole signal."""

    def __init__(self, rate: int, channels: int) -> None:
        self.step = max(1, round(STEP_SECONDS * rate))
        self.weights = np.array(SURROUND.get(channels, (1,) * channels), dtype=float)
        self._filter = k_filter(rate, (1 + TOGETHER) * self.step)
        self._held = np.zeros((channels, self.step))
        self._powers: list[NDArray[np.float64]] = []  # of each step
        self._seen = 0

    def push(self, x: Block) -> None:
        """The next samples."""
        self._seen += x.shape[1]
        held, hop = np.concatenate([self._held, x], axis=1), TOGETHER * self.step
        count = (held.shape[1] - self.step) // hop
        if count:
            cut = sliding_window_view(held, hop + self.step, axis=1)[:, ::hop][:, :count]
            self._powers.append(self._filtered(cut))
        self._held = held[:, count * hop :]

    def _filtered(self, frames: NDArray[np.float64]) -> NDArray[np.float64]:
        """Power after the filter of each step but the first of frames (channels, t, n), one after the other."""
        spectra = np.fft.rfft(frames)
        spectra *= self._filter
        filtered = np.fft.irfft(spectra, n=frames.shape[2])[..., self.step :]
        steps = filtered.reshape(len(frames), -1, self.step)  # (c, t, step)
        return self.weights @ np.einsum("ctn,ctn->ct", steps, steps) / self.step

    def windows(self) -> NDArray[np.float64]:
        """Power of each window of 400 ms; of a shorter signal as a whole."""
        rest = self._held.shape[1] - self.step
        size = (1 + TOGETHER) * self.step
        last = self._filtered(np.pad(self._held, ((0, 0), (0, size - self._held.shape[1])))[:, None])
        steps = np.concatenate([*self._powers, last[: rest // self.step]])
        if len(steps) >= STEPS:
            return sliding_window_view(steps, STEPS).mean(1)
        return np.array([last.sum() * self.step / max(1, self._seen)])

    def integrated(self) -> float:
        """Gated loudness in LUFS; -inf for silence."""
        power = self.windows()
        power = power[power > from_lufs(GATE_LUFS)]
        if not len(power):
            return -np.inf
        power = power[power > power.mean() * 10 ** (GATE_LU / 10)]
        return float(to_lufs(power.mean()))


def to_lufs(power: NDArray[np.floating]) -> NDArray[np.floating]:
    """Loudness of a power after the K filter; -inf for silence."""
    with np.errstate(divide="ignore"):
        return OFFSET_DB + 10 * np.log10(power)


def from_lufs(lufs: float) -> float:
    """Inverse of `to_lufs`."""
    return float(10 ** ((lufs - OFFSET_DB) / 10))


def k_filter(rate: int, n_fft: int) -> NDArray[np.complex128]:
    """The response of the K filter at the bins of an FFT, (n_fft // 2 + 1,).

    BS.1770 gives the coefficients at 48 kHz. Other rates use the analogue filters that have them at 48 kHz, as in
    libebur128.
    """
    z = np.exp(-2j * pi * np.arange(n_fft // 2 + 1) / n_fft)  # one sample of delay
    k, q, gain = (
        tan(pi * min(1681.974450955533, 0.499 * rate) / rate),
        0.7071752369554196,
        10 ** (3.999843853973347 / 20),
    )
    middle = gain**0.4996667741545416
    shelf = (gain + middle * k / q + k * k) + 2 * (k * k - gain) * z + (gain - middle * k / q + k * k) * z**2
    shelf /= (1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z**2
    k, q = tan(pi * 38.13547087602444 / rate), 0.5003270373238773
    norm = 1 + k / q + k * k
    return shelf * (1 - z) ** 2 / (1 + 2 * (k * k - 1) / norm * z + (1 - k / q + k * k) / norm * z**2)


class TruePeak:
    """Measure the largest magnitude between samples.

    A piece is only oversampled if it can have a new maximum: no output exceeds its peak times the sum of the taps.
    """

    def __init__(self, channels: int) -> None:
        self.peak = 0.0  # of the samples
        self.true_peak = 0.0
        self._held = np.zeros((channels, TAPS - 1), dtype=np.float32)

    def push(self, x: Block) -> None:
        """The next samples."""
        phases = interpolators()
        most = float(np.abs(phases).sum(0).max())
        self.peak = max(self.peak, float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
        self.true_peak = max(self.true_peak, self.peak)
        held = np.concatenate([self._held, x.astype(np.float32)], axis=1)
        for row in held:
            starts = np.arange(0, len(row) - TAPS + 1, PIECE)
            peaks = [float(np.abs(row[start : start + PIECE + TAPS - 1]).max()) for start in starts]
            for at in np.argsort(peaks)[::-1]:
                if peaks[at] * most <= self.true_peak:
                    break
                between = sliding_window_view(row[starts[at] : starts[at] + PIECE + TAPS - 1], TAPS) @ phases
                self.true_peak = max(self.true_peak, float(between.max()), -float(between.min()))
        self._held = held[:, held.shape[1] - TAPS + 1 :]


@lru_cache(maxsize=1)
def interpolators() -> NDArray[np.float32]:
    """Windowed sincs at 1/4, 1/2 and 3/4 between the two middle samples of TAPS, (TAPS, 3)."""
    at = np.arange(TAPS)[:, None] - (TAPS // 2 - 1) - np.arange(1, OVERSAMPLING) / OVERSAMPLING
    window = np.i0(4.0 * np.sqrt(np.maximum(0, 1 - (at / (TAPS / 2)) ** 2)))
    values = window * np.sinc(at)
    return (values / values.sum(0)).astype(np.float32)
