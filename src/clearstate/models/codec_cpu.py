"""Instance norm + PReLU on the CPU without a detour: one pass for the moments, one for the result.

PyTorch's instance norm wants channels first; on channel-last tensors it transposes twice. Here the channels are vector
lanes and frames are shared out over the threads. The slow twins are in `codec.py`.

b batch, t frames, f bins, c channels.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from clearstate.compiled import njit
from clearstate.ssm.threads import threads_for

PARTS = 32  # frames are dealt to this many tasks, whatever the thread count: so sums do not depend on it
FAST = {"contract", "nsz", "arcp"}  # no assumption about NaN: one in the input stays visible


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (b, c) of x (b, t, f, c) over frames and bins."""
    x = x.contiguous()
    b, t, f, c = x.shape
    sums = np.empty((b, PARTS, 2, c), np.float64)
    kernel = _moments_parallel if threads_for(b * PARTS, x.numel()) > 1 else _moments_serial
    kernel(x.view(b, t, f * c).numpy(), c, sums)
    counts = np.diff(np.arange(PARTS + 1) * t // PARTS)[:, None] * f  # bins x frames of each part
    means, squares = sums[:, :, 0], sums[:, :, 1]  # squares: of the deviations from the part's mean
    mean = (means * counts).sum(1) / (t * f)
    variance = (squares + counts * (means - mean[:, None]) ** 2).sum(1) / (t * f)
    return torch.from_numpy(mean).to(x.dtype), torch.from_numpy(variance).to(x.dtype)


def affine_prelu(x: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, places: list[tuple[Tensor, int]]) -> None:
    """PReLU(x scale + shift), written to each place: a contiguous (b, t, f, wider) tensor and its first channel."""
    x = x.contiguous()
    b, t, f, c = x.shape
    kernel = _affine_parallel if threads_for(b * t, x.numel()) > 1 else _affine_serial
    (first, at), rest = places[0], places[1:]
    kernel(
        x.view(b, t, f, c).numpy(), scale.numpy(), shift.numpy(), slope.detach().numpy(),
        first.numpy(), at, *(argument for i in range(2) for argument in _place(rest, i)),
    )  # fmt: skip
    assert len(places) <= 3


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
def _moments_serial(x, c, sums):
    for task in range(x.shape[0] * PARTS):
        _moments_task(task, x, c, sums)


@njit(fastmath=FAST, nogil=True, cache=True, parallel=True)
def _moments_parallel(x, c, sums):
    for task in prange(x.shape[0] * PARTS):
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
def _affine_serial(x, scale, shift, slope, one, at_one, two, at_two, three, at_three):
    for task in range(x.shape[0] * x.shape[1]):
        _affine_task(task, x, scale, shift, slope, one, at_one, two, at_two, three, at_three)


@njit(fastmath=FAST, nogil=True, cache=True, parallel=True)
def _affine_parallel(x, scale, shift, slope, one, at_one, two, at_two, three, at_three):
    for task in prange(x.shape[0] * x.shape[1]):
        _affine_task(task, x, scale, shift, slope, one, at_one, two, at_two, three, at_three)
