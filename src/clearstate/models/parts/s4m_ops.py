"""Depthwise convolution and norms over time, channels last: what the block of S4M spends its time in beside its GEMMs.

b batch, l frames, h channels. Each is a function of tensors in plain PyTorch; on the CPU a compiled one of the same
value (`kernels/s4m.py`) takes its place.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.kernels.backend import fast


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
    if fast(x, gradient=True):
        from clearstate.kernels.s4m import Depthwise as Compiled

        return Compiled.apply(x, weight, bias, stride, around)
    y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, stride, around, groups=len(weight))
    return y.transpose(1, 2)


def global_norm(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over all but the batch; then PReLU if there is a slope."""
    if fast(x, gradient=True):
        from clearstate.kernels.s4m import GlobalNorm as Compiled

        return Compiled.apply(x, weight, bias, x.new_ones(1) if slope is None else slope, eps)
    variance, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + eps) * weight + bias
    return y if slope is None else F.prelu(y, slope)


def global_modulate(
    x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, shift: Tensor, scale: Tensor | None, eps: float
) -> Tensor:
    """global_norm(scale x) ⊙ up(gate) + up(shift)."""
    if fast(x, gradient=True):
        from clearstate.kernels.s4m import GlobalModulate as Compiled

        return Compiled.apply(x, weight, bias, gate, shift, torch.ones_like(weight) if scale is None else scale, eps)
    return modulate(global_norm(x if scale is None else x * scale, weight, bias, None, eps), gate, shift)


def modulate(x: Tensor, gate: Tensor, shift: Tensor) -> Tensor:
    """x ⊙ up(gate) + up(shift); gate and shift (b, l / r, h), each frame repeated r times."""
    blocks = x.unflatten(1, (gate.shape[1], -1))  # (b, l / r, r, h)
    return (blocks * gate[:, :, None] + shift[:, :, None]).flatten(1, 2)
