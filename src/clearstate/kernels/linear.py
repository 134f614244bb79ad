"""Products of many rows with a small matrix on a CPU, both ways, and what goes before and after them in the same pass.

    y = x W^T + b + residual

A few rows at a time stay in the second-level cache, and a tile of outputs in registers (`ssm.panels_cpu`), so a bias
and a residual cost nothing and no product waits for memory twice. `saf_ops.linear` has the slow twin.

n rows, i inputs, a multiple of 32, o outputs, a multiple of 16.
"""

import numpy as np

from clearstate.kernels.cache import njit
from clearstate.kernels.matmul import Panels, multiply
from clearstate.kernels.simd import FAST, LANES, apart, inner_njit, load, splat, spread, store

ROWS = 64  # of one task


@inner_njit
def rows_of(part, parts, rows):
    """First row and the one after the last of a part: whole tasks, as a tile has four rows."""
    tasks = (rows + ROWS - 1) // ROWS
    return min(tasks * part // parts * ROWS, rows), min(tasks * (part + 1) // parts * ROWS, rows)


@njit(fastmath=FAST, nogil=True, cache=True)
def linear_part(part, parts, x, weight, bias, residual, y):
    """y (n, o) from x (n, i).

    Args:
        weight: W^T (i, o) in panels.   bias: (o,).   residual: n o numbers, or none.
    """
    (rows, i), o = x.shape, y.shape[1]
    flat, more, out = x.reshape(-1), residual.reshape(-1), y.reshape(-1)
    first, last = rows_of(part, parts, rows)
    for start in range(first, last, ROWS):
        count = min(ROWS, last - start)
        for row in range(start, start + count):
            for j in range(0, o, LANES):
                b = load(bias, j)
                if more.size:
                    b = b + load(more, row * o + j)
                store(out, row * o + j, b)
        a, c = Panels(start * i, i, LANES), Panels(start * o, o, LANES)
        multiply(flat, a, i // LANES, weight, 0, out, c, o // LANES, count, True)


@inner_njit
def outer(dy, p, o, x, q, i, count, sums, bias):
    """sums (o, i) += dy^T x and bias (o,) += dy summed, over `count` rows of dy (., o) at p and x (., i) at q."""
    apart()
    zero = splat(np.float32(0))
    for j in range(0, o, LANES):
        s = zero
        for r in range(count):
            s = s + load(dy, p + r * o + j)
        store(bias, j, load(bias, j) + s)
    for j in range(0, o, 4):
        for k in range(0, i, 2 * LANES):
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero
            a, b = p + j, q + k
            for _ in range(count):
                v, w = load(x, b), load(x, b + LANES)
                d0, d1, d2, d3 = spread(dy, a), spread(dy, a + 1), spread(dy, a + 2), spread(dy, a + 3)
                s0, t0 = d0 * v + s0, d0 * w + t0
                s1, t1 = d1 * v + s1, d1 * w + t1
                s2, t2 = d2 * v + s2, d2 * w + t2
                s3, t3 = d3 * v + s3, d3 * w + t3
                a += o
                b += i
            _add(sums, j * i + k, s0, t0)
            _add(sums, (j + 1) * i + k, s1, t1)
            _add(sums, (j + 2) * i + k, s2, t2)
            _add(sums, (j + 3) * i + k, s3, t3)


@inner_njit
def _add(sums, at, x, y):
    store(sums, at, load(sums, at) + x)
    store(sums, at + LANES, load(sums, at + LANES) + y)


@njit(fastmath=FAST, nogil=True, cache=True)
def linear_back_part(part, parts, x, weight, dy, dx, sums, offsets):
    """Gradients: dx (n, i); of W in sums (parts, o, i), of b in offsets (parts, o). weight: W (o, i) in panels."""
    (rows, i), o = x.shape, dy.shape[1]
    flat, grad, out, whole, bias = x.reshape(-1), dy.reshape(-1), dx.reshape(-1), sums[part].reshape(-1), offsets[part]
    whole[:] = 0
    bias[:] = 0
    first, last = rows_of(part, parts, rows)
    for start in range(first, last, ROWS):
        count = min(ROWS, last - start)
        a, c = Panels(start * o, o, LANES), Panels(start * i, i, LANES)
        multiply(grad, a, o // LANES, weight, 0, out, c, i // LANES, count, False)
        outer(grad, start * o, o, flat, start * i, i, count, whole, bias)
