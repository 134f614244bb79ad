"""Run a model on a signal of any length. This file holds the cross-fade between blocks.

`Stream` runs a causal model and carries its state. `Overlapping` runs any other model on overlapping blocks and
cross-fades them. Both receive chunks (rows, n) at the model's rate. They return the input (rows, m) and the model's
output (outputs, m) for the same stretch, as far as the chunks so far determine it. `finish` returns the rest. The
result does not depend on the chunk sizes.

Blocks are independent until the cross-fade, so other workers can compute some of them: `lending` names these helpers.
The result is the same, it only arrives later.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clearstate.runtime.contract import Advance

Array = NDArray[Any]
Pair = tuple[Array, Array]  # input (rows, m) and output (outputs, m) of the same stretch
Run = Callable[[Array, int], Array]  # a block (rows, n) and its first sample in the signal to the output (outputs, n)

AHEAD = 2  # blocks per helper: one in work, one that waits there


class Runner(Protocol):
    """A model and its state."""

    delay: int  # samples of silence before the signal
    grid: int  # the output so far is always a multiple of this many samples, except at the end

    def push(self, x: Array) -> Pair:
        """The next samples (rows, n)."""
        ...

    def finish(self) -> Pair:
        """The rest, as if silence followed."""
        ...


class Stream:
    """A causal model with its state. The output is delayed by `delay`, and so is the input returned with it.

    Args:
        advance: the model (see `runtime.contract`); accepts multiples of `hop` samples.
        rows, outputs: number of input and output signals.
        hop, delay: in samples.
        dtype: sample type of the buffered input.
    """

    def __init__(
        self, advance: Advance, rows: int, outputs: int, hop: int, delay: int, dtype: type[np.floating] = np.float32
    ) -> None:
        self.advance, self.hop, self.grid, self.delay = advance, hop, hop, delay
        self._nothing: Pair = np.zeros((rows, 0), dtype=dtype), np.zeros((outputs, 0), dtype=dtype)
        self._held = self._nothing[0]  # an incomplete hop
        self._waiting = np.zeros((rows, delay), dtype=dtype)  # input that waits for its output

    def push(self, x: Array) -> Pair:
        """The next samples (rows, n)."""
        if self._held.shape[1]:
            x = np.concatenate([self._held, x], axis=1)
        whole = x.shape[1] // self.hop * self.hop
        ready = x[:, :whole].astype(self._held.dtype)  # a copy, for compiled code takes no read-only array
        self._held = x[:, whole:].astype(self._held.dtype) if whole < x.shape[1] else self._nothing[0]
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
    """Block positions in samples. Neighbouring blocks share `overlap` and are cross-faded over its middle `fade`."""

    length: int
    overlap: int
    fade: int
    grid: int = 1

    @property
    def hop(self) -> int:
        """Distance from one block to the next."""
        return self.length - self.overlap

    @property
    def context(self) -> int:
        """Output at each end of a block that is not used."""
        return (self.overlap - self.fade) // 2


class Helpers:
    """Other workers that compute blocks.

    Args:
        start: begins a block elsewhere.
        count: number of workers. At most AHEAD blocks of each are in memory here.
    """

    def __init__(self, start: Callable[[Run, Array, int], Future[Array]], count: int) -> None:
        self.start, self.room = start, AHEAD * count

    def submit(self, run: Run, x: Array, position: int) -> Future[Array] | None:
        """Begin a block elsewhere; None if there is no room, or if the helpers are gone."""
        if self.room <= 0:
            return None
        try:
            future = self.start(run, x, position)
        except Exception:
            return None
        self.room -= 1
        return future

    def read(self, future: Future[Array]) -> Array:
        """The output of a block; waits for it."""
        self.room += 1
        return future.result()


_helpers: ContextVar[Callable[[], Helpers | None] | None] = ContextVar("helpers", default=None)


@contextmanager
def lending(helpers: Callable[[], Helpers | None]) -> Iterator[None]:
    """Let the helpers that the function returns compute blocks of the signals inside the `with` block."""
    token = _helpers.set(helpers)
    try:
        yield
    finally:
        _helpers.reset(token)


class Block(NamedTuple):
    """A block whose output is known, or computed elsewhere."""

    x: Array
    position: int
    last: bool
    y: Array | None
    helpers: Helpers | None = None
    future: Future[Array] | None = None


class Overlapping:
    """A non-causal model on blocks with context at both ends. Neighbouring blocks are cross-faded.

    A signal that fits into one block gives exactly the model's output on the whole signal. Blocks lie on a fixed grid
    from the start of the signal.

    Args:
        run: the model: a block (rows, n) and its first sample in the signal to the output (outputs, n).
        rows, outputs: number of input and output signals.
        layout: block positions.
        match: receives the outputs of two neighbouring blocks on their overlap, (outputs, overlap) each, and returns
            the order of rows that makes the second like the first. None keeps the order.
        dtype: sample type of the buffered signal and the model's input.
        elsewhere: the same as `run`, for helpers: it can be pickled. None computes every block here.
    """

    delay = 0

    def __init__(
        self,
        run: Run,
        rows: int,
        outputs: int,
        layout: Layout,
        match: Callable[[Array, Array], tuple[int, ...]] | None = None,
        dtype: type[np.floating] = np.float32,
        elsewhere: Run | None = None,
    ) -> None:
        self.run, self.layout, self.match, self.grid = run, layout, match, layout.grid
        self.elsewhere = elsewhere
        self._started: deque[Block] = deque()
        self.ramp = (np.arange(layout.fade, dtype=dtype) + dtype(0.5)) / dtype(layout.fade)
        self._nothing: Pair = np.zeros((rows, 0), dtype=dtype), np.zeros((outputs, 0), dtype=dtype)
        self._held = self._nothing[0]
        self._position = 0  # of the first buffered sample in the signal
        self._before: Array | None = None  # the previous block's output on the overlap

    def push(self, x: Array) -> Pair:
        """The next samples (rows, n)."""
        self._held = np.concatenate([self._held, x.astype(self._held.dtype, copy=False)], axis=1)
        while self._held.shape[1] > self.layout.length:  # not >=: the last block must be longer than the overlap
            self._start(self._held[:, : self.layout.length], last=False)
            self._held = self._held[:, self.layout.hop :].copy()
            self._position += self.layout.hop
        return self._finished()

    def finish(self) -> Pair:
        """The rest: the last block."""
        if self._held.shape[1]:
            self._start(self._held, last=True)
        return self._finished(wait=True)

    def _start(self, x: Array, last: bool) -> None:
        """Give a block to a helper, or compute it here."""
        lent = _helpers.get()
        helpers = lent() if lent and self.elsewhere else None
        future = helpers.submit(self.elsewhere, x, self._position) if helpers and self.elsewhere else None
        y = None if future else self.run(x, self._position)
        self._started.append(Block(x, self._position, last, y, helpers, future))

    def _finished(self, wait: bool = False) -> Pair:
        """The blocks that are done, in order; with `wait`, all of them."""
        pairs = [self._nothing]
        while self._started and (wait or self._is_due(self._started[0])):
            block = self._started.popleft()
            pairs.append(self._faded(block.x, self._output(block), block.last))
        return np.concatenate([x for x, _ in pairs], axis=1), np.concatenate([y for _, y in pairs], axis=1)

    def _is_due(self, block: Block) -> bool:
        """Whether a block is done, or too many others wait for it."""
        if block.future is None or block.future.done():
            return True
        remote = sum(one.future is not None for one in self._started)
        return len(self._started) > 2 * (remote + 1)

    def _output(self, block: Block) -> Array:
        if block.y is not None:
            return block.y
        assert block.helpers and block.future
        try:
            return block.helpers.read(block.future)
        except Exception:  # the helper is gone; an error of the model itself comes again here
            return self.run(block.x, block.position)

    def _faded(self, x: Array, y: Array, last: bool) -> Pair:
        """The part of a block that is final, cross-faded with the previous one."""
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
