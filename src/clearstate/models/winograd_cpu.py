"""The 3 x 3 convolutions of a dense block on the CPU with a third of the multiplications.

Winograd 1980; Lavin & Gray 2015 (arXiv:1509.09308): m outputs of a convolution of 3 taps need m + 2 products, if
inputs, taps and products go through small matrices of integers. Along frequency m is 4, so that 6 products do for 12;
along time, with frames `dilation` apart, m is 2, and 4 products do for 6:

    y = P_f^T [(G_f w G_t^T) * (B_f^T x B_t)] P_t,   * a matrix product over the input channels at each of the 24 points

A map of the block is kept as B_f^T x only, from which all later layers start; what time adds to it is a sum of two
frames, taken on the way into the product. `DenseLayer` in `codec.py` is the slow twin. What the sums of F(4, 3) lose is
one digit of float32: an error of 3e-6 of the largest output.

b batch, t frames, f bins, c channels, k = ceil(f / 4) tiles of bins, p pairs of frames `dilation` apart.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.compiled import njit
from clearstate.ssm.lanes_cpu import FAST, LANES, apart, inner_njit, larger, load, smaller, splat, store
from clearstate.ssm.lent import lent
from clearstate.ssm.panels_cpu import Panels, filled, multiply
from clearstate.ssm.threads import in_parts, threads_for

ROWS = 104  # about as many rows has a product: what goes into four of them is half of a core's second-level cache
BINS, FRAMES = 6, 4  # points along frequency and time

TAPS_ALONG_FREQUENCY = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # 24 G_f
TAPS_ALONG_TIME = [[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]  # 2 G_t


@contextmanager
def lent_maps(x: Tensor, count: int) -> Iterator[Tensor]:
    """Memory for `count` transformed maps of the size of x (b, t, f, c): (count, b, 6, t, k, c); see `lent`."""
    b, t, f, c = x.shape
    shape = (count, b, BINS, t, -(-f // 4), c)
    with lent(math.prod(shape)) as memory:
        yield memory.view(shape)


def enter(x: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, out: Tensor) -> None:
    """PReLU(x scale + shift), transformed along frequency.

    Args:
        x: (b, t, f, c), c a multiple of 16.   scale, shift: (b, c).   slope: (c,).   out: (b, 6, t, k, c).
    """
    b, t = x.shape[:2]
    arrays = (a.detach().contiguous().numpy() for a in (x, scale, shift, slope))
    in_parts(_enter_part, threads_for(b * t, x.numel()), *arrays, out.numpy())


def convolve(maps: Tensor, conv: nn.Conv2d, out: Tensor) -> None:
    """The convolution of maps side by side in their channels, newest first.

    Args:
        maps: (m, b, 6, t, k, c) from `enter`, oldest first, contiguous.   conv: m c inputs, c outputs.
        out: (b, t, f, c).
    """
    m, b, _, t, k, c = maps.shape
    dilation = conv.dilation[0]
    size = max(1, ROWS // k)  # pairs of a task
    tasks = b * -(-pairs_of(t, dilation) // size)
    threads = threads_for(tasks, out.numel() * 9 * m * c)
    rows = size * k + 3
    memory = torch.empty(threads, rows * c * (FRAMES * (m + 1) + 2 * BINS) + LANES)
    assert conv.bias is not None
    arrays = (maps.numpy(), transformed(conv, m, c), filled(conv.bias, c).numpy())
    in_parts(_convolve_part, threads, *arrays, dilation, size, tasks, memory.numpy(), out.numpy())


def transformed(conv: nn.Conv2d, maps: int, channels: int) -> Any:
    """The taps at the 24 points, each as a matrix (m c, c) in panels; `channels` is c, filled to whole panels."""
    along_frequency = torch.tensor(TAPS_ALONG_FREQUENCY, dtype=torch.float64) / 24
    along_time = torch.tensor(TAPS_ALONG_TIME, dtype=torch.float64) / 2
    taps = conv.weight.detach().double()  # (o, i, time, frequency)
    points = torch.einsum("pf,qt,oitf->pqio", along_frequency, along_time, taps).float()
    o = taps.shape[0]
    points = F.pad(points.view(BINS, FRAMES, maps, o, o), (0, channels - o, 0, channels - o))
    return points.reshape(-1, maps * channels, channels // LANES, LANES).transpose(1, 2).contiguous().view(-1).numpy()


def pairs_of(frames: int, dilation: int) -> int:
    """Pairs (t, t + dilation) that hold all frames once; the second of a pair may lie beyond the signal."""
    whole, rest = divmod(frames, 2 * dilation)
    return whole * dilation + min(rest, dilation)


# ------------------------------------------------------------------------------------------------ compiled


@inner_njit
def _activated(x, p, inside, scale, shift, slope):
    """PReLU of sixteen channels of one bin; zeros beyond the spectrum."""
    zero = np.float32(0)
    if not inside:
        return splat(zero)
    y = load(x, p) * scale + shift
    return larger(y, splat(zero)) + smaller(y, zero) * slope


@inner_njit
def _enter_frame(task, x, scale, shift, slope, out):
    apart()
    frames, bins, c = x.shape[1:]
    item, t = task // frames, task % frames
    tiles = out.shape[3]
    flat, target = x.reshape(-1), out.reshape(-1)
    scales, shifts = scale.reshape(-1), shift.reshape(-1)
    to_point = frames * tiles * c
    four, five, two = np.float32(4), np.float32(5), np.float32(2)
    for j in range(0, c, LANES):
        a, b, s = load(scales, item * c + j), load(shifts, item * c + j), load(slope, j)
        p = task * bins * c + j
        q = (item * 6 * frames + t) * tiles * c + j
        x0, x1 = splat(np.float32(0)), _activated(flat, p, True, a, b, s)
        for tile in range(tiles):
            k = 4 * tile
            x2 = _activated(flat, p + (k + 1) * c, k + 1 < bins, a, b, s)
            x3 = _activated(flat, p + (k + 2) * c, k + 2 < bins, a, b, s)
            x4 = _activated(flat, p + (k + 3) * c, k + 3 < bins, a, b, s)
            x5 = _activated(flat, p + (k + 4) * c, k + 4 < bins, a, b, s)
            even, odd = x4 - four * x2, x3 - four * x1
            outer, inner = x4 - x2, two * (x3 - x1)
            store(target, q, four * x0 - five * x2 + x4)
            store(target, q + to_point, even + odd)
            store(target, q + 2 * to_point, even - odd)
            store(target, q + 3 * to_point, outer + inner)
            store(target, q + 4 * to_point, outer - inner)
            store(target, q + 5 * to_point, four * x1 - five * x3 + x5)
            x0, x1 = x4, x5
            q += c


@inner_njit
def _gather(maps, item, point, pair, pairs, dilation, m, to):
    """What goes into the four products along time: sums and differences of two frames of each tile, as panels."""
    apart()
    count, batch, _, frames, tiles, c = maps.shape
    flat, cap = maps.reshape(-1), (pairs * tiles + 3) // 4 * 4
    to_product, to_panel = count * c * cap, cap * LANES
    for i in range(pairs):
        t = _first(pair + i, dilation)
        has_before, has_next, has_after = t >= dilation, t + dilation < frames, t + 2 * dilation < frames
        step = dilation * tiles * c
        for j in range(count):  # newest map first
            p = ((((count - 1 - j) * batch + item) * 6 + point) * frames + t) * tiles * c
            for k in range(tiles):
                target = to + (j * c * cap) + (i * tiles + k) * LANES
                for _ in range(c // LANES):
                    now = load(flat, p)
                    before = load(flat, p - step) if has_before else splat(np.float32(0))
                    following = load(flat, p + step) if has_next else splat(np.float32(0))
                    after = load(flat, p + 2 * step) if has_after else splat(np.float32(0))
                    store(m, target, before - following)
                    store(m, target + to_product, now + following)
                    store(m, target + 2 * to_product, following - now)
                    store(m, target + 3 * to_product, now - after)
                    p += LANES
                    target += to_panel


@inner_njit
def _first(pair, dilation):
    """The frame that a pair begins with."""
    return pair // dilation * 2 * dilation + pair % dilation


@inner_njit
def _convolve_task(task, maps, weight, bias, dilation, size, m, out):
    """One slice of pairs through the products at all points, and back."""
    apart()
    count, _, _, frames, tiles, c = maps.shape
    whole, rest = frames // (2 * dilation), frames % (2 * dilation)
    all_pairs = whole * dilation + min(rest, dilation)
    slices = (all_pairs + size - 1) // size
    item, pair = task // slices, task % slices * size
    pairs = min(size, all_pairs - pair)
    rows = (pairs * tiles + 3) // 4 * 4
    panels, matrix = c // LANES, rows * c
    inputs = 0
    products = inputs + 4 * count * matrix
    sums = products + 4 * matrix  # at (point, frame of the pair)
    for point in range(6):
        _gather(maps, item, point, pair, pairs, dilation, m, inputs)
        for q in range(4):
            a, y = (
                Panels(inputs + q * count * matrix, LANES, rows * LANES),
                Panels(products + q * matrix, LANES, rows * LANES),
            )
            at = (point * 4 + q) * count * c * c
            multiply(m, a, count * panels, weight, at, m, y, panels, rows, False)
        first = sums + 2 * point * matrix
        for i in range(products, products + matrix, LANES):
            m1, m2 = load(m, i + matrix), load(m, i + 2 * matrix)
            store(m, first + i - products, load(m, i) + m1 + m2)
            store(m, first + matrix + i - products, m1 - m2 - load(m, i + 3 * matrix))
    for i in range(pairs):
        for second in range(2):
            t = _first(pair + i, dilation) + second * dilation
            if t < frames:
                at = sums + second * matrix + i * tiles * LANES
                _leave_frame(m, at, 2 * matrix, rows * LANES, bias, out, (item * frames + t))


@inner_njit
def _leave_frame(m, at, to_point, to_panel, bias, out, frame):
    """The bins of one frame from the products' sums at the six points."""
    bins, c = out.shape[2:]
    flat = out.reshape(-1)
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    for j in range(0, c, LANES):
        b, p = load(bias, j), at + j // LANES * to_panel
        for k in range(0, bins, 4):
            m0, m5 = load(m, p) + b, load(m, p + 5 * to_point) + b
            m1, m2 = load(m, p + to_point), load(m, p + 2 * to_point)
            m3, m4 = load(m, p + 3 * to_point), load(m, p + 4 * to_point)
            near, far, near_odd, far_odd = m1 + m2, m3 + m4, m1 - m2, m3 - m4
            o = (frame * bins + k) * c + j
            store(flat, o, m0 + near + far)
            if k + 1 < bins:
                store(flat, o + c, two * far_odd + near_odd + b)
            if k + 2 < bins:
                store(flat, o + 2 * c, four * far + near + b)
            if k + 3 < bins:
                store(flat, o + 3 * c, eight * far_odd + near_odd + m5)
            p += LANES


@njit(fastmath=FAST, nogil=True, cache=True)
def _enter_part(part, parts, x, scale, shift, slope, out):
    for task in range(part, x.shape[0] * x.shape[1], parts):
        _enter_frame(task, x, scale, shift, slope, out)


@njit(fastmath=FAST, nogil=True, cache=True)
def _convolve_part(part, parts, maps, weight, bias, dilation, size, tasks, memory, out):
    for task in range(part, tasks, parts):
        _convolve_task(task, maps, weight, bias, dilation, size, memory[part], out)
