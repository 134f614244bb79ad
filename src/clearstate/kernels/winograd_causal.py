"""The 2 x 3 convolutions of a causal dense block on the CPU with half the multiplications, and the norms after them.

    y[t] = P_f^T [(G_f w_0) * (B_f^T x[t - dilation]) + (G_f w_1) * (B_f^T x[t])],   * a matrix product at each point

As in `winograd.py` four bins need six products, but time is left alone: of frames that went through points together
an earlier one would hear a later one, by rounding, and all of it when that is NaN. So each frame is what it is whatever
follows, and wherever a signal is cut. The layers of `CausalDenseBlock` in `semamba_causal.py` are the slow twin.

b batch, t frames, f bins, c channels, k = ceil(f / 4) tiles of bins.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.kernels.cache import njit
from clearstate.kernels.matmul import Panels, filled, multiply
from clearstate.kernels.simd import FAST, LANES, apart, below, inner_njit, larger, load, smaller, splat, store, total
from clearstate.kernels.threads import in_parts, threads_for
from clearstate.kernels.winograd import POINTS, leave_frame, taps_at_points

ROWS = 104  # about as many rows has a product: what it gives at all points stays in a core's second-level cache


def convolve(maps: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor, slope: Tensor, out: Tensor) -> None:
    """The convolution of maps side by side in their channels, newest first, layer norm of each bin, and PReLU.

    Args:
        maps: (m, b, 6, s + t, k, width) from `winograd_cpu.enter`, oldest first, contiguous; the first s frames, at
            least as many as the dilation, are only heard. width is c, filled to whole vectors.
        conv: m c inputs, c outputs.   weight, bias, slope: (c,), of the norm and after it.   out: (b, t, f, width).
    """
    m, b, _, frames, k, width = maps.shape
    c, dilation, t = conv.out_channels, conv.dilation[0], out.shape[1]
    assert conv.bias is not None and frames - t >= dilation
    size = max(1, ROWS // k)  # frames of a task
    tasks = b * -(-t // size)
    threads = threads_for(tasks, out.numel() * 6 * m * width)
    memory = torch.empty(threads, size * k * width * POINTS + LANES)
    vectors = torch.stack([filled(v, width) for v in (conv.bias, weight, bias, slope)])
    arrays = (maps.numpy(), transformed(conv, m, width), vectors.view(-1).numpy())
    in_parts(_convolve_part, threads, *arrays, c, dilation, size, tasks, memory.numpy(), out.numpy())


def transformed(conv: nn.Conv2d, maps: int, width: int) -> Any:
    """The taps at the six points, for each map those of the older frame, then of the newer; matrices in panels."""
    at_points = torch.tensor(taps_at_points(3), dtype=torch.float64)
    o, more = conv.out_channels, width - conv.out_channels
    taps = F.pad(conv.weight.detach().double().view(o, maps, o, 6), (0, 0, 0, more, 0, 0, 0, more))
    taps = taps.view(width // LANES, LANES, maps, width, 2, 3).permute(5, 2, 4, 0, 3, 1)  # (3, m, 2, panels, c, 16)
    return (at_points @ taps.reshape(3, -1)).float().view(-1).numpy()


# ------------------------------------------------------------------------------------------------ compiled


@inner_njit
def _convolve_task(task, maps, weight, vectors, c, dilation, size, m, out):
    """A few frames of a signal."""
    apart()
    count, batch, _, heard, tiles, width = maps.shape
    frames, bins = out.shape[1:3]
    slices = (frames + size - 1) // size
    item, first = task // slices, task % slices * size
    there = min(size, frames - first)
    rows, panels, flat = there * tiles, width // LANES, maps.reshape(-1)
    at = 0
    for point in range(POINTS):
        y = Panels(point * rows * width, LANES, rows * LANES)
        for j in range(count):  # newest map first
            signal = ((count - 1 - j) * batch + item) * POINTS + point
            t = signal * heard + heard - frames + first
            for past in (dilation, 0):
                a = Panels((t - past) * tiles * width, width, LANES)
                multiply(flat, a, panels, weight, at, m, y, panels, rows, j > 0 or past == 0)
                at += width * width
    for i in range(there):
        frame = item * frames + first + i
        leave_frame(m, i * tiles * LANES, rows * width, rows * LANES, vectors, out, frame)
        _normalise(out.reshape(-1), frame * bins * width, bins, width, c, vectors)


@inner_njit
def _normalise(x, at, bins, width, c, vectors):
    """Layer norm over c channels of each bin, then PReLU, in place; vectors: a bias, then gain, offset and slope."""
    apart()
    share, zero = np.float32(1) / np.float32(c), np.float32(0)
    for p in range(at, at + bins * width, width):
        sums = splat(zero)
        for j in range(0, width, LANES):
            sums = load(x, p + j) + sums  # zeros beyond c
        mean = total(sums) * share
        squares = splat(zero)
        for j in range(0, width, LANES):
            off = load(x, p + j) - mean
            if c - j < LANES:
                off = below(c - j, off, splat(zero))
            squares = off * off + squares
        scale = np.float32(1) / np.sqrt(total(squares) * share + np.float32(1e-5))
        for j in range(0, width, LANES):
            y = (load(x, p + j) - mean) * scale * load(vectors, width + j) + load(vectors, 2 * width + j)
            store(x, p + j, larger(y, splat(zero)) + smaller(y, zero) * load(vectors, 3 * width + j))


@njit(fastmath=FAST, nogil=True, cache=True)
def _convolve_part(part, parts, maps, weight, vectors, c, dilation, size, tasks, memory, out):
    for task in range(part, tasks, parts):
        _convolve_task(task, maps, weight, vectors, c, dilation, size, memory[part], out)
