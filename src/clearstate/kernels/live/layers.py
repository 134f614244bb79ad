"""Small matrix products for compiled code that handles one frame at a time, too small for a BLAS call to pay.

Matrices are `Block`s of flat float32 memory. A tile of four rows and sixteen outputs is summed in registers, which is
as fast as the machine multiplies (57 of 59 multiplications a nanosecond were measured on a Zen 4 core).
"""

from typing import NamedTuple

import numpy as np

from clearstate.kernels.simd import LANES, apart, inner_njit, load, rounded, splat, spread, store, total


class Block(NamedTuple):
    """A matrix within flat memory: where it starts, its size, and from one row to the next, all in numbers."""

    at: int
    rows: int
    width: int
    step: int


@inner_njit
def place(memory, free, rows, width):
    """A dense block at the position `free` of the memory, and the position after it."""
    end = free + rounded(rows * width)
    if end > memory.size:
        raise MemoryError("the working memory of a compiled frame is too small")
    return Block(free, rows, width, width), end


@inner_njit
def columns(block, first, width):
    return Block(block.at + first, block.rows, width, block.step)


@inner_njit
def accumulate(x, a, weight, w, out, c):
    """C += A W.

    Args:
        x, weight, out: memory of the blocks a, w, c: (rows, in), (in, width) and (rows, width). The width of c counts,
            a multiple of `LANES`; only `out` is written to.
    """
    apart()
    row = 0
    while row + 4 <= c.rows:
        for column in range(0, c.width, LANES):
            o0 = c.at + row * c.step + column
            o1, o2, o3 = o0 + c.step, o0 + 2 * c.step, o0 + 3 * c.step
            s0, s1, s2, s3 = load(out, o0), load(out, o1), load(out, o2), load(out, o3)
            p, q = a.at + row * a.step, w.at + column
            for _ in range(a.width):
                v = load(weight, q)
                s0 = spread(x, p) * v + s0
                s1 = spread(x, p + a.step) * v + s1
                s2 = spread(x, p + 2 * a.step) * v + s2
                s3 = spread(x, p + 3 * a.step) * v + s3
                p += 1
                q += w.step
            store(out, o0, s0)
            store(out, o1, s1)
            store(out, o2, s2)
            store(out, o3, s3)
        row += 4
    while row < c.rows:
        _one_row(x, a, weight, w, out, c, row)
        row += 1


@inner_njit
def _one_row(x, a, weight, w, out, c, row):
    """The same for one row; four partial sums, as each addition has to wait for the one before it."""
    for column in range(0, c.width, LANES):
        o = c.at + row * c.step + column
        p, q = a.at + row * a.step, w.at + column
        s0 = load(out, o)
        s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0)
        left = a.width
        while left >= 4:
            s0 = spread(x, p) * load(weight, q) + s0
            s1 = spread(x, p + 1) * load(weight, q + w.step) + s1
            s2 = spread(x, p + 2) * load(weight, q + 2 * w.step) + s2
            s3 = spread(x, p + 3) * load(weight, q + 3 * w.step) + s3
            p += 4
            q += 4 * w.step
            left -= 4
        while left > 0:
            s0 = spread(x, p) * load(weight, q) + s0
            p += 1
            q += w.step
            left -= 1
        store(out, o, (s0 + s1) + (s2 + s3))


@inner_njit
def clear(out, c):
    apart()
    for r in range(c.rows):
        for j in range(0, c.width, LANES):
            store(out, c.at + r * c.step + j, splat(0.0))


# Layers read their parameters from a tape: one array that holds those of all layers in the order of their use. Each
# takes the position of its own and returns the position of the next layer's. `memory` holds input and output.


@inner_njit
def dense(tape, at, memory, a, c):
    """C = A W + b: the bias (width,), then the weight (in, width)."""
    apart()
    for r in range(c.rows):
        for j in range(0, c.width, LANES):
            store(memory, c.at + r * c.step + j, load(tape, at + j))
    return _multiply(tape, at + c.width, memory, a, c)


@inner_njit
def add_dense(tape, at, memory, a, c):
    """C += A W + b, which is what ends a residual branch."""
    apart()
    for r in range(c.rows):
        for j in range(0, c.width, LANES):
            o = c.at + r * c.step + j
            store(memory, o, load(memory, o) + load(tape, at + j))
    return _multiply(tape, at + c.width, memory, a, c)


@inner_njit
def _multiply(tape, at, memory, a, c):
    accumulate(memory, a, tape, Block(at, a.width, c.width, c.width), memory, c)
    return at + a.width * c.width


@inner_njit
def normalise(tape, at, memory, a, c):
    """Layer norm of each row: the gain (width,), then the offset (width,)."""
    apart()
    share = np.float32(1) / np.float32(a.width)
    for r in range(a.rows):
        p, o = a.at + r * a.step, c.at + r * c.step
        sums = load(memory, p)
        for j in range(LANES, a.width, LANES):
            sums = sums + load(memory, p + j)
        mean = total(sums) * share
        squares = splat(0.0)
        for j in range(0, a.width, LANES):
            off = load(memory, p + j) - mean
            squares = off * off + squares
        scale = np.float32(1) / np.sqrt(total(squares) * share + np.float32(1e-5))
        for j in range(0, a.width, LANES):
            value = (load(memory, p + j) - mean) * scale
            store(memory, o + j, value * load(tape, at + j) + load(tape, at + a.width + j))
    return at + 2 * a.width


def tape_of(parts):
    """Parameters in the order of their use, as one array that starts where a vector may."""
    flat = [np.asarray(part, np.float32).reshape(-1) for part in parts]
    return aligned(np.concatenate([np.pad(part, (0, -len(part) % LANES)) for part in flat]))


def aligned(values):
    """A copy that starts on a multiple of a vector's bytes: loads across two cache lines take twice as long."""
    memory = np.empty(len(values) + LANES, np.float32)
    start = -memory.ctypes.data % (4 * LANES) // 4
    memory[start : start + len(values)] = values
    return memory[start : start + len(values)]
