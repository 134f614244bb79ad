"""Remove a DC offset and fill an empty top band in the input of an enhancement model. The output is not affected.

    x ── − offset ── + fill ── model ── enhanced
                                          change = enhanced − (x − offset + g fill)

*Offset*: a constant in the samples (cheap sound cards) leaks into every bin of a windowed spectrum. Two one-pole
low-passes at OFFSET_HZ track it, and it is subtracted.

*Fill*: resamplers and codecs leave the top of the band empty. A model trained without such files mistakes this for a
sign of noise. If the running spectrum ends in a cliff, faint noise is added above it. The part of it that the model
passes, with the gain g measured in each hop, is subtracted again.

All steps use whole hops from the start of the signal and only past samples. So the result does not depend on the
chunks, and there is no latency. A signal without an offset and without a cliff passes unchanged.
"""

from functools import lru_cache
from math import exp, pi, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

OFFSET_HZ = 2.0  # 50 Hz hum is 56 dB down in the offset
OFFSET_SHARE = (0.04, 0.15)  # of the power; below is chance (1/256 in a hop of noise), above is certainly an offset
BANDS = 64  # of the spectrum in the search for a cliff; 125 Hz each at 16 kHz
LOWEST = 58  # lowest first band above a cliff: 7.25 kHz; models know recordings that end lower
PLATEAU = 4  # bands just below the cliff that must all contain signal
EVERY = 4  # hops between two measurements of the spectrum
MEMORY_SECONDS = 1.0  # time constant of the running spectrum
DROP_DB = (12.0, 18.0)  # depth that is not yet a cliff, and depth that certainly is one
FILL_DB = -5.0  # density of the fill relative to the plateau
PERIOD = 2**15  # samples after which the noise repeats: 2 s
SILENT = 1e-20  # power of digital silence


class Conditioned(NamedTuple):
    """The model's input, and the fill noise in it: both (channels, n)."""

    heard: Array
    fill: Array


class Conditioner:
    """Condition one signal, hop by hop. It holds the state.

    Args:
        channels: rows of every chunk; channels are independent.
        hop: samples per step.
        rate: Hz.
    """

    def __init__(self, channels: int, hop: int, rate: int) -> None:
        self.hop = hop
        self.offset = Offset(channels, hop, rate)
        self.fill = Fill(channels, hop, rate)
        self._rest = np.zeros((channels, 0), dtype=np.float32)  # an incomplete hop
        self._held = np.zeros((2, channels, hop), dtype=np.float32)  # the last hop of fill and of the model's output
        self._gain = np.ones((channels, 1), dtype=np.float32)

    def push(self, x: Array, last: bool = False) -> Conditioned:
        """The next samples (channels, n): whole hops come out at once, less than a hop waits, with `last` all comes."""
        x = np.concatenate([self._rest, x], axis=1) if self._rest.shape[1] else x
        whole = x.shape[1] if last else x.shape[1] // self.hop * self.hop
        x, self._rest = x[:, :whole], x[:, whole:].copy()
        level = self.offset.push(x)
        fill = self.fill.push(level)
        return Conditioned(level + fill, fill)

    def without_fill(self, heard: Array, fill: Array, enhanced: Array) -> Array:
        """The model's input with the share of the fill that the model passes, so that the difference contains no fill.

        All signals are the next hops (channels, n), aligned. The gain is that of the windowed fill in two hops of
        `enhanced`.
        """
        y = heard
        for start in range(0, heard.shape[1], self.hop):
            part = slice(start, start + self.hop)
            both = np.stack([fill[:, part], enhanced[:, part]])  # (2, channels, hop)
            held, self._held = self._held, both
            if not both[0].any() or both.shape[2] < self.hop:
                self._gain[:] = 1.0
                continue
            noise, result = np.concatenate([held, both], axis=2) * self.fill.window  # (channels, 2 hop) each
            energy = (noise * noise).sum(1) + SILENT
            gain = np.clip((noise * result).sum(1) / energy, 0, 1).astype(np.float32)[:, None]
            y = y.copy() if y is heard else y
            y[:, part] -= (1 - self._gain - (gain - self._gain) * self.fill.ramp) * both[0]
            self._gain = gain
        return y


class Offset:
    """Subtract the constant part of each channel, if it is large enough.

    The estimate starts as a plain mean, so the first hop uses its own mean. It is weighted by its share of the signal's
    power and changes linearly within a hop. A hop of equal samples is only offset, so silence stays silence.
    """

    def __init__(self, channels: int, hop: int, rate: int) -> None:
        self.hop = hop
        self.least = 1 - exp(-2 * pi * OFFSET_HZ * hop / rate)
        self.ramp = ((np.arange(hop) + 1) / hop).astype(np.float32)
        self._means = [(0, 0.0, 0.0, 0.0)] * channels  # hops so far, first low-pass, second one, power
        self._now = [0.0] * channels  # the offset that is subtracted

    def push(self, x: Array) -> Array:
        """Process the next hops (channels, n)."""
        y = x.copy()
        for start in range(0, x.shape[1], self.hop):
            part = y[:, start : start + self.hop]
            if part.shape[1] < self.hop:  # the end, too short for an estimate
                if any(self._now):
                    part -= np.array(self._now, dtype=x.dtype)[:, None]
                break
            flat = (part == part[:, :1]).all(1).tolist()
            means = part.mean(1, dtype=np.float64).tolist()
            powers = np.einsum("cn,cn->c", part, part, dtype=np.float64).tolist()
            for c, row in enumerate(part):
                if flat[c]:
                    hops, _, _, power = self._means[c]
                    self._means[c], self._now[c] = (hops, means[c], means[c], power), means[c]
                    row[:] = 0
                    continue
                begins = not self._means[c][0]
                now = self._follow(c, means[c], powers[c] / self.hop)
                before, self._now[c] = now if begins else self._now[c], now
                if before or now:
                    row -= before + np.float32(now - before) * self.ramp[: len(row)]
        return y

    def _follow(self, c: int, mean: float, power: float) -> float:
        """The offset to subtract at the end of a hop with this mean and power."""
        hops, first, second, running = self._means[c]
        share = max(1 / (hops + 1), self.least)
        first += share * (mean - first)
        second += share * (first - second)
        running += share * (power - running)
        self._means[c] = (hops + 1, first, second, running)
        sure = (second**2 / (running + SILENT) - OFFSET_SHARE[0]) / (OFFSET_SHARE[1] - OFFSET_SHARE[0])
        return second * min(1.0, max(0.0, sure))


class Fill:
    """Faint noise above the cliff of each channel's spectrum; zeros for a channel without a cliff.

    In each hop, its level follows the level of the band just below the cliff.
    """

    def __init__(self, channels: int, hop: int, rate: int) -> None:
        self.hop, self.rate = hop, rate
        self.window = np.hanning(2 * hop + 1)[:-1].astype(np.float32)
        self.edges = np.linspace(0, hop, BANDS + 1).round().astype(int)[:-1]  # first bin of each band
        self.widths = np.diff([*self.edges, hop])
        self.keep = exp(-EVERY * hop / (MEMORY_SECONDS * rate))
        self.ramp = ((np.arange(hop) + 1) / hop).astype(np.float32)
        self._hops = 0
        self._before = np.zeros((channels, hop), dtype=np.float32)
        self._power, self._weight = np.zeros((channels, BANDS)), np.zeros(channels)  # running sums
        self._cliff = [(0.0, BANDS)] * channels  # certainty 0 to 1, and the first band above
        self._now = [(0.0, BANDS)] * channels  # level and first band of the noise
        self._sounding = list(self._now)  # the same at the end of the previous hop

    def push(self, x: Array) -> Array:
        """The noise for the next hops x (channels, n)."""
        y = np.zeros_like(x)
        for start in range(0, x.shape[1], self.hop):
            part = x[:, start : start + self.hop]
            if part.shape[1] == self.hop:  # otherwise it is the end of the signal
                look = self._hops % EVERY == 1
                if look or any(sure for sure, _ in self._cliff):
                    self._look(np.concatenate([self._before, part], axis=1), look)
                self._before = part
            for c, (level, band) in enumerate(self._now):
                old = self._sounding[c]
                if old[0] or level:
                    y[c, start : start + self.hop] = self._noise(old, (level, band), part.shape[1])
            self._sounding = list(self._now)
            self._hops += 1
        self._before = self._before.copy()
        return y

    def _look(self, frames: Array, look: bool) -> None:
        """Update the noise levels from frames (channels, 2 hop), and with `look` also the cliffs."""
        spectra = np.fft.rfft(frames * self.window)[:, :-1]
        power = np.add.reduceat(spectra.real**2 + spectra.imag**2, self.edges, axis=1) / self.widths
        if look:
            for c in np.flatnonzero(power.sum(1) > SILENT).tolist():  # digital silence does not count
                self._power[c] = self.keep * self._power[c] + (1 - self.keep) * power[c]
                self._weight[c] = self.keep * self._weight[c] + 1 - self.keep
                self._cliff[c] = cliff(self._power[c] / self._weight[c])
        scale = 10 ** (FILL_DB / 10) / float((self.window**2).sum())  # bins of white noise to its power
        for c, (sure, band) in enumerate(self._cliff):
            self._now[c] = (sure * sqrt(scale * float(power[c, band - PLATEAU - 2 : band - 2].mean())), band)

    def _noise(self, old: tuple[float, int], new: tuple[float, int], count: int) -> Array:
        """A hop of noise, cross-faded from one level and band to another."""
        places = np.arange(self._hops * self.hop, self._hops * self.hop + count) % PERIOD
        before, after = (np.float32(level) * noise_above(band)[places] for level, band in (old, new))
        return before + self.ramp[:count] * (after - before)


def cliff(power: Array) -> tuple[float, int]:
    """The certainty (0 to 1) that a spectrum (BANDS,) ends in a cliff, and the first band above it."""
    db = 10 * np.log10(power + SILENT)
    for band in range(LOWEST - PLATEAU, BANDS):
        drop = db[band - PLATEAU - 2 : band - 2].min() - db[band:].max()
        if drop > DROP_DB[0]:
            if band < LOWEST:
                break
            return min(1.0, float(drop - DROP_DB[0]) / (DROP_DB[1] - DROP_DB[0])), band
    return 0.0, BANDS


@lru_cache(maxsize=BANDS)
def noise_above(band: int) -> Array:
    """White noise of unit density from `band` upwards: (PERIOD,) float32, periodic."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(PERIOD))
    spectrum[: len(spectrum) * band // BANDS] = 0
    return np.fft.irfft(spectrum).astype(np.float32)
