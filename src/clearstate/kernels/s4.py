"""The diagonal recurrence of S4D on the CPU: Numba kernels for forward and backward.

    x[t] = a x[t-1] + b u[t],   y[t] = 2 Re(c x[t])          a, b, c, x complex, as pairs of reals

One task is one sequence and one block of channels. It walks time once and keeps the block's states at hand; the way
back computes them again. `s4.recurrence` is the slow twin.
"""

import numpy as np

from clearstate.kernels.cache import njit
from clearstate.kernels.simd import FAST

WIDTH = 16  # channels of a block: a cache line of float32


@njit(fastmath=FAST, nogil=True, inline="always")
def _advance(u, a, b, re, im, seq, t, c0, width):
    """One step of the states re, im (width, n) of a block."""
    for i in range(width):
        value = u[seq, t, c0 + i]
        for k in range(a.shape[1]):
            old = re[i, k]
            re[i, k] = a[c0 + i, k, 0] * old - a[c0 + i, k, 1] * im[i, k] + b[c0 + i, k, 0] * value
            im[i, k] = a[c0 + i, k, 0] * im[i, k] + a[c0 + i, k, 1] * old + b[c0 + i, k, 1] * value


@njit(fastmath=FAST, nogil=True)
def _forward_task(task, u, a, b, c, state, y, last):
    channels, pairs = a.shape[:2]
    blocks = -(-channels // WIDTH)
    seq, c0 = task // blocks, task % blocks * WIDTH
    width = min(WIDTH, channels - c0)
    re, im = state[seq, c0 : c0 + width, :, 0].copy(), state[seq, c0 : c0 + width, :, 1].copy()
    for t in range(u.shape[1]):
        _advance(u, a, b, re, im, seq, t, c0, width)
        for i in range(width):
            total = re[i, 0] * 0
            for k in range(pairs):
                total += c[c0 + i, k, 0] * re[i, k] - c[c0 + i, k, 1] * im[i, k]
            y[seq, t, c0 + i] = 2 * total
    last[seq, c0 : c0 + width, :, 0] = re
    last[seq, c0 : c0 + width, :, 1] = im


@njit(fastmath=FAST, nogil=True)
def _backward_task(task, u, a, b, c, state, dy, dlast, du, da, db, dc, dstate):
    """da, db, dc (batch, d, n, 2): each sequence has its own, so that sums do not depend on the threads."""
    channels, pairs = a.shape[:2]
    blocks = -(-channels // WIDTH)
    seq, c0 = task // blocks, task % blocks * WIDTH
    width, steps = min(WIDTH, channels - c0), u.shape[1]
    res, ims = np.empty((steps + 1, width, pairs), u.dtype), np.empty((steps + 1, width, pairs), u.dtype)
    res[0], ims[0] = state[seq, c0 : c0 + width, :, 0], state[seq, c0 : c0 + width, :, 1]
    for t in range(steps):
        res[t + 1], ims[t + 1] = res[t], ims[t]
        _advance(u, a, b, res[t + 1], ims[t + 1], seq, t, c0, width)
    # Of a real loss L the gradient of a complex z is dL/dRe z + i dL/dIm z; that of z = p q is conj(p) times q's.
    gre, gim = dlast[seq, c0 : c0 + width, :, 0].copy(), dlast[seq, c0 : c0 + width, :, 1].copy()
    for t in range(steps - 1, -1, -1):
        for i in range(width):
            d, g = c0 + i, 2 * dy[seq, t, c0 + i]
            value, total = u[seq, t, c0 + i], gre[i, 0] * 0
            for k in range(pairs):
                re, im = gre[i, k] + g * c[d, k, 0], gim[i, k] - g * c[d, k, 1]
                dc[seq, d, k, 0] += g * res[t + 1, i, k]
                dc[seq, d, k, 1] -= g * ims[t + 1, i, k]
                db[seq, d, k, 0] += value * re
                db[seq, d, k, 1] += value * im
                total += b[d, k, 0] * re + b[d, k, 1] * im
                da[seq, d, k, 0] += re * res[t, i, k] + im * ims[t, i, k]
                da[seq, d, k, 1] += im * res[t, i, k] - re * ims[t, i, k]
                gre[i, k] = a[d, k, 0] * re + a[d, k, 1] * im
                gim[i, k] = a[d, k, 0] * im - a[d, k, 1] * re
            du[seq, t, d] = total
    dstate[seq, c0 : c0 + width, :, 0] = gre
    dstate[seq, c0 : c0 + width, :, 1] = gim


@njit(fastmath=FAST, nogil=True, cache=True)
def forward(part, parts, tasks, u, a, b, c, state, y, last):
    for task in range(part, tasks, parts):
        _forward_task(task, u, a, b, c, state, y, last)


@njit(fastmath=FAST, nogil=True, cache=True)
def backward(part, parts, tasks, u, a, b, c, state, dy, dlast, du, da, db, dc, dstate):
    for task in range(part, tasks, parts):
        _backward_task(task, u, a, b, c, state, dy, dlast, du, da, db, dc, dstate)
