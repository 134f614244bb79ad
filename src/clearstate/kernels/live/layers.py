"""Small matrix products for compiled code that handles one frame at a time, too small for a BLAS call to pay.

Matrices are `Block`s of flat float32 memory. A tile of four rows and sixteen outputs is summed in registers, which is
as fast as the machine multiplies (57 of 59 multiplications a nanosecond were measured on a Zen 4 core).
"""

from typing import NamedTuple

import numpy as np

from clearstate.kernels.simd import LANES, apart, inner_njit, load, rounded, splat, spread, store, total, wide_registers


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
    _tiles(x, a.at, a.step, 1, a.width, weight, w, out, c)


@inner_njit
def accumulate_turned(x, a, weight, w, out, c):
    """C += A^T W, for a block (in, rows)."""
    apart()
    _tiles(x, a.at, 1, a.step, a.rows, weight, w, out, c)


@inner_njit
def _tiles(x, p, down, along, count, weight, w, out, c):
    """C += A W with A[i, k] = x[p + i down + k along] for k < count."""
    row = 0
    if wide_registers():
        while row + 8 <= c.rows:
            column, start = 0, p + row * down
            while column + 2 * LANES <= c.width:
                _eight_by_two(x, start, down, along, count, weight, w.at + column, w.step, out, c, row, column)
                column += 2 * LANES
            if column < c.width:
                _eight_by_one(x, start, down, along, count, weight, w.at + column, w.step, out, c, row, column)
            row += 8
    while row + 4 <= c.rows:
        for column in range(0, c.width, LANES):
            start = p + row * down
            _four_by_one(x, start, down, along, count, weight, w.at + column, w.step, out, c, row, column)
        row += 4
    while row < c.rows:
        _one_row(x, p + row * down, along, count, weight, w, out, c, row)
        row += 1


@inner_njit
def _eight_by_two(x, p, down, along, count, weight, q, step, out, c, row, column):
    """Eight rows and two vectors of columns: sixteen of 32 registers hold sums."""
    apart()
    o0 = c.at + row * c.step + column
    o1, o2, o3, o4 = o0 + c.step, o0 + 2 * c.step, o0 + 3 * c.step, o0 + 4 * c.step
    o5, o6, o7 = o4 + c.step, o4 + 2 * c.step, o4 + 3 * c.step
    s0, s1, s2, s3 = load(out, o0), load(out, o1), load(out, o2), load(out, o3)
    s4, s5, s6, s7 = load(out, o4), load(out, o5), load(out, o6), load(out, o7)
    t0, t1, t2, t3 = load(out, o0 + LANES), load(out, o1 + LANES), load(out, o2 + LANES), load(out, o3 + LANES)
    t4, t5, t6, t7 = load(out, o4 + LANES), load(out, o5 + LANES), load(out, o6 + LANES), load(out, o7 + LANES)
    for _ in range(count):
        v, u = load(weight, q), load(weight, q + LANES)
        a = spread(x, p)
        s0, t0 = a * v + s0, a * u + t0
        a = spread(x, p + down)
        s1, t1 = a * v + s1, a * u + t1
        a = spread(x, p + 2 * down)
        s2, t2 = a * v + s2, a * u + t2
        a = spread(x, p + 3 * down)
        s3, t3 = a * v + s3, a * u + t3
        a = spread(x, p + 4 * down)
        s4, t4 = a * v + s4, a * u + t4
        a = spread(x, p + 5 * down)
        s5, t5 = a * v + s5, a * u + t5
        a = spread(x, p + 6 * down)
        s6, t6 = a * v + s6, a * u + t6
        a = spread(x, p + 7 * down)
        s7, t7 = a * v + s7, a * u + t7
        p += along
        q += step
    store(out, o0, s0)
    store(out, o1, s1)
    store(out, o2, s2)
    store(out, o3, s3)
    store(out, o4, s4)
    store(out, o5, s5)
    store(out, o6, s6)
    store(out, o7, s7)
    store(out, o0 + LANES, t0)
    store(out, o1 + LANES, t1)
    store(out, o2 + LANES, t2)
    store(out, o3 + LANES, t3)
    store(out, o4 + LANES, t4)
    store(out, o5 + LANES, t5)
    store(out, o6 + LANES, t6)
    store(out, o7 + LANES, t7)


@inner_njit
def _eight_by_one(x, p, down, along, count, weight, q, step, out, c, row, column):
    """Eight rows and one vector of columns; with tiles of four rows instead, a hop of `live` takes 4 % longer."""
    apart()
    o0 = c.at + row * c.step + column
    o1, o2, o3, o4 = o0 + c.step, o0 + 2 * c.step, o0 + 3 * c.step, o0 + 4 * c.step
    o5, o6, o7 = o4 + c.step, o4 + 2 * c.step, o4 + 3 * c.step
    s0, s1, s2, s3 = load(out, o0), load(out, o1), load(out, o2), load(out, o3)
    s4, s5, s6, s7 = load(out, o4), load(out, o5), load(out, o6), load(out, o7)
    for _ in range(count):
        v = load(weight, q)
        a = spread(x, p)
        s0 = a * v + s0
        a = spread(x, p + down)
        s1 = a * v + s1
        a = spread(x, p + 2 * down)
        s2 = a * v + s2
        a = spread(x, p + 3 * down)
        s3 = a * v + s3
        a = spread(x, p + 4 * down)
        s4 = a * v + s4
        a = spread(x, p + 5 * down)
        s5 = a * v + s5
        a = spread(x, p + 6 * down)
        s6 = a * v + s6
        a = spread(x, p + 7 * down)
        s7 = a * v + s7
        p += along
        q += step
    store(out, o0, s0)
    store(out, o1, s1)
    store(out, o2, s2)
    store(out, o3, s3)
    store(out, o4, s4)
    store(out, o5, s5)
    store(out, o6, s6)
    store(out, o7, s7)


@inner_njit
def _four_by_one(x, p, down, along, count, weight, q, step, out, c, row, column):
    """Four rows and one vector of columns, for machines with few registers, and for the last rows."""
    apart()
    o0 = c.at + row * c.step + column
    o1, o2, o3 = o0 + c.step, o0 + 2 * c.step, o0 + 3 * c.step
    s0, s1, s2, s3 = load(out, o0), load(out, o1), load(out, o2), load(out, o3)
    for _ in range(count):
        v = load(weight, q)
        a = spread(x, p)
        s0 = a * v + s0
        a = spread(x, p + down)
        s1 = a * v + s1
        a = spread(x, p + 2 * down)
        s2 = a * v + s2
        a = spread(x, p + 3 * down)
        s3 = a * v + s3
        p += along
        q += step
    store(out, o0, s0)
    store(out, o1, s1)
    store(out, o2, s2)
    store(out, o3, s3)


@inner_njit
def _one_row(x, p, along, count, weight, w, out, c, row):
    """One row; four partial sums, as each addition has to wait for the one before it."""
    apart()
    for column in range(0, c.width, LANES):
        o = c.at + row * c.step + column
        at, q = p, w.at + column
        s0 = load(out, o)
        s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0)
        left = count
        while left >= 4:
            s0 = spread(x, at) * load(weight, q) + s0
            s1 = spread(x, at + along) * load(weight, q + w.step) + s1
            s2 = spread(x, at + 2 * along) * load(weight, q + 2 * w.step) + s2
            s3 = spread(x, at + 3 * along) * load(weight, q + 3 * w.step) + s3
            at += 4 * along
            q += 4 * w.step
            left -= 4
        while left > 0:
            s0 = spread(x, at) * load(weight, q) + s0
            at += along
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
