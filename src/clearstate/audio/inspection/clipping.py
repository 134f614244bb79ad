"""Find clipping: peaks cut off at one level, and the share of the samples that it affects.

A clipped peak is a run of equal samples at an extreme, next to samples that are clearly lower. Smooth peaks of low
tones have equal samples too, but their neighbours are only one step lower. All runs of a clipped recording end at the
same level. The share counts every sample at that level, also single ones.

Positive and negative peaks are counted apart: with an offset they are cut at different distances from zero.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float64]  # (channels, n)

BINS = 1 << 15  # of levels, from 0 to HIGHEST; one 16-bit step is two bins
HIGHEST = 2.0  # full scale is 1; float files may exceed it
FLAT = 2e-5  # greatest difference of equal samples: less than a 16-bit step, more than float rounding
STEEP = 0.004  # least height of a clipped run over one neighbour, as a share of its level
SHORTEST = 2  # samples of a run that counts as evidence
QUIETEST = 0.02  # lower peaks are not clipped
HIGH = 0.5  # of the peak of a block in each polarity; lower samples do not matter
NEAR_TOP = 0.7  # of the highest level; flat parts below it are pauses of a recording with an offset
LEAST_RUNS = 4  # of a polarity, or of both if they are cut at the same level
ABOVE = 0.2  # samples above the level, as a share of those at it
AT_LEVEL = 0.01  # of the level: width of the range that counts as one level
LEAST_SHARE = 1e-5  # of the samples


class Clipping(NamedTuple):
    """What was found in one recording."""

    share: float  # of the samples at the clipping level, 0 to 1
    runs: int  # clipped peaks of at least SHORTEST samples
    positive: float | None  # level at which positive peaks are cut; None if they are not
    negative: float | None  # the same for negative peaks, as a magnitude


class Clips:
    """Collect the levels of samples and of flat peaks."""

    def __init__(self, channels: int) -> None:
        self._levels = np.zeros((2, BINS), dtype=np.int64)  # samples by magnitude: positive, negative
        self._runs = np.zeros((2, BINS), dtype=np.int64)  # samples in flat peaks
        self._count = np.zeros((2, BINS), dtype=np.int64)  # flat peaks
        self._held = np.zeros((channels, 0))
        self.samples = 0

    def push(self, x: Block) -> None:
        """The next samples."""
        self.samples += x.size
        held = np.concatenate([self._held, x], axis=1)
        new = self._held.shape[1]
        for row in held:
            above, below = max(QUIETEST, HIGH * row.max(initial=0.0)), max(QUIETEST, -HIGH * row.min(initial=0.0))
            high = np.flatnonzero((row >= above) | (row <= -below))
            self._find(row, high)
            fresh = row[high[high >= new]]
            for sign in (0, 1):
                own = np.abs(fresh[(fresh > 0) == (sign == 0)]) * (BINS / HIGHEST)
                self._levels[sign] += np.bincount(np.minimum(own.astype(np.int64), BINS - 1), minlength=BINS)
        self._held = held[:, -2:]  # the peak that continues in the next block is counted as two

    def _find(self, x: NDArray[np.float64], high: NDArray[np.int64]) -> None:
        """Count the flat peaks of one channel among its samples at indices `high`."""
        if len(high) < SHORTEST:
            return
        values = x[high]
        flat = (np.diff(high) == 1) & (np.abs(np.diff(values)) <= FLAT)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(np.int8)))
        starts, ends = high[edges[::2]], high[edges[1::2]] + 1  # the run is x[start:end]
        kept = (ends - starts >= SHORTEST) & (starts > 0) & (ends < len(x))
        starts, ends = starts[kept], ends[kept]
        level, before, after = x[starts], x[starts - 1], x[ends]
        for sign, row in ((1, 0), (-1, 1)):
            top = sign * level
            drops = top - sign * np.stack([before, after]) if len(top) else np.zeros((2, 0))
            cut = (top > 0) & (drops.min(0) > 0) & (drops.max(0) >= STEEP * top)
            at = np.minimum((top[cut] * (BINS / HIGHEST)).astype(np.int64), BINS - 1)
            np.add.at(self._runs[row], at, (ends - starts)[cut])
            np.add.at(self._count[row], at, 1)

    def result(self) -> Clipping:
        """The clipping so far."""
        both = [self._level(row) for row in (0, 1)]
        runs = [one[1] for one in both if one]
        first, second = both
        if first and second and abs(first[0] - second[0]) <= AT_LEVEL * max(first[0], second[0]):
            runs = [sum(runs)] * 2
        pooled = bool(runs) and min(runs) == max(runs) >= LEAST_RUNS
        found = [one if one and (pooled or one[1] >= LEAST_RUNS) else None for one in both]
        share = sum(one[2] for one in found if one)
        if not self.samples or share < LEAST_SHARE * self.samples:
            return Clipping(0.0, 0, None, None)
        positive, negative = (one and one[0] for one in found)
        return Clipping(share / self.samples, sum(one[1] for one in found if one), positive, negative)

    def _level(self, row: int) -> tuple[float, int, int] | None:
        """The level at which most peaks of one polarity are cut, their number, and the samples; None if none are."""
        if not self._count[row].any():
            return None
        lowest = round(NEAR_TOP * int(np.flatnonzero(self._levels[row])[-1]))
        best = lowest + int(np.argmax(self._runs[row, lowest:]))
        half = max(2, round(AT_LEVEL * best / 2))
        here = slice(max(0, best - half), best + half + 1)
        samples, runs = int(self._levels[row, here].sum()), int(self._count[row, here].sum())
        above = int(self._levels[row, best + half + 1 :].sum())
        below = self._levels[row, max(0, best - 9 * half) : max(0, best - half)].sum() / 8  # in the same width
        return None if above > ABOVE * samples or samples < 2 * below else (best * HIGHEST / BINS, runs, samples)
