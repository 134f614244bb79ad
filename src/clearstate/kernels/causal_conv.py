"""Causal depthwise convolution + SiLU on the CPU: Numba kernels for forward and backward.

Cut into tasks like the scan (`scan.py`): one sequence, or on the way back a group of sequences, and one block
of channels. The last `taps - 1` inputs stay in scratch rows, so the input is read once and nothing is padded.
"""

import numpy as np

from clearstate.kernels.cache import njit
from clearstate.kernels.scan import BLOCK, CHUNK, GROUPS, _copy, get, put, slope_of_silu
from clearstate.kernels.simd import FAST, LANES, inner_njit, silu

TAP_ROWS = 1  # row 0 of the scratch array has the bias, the next rows one tap each


@inner_njit
def _convolve(s, x_row, pre_row, out_row, w, taps):
    """One output of the convolution: pre = bias + sum_j w[j] x[j], out = SiLU(pre).

    `x_row` is the row of the oldest input of the output; the `taps` inputs are in consecutive rows.
    """
    for i in range(0, w, LANES):
        pre = get(s, 0, i)
        for j in range(taps):
            pre = get(s, TAP_ROWS + j, i) * get(s, x_row + j, i) + pre
        put(s, pre_row, i, pre)
        put(s, out_row, i, silu(pre))


@inner_njit
def _convolve_back(s, x_row, pre_row, dy_row, dx_row, dw_row, w, taps):
    """Gradient of `_convolve`: dx[j] += w[j] dpre, dw[j] += dpre x[j], and the bias's at dw_row + taps."""
    for i in range(0, w, LANES):
        dpre = get(s, dy_row, i) * slope_of_silu(get(s, pre_row, i))
        for j in range(taps):
            put(s, dx_row + j, i, get(s, TAP_ROWS + j, i) * dpre + get(s, dx_row + j, i))
            put(s, dw_row + j, i, dpre * get(s, x_row + j, i) + get(s, dw_row + j, i))
        put(s, dw_row + taps, i, get(s, dw_row + taps, i) + dpre)


@njit(fastmath=FAST, inline="always")
def _load_taps(s, w, d0, weight, bias):
    taps = weight.shape[1]
    for i in range(w):
        s[0, i] = bias[d0 + i]
        for j in range(taps):
            s[TAP_ROWS + j, i] = weight[d0 + i, j]


@njit(fastmath=FAST, nogil=True)
def _forward_task(task, size, strides, x, weight, bias, past, reverse, y, last):
    _, length, channels, taps = size
    blocks = (channels + BLOCK - 1) // BLOCK
    seq, d0 = task // blocks, task % blocks * BLOCK
    w = min(BLOCK, channels - d0)
    x_row = TAP_ROWS + taps  # taps - 1 earlier inputs, then a chunk of new ones
    pre_row = x_row + taps - 1 + CHUNK
    s = np.zeros((pre_row + 2, BLOCK), x.dtype)
    rows = s.reshape(-1)
    _load_taps(s, w, d0, weight, bias)
    if past.size:
        for j in range(taps - 1):
            _copy(past[seq, j, d0 : d0 + w], s[x_row + j])
    for start in range(0, length, CHUNK):
        stop = min(start + CHUNK, length)
        for step in range(start, stop):
            t = length - 1 - step if reverse else step
            k = step - start
            px = seq * strides[0, 0] + t * strides[0, 1] + d0
            _copy(x[px : px + w], s[x_row + taps - 1 + k])
            _convolve(rows, x_row + k, pre_row, pre_row + 1, w, taps)
            _copy(s[pre_row + 1, :w], y[seq, t, d0 : d0 + w])
        for j in range(taps - 1):
            _copy(s[x_row + stop - start + j], s[x_row + j])
    for j in range(taps - 1):
        _copy(s[x_row + j, :w], last[seq, j, d0 : d0 + w])


@njit(fastmath=FAST, nogil=True)
def _backward_task(task, size, strides, x, weight, bias, past, reverse, dy, dlast, dx, dweight, dpast):
    batch, length, channels, taps = size
    blocks = (channels + BLOCK - 1) // BLOCK
    groups = min(batch, GROUPS)
    group, d0 = task // blocks, task % blocks * BLOCK
    w = min(BLOCK, channels - d0)
    keep = taps - 1
    x_row = TAP_ROWS + taps
    dx_row = x_row + keep + CHUNK
    pre_row = dx_row + keep + CHUNK
    dy_row = pre_row + 2
    dw_row = dy_row + 1
    s = np.zeros((dw_row + taps + 1, BLOCK), x.dtype)
    rows = s.reshape(-1)
    _load_taps(s, w, d0, weight, bias)
    for seq in range(group, batch, groups):
        # Rows dx_row ... hold the gradients of the inputs in x_row ...; the last `keep` of a chunk are also
        # inputs of the chunk after it, whose share arrives first.
        for j in range(keep):
            for i in range(w):
                s[dx_row + CHUNK + j, i] = dlast[seq, j, d0 + i] if dlast.size else 0.0
        for chunk in range((length - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            stop = min(start + CHUNK, length)
            count = stop - start
            if count < CHUNK:  # only the last chunk, which is the first one here
                for j in range(keep):
                    _copy(s[dx_row + CHUNK + j], s[dx_row + count + j])
            for k in range(count):
                s[dx_row + k] = 0.0
            for k in range(-keep, count):
                step = start + k
                row = x_row + keep + k
                if step >= 0:
                    t = length - 1 - step if reverse else step
                    px = seq * strides[0, 0] + t * strides[0, 1] + d0
                    _copy(x[px : px + w], s[row])
                elif past.size:
                    _copy(past[seq, keep + step, d0 : d0 + w], s[row])
                else:
                    s[row] = 0.0
            for k in range(count - 1, -1, -1):
                t = length - 1 - (start + k) if reverse else start + k
                _convolve(rows, x_row + k, pre_row, pre_row + 1, w, taps)
                _copy(dy[seq, t, d0 : d0 + w], s[dy_row])
                _convolve_back(rows, x_row + k, pre_row, dy_row, dx_row + k, dw_row, w, taps)
            for k in range(count):
                t = length - 1 - (start + k) if reverse else start + k
                _copy(s[dx_row + keep + k, :w], dx[seq, t, d0 : d0 + w])
            # What this chunk sent to the inputs before it: their rows in the chunk before are the last ones.
            for j in range(keep - 1, -1, -1):
                _copy(s[dx_row + j], s[dx_row + CHUNK + j])
        for j in range(keep):
            _copy(s[dx_row + CHUNK + j, :w], dpast[seq, j, d0 : d0 + w])
    for i in range(w):
        for j in range(taps + 1):
            dweight[group, d0 + i, j] = s[dw_row + j, i]


@njit(fastmath=FAST, nogil=True, cache=True)
def forward(part, parts, tasks, size, strides, x, weight, bias, past, reverse, y, last):
    for task in range(part, tasks, parts):
        _forward_task(task, size, strides, x, weight, bias, past, reverse, y, last)


@njit(fastmath=FAST, nogil=True, cache=True)
def backward(part, parts, tasks, size, strides, x, weight, bias, past, reverse, dy, dlast, dx, dweight, dpast):
    for task in range(part, tasks, parts):
        _backward_task(task, size, strides, x, weight, bias, past, reverse, dy, dlast, dx, dweight, dpast)
