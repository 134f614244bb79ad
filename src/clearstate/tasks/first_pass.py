"""What a model that listens to whole signals must know of a long one before its blocks are enhanced.

Such a model has instance norms over all of the signal and a gain from its level. A block by itself would have other
moments and another gain than its neighbour: they would not meet. So a long signal is heard twice. The first time, here,
its level is measured and pieces are kept from all over it; from these the model makes an overview, and every block is
then enhanced with that overview. A model takes part by having

    overview(pieces (1, p, n), gain (1, 1)) -> Overview     p pieces of n samples; the gain brings the whole to RMS 1
    forward(block (1, n), overview) -> (1, n)

and a signal that fits into one block is simply given to `forward`. A pipe cannot be heard twice: there each block is
enhanced by itself.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clearstate.audio.resample import Resampler
from clearstate.kernels.threads import inference

Array = NDArray[Any]

PIECE_SECONDS = 5.0  # few long pieces tell more than many short ones, whose ends are not the signal's
PIECES = 4  # that are taken together: 20 s need 0.8 to 3 GB
SILENT = 1e-7  # RMS below which a signal keeps its level


class Survey:
    """Level and pieces of a signal that arrives in chunks, in bounded memory.

    At first every piece is kept; whenever there are twice as many as are wanted, every other one is dropped, and from
    then on the distance between those that are kept is twice what it was.
    """

    def __init__(self, channels: int, length: int) -> None:
        self.length, self.samples = length, 0
        self.energy = np.zeros(channels)
        self.kept: list[Array] = []  # (channels, length) each, at equal distances from the start of the signal
        self.distance = 1  # in pieces
        self._held = np.zeros((channels, 0), dtype=np.float32)
        self._seen = 0  # pieces

    def push(self, x: Array) -> None:
        """The next samples (channels, n)."""
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
        """Pieces from all over the signal (channels, p, n); one, the whole, if it is no longer than all of them."""
        if self.samples <= PIECES * self.length:
            return np.concatenate([*self.kept, self._held], axis=1)[:, None]
        chosen = np.linspace(0, len(self.kept) - 1, min(PIECES, len(self.kept))).round().astype(int)
        return np.stack([self.kept[i] for i in chosen], axis=1)

    def gain(self) -> Array:
        """What brings each channel to an RMS of 1, (channels,); one that is silent keeps its level."""
        rms = np.sqrt(self.energy / max(1, self.samples))
        return np.where(rms > SILENT, 1 / np.maximum(rms, SILENT), 1.0).astype(np.float32)


def wants_overview(model: Any) -> bool:
    """Whether the blocks of a long signal should be enhanced with an overview of it."""
    return not getattr(model, "causal", True) and hasattr(model, "overview")


def survey(model: Any, sample_rate: int, channels: int, blocks: Iterable[Array], enough: float) -> list[Any] | None:
    """An overview of each channel of a signal, from its first hearing; for a model that wants one.

    Args:
        sample_rate: of the signal, in Hz.
        blocks: all of it, (channels, n) each, full scale 1.
        enough: seconds that the model takes at a time; a signal no longer than that needs no overview.
    Returns:
        One overview a channel; None for a short signal.
    """
    rate = int(model.sample_rate)
    heard = Survey(channels, int(PIECE_SECONDS * rate))
    down = Resampler(sample_rate, rate, channels) if sample_rate != rate else None
    for block in blocks:
        heard.push(down.push(block) if down else block)
    if down:
        heard.push(down.flush())
    if heard.samples <= enough * rate:
        return None
    device = next(model.parameters()).device
    pieces, gain = (torch.from_numpy(x).to(device) for x in (heard.pieces(), heard.gain()))
    with inference(model):
        return [model.overview(pieces[c : c + 1], gain[c].view(1, 1)) for c in range(channels)]
