"""The long-term spectrum of a recording, its true bandwidth, and a small spectrogram of any length."""

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.bandwidth import GUARD, upper_edge

Floats = NDArray[np.floating]

ROWS, COLUMNS = 128, 480  # of the spectrogram, at most
DROP_DB = 15.0  # below the band under the edge: where a recording ends


class LongTerm:
    """Collect the mean power spectrum and the spectrogram."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._sum: Floats | None = None
        self._starts: NDArray[np.int64] | None = None  # first bin of each row of the spectrogram
        self._columns: list[Floats] = []
        self._rest: Floats | None = None  # sum of the column that is incomplete
        self._in_rest = 0  # frames
        self._together = 1  # frames per column; doubles when there are too many
        self.frames = 0

    def push(self, power: Floats) -> None:
        """The next frames (t, f)."""
        if not len(power):
            return
        if self._sum is None or self._starts is None:
            self._sum = np.zeros(power.shape[1])
            self._starts = np.unique(np.linspace(0, power.shape[1], ROWS + 1).astype(np.int64)[:-1])
            self._rest = np.zeros(len(self._starts))
        self.frames += len(power)
        self._sum += power.sum(0)
        rows = np.add.reduceat(power, self._starts, axis=1)
        while len(rows):
            room = self._together - self._in_rest
            self._rest = self._rest + rows[:room].sum(0)
            self._in_rest += len(rows[:room])
            rows = rows[room:]
            if self._in_rest == self._together:
                self._columns.append(self._rest / self._together)
                self._rest, self._in_rest = np.zeros(len(self._starts)), 0
            if len(self._columns) == 2 * COLUMNS:
                self._columns = [(a + b) / 2 for a, b in zip(self._columns[::2], self._columns[1::2], strict=True)]
                self._together *= 2

    def spectrum(self) -> Floats:
        """Mean power of each bin (f,)."""
        return np.zeros(1) if self._sum is None else self._sum / max(1, self.frames)

    def spectrogram(self) -> Floats:
        """Levels in dB, (rows, columns); the first row is the lowest."""
        if not self._columns and self._rest is not None and self._in_rest:
            return 10 * np.log10(self._rest[:, None] / self._in_rest + 1e-14)
        return 10 * np.log10(np.stack(self._columns, axis=1) + 1e-14) if self._columns else np.zeros((1, 1))

    def edge(self) -> float:
        """Where the cliff of the spectrum starts in Hz; half the rate if it has none."""
        power = self.spectrum()
        if len(power) < 40 or not power.any():
            return self.rate / 2
        return float(upper_edge(power[None], self.rate)[0])

    def bandwidth(self) -> float:
        """Where the recording ends in Hz: where the level has fallen by DROP_DB after the start of the cliff."""
        power, edge = self.spectrum(), self.edge()
        if edge >= self.rate / 2:
            return edge
        spacing = self.rate / 2 / (len(power) - 1)
        at, guard = round(edge / spacing), max(1, round(2 * GUARD * (len(power) - 1)))
        below = power[max(0, at - 2 * guard) : at + 1].mean()
        fallen = power[at : at + 3 * guard] < below * 10 ** (-DROP_DB / 10)
        return float((at + int(fallen.argmax() if fallen.any() else guard)) * spacing)
