"""Gains outside the model: one shared by all channels, and one for the band above the model's rate."""

from math import ceil, exp, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

GAIN_SECONDS = 0.004  # hop of the gain above the model's band
GAIN_FALL_SECONDS = 0.050  # time constant, longer than short pauses in speech, so that hiss does not flutter
GAIN_RISE_SECONDS = 0.004
SILENCE = 1e-30  # power; float32 is precise above it, and nothing below is audible


class Link:
    """Apply one gain to all channels at each time and frequency, which keeps the stereo image.

    The model enhances every channel separately. The shared gain is the least-squares fit to its outputs, over channels
    c,

        G = sum_c Y_c X_c* / sum_c |X_c|^2,   output G X_c,

    so loud channels have more weight, and level and phase differences between channels stay. If all channels are equal,
    the output is the model's output. |G|^2 sum |X|^2 <= sum |Y|^2, so the power never exceeds that of the model.

    Spectra use a square-root Hann window of 2 hop. The output is delayed by `delay` = hop samples.
    """

    def __init__(self, channels: int, hop: int) -> None:
        self.hop = self.delay = hop
        self.window = np.sin(np.pi * np.arange(2 * hop) / (2 * hop)).astype(np.float32)  # its squares add to 1
        self._held = np.zeros((2, channels, hop), dtype=np.float32)
        self._tail = np.zeros((channels, hop), dtype=np.float32)  # the second half of the last frame

    def push(self, pair: Array) -> Array:
        """The next pair (2, channels, n); returns what it determines, `delay` samples late."""
        held = np.concatenate([self._held, pair], axis=2)
        count = held.shape[2] // self.hop - 1  # frames
        self._held = held[:, :, count * self.hop :].copy()
        if not count:
            return np.zeros((*pair.shape[:2], 0), dtype=np.float32)
        halves = held[:, :, : (count + 1) * self.hop].reshape(*pair.shape[:2], count + 1, self.hop)
        frames = np.concatenate([halves[:, :, :-1], halves[:, :, 1:]], axis=3) * self.window  # (2, c, t, 2 hop)
        x, y = np.fft.rfft(frames)  # (c, t, f) each
        gain = (y * x.conj()).sum(0) / ((x.real**2 + x.imag**2).sum(0) + SILENCE)  # (t, f)
        linked = np.fft.irfft(gain * x, n=2 * self.hop).astype(np.float32) * self.window  # (c, t, 2 hop)
        first, second = linked[..., : self.hop], linked[..., self.hop :]
        first[:, 0] += self._tail
        first[:, 1:] += second[:, :-1]
        self._tail = second[:, -1].copy()
        return np.stack([held[0, :, : count * self.hop], first.reshape(-1, count * self.hop)])

    def finish(self) -> Array:
        """The rest, as if silence followed."""
        return self.push(np.zeros((*self._held.shape[:2], 2 * self.hop - 1), dtype=np.float32))


class HighGain:
    """The gain above the model's band: smooth, and equal to the model's gain in its top octave.

    In every hop, the energies of both signals between a quarter and half of the model's rate are compared, over all
    channels together. The square root of their ratio, at most 1, is the target gain of the next hop. The gain rises
    within milliseconds, because an "s" starts suddenly, and falls slowly.
    """

    def __init__(self, rate: int, grid: int, start: int) -> None:
        # A divisor of the model's output grid, so that the gain never waits longer than the output.
        longest = max(1, int(GAIN_SECONDS * rate))
        self.hop = next(h for h in range(longest, 0, -1) if grid % h == 0)
        self.window = np.hanning(2 * self.hop + 1)[:-1].astype(np.float32)
        self.rise = 1 - exp(-self.hop / (GAIN_RISE_SECONDS * rate))
        self.fall = 1 - exp(-self.hop / (GAIN_FALL_SECONDS * rate))
        self._held: Array | None = None  # the last hop
        self._now: float | None = None  # the current gain; None before the first hop with a signal
        self._curve = np.zeros(0)  # one value per sample, at the model's rate
        self._curve_from = start  # starts before the signal, by the delay of the pairs

    def push(self, pair: Array) -> None:
        """Extend the gain curve with the next samples."""
        before = np.zeros((*pair.shape[:2], self.hop), dtype=np.float32) if self._held is None else self._held
        held = np.concatenate([before, pair], axis=2)
        count = held.shape[2] // self.hop - 1
        self._held = held[:, :, count * self.hop :].copy()
        if not count:
            return
        halves = held[:, :, : (count + 1) * self.hop].reshape(*pair.shape[:2], count + 1, self.hop)
        spectra = np.fft.rfft(np.concatenate([halves[:, :, :-1], halves[:, :, 1:]], axis=3) * self.window)
        top = spectra[..., self.hop // 2 :]
        noisy, enhanced = (top.real**2 + top.imag**2).sum(axis=(1, 3))  # (t,) each
        ends = np.array([self._follow(n, e) for n, e in zip(noisy.tolist(), enhanced.tolist(), strict=True)])  # (t, 2)
        ramps = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.arange(1, self.hop + 1) / self.hop  # (t, hop)
        self._curve = np.concatenate([self._curve, ramps.ravel()])

    def _follow(self, noisy: float, enhanced: float) -> tuple[float, float]:
        """The gain before and after the hop that follows a frame with these energies."""
        if noisy <= SILENCE:
            self._now = None  # nothing to follow: the next sound sets the gain at once
            return 1.0, 1.0
        target = min(1.0, sqrt(enhanced / noisy))
        before = target if self._now is None else self._now
        self._now = before + (self.rise if target > before else self.fall) * (target - before)
        return before, self._now

    def at(self, start: int, end: int, up: int, down: int) -> Array:
        """The gain at output samples start .. end, `up / down` model samples apart; drops the curve before them."""
        instants = np.arange(start, end) * up / down
        known = np.arange(self._curve_from, self._curve_from + len(self._curve))
        gain = np.interp(instants, known, self._curve) if len(known) else np.ones(len(instants))
        past = min(max(0, end * up // down - 1 - self._curve_from), max(0, len(self._curve) - 1))
        self._curve, self._curve_from = self._curve[past:], self._curve_from + past
        return gain


def in_step(grid: int, wanted: int) -> int:
    """A hop near `wanted` that is a multiple or a divisor of `grid`, so that neither adds latency to the other."""
    if grid <= wanted:
        return grid * ceil(wanted / grid)
    divisor = next(h for h in range(wanted, 0, -1) if grid % h == 0)
    return divisor if 2 * divisor > wanted else grid
