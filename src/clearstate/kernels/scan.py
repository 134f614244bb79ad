"""Selective scan on the CPU: Numba kernels for forward and backward.

The work is cut into tasks of one sequence (or, on the way back, a group of sequences) and one block of channels.
Inside a task the channels of the block are vector lanes, its states stay in the first-level cache, and B and C
are scalars; the recurrence walks the time axis once. The inner loops are in `scan_loops.py`.

The forward pass can keep the state every `CHUNK` steps. The backward pass recomputes one chunk from there and
walks it in reverse, so memory is O(length * channels), never O(length * channels * states).

Tensors come as flat arrays with their batch and time strides, so that slices of a wider tensor (the gate, B and C
are such slices) need no copy; the channel axis has stride 1. Optional inputs come as empty arrays.
"""

import numpy as np

from clearstate.kernels.cache import njit
from clearstate.kernels.scan_loops import (
    BIAS,
    BLOCK,
    DU,
    LOG2E,
    RAW,
    SKIP,
    STEP_ROWS,
    G,
    U,
    Y,
    Z,
    advance,
    advance_keeping,
    enter,
    gate,
    retreat,
    sum_lanes,
    ungate,
)

CHUNK = 16  # steps between kept states
GROUPS = (
    16  # backward deals sequences to at most this many groups, whatever the thread count: so sums do not depend on it
)

# Fused multiply-add is allowed. Nothing that assumes the absence of NaN: one in the input stays visible.
FAST = {"contract", "nsz", "arcp", "afn"}


def tasks_forward(batch, channels):
    return batch * -(-channels // BLOCK)


def tasks_backward(batch, channels):
    return min(batch, GROUPS) * -(-channels // BLOCK)


@njit(fastmath=FAST, inline="always")
def _copy(source, target):
    for i in range(source.shape[0]):
        target[i] = source[i]


@njit(fastmath=FAST, inline="always")
def _load_step(s, at, w, seq, t, d0, strides, u, delta, z):
    """Copy one time step of u, delta and the gate into the step's rows of the scratch array."""
    pu = seq * strides[0, 0] + t * strides[0, 1] + d0
    pdelta = seq * strides[1, 0] + t * strides[1, 1] + d0
    _copy(u[pu : pu + w], s[at + U])
    _copy(delta[pdelta : pdelta + w], s[at + RAW])
    if z.size:
        pz = seq * strides[4, 0] + t * strides[4, 1] + d0
        _copy(z[pz : pz + w], s[at + Z])


@njit(fastmath=FAST, inline="always")
def _load_block(s, w, d0, a_row, a, d, bias):
    """Copy what belongs to a block of channels: delta's bias, the skip weight D, and A with the factor log2(e)."""
    if bias.size:
        _copy(bias[d0 : d0 + w], s[BIAS])
    if d.size:
        _copy(d[d0 : d0 + w], s[SKIP])
    for i in range(w):
        for n in range(a.shape[1]):
            s[a_row + n, i] = a[d0 + i, n] * LOG2E


@njit(fastmath=FAST, nogil=True)
def _forward_task(task, size, strides, u, delta, a, b, c, d, z, bias, use_softplus, h0, reverse, y, h_last, kept):
    _, length, channels, states = size
    blocks = (channels + BLOCK - 1) // BLOCK
    seq, d0 = task // blocks, task % blocks * BLOCK
    w = min(BLOCK, channels - d0)
    at = 2
    a_row = at + STEP_ROWS
    h_row = a_row + states + 1
    s = np.zeros((h_row + states, BLOCK), u.dtype)
    rows = s.reshape(-1)
    _load_block(s, w, d0, a_row, a, d, bias)
    if h0.size:
        for i in range(w):
            for n in range(states):
                s[h_row + n, i] = h0[seq, d0 + i, n]
    for step in range(length):
        t = length - 1 - step if reverse else step
        pb = seq * strides[2, 0] + t * strides[2, 1]
        pc = seq * strides[3, 0] + t * strides[3, 1]
        if kept.size and step % CHUNK == 0:
            for n in range(states):
                _copy(s[h_row + n, :w], kept[seq, step // CHUNK, n, d0 : d0 + w])
        _load_step(s, at, w, seq, t, d0, strides, u, delta, z)
        enter(rows, at, w, use_softplus)
        advance(rows, at, a_row, h_row, h_row, w, states, b, pb, c, pc)
        if z.size:
            gate(rows, at, w)
        _copy(s[at + Y, :w], y[seq, t, d0 : d0 + w])
    for i in range(w):
        for n in range(states):
            h_last[seq, d0 + i, n] = s[h_row + n, i]


@njit(fastmath=FAST, nogil=True)
def _backward_task(
    task, size, strides, u, delta, a, b, c, d, z, bias, use_softplus, reverse, kept, dy, dh_last,
    du, ddelta, da, db, dc, dd, dz, dh0,
):  # fmt: skip
    batch, length, channels, states = size
    blocks = (channels + BLOCK - 1) // BLOCK
    groups = min(batch, GROUPS)
    group, block = task // blocks, task % blocks
    d0 = block * BLOCK
    w = min(BLOCK, channels - d0)
    steps_at = 2
    a_row = steps_at + CHUNK * STEP_ROWS
    lam_row = a_row + states + 1
    da_row = lam_row + states + 1
    db_row = da_row + states + 1
    dc_row = db_row + states + 1
    dskip_row = dc_row + states + 1
    h_row = dskip_row + 1  # states before each step of the chunk, and after the last
    decay_row = h_row + (CHUNK + 1) * states + 3
    s = np.zeros((decay_row + CHUNK * states, BLOCK), u.dtype)
    rows = s.reshape(-1)
    _load_block(s, w, d0, a_row, a, d, bias)
    for seq in range(group, batch, groups):
        for i in range(w):
            for n in range(states):
                s[lam_row + n, i] = dh_last[seq, d0 + i, n] if dh_last.size else 0.0
        for chunk in range((length - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            stop = min(start + CHUNK, length)
            for n in range(states):
                _copy(kept[seq, chunk, n, d0 : d0 + w], s[h_row + n])
            for step in range(start, stop):  # forwards again, keeping states and decays
                t = length - 1 - step if reverse else step
                k = step - start
                at = steps_at + k * STEP_ROWS
                _load_step(s, at, w, seq, t, d0, strides, u, delta, z)
                _copy(dy[seq, t, d0 : d0 + w], s[at + G])
                enter(rows, at, w, use_softplus)
                h = h_row + k * states
                pb = seq * strides[2, 0] + t * strides[2, 1]
                pc = seq * strides[3, 0] + t * strides[3, 1]
                decay = decay_row + k * states
                advance_keeping(rows, at, a_row, h, h + states, w, states, b, pb, c, pc, decay)
                if z.size:
                    ungate(rows, at, w)
            for step in range(stop - 1, start - 1, -1):
                t = length - 1 - step if reverse else step
                k = step - start
                at = steps_at + k * STEP_ROWS
                h = h_row + k * states
                pb = seq * strides[2, 0] + t * strides[2, 1]
                pc = seq * strides[3, 0] + t * strides[3, 1]
                retreat(
                    rows, at, a_row, h, h + states, decay_row + k * states, lam_row, da_row, db_row, dc_row, dskip_row,
                    w, states, use_softplus, b, pb, c, pc,
                )  # fmt: skip
                out = ((block * batch + seq) * length + t) * states
                sum_lanes(rows, db_row, states, db, out)
                sum_lanes(rows, dc_row, states, dc, out)
                _copy(s[at + DU, :w], du[seq, t, d0 : d0 + w])
                _copy(s[at + RAW, :w], ddelta[seq, t, d0 : d0 + w])
                if z.size:
                    _copy(s[at + Z, :w], dz[seq, t, d0 : d0 + w])
        for i in range(w):
            for n in range(states):
                dh0[seq, d0 + i, n] = s[lam_row + n, i]
    for i in range(w):
        dd[group, d0 + i] = s[dskip_row, i]
        for n in range(states):
            da[group, d0 + i, n] = s[da_row + n, i]


@njit(fastmath=FAST, nogil=True, cache=True)
def forward(
    part, parts, tasks, size, strides, u, delta, a, b, c, d, z, bias, use_softplus, h0, reverse, y, h_last, kept
):
    for task in range(part, tasks, parts):
        _forward_task(task, size, strides, u, delta, a, b, c, d, z, bias, use_softplus, h0, reverse, y, h_last, kept)


@njit(fastmath=FAST, nogil=True, cache=True)
def backward(part, parts, tasks, size, strides, u, delta, a, b, c, d, z, bias, use_softplus, reverse, kept, dy, dh_last,
    du, ddelta, da, db, dc, dd, dz, dh0,
):  # fmt: skip
    for task in range(part, tasks, parts):
        _backward_task(
            task, size, strides, u, delta, a, b, c, d, z, bias, use_softplus, reverse, kept, dy, dh_last,
            du, ddelta, da, db, dc, dd, dz, dh0,
        )  # fmt: skip
