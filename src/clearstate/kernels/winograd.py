"""The 3 x 3 and 2 x 3 convolutions of a dense block on the CPU with a quarter, or 3 tenths, of the multiplications.

Winograd 1980; Lavin & Gray 2015 (arXiv:1509.09308): m outputs of a convolution of 3 taps need m + 2 products, if
inputs, taps and products are taken as polynomials and multiplied at m + 2 points. Here m is 4 along frequency, and 4
along time, with frames `dilation` apart, so that 36 products do for 144:

    y = P_f^T [(G_f w G_t^T) * (B_f^T x B_t)] P_t,   * a matrix product over the input channels at each of the 36 points

    points 0, a, -a, b, -b and infinity
    B^T x:  a^2 b^2 x_0 - (a^2 + b^2) x_2 + x_4,   x_4 - b^2 x_2 +- a (x_3 - b^2 x_1),   the same with a and b swapped,
            a^2 b^2 x_1 - (a^2 + b^2) x_3 + x_5
    P^T:    y_j = sum of (point)^j m, and at infinity of m for j = 3

With two taps in time (`dilation` frames ago and now), the same six points give a fifth frame: 36 products for 120. (The
result depends on later frames by rounding, so causal models cannot use it.)

A dense block stores its maps as B_f^T x only, which all later layers share; the transform along time follows before the
product. `DenseLayer` in `models/parts/dense_codec.py` and `PastLayer` in `mp_senet.py` are the slow twins. The rounding
error is smallest with a = 5/8 and b = 5/4, whose powers are short: 4e-6 of the largest output, 8e-6 with two taps in
time and 256 inputs; with a = 1 and b = 2 it is three times that.

b batch, t frames, f bins, c channels, k = ceil(f / 4) tiles of bins; a run is the four or five frames, `dilation`
apart, that are computed together.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.kernels.cache import njit
from clearstate.kernels.matmul import Panels, filled, multiply
from clearstate.kernels.scratch import lent
from clearstate.kernels.simd import FAST, LANES, apart, inner_njit, larger, load, smaller, splat, store
from clearstate.kernels.threads import in_parts, threads_for

ROWS = 52  # about as many rows has a product: what goes into six of them is a third of a core's second-level cache
POINTS = 6
NEAR, FAR = 5 / 8, 5 / 4  # a and b
NEAR2, FAR2, NEAR3, FAR3, NEAR4, FAR4 = NEAR**2, FAR**2, NEAR**3, FAR**3, NEAR**4, FAR**4


@contextmanager
def lent_maps(x: Tensor, count: int) -> Iterator[Tensor]:
    """Memory for `count` transformed maps of the size of x (b, t, f, c): (count, b, 6, t, k, c); see `lent`."""
    b, t, f, c = x.shape
    shape = (count, b, POINTS, t, -(-f // 4), c)
    with lent(math.prod(shape)) as memory:
        yield memory.view(shape)


def enter(x: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, out: Tensor) -> None:
    """PReLU(x scale + shift), transformed along frequency.

    Args:
        x: (b, t, f, c), c a multiple of 16.   scale, shift: (b, c).   slope: (c,).
        out: (b, 6, t, k, c).
    """
    b, t = x.shape[:2]
    arrays = (a.detach().contiguous().numpy() for a in (x, scale, shift, slope))
    in_parts(_enter_part, threads_for(b * t, x.numel()), *arrays, out.numpy())


def convolve(maps: Tensor, conv: nn.Conv2d, out: Tensor) -> None:
    """The convolution of maps side by side in their channels, newest first; of two taps in time, the newer is now.

    Args:
        maps: (m, b, 6, t, k, c) from `enter`, oldest first, contiguous.   conv: m c inputs, c outputs.
        out: (b, t, f, c).
    """
    m, b, _, t, k, c = maps.shape
    dilation, run = conv.dilation[0], run_of(conv)
    size = max(1, ROWS // k)  # runs of a task
    tasks = b * -(-runs_of(t, dilation, run) // size)
    threads = threads_for(tasks, out.numel() * 9 * m * c)
    rows = size * k + 3
    memory = torch.empty(threads, rows * c * (POINTS * (m + 1) + run * POINTS) + LANES)
    assert conv.bias is not None
    arrays = (maps.numpy(), transformed(conv, m, c), filled(conv.bias, c).numpy())
    in_parts(_convolve_part, threads, *arrays, dilation, run, size, tasks, memory.numpy(), out.numpy())


def transformed(conv: nn.Conv2d, maps: int, channels: int) -> Any:
    """The taps at the 36 points, each as a matrix (m c, c) in panels; `channels` is c, filled to whole panels."""
    times, bins = conv.kernel_size
    along_time, along_bins = (torch.tensor(taps_at_points(n), dtype=torch.float64) for n in (times, bins))
    along_both = torch.einsum("pf,qt->pqtf", along_bins, along_time).reshape(POINTS * POINTS, -1)
    o, more = conv.out_channels, channels - conv.out_channels
    taps = F.pad(conv.weight.detach().double().view(o, maps, o, -1), (0, 0, 0, more, 0, 0, 0, more))
    taps = taps.view(channels // LANES, LANES, maps * channels, -1).permute(3, 0, 2, 1)  # in panels before there are 36
    return (along_both @ taps.reshape(len(taps), -1)).float().view(-1).numpy()


def taps_at_points(taps: int) -> list[list[float]]:
    """G: the polynomial of the taps at the six points, over the products of the differences between points."""
    near, far = 2 * NEAR2 * (NEAR2 - FAR2), 2 * FAR2 * (FAR2 - NEAR2)
    finite = [(0.0, NEAR2 * FAR2), (NEAR, near), (-NEAR, near), (FAR, far), (-FAR, far)]
    infinity = [0.0] * (taps - 1) + [1.0]
    return [[point**i / scale for i in range(taps)] for point, scale in finite] + [infinity]


def run_of(conv: nn.Conv2d) -> int:
    """Frames that six points give at a time."""
    return POINTS + 1 - conv.kernel_size[0]


def runs_of(frames: int, dilation: int, run: int) -> int:
    """Runs (t, t + dilation, ...) that hold all frames once; all but the first of a run may lie beyond the signal."""
    whole, rest = divmod(frames, run * dilation)
    return whole * dilation + min(rest, dilation)


_runs_of = inner_njit(runs_of)  # for compiled code


# ------------------------------------------------------------------------------------------------ compiled


@inner_njit
def _activated(x, p, inside, scale, shift, slope):
    """PReLU of sixteen channels of one bin; zeros beyond the spectrum."""
    if not inside:
        return splat(0.0)
    y = load(x, p) * scale + shift
    return larger(y, 0.0) + smaller(y, 0.0) * slope


@inner_njit
def _at_points(x0, x1, x2, x3, x4, x5):
    """B^T x."""
    near, far, both, product = NEAR2, FAR2, NEAR2 + FAR2, NEAR2 * FAR2
    even, odd = x4 - far * x2, (x3 - far * x1) * NEAR
    even2, odd2 = x4 - near * x2, (x3 - near * x1) * FAR
    first, last = product * x0 - both * x2 + x4, product * x1 - both * x3 + x5
    return first, even + odd, even - odd, even2 + odd2, even2 - odd2, last


@inner_njit
def _from_points(m0, m1, m2, m3, m4):
    """P^T m, for as many as five outputs; infinity comes to the last of those that are wanted."""
    near, far, near_odd, far_odd = m1 + m2, m3 + m4, m1 - m2, m3 - m4
    return (
        m0 + near + far,
        near_odd * NEAR + far_odd * FAR,
        near * NEAR2 + far * FAR2,
        near_odd * NEAR3 + far_odd * FAR3,
        near * NEAR4 + far * FAR4,
    )


@inner_njit
def _enter_frame(task, x, scale, shift, slope, out):
    apart()
    frames, bins, c = x.shape[1:]
    item, t = task // frames, task % frames
    places, tiles = out.shape[2:4]
    flat, target = x.reshape(-1), out.reshape(-1)
    scales, shifts = scale.reshape(-1), shift.reshape(-1)
    to_point = places * tiles * c
    for j in range(0, c, LANES):
        a, b, s = load(scales, item * c + j), load(shifts, item * c + j), load(slope, j)
        p = task * bins * c + j
        q = (item * POINTS * places + t) * tiles * c + j
        x0, x1 = splat(0.0), _activated(flat, p, True, a, b, s)
        for tile in range(tiles):
            k = 4 * tile
            x2 = _activated(flat, p + (k + 1) * c, k + 1 < bins, a, b, s)
            x3 = _activated(flat, p + (k + 2) * c, k + 2 < bins, a, b, s)
            x4 = _activated(flat, p + (k + 3) * c, k + 3 < bins, a, b, s)
            x5 = _activated(flat, p + (k + 4) * c, k + 4 < bins, a, b, s)
            y0, y1, y2, y3, y4, y5 = _at_points(x0, x1, x2, x3, x4, x5)
            store(target, q, y0)
            store(target, q + to_point, y1)
            store(target, q + 2 * to_point, y2)
            store(target, q + 3 * to_point, y3)
            store(target, q + 4 * to_point, y4)
            store(target, q + 5 * to_point, y5)
            x0, x1 = x4, x5
            q += c


@inner_njit
def _gather(maps, item, point, first, runs, dilation, run, m, to):
    """What goes into the six products along time: sums over six frames of each tile, as panels."""
    apart()
    count, batch, _, frames, tiles, c = maps.shape
    flat, cap, zero = maps.reshape(-1), (runs * tiles + 3) // 4 * 4, splat(0.0)
    to_product, to_panel, step = count * c * cap, cap * LANES, dilation * tiles * c
    for i in range(runs):
        t = _begins(first + i, dilation, run)
        left = (frames - 1 - t) // dilation  # frames of the five from t on that are there, beside t
        for j in range(count):  # newest map first
            p = ((((count - 1 - j) * batch + item) * POINTS + point) * frames + t) * tiles * c
            for k in range(tiles):
                target = to + (j * c * cap) + (i * tiles + k) * LANES
                for _ in range(c // LANES):
                    x0 = load(flat, p - step) if t >= dilation else zero
                    x1 = load(flat, p)
                    x2 = load(flat, p + step) if left >= 1 else zero
                    x3 = load(flat, p + 2 * step) if left >= 2 else zero
                    x4 = load(flat, p + 3 * step) if left >= 3 else zero
                    x5 = load(flat, p + 4 * step) if left >= 4 else zero
                    y0, y1, y2, y3, y4, y5 = _at_points(x0, x1, x2, x3, x4, x5)
                    store(m, target, y0)
                    store(m, target + to_product, y1)
                    store(m, target + 2 * to_product, y2)
                    store(m, target + 3 * to_product, y3)
                    store(m, target + 4 * to_product, y4)
                    store(m, target + 5 * to_product, y5)
                    p += LANES
                    target += to_panel


@inner_njit
def _begins(i, dilation, run):
    """The frame that run i begins with."""
    return i // dilation * run * dilation + i % dilation


@inner_njit
def _convolve_task(task, maps, weight, bias, dilation, run, size, m, out):
    """One slice of runs through the products at all points, and back."""
    apart()
    count, _, _, frames, tiles, c = maps.shape
    all_runs = _runs_of(frames, dilation, run)
    slices = (all_runs + size - 1) // size
    item, first = task // slices, task % slices * size
    runs = min(size, all_runs - first)
    rows = (runs * tiles + 3) // 4 * 4
    panels, matrix = c // LANES, rows * c
    inputs = 0
    products = inputs + POINTS * count * matrix
    sums = products + POINTS * matrix  # at (point, frame of the run)
    for point in range(POINTS):
        _gather(maps, item, point, first, runs, dilation, run, m, inputs)
        for q in range(POINTS):
            a = Panels(inputs + q * count * matrix, LANES, rows * LANES)
            y = Panels(products + q * matrix, LANES, rows * LANES)
            at = (point * POINTS + q) * count * c * c
            multiply(m, a, count * panels, weight, at, m, y, panels, rows, False)
        _leave_points(m, products, sums + run * point * matrix, matrix, run)
    for i in range(runs):
        for j in range(run):
            t = _begins(first + i, dilation, run) + j * dilation
            if t < frames:
                at = sums + j * matrix + i * tiles * LANES
                leave_frame(m, at, run * matrix, rows * LANES, bias, out, (item * frames + t))


@inner_njit
def _leave_points(m, products, sums, matrix, run):
    """The frames of a run from the products at six points along time."""
    apart()
    for i in range(0, matrix, LANES):
        p, o = products + i, sums + i
        m0, m1, m2 = load(m, p), load(m, p + matrix), load(m, p + 2 * matrix)
        m3, m4, m5 = load(m, p + 3 * matrix), load(m, p + 4 * matrix), load(m, p + 5 * matrix)
        y0, y1, y2, y3, y4 = _from_points(m0, m1, m2, m3, m4)
        store(m, o, y0)
        store(m, o + matrix, y1)
        store(m, o + 2 * matrix, y2)
        if run == 4:
            store(m, o + 3 * matrix, y3 + m5)
        else:
            store(m, o + 3 * matrix, y3)
            store(m, o + 4 * matrix, y4 + m5)


@inner_njit
def leave_frame(m, at, to_point, to_panel, bias, out, frame):
    """The bins of one frame from the products' sums at the six points."""
    bins, c = out.shape[2:]
    flat = out.reshape(-1)
    for j in range(0, c, LANES):
        b, p = load(bias, j), at + j // LANES * to_panel
        for k in range(0, bins, 4):
            m0, m1, m2 = load(m, p), load(m, p + to_point), load(m, p + 2 * to_point)
            m3, m4, m5 = load(m, p + 3 * to_point), load(m, p + 4 * to_point), load(m, p + 5 * to_point)
            y0, y1, y2, y3, _ = _from_points(m0, m1, m2, m3, m4)
            o = (frame * bins + k) * c + j
            store(flat, o, y0 + b)
            if k + 1 < bins:
                store(flat, o + c, y1 + b)
            if k + 2 < bins:
                store(flat, o + 2 * c, y2 + b)
            if k + 3 < bins:
                store(flat, o + 3 * c, y3 + m5 + b)
            p += LANES


@njit(fastmath=FAST, nogil=True, cache=True)
def _enter_part(part, parts, x, scale, shift, slope, out):
    for task in range(part, x.shape[0] * x.shape[1], parts):
        _enter_frame(task, x, scale, shift, slope, out)


@njit(fastmath=FAST, nogil=True, cache=True)
def _convolve_part(part, parts, maps, weight, bias, dilation, run, size, tasks, memory, out):
    for task in range(part, tasks, parts):
        _convolve_task(task, maps, weight, bias, dilation, run, size, memory[part], out)
