"""A model on a signal of any length: a causal one as an endless stream, any other on overlapping blocks.

Both take chunks (rows, n) at the model's rate and give back what they determine: the input and the model's output for
the same stretch, (rows, m) and (outputs, m). `finish` gives the rest. The result does not depend on the chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clearstate.runtime.contract import Advance

Array = NDArray[Any]
Pair = tuple[Array, Array]  # input (rows, m) and output (outputs, m) of the same stretch


class Runner(Protocol):
    """A model with its state."""

    delay: int  # samples of silence that come before the signal
    grid: int  # what has come out is always a multiple of this many samples, but for the very end

    def push(self, x: Array) -> Pair:
        """The next samples (rows, n)."""
        ...

    def finish(self) -> Pair:
        """The rest, as if silence followed."""
        ...


class Stream:
    """A causal model: the state is carried. The output trails by `delay`, and so does the input beside it.

    Args:
        advance: the model, see `runtime.contract`; takes multiples of `hop` samples.
        rows, outputs: signals that go in, and that come back.
        hop, delay: samples.
        dtype: in which the input is kept.
    """

    def __init__(
        self, advance: Advance, rows: int, outputs: int, hop: int, delay: int, dtype: type[np.floating] = np.float32
    ) -> None:
        self.advance, self.hop, self.grid, self.delay = advance, hop, hop, delay
        self._nothing: Pair = np.zeros((rows, 0), dtype=dtype), np.zeros((outputs, 0), dtype=dtype)
        self._held = self._nothing[0]  # less than a hop
        self._waiting = np.zeros((rows, delay), dtype=dtype)  # input whose output is not there yet

    def push(self, x: Array) -> Pair:
        """The next samples (rows, n)."""
        held = np.concatenate([self._held, x.astype(self._held.dtype, copy=False)], axis=1)
        whole = held.shape[1] // self.hop * self.hop
        ready, self._held = held[:, :whole], held[:, whole:].copy()
        if not whole:
            return self._nothing
        waiting = np.concatenate([self._waiting, ready], axis=1)
        self._waiting = waiting[:, whole:].copy()
        return waiting[:, :whole], self.advance(ready)

    def finish(self) -> Pair:
        """The rest, as if silence followed."""
        return self.push(np.zeros((len(self._held), self.delay + self.hop - 1), dtype=self._held.dtype))


@dataclass(frozen=True)
class Layout:
    """Where blocks lie, in samples. Consecutive blocks share `overlap` and are cross-faded over its middle `fade`."""

    length: int
    overlap: int
    fade: int
    grid: int = 1

    @property
    def hop(self) -> int:
        """From one block to the next."""
        return self.length - self.overlap

    @property
    def context(self) -> int:
        """At each end of a block, output that is not used."""
        return (self.overlap - self.fade) // 2


class Overlapping:
    """A model that needs the future: blocks with context at both ends, cross-faded where they meet.

    A signal no longer than a block is one block: exactly what the model makes of the whole. Blocks lie on a fixed grid
    from the start of the signal.

    Args:
        run: the model on one block (rows, n) that begins at a sample of the signal: output (outputs, n).
        rows, outputs: signals that go in, and that come back.
        layout: of the blocks.
        match: brings the rows of a block's output into the order of the block before, given what the two made of their
            overlap, (outputs, overlap) each; returns the order. None keeps it.
        dtype: of the signal that is kept and given to the model.
    """

    delay = 0

    def __init__(
        self,
        run: Callable[[Array, int], Array],
        rows: int,
        outputs: int,
        layout: Layout,
        match: Callable[[Array, Array], tuple[int, ...]] | None = None,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self.run, self.layout, self.match, self.grid = run, layout, match, layout.grid
        self.ramp = (np.arange(layout.fade, dtype=dtype) + dtype(0.5)) / dtype(layout.fade)
        self._nothing: Pair = np.zeros((rows, 0), dtype=dtype), np.zeros((outputs, 0), dtype=dtype)
        self._held = self._nothing[0]
        self._position = 0  # in the signal, of the first sample held
        self._before: Array | None = None  # what the block before made of the overlap

    def push(self, x: Array) -> Pair:
        """The next samples (rows, n)."""
        self._held = np.concatenate([self._held, x.astype(self._held.dtype, copy=False)], axis=1)
        pairs = [self._nothing]
        while self._held.shape[1] > self.layout.length:  # never equal: the last block has more than the overlap
            pairs.append(self._block(self._held[:, : self.layout.length], last=False))
            self._held = self._held[:, self.layout.hop :].copy()
            self._position += self.layout.hop
        return np.concatenate([x for x, _ in pairs], axis=1), np.concatenate([y for _, y in pairs], axis=1)

    def finish(self) -> Pair:
        """The rest: the last block."""
        if not self._held.shape[1]:
            return self._nothing
        return self._block(self._held, last=True)

    def _block(self, x: Array, last: bool) -> Pair:
        y = self.run(x, self._position)
        start, end = 0, y.shape[1] if last else self.layout.hop + self.layout.context
        if self._before is not None:
            if self.match:
                y = y[list(self.match(self._before, y[:, : self.layout.overlap]))]
            start = self.layout.context
            meet = slice(start, start + self.layout.fade)
            y = y.copy()
            y[:, meet] = self._before[:, meet] + self.ramp * (y[:, meet] - self._before[:, meet])
        self._before = None if last else y[:, self.layout.hop :].copy()
        return x[:, start:end], y[:, start:end]
