"""Selective scan on the CPU: Numba kernels for forward and backward.

The work is cut into tasks of one sequence (or, on the way back, a group of sequences) and one block of channels.
Inside a task the channels of the block are vector lanes, its states stay in the first-level cache, and B and C
are scalars; the recurrence walks the time axis once. All rows of a task are in one scratch array and `BLOCK` numbers
long, so no row has a ragged end. `ssm.scan.selective_scan_reference` is the slow twin.

The forward pass can keep the state every `CHUNK` steps. The backward pass recomputes one chunk from there and
walks it in reverse, so memory is O(length * channels), never O(length * channels * states).

Tensors come as flat arrays with their batch and time strides, so that slices of a wider tensor (the gate, B and C
are such slices) need no copy; the channel axis has stride 1. Optional inputs come as empty arrays.
"""

import numpy as np

from clearstate.kernels.cache import njit
from clearstate.kernels.simd import (
    FAST,
    LANES,
    LOG2E,
    exp2,
    inner_njit,
    load,
    sigmoid,
    silu,
    softplus,
    spread,
    store,
    total,
)

BLOCK = 64  # channels of one task: four vectors a row; block x states fits the first-level cache
CHUNK = 16  # steps between kept states
GROUPS = 16  # the backward pass deals sequences to at most this many groups, so sums do not depend on the thread count

# Rows of the scratch array. Two belong to the block of channels, the next ones to one time step (a step's rows
# start at `at`); the rest are blocks of one row per state whose first row the caller names.
BIAS, SKIP = range(2)
DT, X, Y, Z, RAW, U, G, DU = range(8)
STEP_ROWS = 8


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


@inner_njit
def get(s, row, i):
    """A vector of a row of the scratch array, from its column i on."""
    return load(s, row * BLOCK + i)


@inner_njit
def put(s, row, i, value):
    store(s, row * BLOCK + i, value)


@inner_njit
def slope_of_silu(x):
    """d SiLU(x) / dx"""
    s = sigmoid(x)
    return s * (x * (1.0 - s) + 1.0)


@inner_njit
def _enter(s, at, w, use_softplus):
    """Begin a step: RAW += BIAS, DT = softplus(RAW) (or RAW), X = DT U, Y = SKIP U."""
    for i in range(0, w, LANES):
        u, raw = get(s, at + U, i), get(s, at + RAW, i) + get(s, BIAS, i)
        dt = softplus(raw) if use_softplus else raw
        put(s, at + RAW, i, raw)
        put(s, at + DT, i, dt)
        put(s, at + X, i, dt * u)
        put(s, at + Y, i, u * get(s, SKIP, i))


@inner_njit
def _advance(s, at, a_row, from_row, to_row, w, states, b, pb, c, pc, decay_row):
    """The recurrence: h'[n] = exp2(DT A[n]) h[n] + X B[n] and Y += C[n] h'[n] for every state n.

    A carries the factor log2(e); B[n] is b[pb + n]; h is read at `from_row` and written at `to_row`; the decays
    exp2(DT A[n]) are written to `decay_row` unless it is None.
    """
    for i in range(0, w, LANES):
        dt, x, y = get(s, at + DT, i), get(s, at + X, i), get(s, at + Y, i)
        for n in range(states):
            decay = exp2(dt * get(s, a_row + n, i))
            h = decay * get(s, from_row + n, i) + x * spread(b, pb + n)
            put(s, to_row + n, i, h)
            if decay_row is not None:
                put(s, decay_row + n, i, decay)
            y = h * spread(c, pc + n) + y
        put(s, at + Y, i, y)


@inner_njit
def _gate(s, at, w):
    """End a step: Y = Y SiLU(Z)."""
    for i in range(0, w, LANES):
        put(s, at + Y, i, get(s, at + Y, i) * silu(get(s, at + Z, i)))


@inner_njit
def _ungate(s, at, w):
    """Gradient of `_gate`, with Y before it and G the gradient of its result: Z = dZ, G = dY."""
    for i in range(0, w, LANES):
        z, g = get(s, at + Z, i), get(s, at + G, i)
        put(s, at + Z, i, g * get(s, at + Y, i) * slope_of_silu(z))
        put(s, at + G, i, g * silu(z))


@inner_njit
def _retreat(
    s, at, a_row, before_row, after_row, decay_row, lam_row, da_row, db_row, dc_row, dskip_row,
    w, states, use_softplus, b, pb, c, pc,
):  # fmt: skip
    """One step of the adjoint recurrence, backwards in time.

    With lam[n] the gradient that later steps send to h'[n], and l = lam[n] + C[n] G:

        dC[n] += G h'[n]        dB[n] += l X            dA[n] += l exp2(DT A[n]) h[n] DT
        dDT    = sum_n l exp2(DT A[n]) h[n] A[n] + U sum_n l B[n]
        DU     = DT sum_n l B[n] + SKIP G               lam[n] = l exp2(DT A[n])

    RAW becomes the gradient of delta. The rows at `db_row` and `dc_row` are one vector wide: sums over the
    block's vectors, whose lanes `_sum_lanes` adds up.
    """
    for i in range(0, w, LANES):
        dt, x, g, u = get(s, at + DT, i), get(s, at + X, i), get(s, at + G, i), get(s, at + U, i)
        through_a = through_b = dt * 0.0
        for n in range(states):
            ell = g * spread(c, pc + n) + get(s, lam_row + n, i)
            passed = ell * get(s, decay_row + n, i)
            put(s, lam_row + n, i, passed)
            q = passed * get(s, before_row + n, i)
            put(s, da_row + n, i, q * dt + get(s, da_row + n, i))
            through_a = q * get(s, a_row + n, i) + through_a
            through_b = ell * spread(b, pb + n) + through_b
            put(s, db_row + n, 0, ell * x + get(s, db_row + n, 0))
            put(s, dc_row + n, 0, g * get(s, after_row + n, i) + get(s, dc_row + n, 0))
        put(s, at + DU, i, through_b * dt + get(s, SKIP, i) * g)
        ddt = through_b * u + through_a * (1 / LOG2E)
        put(s, at + RAW, i, ddt * sigmoid(get(s, at + RAW, i)) if use_softplus else ddt)
        put(s, dskip_row, i, g * u + get(s, dskip_row, i))


@inner_njit
def _sum_lanes(s, row, states, out, position):
    """out[position + n] = sum of the lanes of row + n, which is then cleared."""
    for n in range(states):
        x = get(s, row + n, 0)
        out[position + n] = total(x)
        put(s, row + n, 0, x * 0.0)


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
        _enter(rows, at, w, use_softplus)
        _advance(rows, at, a_row, h_row, h_row, w, states, b, pb, c, pc, None)
        if z.size:
            _gate(rows, at, w)
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
                _enter(rows, at, w, use_softplus)
                h = h_row + k * states
                pb = seq * strides[2, 0] + t * strides[2, 1]
                pc = seq * strides[3, 0] + t * strides[3, 1]
                decay = decay_row + k * states
                _advance(rows, at, a_row, h, h + states, w, states, b, pb, c, pc, decay)
                if z.size:
                    _ungate(rows, at, w)
            for step in range(stop - 1, start - 1, -1):
                t = length - 1 - step if reverse else step
                k = step - start
                at = steps_at + k * STEP_ROWS
                h = h_row + k * states
                pb = seq * strides[2, 0] + t * strides[2, 1]
                pc = seq * strides[3, 0] + t * strides[3, 1]
                _retreat(
                    rows, at, a_row, h, h + states, decay_row + k * states, lam_row, da_row, db_row, dc_row, dskip_row,
                    w, states, use_softplus, b, pb, c, pc,
                )  # fmt: skip
                out = ((block * batch + seq) * length + t) * states
                _sum_lanes(rows, db_row, states, db, out)
                _sum_lanes(rows, dc_row, states, dc, out)
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
