"""Find clipping: peaks cut off at one level, and the share of the samples that it affects.

A clipped peak is a run of equal samples at an extreme, next to samples that are clearly lower. Smooth peaks of low tones
have equal samples too, but their neighbours are only one step lower. All runs of a clipped recording end at the same
level. The share counts every sample at that level, also single ones.

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
SHORTEST = 3  # samples of a run that counts as evidence
QUIETEST = 0.02  # lower peaks are not clipped
HIGH = 0.5  # of the peak of a block; lower samples do not matter
LEAST_RUNS = 3
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
            magnitude = np.abs(row)
            high = np.flatnonzero(magnitude >= max(QUIETEST, HIGH * magnitude.max(initial=0.0)))
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
        levels, counts, share = [], 0, 0
        for row in (0, 1):
            found = self._level(row)
            levels.append(None if found is None else found[0])
            if found:
                counts, share = counts + found[1], share + found[2]
        if not self.samples or share < LEAST_SHARE * self.samples:
            return Clipping(0.0, 0, None, None)
        return Clipping(share / self.samples, counts, levels[0], levels[1])

    def _level(self, row: int) -> tuple[float, int, int] | None:
        """The clipping level of one polarity, the number of cut peaks there, and the samples; None without clipping."""
        if self._count[row].sum() < LEAST_RUNS:
            return None
        best = int(np.argmax(self._runs[row]))
        half = max(2, round(AT_LEVEL * best / 2))
        here = slice(max(0, best - half), best + half + 1)
        samples, runs = int(self._levels[row, here].sum()), int(self._count[row, here].sum())
        above = int(self._levels[row, best + half + 1 :].sum())
        below = self._levels[row, max(0, best - 9 * half) : max(0, best - half)].sum() / 8  # in the same width
        if runs < LEAST_RUNS or above > samples or samples < 2 * below:
            return None
        return best * HIGHEST / BINS, runs, samples
