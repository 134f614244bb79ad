"""What an enhancement model should not depend on is evened out in its input, and never reaches the output.

    x ── − offset ── + fill ── model ── enhanced
                                          change = enhanced − (x − offset + g fill)

*Offset*: a constant in the samples (cheap sound cards) leaks into every bin of a windowed spectrum. It is followed by
two one-pole low-passes at OFFSET_HZ and subtracted.

*Fill*: resamplers and codecs leave the top of the band empty, which a model that was trained without such files takes
for a sign of noise. Where the running spectrum ends in a cliff, faint noise is put above it. What the model lets
through of it, the gain g measured in each hop, is taken out again.

Everything works on whole hops from the start of the signal and looks only back, so the result does not depend on the
chunks; nothing is delayed. A signal without an offset and without a cliff passes unchanged.
"""

from functools import lru_cache
from math import exp, pi, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

OFFSET_HZ = 2.0  # 50 Hz hum is 56 dB down in the offset
OFFSET_SHARE = (0.04, 0.15)  # of the power: less is chance (a hop of noise has 1/256), more is an offset for certain
BANDS = 64  # of the spectrum in which the cliff is looked for: 125 Hz each at 16 kHz
LOWEST = 58  # the first band above it: 7.25 kHz; models are used to recordings that end lower
PLATEAU = 4  # bands just below the cliff that must all be there
EVERY = 4  # hops from one look at the spectrum to the next
MEMORY_SECONDS = 1.0  # time constant of the running spectrum
DROP_DB = (12.0, 18.0)  # a cliff this deep is none yet, and certainly one
FILL_DB = -5.0  # of the density of the fill, under that of the plateau
PERIOD = 2**15  # samples after which the noise repeats: 2 s
SILENT = 1e-20  # power of a hop that is digital silence


class Conditioned(NamedTuple):
    """What the model receives, and the noise in it: both (channels, n)."""

    heard: Array
    fill: Array


class Conditioner:
    """One signal's offset and empty band; holds the state between its hops.

    Args:
        channels: rows of every chunk, each treated by itself.
        hop: samples in which the signal is looked at.
        rate: Hz.
    """

    def __init__(self, channels: int, hop: int, rate: int) -> None:
        self.hop = hop
        self.offset = Offset(channels, hop, rate)
        self.fill = Fill(channels, hop, rate)
        self._rest = np.zeros((channels, 0), dtype=np.float32)  # less than a hop
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
        """`heard` with as much of the fill as the model lets through: then `enhanced` less this has nothing of it.

        All are (channels, n), the next hops, aligned. The gain is that of the windowed fill in two hops of `enhanced`.
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
    """Takes the constant part of each channel away, where there is one worth the name.

    The estimate begins as a plain mean, so that the first hop has its own. It counts by its share of the signal's
    power, and moves in a straight line within a hop. A hop of equal samples is all offset: silence stays silence.
    """

    def __init__(self, channels: int, hop: int, rate: int) -> None:
        self.hop = hop
        self.least = 1 - exp(-2 * pi * OFFSET_HZ * hop / rate)
        self.ramp = ((np.arange(hop) + 1) / hop).astype(np.float32)
        self._means = [(0, 0.0, 0.0, 0.0)] * channels  # hops so far, first low-pass, second one, power
        self._now = [0.0] * channels  # what is subtracted

    def push(self, x: Array) -> Array:
        """The next hops (channels, n)."""
        y = x.copy()
        for start in range(0, x.shape[1], self.hop):
            part = y[:, start : start + self.hop]
            if part.shape[1] < self.hop:  # the end, too short to be judged
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
        """What to subtract at the end of a hop of this mean and power."""
        hops, first, second, running = self._means[c]
        share = max(1 / (hops + 1), self.least)
        first += share * (mean - first)
        second += share * (first - second)
        running += share * (power - running)
        self._means[c] = (hops + 1, first, second, running)
        sure = (second**2 / (running + SILENT) - OFFSET_SHARE[0]) / (OFFSET_SHARE[1] - OFFSET_SHARE[0])
        return second * min(1.0, max(0.0, sure))


class Fill:
    """Faint noise above the cliff in which each channel's spectrum ends; zeros for a channel without one.

    Its level follows that of the band just below the cliff from hop to hop.
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
        self._cliff = [(0.0, BANDS)] * channels  # how sure, and the first band above
        self._now = [(0.0, BANDS)] * channels  # level of the noise and the band it begins with ...
        self._sounding = list(self._now)  # ... and those at the end of the hop before

    def push(self, x: Array) -> Array:
        """The noise for the next hops x (channels, n)."""
        y = np.zeros_like(x)
        for start in range(0, x.shape[1], self.hop):
            part = x[:, start : start + self.hop]
            if part.shape[1] == self.hop:  # else it is the end
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
        """Follow the levels in frames (channels, 2 hop), and if it is time, where their spectra end."""
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
        """A hop of noise that goes from one level and band to another."""
        places = np.arange(self._hops * self.hop, self._hops * self.hop + count) % PERIOD
        before, after = (np.float32(level) * noise_above(band)[places] for level, band in (old, new))
        return before + self.ramp[:count] * (after - before)


def cliff(power: Array) -> tuple[float, int]:
    """How surely a spectrum (BANDS,) ends in a cliff below the top of the band, 0 to 1, and the first band above it."""
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
    """White noise of unit density without what lies under a band: (PERIOD,) float32, periodic."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(PERIOD))
    spectrum[: len(spectrum) * band // BANDS] = 0
    return np.fft.irfft(spectrum).astype(np.float32)
