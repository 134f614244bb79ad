"""Find mains hum: steady tones at 50 or 60 Hz and their multiples.

Frames of one second at a low rate resolve single tones. The mean of the logarithm over time keeps what is steady and
forgets speech, whose pitch moves. A hum is a comb: the tones at the multiples of one mains frequency that rise above
their neighbourhood.
"""

from typing import NamedTuple

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Block = NDArray[np.float64]  # (channels, n)

RATE = 2_000  # Hz
FRAME, HOP = 2_000, 1_000  # samples: bins of 1 Hz
MAINS = (50, 60)  # Hz
HIGHEST = 900  # Hz, of the harmonics
LEAST_RISE_DB = 10.0  # of a tone over its neighbourhood
LEAST_SUM_DB = 24.0  # of the rises of the first tones; one tone alone must reach it by itself
FIRST = 8  # tones
NEAR, FAR = 4, 14  # Hz from a tone to its neighbourhood
FLOOR = 1e-13  # power: -130 dBFS


class Hum(NamedTuple):
    """What was found in one recording."""

    hz: int  # nominal mains frequency: 50 or 60
    exact: float  # measured mains frequency in Hz
    level: float  # dBFS, RMS of all tones
    harmonics: list[int]  # numbers of the tones; 1 is the mains frequency itself


class HumFinder:
    """Collect the steady part of the spectrum below 1 kHz, as the mean power over the channels."""

    def __init__(self, rate: int, channels: int) -> None:
        self._down = soxr.ResampleStream(rate, RATE, channels, dtype="float32", quality="HQ")
        self._window = np.hanning(FRAME + 1)[:-1].astype(np.float32)
        self._scale = 2 / self._window.sum() ** 2  # a sine with RMS 1 has power 1
        self._held = np.zeros((channels, 0), dtype=np.float32)
        self._logs = np.zeros(FRAME // 2 + 1)
        self._turns = np.zeros(FRAME // 2 + 1, dtype=complex)  # sum of the phase steps between frames
        self._last: NDArray[np.complexfloating] | None = None
        self._frames = 0

    def push(self, x: Block, last: bool = False) -> None:
        """The next samples."""
        low = self._down.resample_chunk(np.ascontiguousarray(x.T, dtype=np.float32), last=last).T
        held = np.concatenate([self._held, low], axis=1)
        count = max(0, (held.shape[1] - FRAME) // HOP + 1)
        if last and not self._frames and not count and held.shape[1] >= FRAME // 4:
            held, count = np.pad(held, ((0, 0), (0, FRAME - held.shape[1]))), 1
        if count:
            cut = sliding_window_view(held, FRAME, axis=1)[:, ::HOP][:, :count]
            frames = np.fft.rfft(cut * self._window)
            power = (frames.real**2 + frames.imag**2).mean(0) * self._scale  # (t, f)
            self._logs += np.log10(power + FLOOR).sum(0)
            steps = frames[:, 1:] * frames[:, :-1].conj()
            if self._last is not None:
                steps = np.concatenate([frames[:, :1] * self._last.conj(), steps], axis=1)
            self._turns += (steps / (np.abs(steps) + FLOOR)).sum((0, 1))
            self._last = frames[:, -1:]
            self._frames += count
        self._held = held[:, count * HOP :]

    def result(self) -> Hum | None:
        """The hum so far, or None."""
        if not self._frames:
            return None
        level = 10 * self._logs / self._frames  # (f,) dB
        found = [self._comb(level, hz) for hz in MAINS]
        score, hz, harmonics = max(found)
        if score < LEAST_SUM_DB:
            return None
        power = sum((10 ** (level[k * hz - 2 : k * hz + 3] / 10)).sum() for k in harmonics) / 1.5  # Hann: 1.5 bins
        return Hum(hz, self._exact(level, hz, harmonics), float(10 * np.log10(power)), harmonics)

    def _exact(self, level: NDArray[np.float64], hz: int, harmonics: list[int]) -> float:
        """The mains frequency from the phase steps of the tones: each is k times as far off as the first."""
        numbers = np.array(harmonics)
        turned = self._turns[numbers * hz] * np.exp(-2j * np.pi * numbers * hz * HOP / RATE)
        off = np.angle(turned) / (2 * np.pi * HOP / RATE)  # Hz, of each tone
        weights = 10 ** (level[numbers * hz] / 10) * np.abs(turned) ** 2 * numbers
        near = np.abs(off) < 0.5
        total = float((weights * numbers)[near].sum())
        return hz + (float((weights * off)[near].sum()) / total if total else 0.0)

    def _comb(self, level: NDArray[np.float64], hz: int) -> tuple[float, int, list[int]]:
        rises = {}
        for k in range(1, HIGHEST // hz + 1):
            at = k * hz
            around = np.r_[level[at - FAR : at - NEAR + 1], level[at + NEAR : at + FAR + 1]]
            rises[k] = float(level[at - 1 : at + 2].max() - np.percentile(around, 75))
        tones = [k for k, rise in rises.items() if rise >= LEAST_RISE_DB and k * hz % 300]  # 300: of both
        score = sum(rises[k] for k in tones if k <= FIRST)
        return score, hz, [k for k, rise in rises.items() if rise >= LEAST_RISE_DB]
