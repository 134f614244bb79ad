"""Depthwise convolutions over frames and bands on the CPU: every channel with its own kernel, both ways.

On the way back PyTorch's run at a tenth of the speed. Here `BLOCK` frames of sixteen channels are copied, with zeros
all around, into memory that the second-level cache holds; from there no tap needs to ask where it is, and eight outputs
are summed in registers. The way back to the input is the same convolution with the kernel turned about, of gradients
set `stride` apart. `saf_ops.depthwise` has the slow twin.

b batch, t frames, k bands, c channels, a multiple of 16.
"""

import numpy as np

from clearstate.kernels.cache import njit
from clearstate.kernels.simd import FAST, LANES, inner_njit, load, splat, store

BLOCK = 32  # frames of one task
OUTPUTS, TAPS = 8, 4  # summed in registers at a time; four additions wait for the one before them


@inner_njit
def _pack(x, item, panel, first, frames, above, left, spacing, width, memory):
    """Frames `first` ... of sixteen channels, the bands `spacing` apart after `left` zeros: (frames, width, 16)."""
    t, k, c = x.shape[1:]
    flat, zero = x.reshape(-1), splat(np.float32(0))
    for i in range(frames):
        q, u = i * width * LANES, first + i - above
        for j in range(q, q + width * LANES, LANES):
            store(memory, j, zero)
        if 0 <= u < t:
            p, q = (item * t + u) * k * c + panel * LANES, q + left * LANES
            for j in range(k):
                store(memory, q + j * spacing * LANES, load(flat, p + j * c))


@inner_njit
def _eight(memory, p, row, step, weight, q, kt, kf, bias, out, o, c, count):
    """`count` of eight outputs next to each other: the sums over a kernel (kt, kf), whose frames are `row` apart."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = bias
    for _ in range(kt):
        for j in range(kf):
            w, at = load(weight, q), p + j * LANES
            s0 = load(memory, at) * w + s0
            s1 = load(memory, at + step) * w + s1
            s2 = load(memory, at + 2 * step) * w + s2
            s3 = load(memory, at + 3 * step) * w + s3
            s4 = load(memory, at + 4 * step) * w + s4
            s5 = load(memory, at + 5 * step) * w + s5
            s6 = load(memory, at + 6 * step) * w + s6
            s7 = load(memory, at + 7 * step) * w + s7
            q += LANES
        p += row
    store(out, o, s0)
    if count > 1:
        store(out, o + c, s1)
    if count > 2:
        store(out, o + 2 * c, s2)
    if count > 3:
        store(out, o + 3 * c, s3)
    if count > 4:
        store(out, o + 4 * c, s4)
    if count > 5:
        store(out, o + 5 * c, s5)
    if count > 6:
        store(out, o + 6 * c, s6)
    if count > 7:
        store(out, o + 7 * c, s7)


@njit(fastmath=FAST, nogil=True, cache=True)
def convolve_part(part, parts, x, weight, bias, dilation, stride, spacing, above, left, y):
    """y (b, t', k', c) from x (b, t, k, c).

    Args:
        weight: (c / 16, kt, kf, 16).   bias: (c,).   dilation: between the taps' frames.   stride: along bands.
        spacing: of the bands of x, with zeros between them.   above, left: frames and bands of zeros before x.
    """
    b, frames, bands, c = y.shape
    _, kt, kf, _ = weight.shape
    taps, out, blocks = weight.reshape(-1), y.reshape(-1), (frames + BLOCK - 1) // BLOCK
    width = max(
        (bands + OUTPUTS - 2) // OUTPUTS * OUTPUTS * stride + OUTPUTS * stride + kf, left + x.shape[2] * spacing
    )
    reach = (kt - 1) * dilation
    memory = np.empty((min(frames, BLOCK) + reach) * width * LANES, np.float32)
    panels = c // LANES
    tasks = b * panels * blocks
    for task in range(tasks * part // parts, tasks * (part + 1) // parts):
        first, panel, item = task % blocks * BLOCK, task // blocks % panels, task // blocks // panels
        count = min(BLOCK, frames - first)
        _pack(x, item, panel, first, count + reach, above, left, spacing, width, memory)
        shift, row, step = load(bias, panel * LANES), dilation * width * LANES, stride * LANES
        for i in range(count):
            for f in range(0, bands, OUTPUTS):
                p, q = (i * width + f * stride) * LANES, panel * kt * kf * LANES
                o = ((item * frames + first + i) * bands + f) * c + panel * LANES
                _eight(memory, p, row, step, taps, q, kt, kf, shift, out, o, c, min(OUTPUTS, bands - f))


@inner_njit
def _correlate(memory, p, step, grad, g, c, bands, sums, q):
    """Four neighbouring taps' sums over the bands of one frame: gradients of outputs times what the taps saw."""
    s0 = s1 = s2 = s3 = splat(np.float32(0))
    for _ in range(bands):
        d = load(grad, g)
        s0 = load(memory, p) * d + s0
        s1 = load(memory, p + LANES) * d + s1
        s2 = load(memory, p + 2 * LANES) * d + s2
        s3 = load(memory, p + 3 * LANES) * d + s3
        p += step
        g += c
    store(sums, q, load(sums, q) + s0)
    store(sums, q + LANES, load(sums, q + LANES) + s1)
    store(sums, q + 2 * LANES, load(sums, q + 2 * LANES) + s2)
    store(sums, q + 3 * LANES, load(sums, q + 3 * LANES) + s3)


@njit(fastmath=FAST, nogil=True, cache=True)
def weight_back_part(part, parts, x, dy, dilation, stride, above, left, sums, offsets):
    """Gradients of kernels in sums (parts, c / 16, kt, kf rounded up to 4, 16), of the bias in offsets (parts, c)."""
    b, frames, bands, c = dy.shape
    panels, kt, kf, _ = sums.shape[1:]
    grad, whole, bias, blocks = dy.reshape(-1), sums[part].reshape(-1), offsets[part], (frames + BLOCK - 1) // BLOCK
    width, reach = max(bands * stride + kf, left + x.shape[2]), (kt - 1) * dilation
    memory, zero = np.empty((min(frames, BLOCK) + reach) * width * LANES, np.float32), splat(np.float32(0))
    for i in range(0, whole.size, LANES):
        store(whole, i, zero)
    for i in range(0, c, LANES):
        store(bias, i, zero)
    tasks = b * panels * blocks
    for task in range(tasks * part // parts, tasks * (part + 1) // parts):
        first, panel, item = task % blocks * BLOCK, task // blocks % panels, task // blocks // panels
        count = min(BLOCK, frames - first)
        _pack(x, item, panel, first, count + reach, above, left, 1, width, memory)
        for i in range(count):
            g, s = ((item * frames + first + i) * bands) * c + panel * LANES, zero
            for f in range(bands):
                s = s + load(grad, g + f * c)
            store(bias, panel * LANES, load(bias, panel * LANES) + s)
            for a in range(kt):
                for j in range(0, kf, TAPS):
                    p, q = ((i + a * dilation) * width + j) * LANES, ((panel * kt + a) * kf + j) * LANES
                    _correlate(memory, p, stride * LANES, grad, g, c, bands, whole, q)
