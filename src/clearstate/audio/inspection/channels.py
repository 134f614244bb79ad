"""Relation of the channels of a recording: offset, level, dead channels, mono in two channels, inverted phase."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float64]  # (channels, n)

SILENT_DBFS = -85.0  # a channel below this has no signal
DEAD_DB = 45.0  # below the loudest channel: only noise or crosstalk
EQUAL_DB = -55.0  # power of the difference of two channels that are the same, relative to their power
SAME_SHARE = 0.98  # correlation of channels that hold one signal, with different noise


class Channels(NamedTuple):
    """What was found in one recording."""

    offsets: list[float]  # constant part of each channel, full scale is 1
    levels: list[float]  # RMS of each channel in dBFS, without the offset; -inf for silence
    dead: list[int]  # channels without a signal, counted from 0; empty if all are silent
    relation: str  # mono, dual mono, inverted, dead channel, stereo, multichannel or silent
    correlation: float | None  # of the first two channels


class Relation:
    """Collect sums and products of the channels."""

    def __init__(self, channels: int) -> None:
        self.samples = 0
        self._sums = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def push(self, x: Block) -> None:
        """The next samples."""
        self.samples += x.shape[1]
        self._sums += x.sum(1)
        self._products += np.einsum("in,jn->ij", x, x)

    def result(self) -> Channels:
        """The relation so far."""
        count = max(1, self.samples)
        means = self._sums / count
        powers = self._products / count - np.outer(means, means)  # (c, c)
        own = np.maximum(np.diag(powers), 0.0)
        with np.errstate(divide="ignore"):
            levels = 10 * np.log10(own)
        loudest = levels.max()
        silent = loudest < SILENT_DBFS
        dead = [] if silent else [int(i) for i in np.flatnonzero(levels < max(SILENT_DBFS, loudest - DEAD_DB))]
        correlation = None
        if len(own) > 1 and own[0] > 0 and own[1] > 0:
            correlation = float(powers[0, 1] / np.sqrt(own[0] * own[1]))
        return Channels(means.tolist(), levels.tolist(), dead, self._name(powers, bool(silent), dead), correlation)

    def _name(self, powers: NDArray[np.float64], silent: bool, dead: list[int]) -> str:
        if len(powers) == 1:
            return "silent" if silent else "mono"
        if silent:
            return "silent"
        if len(powers) > 2:
            return "multichannel"
        if dead:
            return "dead channel"
        (left, both), (_, right) = powers
        if left + right - 2 * both <= 10 ** (EQUAL_DB / 10) * (left + right):
            return "dual mono"
        if both <= -SAME_SHARE * np.sqrt(left * right):
            return "inverted"
        return "stereo"
