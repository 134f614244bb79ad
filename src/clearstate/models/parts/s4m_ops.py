"""Depthwise convolution and norms over time, channels last: what the block of S4M spends its time in beside its GEMMs.

b batch, l frames, h channels. Each is a function of tensors in plain PyTorch; on the CPU a compiled one of the same
value (`kernels/s4m.py`) takes its place.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.kernels.backend import backend
from clearstate.kernels.threads import in_parts, threads_for


class Depthwise(nn.Module):
    """One filter a channel along time: (b, l, h) to (b, ceil(l / stride), h).

    Output j is centred on frame stride * j. Causal ones end there: they are given taps - 1 earlier frames before the
    signal and give nothing for those.
    """

    def __init__(self, channels: int, taps: int, stride: int = 1, bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.stride, self.around = stride, 0 if causal else taps // 2
        bound = taps**-0.5  # PyTorch's for convolutions of one input channel
        self.weight = nn.Parameter(torch.empty(channels, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[1] == 1:
            return x * self.weight[:, 0] if self.bias is None else x * self.weight[:, 0] + self.bias
        return depthwise(x, self.weight, self.bias, self.stride, self.around)

    @property
    def scale(self) -> Tensor | None:
        """The filter where it is but a factor for each channel, which a norm that follows can take in; else None."""
        return self.weight[:, 0] if self.weight.shape[1] == 1 and self.bias is None else None


class Norm(nn.Module):
    """What both norms have: a gain and a bias a channel, and the two ways in which the block uses the result."""

    eps = 1e-8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, slope: Tensor | None = None) -> Tensor:
        """norm(x), through a PReLU of this slope (1,) if there is one."""
        raise NotImplementedError

    def modulate(self, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
        """norm(scale x) ⊙ up(gate) + up(shift), both (b, l / r, h), each frame repeated r times; scale (h,)."""
        raise NotImplementedError


class GlobalNorm(Norm):
    """Zero mean and unit variance over all frames and channels of an item (Conv-TasNet's gLN)."""

    def forward(self, x: Tensor, slope: Tensor | None = None) -> Tensor:
        return global_norm(x, self.weight, self.bias, slope, self.eps)

    def modulate(self, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
        return global_modulate(x, self.weight, self.bias, gate, shift, scale, self.eps)


class FrameNorm(Norm):
    """Zero mean and unit variance over the channels of each frame, for causal models."""

    eps = 1e-5

    def forward(self, x: Tensor, slope: Tensor | None = None) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return y if slope is None else F.prelu(y, slope)

    def modulate(self, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
        return modulate(self(x if scale is None else x * scale), gate, shift)


# ----------------------------------------------------------------------------------------------------- functions


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, around: int = 0) -> Tensor:
    """y[j] = bias + sum_i weight[:, i] x[stride j + i - around], zeros beyond the ends.

    x (b, l, h), weight (h, taps), bias (h,).
    """
    if compiled(x):
        return _Depthwise.apply(x, weight, bias, stride, around)
    y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, stride, around, groups=len(weight))
    return y.transpose(1, 2)


def global_norm(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over all but the batch; then PReLU if there is a slope."""
    if compiled(x):
        return _GlobalNorm.apply(x, weight, bias, x.new_ones(1) if slope is None else slope, eps)
    variance, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + eps) * weight + bias
    return y if slope is None else F.prelu(y, slope)


def global_modulate(
    x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, shift: Tensor, scale: Tensor | None, eps: float
) -> Tensor:
    """global_norm(scale x) ⊙ up(gate) + up(shift)."""
    if compiled(x):
        return _GlobalModulate.apply(
            x, weight, bias, gate, shift, torch.ones_like(weight) if scale is None else scale, eps
        )
    return modulate(global_norm(x if scale is None else x * scale, weight, bias, None, eps), gate, shift)


def modulate(x: Tensor, gate: Tensor, shift: Tensor) -> Tensor:
    """x ⊙ up(gate) + up(shift); gate and shift (b, l / r, h), each frame repeated r times."""
    blocks = x.unflatten(1, (gate.shape[1], -1))  # (b, l / r, r, h)
    return (blocks * gate[:, :, None] + shift[:, :, None]).flatten(1, 2)


# ------------------------------------------------------------------------------------------------ compiled for CPUs


def compiled(x: Tensor) -> bool:
    """Whether the kernels of `s4m_cpu` take this tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and backend("cpu") == "numba"
    )


def run(name: str, items: int, frames: int, *arguments: Any) -> None:
    """One kernel of `s4m_cpu` over all its tasks; tensors are passed as arrays."""
    from clearstate.kernels import s4m as s4m_cpu

    arrays = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
    tasks = s4m_cpu.tasks_for(items, frames)
    in_parts(getattr(s4m_cpu, name), threads_for(tasks, arrays[0].size), tasks, *arrays)


def task_sums(x: Tensor, rows: int, frames: int) -> Tensor:
    """Room for the sums of each task over `frames` frames: (tasks, rows, h)."""
    from clearstate.kernels import s4m as s4m_cpu

    return x.new_empty(s4m_cpu.tasks_for(len(x), frames), rows, x.shape[2])


def folded(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, B (b, h) of the norm as z = A x + B; and for the way back the sums it was made from, and its statistics."""
    from clearstate.kernels import s4m as s4m_cpu

    b, frames, h = x.shape
    moments, A, B = task_sums(x, 2, frames), x.new_empty(b, h), x.new_empty(b, h)
    stats = torch.empty(b, 2, dtype=torch.float64)
    run("moments", b, frames, x, moments)
    arrays = [t.detach().numpy() for t in (weight, bias, scale)]
    fold: Any = s4m_cpu.fold
    fold(moments.numpy(), len(moments) // b, frames * h, *arrays, eps, A.numpy(), B.numpy(), stats.numpy())
    return A, B, moments, stats


def unfolded(
    x: Tensor, moments: Tensor, sums: Tensor, weight: Tensor, scale: Tensor, stats: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight, bias and scale (h,); and C1, C2 (b, h): x gets C1 + C2 x through the statistics."""
    from clearstate.kernels import s4m as s4m_cpu

    b, frames, h = x.shape
    gradients = [np.zeros(h) for _ in range(3)]
    C1, C2 = x.new_empty(b, h), x.new_empty(b, h)
    unfold: Any = s4m_cpu.unfold
    unfold(
        moments.numpy(), sums.numpy(), len(moments) // b, len(sums) // b, frames * h, weight.detach().numpy(),
        scale.detach().numpy(), stats.numpy(), *gradients, C1.numpy(), C2.numpy(),
    )  # fmt: skip
    dweight, dbias, dscale = (torch.from_numpy(g).float() for g in gradients)
    return dweight, dbias, dscale, C1, C2


class _GlobalNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, slope, eps):
        x, one = x.contiguous(), torch.ones_like(weight)
        A, B, moments, stats = folded(x, weight, bias, one, eps)
        y = torch.empty_like(x)
        run("norm", *x.shape[:2], x, A, B, np.float32(slope.item()), y)
        ctx.save_for_backward(x, weight, slope, one, A, B, moments, stats)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, slope, one, A, B, moments, stats = ctx.saved_tensors
        dy, size = dy.contiguous(), x.shape[:2]
        sums, dx = task_sums(x, 3, x.shape[1]), torch.empty_like(x)
        run("norm_sums", *size, x, A, B, np.float32(slope.item()), dy, sums)
        dweight, dbias, _, C1, C2 = unfolded(x, moments, sums, weight, one, stats)
        run("norm_back", *size, x, A, B, np.float32(slope.item()), dy, C1, C2, dx)
        return dx, dweight, dbias, sums[:, 2].double().sum().float().reshape(1), None


class _GlobalModulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, gate, shift, scale, eps):
        x, gate, shift, scale = (tensor.contiguous() for tensor in (x, gate, shift, scale))
        A, B, moments, stats = folded(x, weight, bias, scale, eps)
        y = torch.empty_like(x)
        run("modulate", *gate.shape[:2], x, A, B, gate, shift, y)
        ctx.save_for_backward(x, weight, gate, scale, A, B, moments, stats)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, gate, scale, A, B, moments, stats = ctx.saved_tensors
        dy, (b, frames, _) = dy.contiguous(), gate.shape
        sums, dx, dgate, dshift = (
            task_sums(x, 2, frames),
            torch.empty_like(x),
            torch.empty_like(gate),
            torch.empty_like(gate),
        )
        run("modulate_sums", b, frames, x, A, B, gate, dy, sums, dgate, dshift)
        dweight, dbias, dscale, C1, C2 = unfolded(x, moments, sums, weight, scale, stats)
        run("modulate_back", b, frames, x, A, gate, dy, C1, C2, dx)
        return dx, dweight, dbias, dgate, dshift, dscale, None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, around):
        x, taps = x.contiguous(), weight.T.contiguous()
        y = x.new_empty(len(x), (x.shape[1] + 2 * around - len(taps)) // stride + 1, x.shape[2])
        run("convolve", *y.shape[:2], x, taps, torch.zeros_like(taps[0]) if bias is None else bias, stride, around, y)
        ctx.save_for_backward(x, taps)
        ctx.stride, ctx.around, ctx.biased = stride, around, bias is not None
        return y

    @staticmethod
    def backward(ctx, dy):
        x, taps = ctx.saved_tensors
        sums, dx = task_sums(x, len(taps) + 1, x.shape[1]), torch.empty_like(x)
        run("convolve_back", *x.shape[:2], x, taps, ctx.stride, ctx.around, dy.contiguous(), dx, sums)
        total = sums.double().sum(0).float()
        return dx, total[:-1].T, total[-1] if ctx.biased else None, None, None
