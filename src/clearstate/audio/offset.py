"""Remove a constant offset from the input of a model, causally.

A constant in the samples (cheap sound cards) leaks into every bin of a windowed spectrum, where a model takes it for
noise. Two one-pole low-passes at OFFSET_HZ follow it. The tasks add a model's correction to the original signal, so the
offset itself stays in the output.

The signal is processed in whole hops from its start, so the result does not depend on the chunks. A signal without an
offset passes unchanged.
"""

from math import exp, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

OFFSET_HZ = 2.0  # 50 Hz hum is 56 dB down in the offset
OFFSET_SHARE = (0.04, 0.15)  # of the power: less is chance (a hop of noise has 1/256), more is certainly an offset
FLAT = 1e-9  # variance over power below which a hop may consist of equal samples
SILENT = 1e-20  # power of a hop that is digital silence


class Offset:
    """Subtract the constant part of each channel, if it is large enough.

    The estimate starts as a plain mean, so the first hop uses its own mean. It is weighted by its share of the signal's
    power and changes linearly within a hop. A hop of equal samples is only offset, so silence stays silence.

    Args:
        channels: rows of every chunk; each is processed by itself.
        hop: samples that are judged at a time.
        rate: Hz.
    """

    def __init__(self, channels: int, hop: int, rate: int) -> None:
        self.hop = hop
        self.least = 1 - exp(-2 * pi * OFFSET_HZ * hop / rate)
        self.ramp = ((np.arange(hop) + 1) / hop).astype(np.float32)
        self._rest = np.zeros((channels, 0), dtype=np.float32)  # an incomplete hop
        self._means = [(0, 0.0, 0.0, 0.0)] * channels  # hops so far, first low-pass, second one, power
        self._now = [0.0] * channels  # the offset that is subtracted

    def push(self, x: Array, last: bool = False) -> Array:
        """The next samples (channels, n) without the offset: whole hops; with `last` also the incomplete one."""
        x = np.concatenate([self._rest, x], axis=1) if self._rest.shape[1] else x
        whole = x.shape[1] // self.hop * self.hop
        y = self._hops(x[:, :whole].reshape(len(x), -1, self.hop)).reshape(len(x), whole) if whole else x[:, :0]
        if not last:
            self._rest = x[:, whole:].copy()
            return y
        self._rest = x[:, :0]
        end = x[:, whole:] - np.array(self._now, dtype=x.dtype)[:, None]  # too short for an estimate of its own
        return np.concatenate([y, end], axis=1)

    def _hops(self, x: Array) -> Array:
        """Whole hops (channels, k, hop)."""
        wide = x.astype(np.float64)
        sums, energies = np.add.reduce(wide, 2).tolist(), np.add.reduce(wide * wide, 2).tolist()
        edges: dict[tuple[int, int], tuple[float, float]] = {}  # the offset at the start and the end of a hop, if any
        flat = []
        for c in range(len(x)):
            for k, (total, energy) in enumerate(zip(sums[c], energies[c], strict=True)):
                before, mean, power = self._now[c], total / self.hop, energy / self.hop
                if power - mean * mean <= FLAT * power and (x[c, k] == x[c, k, 0]).all():
                    hops, _, _, running = self._means[c]
                    self._means[c], self._now[c] = (hops, mean, mean, running), mean
                    flat.append((c, k))
                    continue
                begins = not self._means[c][0]
                self._now[c] = now = self._follow(c, mean, power)
                if now or before:
                    edges[c, k] = now if begins else before, now
        if not edges and not any(sums[c][k] for c, k in flat):
            return x
        x = x.copy()
        for at, (before, now) in edges.items():
            x[at] -= before + np.float32(now - before) * self.ramp
        for at in flat:
            x[at] = 0
        return x

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
