"""First pass over a long signal, for models with statistics of the whole signal.

Such a model has instance norms over the whole signal and a gain from its level. Separate blocks would have different
statistics, with steps between them. So a long signal is read twice. The first pass, in this file, measures the level
and keeps pieces from the whole signal. The model computes an overview from them and enhances every block with it. A
model that needs this has

    overview(pieces (1, p, n), gain (1, 1)) -> Overview     p pieces of n samples; gain scales the signal to RMS 1
    forward(block (1, n), overview) -> (1, n)

A signal that fits into one block needs no overview. A pipe cannot be read twice, so its blocks are enhanced separately.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.resample import Resampler
from clearstate.runtime.contract import EnhancementModel
from clearstate.tasks.chain import offset_for

Array = NDArray[Any]

PIECE_SECONDS = 5.0  # a few long pieces are better than many short ones, which have more cut ends
PIECES = 4  # per overview; 20 s need 0.8 to 3 GB
SILENT = 1e-7  # RMS below which a signal keeps its level


class Survey:
    """Collect the level and pieces of a signal that arrives in chunks, in bounded memory.

    At first every piece is kept. When there are twice as many as needed, every other piece is dropped, and the distance
    between kept pieces doubles.
    """

    def __init__(self, channels: int, length: int) -> None:
        self.length, self.samples = length, 0
        self.energy = np.zeros(channels)
        self.kept: list[Array] = []  # (channels, length) each, at equal distances from the start of the signal
        self.distance = 1  # in pieces
        self._held = np.zeros((channels, 0), dtype=np.float32)
        self._seen = 0  # pieces

    def push(self, x: Array) -> None:
        """Process the next samples (channels, n)."""
        self.samples += x.shape[1]
        self.energy += np.square(x, dtype=np.float64).sum(1)
        held = np.concatenate([self._held, x.astype(np.float32, copy=False)], axis=1)
        while held.shape[1] >= self.length:
            if self._seen % self.distance == 0:
                self.kept.append(held[:, : self.length].copy())
            self._seen += 1
            held = held[:, self.length :]
            if len(self.kept) == 2 * PIECES:
                self.kept, self.distance = self.kept[::2], 2 * self.distance
        self._held = held.copy()

    def pieces(self) -> Array:
        """Pieces from the whole signal (channels, p, n); a short signal is one piece."""
        if self.samples <= PIECES * self.length:
            return np.concatenate([*self.kept, self._held], axis=1)[:, None]
        chosen = np.linspace(0, len(self.kept) - 1, min(PIECES, len(self.kept))).round().astype(int)
        return np.stack([self.kept[i] for i in chosen], axis=1)

    def gain(self) -> Array:
        """The gain that scales each channel to RMS 1, (channels,); silent channels keep their level."""
        rms = np.sqrt(self.energy / max(1, self.samples))
        return np.where(rms > SILENT, 1 / np.maximum(rms, SILENT), 1.0).astype(np.float32)


def survey(
    model: EnhancementModel, sample_rate: int, channels: int, blocks: Iterable[Array], enough: float
) -> list[Any] | None:
    """Compute an overview of each channel of a signal in a first pass.

    Args:
        sample_rate: of the signal, in Hz.
        blocks: the whole signal, (channels, n) each, full scale 1.
        enough: block length in seconds; a signal that fits into one block needs no overview.
    Returns:
        One overview per channel; None for a short signal.
    """
    rate = model.sample_rate
    found = Survey(channels, int(PIECE_SECONDS * rate))
    down = Resampler(sample_rate, rate, channels, fold=True) if sample_rate != rate else None
    offset = offset_for(model, channels)
    for block in blocks:
        found.push(offset.push(down.push(block) if down else block.astype(np.float32, copy=False)))
    rest = down.flush() if down else np.zeros((channels, 0), dtype=np.float32)
    found.push(offset.push(rest, last=True))
    if found.samples <= enough * rate:
        return None
    pieces, gain = found.pieces(), found.gain()
    return [model.overview(pieces[c : c + 1], gain[c].reshape(1, 1)) for c in range(channels)]
