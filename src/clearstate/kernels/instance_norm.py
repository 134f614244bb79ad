"""Instance norm + PReLU on the CPU without a detour, one pass for the moments, one for the result; and up-sampling.

PyTorch's instance norm wants channels first; on channel-last tensors it transposes twice. Here the channels are vector
lanes and frames are shared out over the threads. The slow twins are in `models/parts/dense_codec.py`.

b batch, t frames, f bins, c channels.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearstate.kernels.cache import njit
from clearstate.kernels.matmul import Panels, as_panels, multiply
from clearstate.kernels.simd import FAST, LANES, apart, inner_njit, load, store
from clearstate.kernels.threads import in_parts, threads_for

PARTS = 32  # frames are dealt to this many tasks, whatever the thread count: so sums do not depend on it


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (b, c) of x (b, t, f, c) over frames and bins."""
    x = x.contiguous()
    b, t, f, c = x.shape
    sums = np.empty((b, PARTS, 2, c), np.float64)
    in_parts(_moments, threads_for(b * PARTS, x.numel()), x.view(b, t, f * c).numpy(), c, sums)
    counts = np.diff(np.arange(PARTS + 1) * t // PARTS)[:, None] * f  # bins x frames of each part
    means, squares = sums[:, :, 0], sums[:, :, 1]  # squares: of the deviations from the part's mean
    mean = (means * counts).sum(1) / (t * f)
    variance = (squares + counts * (means - mean[:, None]) ** 2).sum(1) / (t * f)
    return torch.from_numpy(mean).to(x.dtype), torch.from_numpy(variance).to(x.dtype)


def affine_prelu(x: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, places: list[tuple[Tensor, int]]) -> None:
    """PReLU(x scale + shift), written to each place: a contiguous (b, t, f, wider) tensor and its first channel."""
    x = x.contiguous()
    b, t, f, c = x.shape
    (first, at), rest = places[0], places[1:]
    in_parts(
        _affine, threads_for(b * t, x.numel()),
        x.view(b, t, f, c).numpy(), scale.numpy(), shift.numpy(), slope.detach().numpy(),
        first.numpy(), at, *(argument for i in range(2) for argument in _place(rest, i)),
    )  # fmt: skip
    assert len(places) <= 3


def upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`codec.upsample` of (b, t, k, c), c and the number of outputs multiples of 16, a frame at a time."""
    b, t, k, _ = x.shape
    taps = [as_panels(tap).view(-1).numpy() for tap in weight[:, :, 0].unbind(-1)]  # (c, o) each
    y = x.new_empty(b, t, 2 * k + 1, weight.shape[1])
    arrays = (x.contiguous().numpy(), *taps, bias.detach().contiguous().numpy(), y.numpy())
    in_parts(_upsample_part, threads_for(b * t, y.numel()), *arrays)
    return y


def _place(places: list[tuple[Tensor, int]], i: int) -> tuple[Any, int]:
    if i < len(places):
        return places[i][0].numpy(), places[i][1]
    return np.empty((0, 0, 0, 0), np.float32), 0


@njit(fastmath=FAST, nogil=True)
def _moments_of_part(x, c, first, last, out):
    """Mean and squared deviations of frames first ... last, frame by frame in float32, joined in float64."""
    width = x.shape[1]
    bins = width // c
    total, square = np.zeros(c, x.dtype), np.zeros(c, x.dtype)
    centre = np.zeros(c, x.dtype)
    mean, squares = np.zeros(c, np.float64), np.zeros(c, np.float64)
    for t in range(first, last):
        row = x[t]
        total[:] = 0
        for p in range(0, width, c):
            piece = row[p : p + c]
            for i in range(c):
                total[i] += piece[i]
        for i in range(c):
            centre[i] = total[i] / bins
            square[i] = 0
        for p in range(0, width, c):
            piece = row[p : p + c]
            for i in range(c):
                deviation = piece[i] - centre[i]
                square[i] += deviation * deviation
        before = t - first
        for i in range(c):
            delta = np.float64(centre[i]) - mean[i]
            mean[i] += delta / (before + 1)
            squares[i] += square[i] + delta * delta * bins * before / (before + 1)
    out[0], out[1] = mean, squares


@njit(fastmath=FAST, nogil=True)
def _moments_task(task, x, c, sums):
    item, part = task // PARTS, task % PARTS
    frames = x.shape[1]
    _moments_of_part(x[item], c, part * frames // PARTS, (part + 1) * frames // PARTS, sums[item, part])


@njit(fastmath=FAST, nogil=True, cache=True)
def _moments(part, parts, x, c, sums):
    for task in range(part, x.shape[0] * PARTS, parts):
        _moments_task(task, x, c, sums)


@njit(fastmath=FAST, nogil=True, inline="always")
def _copy(source, target):
    for i in range(source.shape[0]):
        target[i] = source[i]


@njit(fastmath=FAST, nogil=True)
def _affine_task(task, x, scale, shift, slope, one, at_one, two, at_two, three, at_three):
    item, t = task // x.shape[1], task % x.shape[1]
    bins, c = x.shape[2], x.shape[3]
    a, b, s = scale[item], shift[item], slope
    for k in range(bins):
        row, target = x[item, t, k], one[item, t, k, at_one : at_one + c]
        for i in range(c):  # two loops: LLVM does not vectorise one over five arrays
            target[i] = row[i] * a[i] + b[i]
        for i in range(c):
            y, below = target[i], target[i] * s[i]  # both, so that it selects and does not branch
            target[i] = below if y < 0 else y
        if two.size:
            _copy(target, two[item, t, k, at_two : at_two + c])
        if three.size:
            _copy(target, three[item, t, k, at_three : at_three + c])


@njit(fastmath=FAST, nogil=True, cache=True)
def _affine(part, parts, x, scale, shift, slope, one, at_one, two, at_two, three, at_three):
    for task in range(part, x.shape[0] * x.shape[1], parts):
        _affine_task(task, x, scale, shift, slope, one, at_one, two, at_two, three, at_three)


@inner_njit
def _upsample_frame(task, x, zero, one, two, bias, out):
    apart()
    bands, c = x.shape[2:]
    bins, outputs = out.shape[2:]
    source, target, at = x.reshape(-1), out.reshape(-1), task * bins * outputs
    for k in range(bins):
        for j in range(0, outputs, LANES):
            store(target, at + k * outputs + j, load(bias, j))
    rows, inner, panels = Panels(task * bands * c, c, LANES), c // LANES, outputs // LANES
    even, odd = Panels(at, 2 * outputs, LANES), Panels(at + outputs, 2 * outputs, LANES)
    multiply(source, rows, inner, zero, 0, target, even, panels, bands, True)
    multiply(source, rows, inner, one, 0, target, odd, panels, bands, True)
    even = Panels(at + 2 * outputs, 2 * outputs, LANES)
    multiply(source, rows, inner, two, 0, target, even, panels, bands, True)


@njit(fastmath=FAST, nogil=True, cache=True)
def _upsample_part(part, parts, x, zero, one, two, bias, out):
    for task in range(part, x.shape[0] * x.shape[1], parts):
        _upsample_frame(task, x, zero, one, two, bias, out)
