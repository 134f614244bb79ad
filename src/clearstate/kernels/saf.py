"""What SAF does between its matrix products, as kernels for the CPU: norms with PReLU, and the middle of a TCN block.

`saf_ops.py` has the slow twins, and calls these. A row is the channels of one band of one frame, a multiple of 16; it
stays in the first-level cache while its statistics are taken, and on the way back everything is computed again from
what came in, since memory is slower than arithmetic.

b batch, t frames, k bands, c channels; flat float32. Sums over rows, for the gradients of parameters, are taken over
one frame or `ROWS` rows and then added up, so that they lose no digits.
"""

import numpy as np

from clearstate.kernels.cache import njit
from clearstate.kernels.simd import FAST, LANES, inner_njit, larger, load, smaller, splat, store, total, where_positive

ROWS = 128  # of one task of a norm
NOTHING, SIGNAL, BEFORE = 0, 1, 2  # where a tap of a convolution finds a frame


# ----------------------------------------------------------------------------------------------------- within a row


@inner_njit
def prelu(x, slope):
    zero = np.float32(0)
    return larger(x, splat(zero)) + smaller(x, zero) * slope


@inner_njit
def normalise(row, c, eps):
    """row[:c] to mean zero and variance one, in place; returns by what it was divided, as a factor."""
    one = np.float32(1)
    sums = splat(np.float32(0))
    for j in range(0, c, LANES):
        sums = sums + load(row, j)
    mean = total(sums) / np.float32(c)
    squares = splat(np.float32(0))
    for j in range(0, c, LANES):
        apart = load(row, j) - mean
        squares = squares + apart * apart
        store(row, j, apart)
    scale = one / np.sqrt(total(squares) / np.float32(c) + eps)
    for j in range(0, c, LANES):
        store(row, j, load(row, j) * scale)
    return scale


@inner_njit
def normalise_back(row, c, scale, gain, shift, slope, dy, p, sums):
    """The way back through PReLU(gain n + shift) and the norm, with n in row[:c] and its gradient dy[p : p + c].

    Leaves the gradient of what was normalised in row[:c], and adds those of gain, shift and slope to sums[: 3 c].
    """
    zero = splat(np.float32(0))
    mean, along = zero, zero
    for j in range(0, c, LANES):
        n, a, s, g = load(row, j), load(gain, j), load(slope, j), load(dy, p + j)
        y = n * a + load(shift, j)
        store(sums, 2 * c + j, load(sums, 2 * c + j) + where_positive(y, zero, y * g))
        g = where_positive(y, g, g * s)
        store(sums, j, load(sums, j) + g * n)
        store(sums, c + j, load(sums, c + j) + g)
        g = g * a
        mean = mean + g
        along = along + g * n
        store(row, c + j, g)
    m, q = total(mean) / np.float32(c), total(along) / np.float32(c)
    for j in range(0, c, LANES):
        store(row, j, (load(row, c + j) - m - load(row, j) * q) * scale)


@inner_njit
def _clear(sums, size):
    for i in range(0, size, LANES):
        store(sums, i, splat(np.float32(0)))


@inner_njit
def _add(sums, size, whole):
    for i in range(0, size, LANES):
        store(whole, i, load(whole, i) + load(sums, i))


# ------------------------------------------------------------------------------------------------ norm, then PReLU


@njit(fastmath=FAST, nogil=True, cache=True)
def norm_part(part, parts, x, gain, shift, slope, eps, y):
    """y = PReLU(gain norm(x) + shift) of rows (rows, c)."""
    rows, c = x.shape
    flat, out = x.reshape(-1), y.reshape(-1)
    row = np.empty(c, np.float32)
    for i in range(rows * part // parts, rows * (part + 1) // parts):
        p = i * c
        for j in range(0, c, LANES):
            store(row, j, load(flat, p + j))
        normalise(row, c, eps)
        for j in range(0, c, LANES):
            store(out, p + j, prelu(load(row, j) * load(gain, j) + load(shift, j), load(slope, j)))


@njit(fastmath=FAST, nogil=True, cache=True)
def norm_back_part(part, parts, x, gain, shift, slope, eps, dy, dx, sums):
    """Gradients: dx (rows, c); of gain, shift and slope in sums (parts, 3 c)."""
    rows, c = x.shape
    flat, grad, out, whole = x.reshape(-1), dy.reshape(-1), dx.reshape(-1), sums[part]
    row, near = np.empty(2 * c, np.float32), np.empty(3 * c, np.float32)
    _clear(whole, 3 * c)
    first, last = rows * part // parts, rows * (part + 1) // parts
    for start in range(first, last, ROWS):
        _clear(near, 3 * c)
        for i in range(start, min(start + ROWS, last)):
            p = i * c
            for j in range(0, c, LANES):
                store(row, j, load(flat, p + j))
            scale = normalise(row, c, eps)
            normalise_back(row, c, scale, gain, shift, slope, grad, p, near)
            for j in range(0, c, LANES):
                store(out, p + j, load(row, j))
        _add(near, 3 * c, whole)


# ------------------------------------------------------------------------------------- the middle of a TCN block


@inner_njit
def _place(frame, frames, item, before, size):
    """Where frame number `frame` of an item is found: the kind of place, and the position of its first band."""
    if frame >= frames:
        return NOTHING, 0
    if frame >= 0:
        return SIGNAL, (item * frames + frame) * size
    reach = before.shape[1]
    return (BEFORE, (item * reach + reach + frame) * size) if reach else (NOTHING, 0)


@inner_njit
def _heard(h, before, kind, p, slope):
    """Sixteen activated channels; those of frames before the signal are activated already."""
    if kind == SIGNAL:
        return prelu(load(h, p), slope)
    return load(before, p) if kind == BEFORE else splat(np.float32(0))


@njit(fastmath=FAST, nogil=True, cache=True)
def tcn_part(part, parts, h, first, before, taps, bias, dilation, centre, gain, shift, slope, eps, y):
    """y = PReLU(norm(depthwise(PReLU(h)))) of h (b, t, k, c).

    Args:
        first, slope: (c,), of the PReLU before and after.   taps: (3, c).   gain, shift: (c,), of the norm.
        before: (b, 2 dilation, k, c), activated frames before the signal; (b, 0, k, c) if there are none.
        centre: the tap that falls on the frame itself, 1, or 2 if those before are of one side.
    """
    b, frames, bands, c = h.shape
    flat, past, weight, out = h.reshape(-1), before.reshape(-1), taps.reshape(-1), y.reshape(-1)
    row, size = np.empty(c, np.float32), bands * c
    for task in range(b * frames * part // parts, b * frames * (part + 1) // parts):
        item, t = task // frames, task % frames
        t0 = t - centre * dilation
        kind0, p0 = _place(t0, frames, item, before, size)
        kind1, p1 = _place(t0 + dilation, frames, item, before, size)
        kind2, p2 = _place(t0 + 2 * dilation, frames, item, before, size)
        for i in range(0, size, c):
            for j in range(0, c, LANES):
                s = load(first, j)
                z = load(bias, j) + _heard(flat, past, kind0, p0 + i + j, s) * load(weight, j)
                z = z + _heard(flat, past, kind1, p1 + i + j, s) * load(weight, c + j)
                z = z + _heard(flat, past, kind2, p2 + i + j, s) * load(weight, 2 * c + j)
                store(row, j, z)
            normalise(row, c, eps)
            p = task * size + i
            for j in range(0, c, LANES):
                store(out, p + j, prelu(load(row, j) * load(gain, j) + load(shift, j), load(slope, j)))


@njit(fastmath=FAST, nogil=True, cache=True)
def tcn_back_part(
    part, parts, h, first, before, taps, bias, dilation, centre, gain, shift, slope, eps, dy, dz, sums,
):  # fmt: skip
    """The way back to the convolution's output: dz (b, t, k, c).

    sums (parts, 7 c): gradients of gain, shift, slope, the three taps and the bias.
    """
    b, frames, bands, c = h.shape
    flat, past, weight = h.reshape(-1), before.reshape(-1), taps.reshape(-1)
    grad, out, whole = dy.reshape(-1), dz.reshape(-1), sums[part]
    row, near, size = np.empty(5 * c, np.float32), np.empty(7 * c, np.float32), bands * c
    _clear(whole, 7 * c)
    for task in range(b * frames * part // parts, b * frames * (part + 1) // parts):
        item, t = task // frames, task % frames
        t0 = t - centre * dilation
        kind0, p0 = _place(t0, frames, item, before, size)
        kind1, p1 = _place(t0 + dilation, frames, item, before, size)
        kind2, p2 = _place(t0 + 2 * dilation, frames, item, before, size)
        _clear(near, 7 * c)
        for i in range(0, size, c):
            for j in range(0, c, LANES):
                s = load(first, j)
                x0 = _heard(flat, past, kind0, p0 + i + j, s)
                x1 = _heard(flat, past, kind1, p1 + i + j, s)
                x2 = _heard(flat, past, kind2, p2 + i + j, s)
                z = load(bias, j) + x0 * load(weight, j)
                store(row, j, z + x1 * load(weight, c + j) + x2 * load(weight, 2 * c + j))
                store(row, 2 * c + j, x0)
                store(row, 3 * c + j, x1)
                store(row, 4 * c + j, x2)
            scale = normalise(row, c, eps)
            p = task * size + i
            normalise_back(row, c, scale, gain, shift, slope, grad, p, near)
            for j in range(0, c, LANES):
                g = load(row, j)
                store(out, p + j, g)
                store(near, 3 * c + j, load(near, 3 * c + j) + g * load(row, 2 * c + j))
                store(near, 4 * c + j, load(near, 4 * c + j) + g * load(row, 3 * c + j))
                store(near, 5 * c + j, load(near, 5 * c + j) + g * load(row, 4 * c + j))
                store(near, 6 * c + j, load(near, 6 * c + j) + g)
        _add(near, 7 * c, whole)


@inner_njit
def _gathered(dz, kind, p):
    return load(dz, p) if kind == SIGNAL else splat(np.float32(0))


@njit(fastmath=FAST, nogil=True, cache=True)
def tcn_enter_back_part(part, parts, h, first, taps, dilation, centre, dz, dh, sums):
    """The rest of the way: dh (b, t, k, c) from dz; the gradient of the first PReLU's slopes in sums (parts, c)."""
    b, frames, bands, c = h.shape
    flat, grad, out, weight = h.reshape(-1), dz.reshape(-1), dh.reshape(-1), taps.reshape(-1)
    near, whole, size, zero = np.empty(c, np.float32), sums[part], bands * c, splat(np.float32(0))
    _clear(whole, c)
    for task in range(b * frames * part // parts, b * frames * (part + 1) // parts):
        item, t = task // frames, task % frames
        t0 = t + centre * dilation
        kind0, p0 = _place(t0, frames, item, h[:, :0], size)
        kind1, p1 = _place(t0 - dilation, frames, item, h[:, :0], size)
        kind2, p2 = _place(t0 - 2 * dilation, frames, item, h[:, :0], size)
        _clear(near, c)
        for i in range(0, size, c):
            for j in range(0, c, LANES):
                g = _gathered(grad, kind0, p0 + i + j) * load(weight, j)
                g = g + _gathered(grad, kind1, p1 + i + j) * load(weight, c + j)
                g = g + _gathered(grad, kind2, p2 + i + j) * load(weight, 2 * c + j)
                p = task * size + i + j
                x = load(flat, p)
                store(out, p, where_positive(x, g, g * load(first, j)))
                store(near, j, load(near, j) + where_positive(x, zero, x * g))
        _add(near, c, whole)


# ----------------------------------------------------------------------------------- attention to neighbouring bands


@inner_njit
def _weights(qkv, p, i, bands, c, offset, head, width, around, weights):
    """Softmax over the neighbours of band i, whose q of one head lies at p; returns the first and last of them."""
    reach = around // 2
    first, last = max(0, reach - i), min(around, bands - i + reach)
    scale, top = np.float32(1) / np.sqrt(np.float32(width)), np.float32(-np.inf)
    for j in range(first, last):
        k, products = p + (j - reach) * 3 * c + c, splat(np.float32(0))
        for channel in range(0, width, LANES):
            products = products + load(qkv, p + channel) * load(qkv, k + channel)
        weights[j] = total(products) * scale + offset[head, j]
        top = max(top, weights[j])
    sums = np.float32(0)
    for j in range(first, last):
        weights[j] = np.exp(weights[j] - top)
        sums += weights[j]
    for j in range(first, last):
        weights[j] /= sums
    return first, last


@njit(fastmath=FAST, nogil=True, cache=True)
def attend_part(part, parts, qkv, offset, y):
    """y (n, k, c), each head's sum of its neighbours' values, from q, k and v side by side, qkv (n, k, 3 c).

    offset: (heads, neighbours). A head is a multiple of 16 channels.
    """
    (frames, bands, c), (heads, around) = y.shape, offset.shape
    flat, out, weights, width = qkv.reshape(-1), y.reshape(-1), np.empty(around, np.float32), c // heads
    for t in range(frames * part // parts, frames * (part + 1) // parts):
        for i in range(bands):
            for head in range(heads):
                p = (t * bands + i) * 3 * c + head * width
                first, last = _weights(flat, p, i, bands, c, offset, head, width, around, weights)
                for channel in range(0, width, LANES):
                    sums = splat(np.float32(0))
                    for j in range(first, last):
                        sums = sums + load(flat, p + (j - around // 2) * 3 * c + 2 * c + channel) * weights[j]
                    store(out, (t * bands + i) * c + head * width + channel, sums)


@njit(fastmath=FAST, nogil=True, cache=True)
def attend_back_part(part, parts, qkv, offset, dy, dqkv, sums):
    """Gradients: dqkv (n, k, 3 c); of the offsets in sums (parts, heads, neighbours), in float64."""
    (frames, bands, c), (heads, around) = dy.shape, offset.shape
    flat, grad, out, width = qkv.reshape(-1), dy.reshape(-1), dqkv.reshape(-1), c // heads
    weights, through = np.empty(around, np.float32), np.empty(around, np.float32)
    scale = np.float32(1) / np.sqrt(np.float32(width))
    sums[part] = 0
    for t in range(frames * part // parts, frames * (part + 1) // parts):
        for j in range(t * bands * 3 * c, (t + 1) * bands * 3 * c, LANES):
            store(out, j, splat(np.float32(0)))
        for i in range(bands):
            for head in range(heads):
                p, g = (t * bands + i) * 3 * c + head * width, (t * bands + i) * c + head * width
                first, last = _weights(flat, p, i, bands, c, offset, head, width, around, weights)
                mean = np.float32(0)
                for j in range(first, last):
                    v, products = p + (j - around // 2) * 3 * c + 2 * c, splat(np.float32(0))
                    for channel in range(0, width, LANES):
                        d = load(grad, g + channel)
                        products = products + d * load(flat, v + channel)
                        store(out, v + channel, load(out, v + channel) + d * weights[j])
                    through[j] = total(products)
                    mean += weights[j] * through[j]
                for j in range(first, last):
                    k, d = p + (j - around // 2) * 3 * c + c, weights[j] * (through[j] - mean)
                    sums[part, head, j] += d
                    d *= scale
                    for channel in range(0, width, LANES):
                        q = load(flat, p + channel)
                        store(out, p + channel, load(out, p + channel) + load(flat, k + channel) * d)
                        store(out, k + channel, load(out, k + channel) + q * d)
