"""What SAF is made of, channels last: functions of tensors in plain PyTorch, and, on a CPU, compiled ones of the same
value and gradients in their place: norms, TCN and attention (`kernels/saf.py`), depthwise convolutions
(`kernels/depthwise.py`), products with bias and residual (`kernels/linear.py`).

b batch, t frames, k bands, c channels.
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.kernels.threads import in_parts, threads_for
from clearstate.models.parts import s4m_ops

LEAST = 1 << 15  # numbers from which a kernel pays for its call: not yet those of a stream's single frame


def norm_prelu(x: Tensor, gain: Tensor, shift: Tensor, slope: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the channels of (..., c); then PReLU, if there are slopes (c,)."""
    if compiled(x):
        return _NormPReLU.apply(x, gain, shift, torch.ones_like(gain) if slope is None else slope, eps)
    y = F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    return y if slope is None else prelu(y, slope)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """A slope for each channel of (..., c)."""
    return F.prelu(x.movedim(-1, 1), slope).movedim(1, -1)


def tcn_middle(
    h: Tensor, first: Tensor, weight: Tensor, bias: Tensor, dilation: int, before: Tensor | None,
    gain: Tensor, shift: Tensor, slope: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """PReLU(norm(three taps along time(PReLU(h)))), all within a channel but for the norm.

    Args:
        h: (b, t, k, c).   first, slope: (c,), of the PReLU before and after.   gain, shift: (c,), of the norm.
        weight: (c, 1, 3, 1), its taps `dilation` frames apart.   bias: (c,).
        before: 2 dilation activated frames before h, which the taps then end at; None if they are centred.
    """
    if compiled(h) and (before is None or not before.requires_grad):
        return _TCNMiddle.apply(h, first, weight, bias, dilation, before, gain, shift, slope, eps)
    x = prelu(h, first)
    x = F.pad(x, (0, 0, 0, 0, dilation, dilation)) if before is None else torch.cat([before, x], dim=1)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, dilation=(dilation, 1), groups=len(weight)).permute(0, 2, 3, 1)
    return norm_prelu(x, gain, shift, slope, eps)


def linear(x: Tensor, layer: nn.Linear, residual: Tensor | None = None) -> Tensor:
    """residual + x W^T + b for x (..., inputs), with a residual (..., outputs) or none."""
    if compiled(x) and layer.in_features % 32 == 0 and layer.out_features % 16 == 0:
        return _Linear.apply(x, layer.weight, layer.bias, residual)
    y = F.linear(x, layer.weight, layer.bias)
    return y if residual is None else residual + y


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, stride: int, around: int) -> Tensor:
    """A kernel for each channel over frames and bands: (b, t, k, c) to (b, t + 2 around - reach, ceil(k / stride), c).

    Args:
        weight: (c, 1, kt, kf), kf odd, its frames `dilation` apart: a reach of (kt - 1) dilation.   bias: (c,).
        around: frames of zeros before and after x. Bands have as many around them as the kernel needs.
    """
    frames = x.shape[1] + 2 * around - (weight.shape[2] - 1) * dilation
    if compiled(x) and x[:, :frames].numel() >= LEAST:
        return _Depthwise.apply(x, weight, bias, dilation, stride, around)
    padding = (around, weight.shape[3] // 2)
    weight = weight.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, (1, stride), padding, (dilation, 1), len(weight))
    return y.permute(0, 2, 3, 1)


def attend(qkv: Tensor, offset: Tensor) -> Tensor:
    """Dot-product attention of each band to its neighbours in the same frame, (b, t, k, c), head by head.

    Shifts instead of a gather: with three bands there are three products a bin. Bands beyond the edge take no part in
    the softmax; zeros in their place would get a weight of e^0.

    Args:
        qkv: queries, keys and values side by side (b, t, k, 3 c).
        offset: what is added to the scores (heads, neighbours), the number of neighbours odd.
    """
    (b, t, k, c), (heads, around) = qkv.shape, offset.shape
    if compiled(qkv) and c % (48 * heads) == 0:
        return _Attend.apply(qkv, offset)
    q, key, value = qkv.view(b, t, k, 3, heads, -1).unbind(3)  # (b, t, k, heads, c / heads)
    q = q * q.shape[-1] ** -0.5
    shifts = range(-(around // 2), around // 2 + 1)
    scores = torch.stack([(q * shifted(key, j)).sum(-1) for j in shifts], dim=-1) + offset
    at = torch.arange(k, device=qkv.device)[:, None] + torch.tensor(shifts, device=qkv.device)
    outside = (at < 0) | (at >= k)  # (k, bands)
    weights = scores.masked_fill(outside[:, None], -torch.inf).softmax(-1)  # (b, t, k, heads, bands)
    y = sum((weights[..., i, None] * shifted(value, j) for i, j in enumerate(shifts)), torch.zeros_like(q))
    return y.reshape(b, t, k, c // 3)


def shifted(x: Tensor, j: int) -> Tensor:
    """Band i + j in the place of band i of (b, t, k, ...), zeros where there is none."""
    if abs(j) >= x.shape[2]:
        return torch.zeros_like(x)
    inside = x[:, :, max(j, 0) : x.shape[2] + min(j, 0)]
    return F.pad(inside, (*(0, 0) * (x.ndim - 3), max(-j, 0), max(j, 0)))


# ------------------------------------------------------------------------------------------------ compiled for CPUs


def compiled(x: Tensor) -> bool:
    """Whether the kernels take this tensor (..., c)."""
    return x.shape[-1] % 16 == 0 and x.numel() >= LEAST and s4m_ops.compiled(x)


def run(name: str, threads: int, *arguments: Any) -> None:
    """The kernel ``file.name`` on so many threads; tensors are passed as arrays."""
    file, _, name = name.partition(".")
    kernel = getattr(import_module(f"clearstate.kernels.{file}"), name)
    in_parts(kernel, threads, *(a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments))


class _NormPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, shift, slope, eps):
        x = x.contiguous()
        rows, y = x.view(-1, x.shape[-1]), torch.empty_like(x)
        threads = threads_for(len(rows), x.numel())
        run("saf.norm_part", threads, rows, gain, shift, slope, np.float32(eps), y.view_as(rows))
        ctx.save_for_backward(x, gain, shift, slope)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, dy):
        x, gain, shift, slope = ctx.saved_tensors
        rows, dx = x.view(-1, x.shape[-1]), torch.empty_like(x)
        threads = threads_for(len(rows), x.numel())
        sums = x.new_empty(threads, 3 * len(gain))
        dy = dy.contiguous().view_as(rows)
        run("saf.norm_back_part", threads, rows, gain, shift, slope, np.float32(ctx.eps), dy, dx.view_as(rows), sums)
        return dx, *sums.sum(0).split(len(gain)), None


class _TCNMiddle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, first, weight, bias, dilation, before, gain, shift, slope, eps):
        h, taps = h.contiguous(), weight[:, 0, :, 0].T.contiguous()  # (3, c)
        ctx.centre = 1 if before is None else 2
        before = h[:, :0].contiguous() if before is None else before.contiguous()
        ctx.save_for_backward(h, first, before, taps, bias, gain, shift, slope)
        ctx.dilation, ctx.eps, y = dilation, eps, torch.empty_like(h)
        ctx.threads = threads_for(h.shape[0] * h.shape[1], h.numel())
        run(
            "saf.tcn_part", ctx.threads, h, first, before, taps, bias, dilation, ctx.centre, gain, shift, slope,
            np.float32(eps), y,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx, dy):
        h, first, before, taps, bias, gain, shift, slope = ctx.saved_tensors
        c, dz, dh = h.shape[-1], torch.empty_like(h), torch.empty_like(h)
        sums, entering = h.new_empty(ctx.threads, 7 * c), h.new_empty(ctx.threads, c)
        run(
            "saf.tcn_back_part", ctx.threads, h, first, before, taps, bias, ctx.dilation, ctx.centre, gain, shift,
            slope, np.float32(ctx.eps), dy.contiguous(), dz, sums,
        )  # fmt: skip
        run("saf.tcn_enter_back_part", ctx.threads, h, first, taps, ctx.dilation, ctx.centre, dz, dh, entering)
        dgain, dshift, dslope, *dtaps, dbias = sums.sum(0).split(c)
        dweight = torch.stack(dtaps, dim=1)[:, None, :, None]
        return dh, entering.sum(0), dweight, dbias, None, None, dgain, dshift, dslope, None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dilation, stride, around):
        x = x.contiguous()
        (b, t, k, c), (_, _, kt, kf) = x.shape, weight.shape
        y = x.new_empty(b, t + 2 * around - (kt - 1) * dilation, -(-k // stride), c)
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.stride, ctx.around, ctx.threads = dilation, stride, around, threads_for(b * t, x.numel())
        run("depthwise.convolve_part", ctx.threads, x, in_panels(weight), bias, dilation, stride, 1, around, kf // 2, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy, dilation, (c, _, kt, kf) = dy.contiguous(), ctx.dilation, weight.shape
        panels, dx = c // 16, torch.empty_like(x)
        turned, zeros, above = in_panels(weight.flip(2, 3)), x.new_zeros(c), (kt - 1) * dilation - ctx.around
        run("depthwise.convolve_part", ctx.threads, dy, turned, zeros, dilation, 1, ctx.stride, above, kf // 2, dx)
        sums, offsets = x.new_empty(ctx.threads, panels, kt, -(-kf // 4) * 4, 16), x.new_empty(ctx.threads, c)
        run("depthwise.weight_back_part", ctx.threads, x, dy, dilation, ctx.stride, ctx.around, kf // 2, sums, offsets)
        dweight = sums.sum(0)[:, :, :kf].permute(0, 3, 1, 2).reshape(weight.shape)
        return dx, dweight, offsets.sum(0), None, None, None


def in_panels(weight: Tensor) -> Tensor:
    """(c, 1, kt, kf) as (c / 16, kt, kf, 16)."""
    return weight[:, 0].unflatten(0, (-1, 16)).permute(0, 2, 3, 1).contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual):
        from clearstate.kernels.matmul import as_panels

        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], len(weight))
        n = y.numel() // len(weight)
        ctx.save_for_backward(x, weight)
        ctx.threads, ctx.residual = threads_for(-(-n // 64), y.numel() * x.shape[-1]), residual is not None
        more = y.view(-1)[:0] if residual is None else residual.contiguous()
        panels = as_panels(weight.T).view(-1)
        run("linear.linear_part", ctx.threads, x.view(n, -1), panels, bias, more, y.view(n, -1))
        return y

    @staticmethod
    def backward(ctx, dy):
        from clearstate.kernels.matmul import as_panels

        x, weight = ctx.saved_tensors
        (o, i), dy, dx = weight.shape, dy.contiguous(), torch.empty_like(x)
        sums, offsets = x.new_empty(ctx.threads, o, i), x.new_empty(ctx.threads, o)
        panels = as_panels(weight).view(-1)
        run(
            "linear.linear_back_part", ctx.threads, x.view(-1, i), panels, dy.view(-1, o), dx.view(-1, i), sums, offsets
        )
        return dx, sums.sum(0), offsets.sum(0), dy if ctx.residual else None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, offset):
        qkv, offset = qkv.contiguous(), offset.contiguous()
        b, t, k, c = qkv.shape
        y = qkv.new_empty(b, t, k, c // 3)
        ctx.save_for_backward(qkv, offset)
        ctx.threads = threads_for(b * t, qkv.numel())
        run("saf.attend_part", ctx.threads, qkv.flatten(0, 1), offset, y.flatten(0, 1))
        return y

    @staticmethod
    def backward(ctx, dy):
        qkv, offset = ctx.saved_tensors
        dqkv, sums = torch.empty_like(qkv), torch.empty(ctx.threads, *offset.shape, dtype=torch.float64)
        flat = (x.flatten(0, 1) for x in (dy.contiguous(), dqkv))
        run("saf.attend_back_part", ctx.threads, qkv.flatten(0, 1), offset, *flat, sums)
        return dqkv, sums.sum(0).float()
