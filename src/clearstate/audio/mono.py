"""Mix several channels to mono without cancelling signals in opposite phase.

The mean is right for most recordings. If a cable is miswired, or a voice is in the difference of two channels, the mean
cancels it. So the share of energy that the mean keeps is measured in short frames:

    r = |Σ x_c|² / Σ |x_c|²        1 for unrelated channels, their number for equal channels, 0 if they cancel

If frames with a small r contain much of the energy, channels are inverted to the polarity of the first. If that does
not help either (one voice in phase, another in opposite phase), only the loudest channel is used.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FRAME = 1024  # samples per frame
CANCELLED = 0.15  # a frame with a smaller r is lost
MOST_LOST = 0.1  # accepted share of energy in lost frames


class Mix(NamedTuple):
    """The weights of a mix to mono."""

    weights: NDArray[np.float64]  # (channels,)
    note: str  # what was done and why, for messages; "" for the mean

    @property
    def polarity(self) -> NDArray[np.float64]:
        """-1 for inverted channels, else 1."""
        return np.where(self.weights < 0, -1.0, 1.0)

    def __call__(self, x: Array) -> Array:
        """x (channels, n) -> (n,), of the type of x."""
        if self.note:
            return (self.weights @ x).astype(x.dtype, copy=False)
        return x[0] if len(x) == 1 else x.mean(0)


MEAN = Mix(np.ones(1), "")  # for any number of channels


class Mixing:
    """Finds the `Mix` of a signal that arrives in blocks, in constant memory."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._products = np.zeros((channels, channels))  # sum of x xᵀ
        self._lost = 0.0  # energy of the frames that the mean cancels

    def push(self, x: Array) -> None:
        """The next block (channels, n)."""
        if self.channels == 1:
            return
        frames = x[:, : x.shape[1] // FRAME * FRAME].reshape(self.channels, -1, FRAME)
        for part in (frames, x[:, frames.shape[1] * FRAME :][:, None]):
            part = part.astype(np.float64)
            products = np.einsum("itn,jtn->tij", part, part)  # (t, c, c)
            energy = np.trace(products, axis1=1, axis2=2)
            self._lost += float(energy[products.sum((1, 2)) < CANCELLED * energy].sum())
            self._products += products.sum(0)

    def choose(self) -> Mix:
        """The mix that cancels nothing in the signal so far."""
        c, energy = self.channels, float(np.trace(self._products))
        if self._lost <= MOST_LOST * energy:
            return Mix(np.full(c, 1 / c), "")
        loudest = int(np.argmax(np.diag(self._products)))
        signs = np.where(self._products[loudest] < 0, -1.0, 1.0)
        signs *= signs[0]  # the first channel keeps its polarity, so that parts of a signal match
        if signs @ self._products @ signs > 1.5 * energy:
            turned = " and ".join(str(i + 1) for i in np.flatnonzero(signs < 0))
            return Mix(signs / c, f"channels cancel each other: {turned} inverted before mixing")
        return Mix(
            (np.arange(c) == loudest).astype(float),
            f"channels partly cancel each other: channel {loudest + 1}, the loudest, is used alone",
        )


def find_mix(x: Array) -> Mix:
    """The mix for a whole signal (channels, n)."""
    return mix_of([x], len(x))


def mix_of(blocks: Iterable[Array], channels: int) -> Mix:
    """The mix for a signal in blocks (channels, n)."""
    mixing = Mixing(channels)
    for block in blocks:
        mixing.push(block)
    return mixing.choose()


def to_mono(x: Array) -> Array:
    """Mix (channels, n) to (n,): the mean, unless the channels cancel each other.

    >>> voice = np.sin(np.arange(4_000.0))
    >>> bool(np.allclose(to_mono(np.stack([voice, -voice])), voice))
    True
    """
    return find_mix(x)(x)
