"""The dense time-frequency codec of SEMamba and MP-SENet: an encoder, a magnitude decoder and a phase decoder.

    |S|^c, arg S -- encoder -- x (b, t, k, c) -- what mixes time and frequency --+-- mask decoder:  a gain for |S|^c
                                                                                +-- phase decoder: the phase itself

Chao et al. 2024 (arXiv:2405.06573) and Lu et al. 2023 (arXiv:2305.13686), who took it from CMGAN (arXiv:2203.15149).
Every convolution is followed by an instance norm, whose mean and variance are taken over all frames and bins of a
signal: the codec is not causal, and a block of a signal needs the moments of the whole (see `Moments`).

b batch, t frames, f bins, k = (f - 1) / 2 bands, c channels; tensors are channel-last, (b, t, f, c), throughout.
Without gradients on a CPU the convolutions, the norms and the up-sampling run in compiled or rearranged forms; with
gradients, or inside ``use_backend("reference")``, in plain PyTorch. Both are the same functions of the same weights.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.kernels.backend import fast

EPS = 1e-5  # added to the variance of an instance norm


class Moments(NamedTuple):
    """What an instance norm knows of a signal."""

    mean: Tensor  # (b, c)
    variance: Tensor  # (b, c), without Bessel's correction


MomentsOf = Callable[[Tensor], Moments]  # how a pass through the codec comes by them, from (b, t, f, c)


def own_moments(x: Tensor) -> Moments:
    """Of each signal by itself: how the networks are trained, and right for a signal that is there as a whole."""
    if fast(x):
        from clearstate.kernels import instance_norm

        return Moments(*instance_norm.moments(x))
    variance, mean = torch.var_mean(x, dim=(1, 2), correction=0)
    return Moments(mean, variance)


class PooledMoments:
    """Of several pieces of one signal taken together; remembers them in the order in which the norms ask.

    Args:
        pieces: consecutive batch items that belong to one signal.
    """

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.seen: list[Moments] = []  # one batch item a signal

    def __call__(self, x: Tensor) -> Moments:
        mean, variance = (m.unflatten(0, (-1, self.pieces)) for m in own_moments(x))  # (signals, pieces, c)
        between = mean.var(1, correction=0) if self.pieces > 1 else torch.zeros_like(mean[:, 0])
        whole = Moments(mean.mean(1), variance.mean(1) + between)
        self.seen.append(whole)
        return Moments(*(m.repeat_interleave(self.pieces, 0) for m in whole))


def given_moments(moments: tuple[Moments, ...]) -> MomentsOf:
    """Those of an earlier pass, handed out in the same order; for one pass."""
    rest = iter(moments)
    return lambda x: next(rest)


class NormPReLU(nn.Module):
    """Instance norm with gain and bias, then PReLU with a slope for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Scale and shift (b, c) that the norm amounts to."""
        scale = self.weight * torch.rsqrt(moments.variance + EPS)
        return scale, self.bias - moments.mean * scale

    def forward(self, x: Tensor, moments_of: MomentsOf = own_moments, reuse: bool = False) -> Tensor:
        """(b, t, f, c) to the same; `reuse` says that nobody needs x any more, whose memory may take the result."""
        scale, shift = self.coefficients(moments_of(x))
        if fast(x):
            from clearstate.kernels import instance_norm

            y = x if reuse and x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)
            instance_norm.affine_prelu(x, scale, shift, self.slope, [(y, 0)])
            return y
        y = x * scale[:, None, None] + shift[:, None, None]
        return F.prelu(y.permute(0, 3, 1, 2), self.slope).permute(0, 2, 3, 1)


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 2-D convolution on a channel-last tensor (b, t, f, c)."""
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, conv.bias, conv.stride, conv.padding, conv.dilation)
    return y.permute(0, 2, 3, 1)


class DenseLayer(nn.Module):
    """3 x 3 convolution, instance norm, PReLU."""

    def __init__(self, channels: int, inputs: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, dilation=(dilation, 1), padding=(dilation, 1))
        self.norm = NormPReLU(channels)

    def forward(self, x: Tensor, moments_of: MomentsOf = own_moments) -> Tensor:
        return self.norm(convolve(x, self.conv), moments_of)


class DenseBlock(nn.Module):
    """Layers of 3 x 3 convolutions; each sees the outputs of all before it, newest first, and the block's input.

    The dilation along time doubles from layer to layer. Only the last output leaves the block.
    """

    def __init__(self, channels: int, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(channels, (i + 1) * channels, 2**i) for i in range(depth))

    def forward(self, x: Tensor, moments_of: MomentsOf = own_moments) -> Tensor:
        """(b, t, f, c) to the same."""
        if fast(x):
            return in_tiles(self.layers, x, moments_of)
        maps = y = x
        for layer in self.layers:
            y = layer(maps, moments_of)
            maps = torch.cat([y, maps], dim=-1)
        return y


def in_tiles(layers: Iterable[nn.Module], x: Tensor, moments_of: MomentsOf) -> Tensor:
    """The layers of a dense block, whose maps are kept as what the convolutions of `kernels/winograd.py` start from.

    Args:
        layers: each a `conv` that `winograd.convolve` knows, and a `norm`.   x: (b, t, f, c).
    """
    from clearstate.kernels import instance_norm, winograd
    from clearstate.kernels.matmul import filled
    from clearstate.kernels.simd import rounded_up

    layers = list(layers)
    c, width = x.shape[-1], rounded_up(x.shape[-1])
    x = filled(x, width)
    scale, shift, slope = x.new_ones(x.shape[0], width), x.new_zeros(x.shape[0], width), x.new_ones(width)
    source, y = x, torch.empty_like(x)  # x as it is, then the output of each layer through its norm
    with winograd.lent_maps(x, len(layers)) as maps:
        for i, layer in enumerate(layers):
            conv, norm = layer.conv, layer.norm
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, NormPReLU)
            winograd.enter(source, scale, shift, slope, maps[i])
            winograd.convolve(maps[: i + 1], conv, y)
            scale, shift = norm.coefficients(moments_of(y[..., :c]))
            scale, shift, slope = (filled(values, width) for values in (scale, shift, norm.slope))
            source = y
    instance_norm.affine_prelu(y, scale, shift, slope, [(y, 0)])
    return y[..., :c]


class Encoder(nn.Module):
    """Compressed magnitude and phase (b, t, f, 2) to features on half the bins (b, t, k, c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Linear(2, channels)
        self.enter_norm = NormPReLU(channels)
        self.dense = DenseBlock(channels)
        self.down = nn.Conv2d(channels, channels, (1, 3), stride=(1, 2))
        self.down_norm = NormPReLU(channels)

    def forward(self, x: Tensor, moments_of: MomentsOf = own_moments) -> Tensor:
        x = self.enter_norm(self.enter(x), moments_of, reuse=True)  # (b, t, f, c)
        x = self.dense(x, moments_of)
        return self.down_norm(convolve(x, self.down), moments_of, reuse=True)  # (b, t, k, c)


def upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution along frequency, 3 taps, stride 2: (b, t, k, c) to (b, t, 2 k + 1, o).

        y[2 j] = x[j] W_0 + x[j - 1] W_2 + bias,   y[2 j + 1] = x[j] W_1 + bias

    Args:
        weight: (c, o, 1, 3), as a ConvTranspose2d has it.   bias: (o,).
    """
    if not fast(x):
        return F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, bias, stride=(1, 2)).permute(0, 2, 3, 1)
    b, t, k, c = x.shape
    outputs = weight.shape[1]
    if c % 16 == outputs % 16 == 0:  # as many as a vector of compiled code has
        from clearstate.kernels import instance_norm

        return instance_norm.upsample(x, weight, bias)
    taps = weight[:, :, 0].permute(2, 1, 0).reshape(3 * outputs, -1)  # (3 o, c)
    zero, one, two = F.linear(x, taps).split(outputs, dim=-1)  # (b, t, k, o) each
    y = x.new_empty(b, t, 2 * k + 1, outputs)
    torch.add(zero, bias, out=y[:, :, 0:-1:2])
    torch.add(one, bias, out=y[:, :, 1::2])
    y[:, :, -1] = bias
    y[:, :, 2::2] += two
    return y


class MaskDecoder(nn.Module):
    """Features (b, t, k, c) to a gain in (0, ceiling) for the compressed magnitude of each bin (b, t, f)."""

    def __init__(self, channels: int, bins: int, ceiling: float = 2.0) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.dense = DenseBlock(channels)
        self.up = nn.ConvTranspose2d(channels, channels, (1, 3), stride=(1, 2))
        self.leave = nn.Linear(channels, 1)
        self.norm = NormPReLU(1)
        self.scale = nn.Linear(1, 1)
        self.slope = nn.Parameter(torch.ones(bins))  # of the sigmoid, learnt for each bin

    def forward(self, x: Tensor, moments_of: MomentsOf = own_moments) -> Tensor:
        x = self.dense(x, moments_of)
        assert self.up.bias is not None
        if fast(x):  # no nonlinearity lies between the two: one transposed convolution to a single channel
            weight = torch.einsum("cokl,jo->cjkl", self.up.weight, self.leave.weight)
            y = upsample(x, weight, self.leave(self.up.bias))
        else:
            y = self.leave(upsample(x, self.up.weight, self.up.bias))  # (b, t, f, 1)
        y = self.scale(self.norm(y, moments_of))[..., 0]  # (b, t, f)
        return self.ceiling * torch.sigmoid(self.slope * y)


class PhaseDecoder(nn.Module):
    """Features (b, t, k, c) to two numbers a bin, (b, t, f) each, whose atan2 is the phase."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = DenseBlock(channels)
        self.up = nn.ConvTranspose2d(channels, channels, (1, 3), stride=(1, 2))
        self.norm = NormPReLU(channels)
        self.real = nn.Linear(channels, 1)
        self.imaginary = nn.Linear(channels, 1)

    def forward(self, x: Tensor, moments_of: MomentsOf = own_moments) -> tuple[Tensor, Tensor]:
        assert self.up.bias is not None
        y = upsample(self.dense(x, moments_of), self.up.weight, self.up.bias)
        y = self.norm(y, moments_of, reuse=True)  # (b, t, f, c)
        return self.real(y)[..., 0], self.imaginary(y)[..., 0]


# ----------------------------------------------------------------------------------------------- around the codec


def level_gain(noisy: Tensor) -> Tensor:
    """The gain (b, 1) that brings each signal (b, n) to an RMS of 1; one that is silent keeps its level."""
    peak = noisy.abs().amax(-1, keepdim=True).clamp_min(1e-30)  # squares of what is very quiet would underflow
    rms = (noisy / peak).square().mean(-1, keepdim=True).sqrt() * peak
    return torch.where(rms > SILENT, 1 / rms.clamp_min(SILENT), torch.ones_like(rms))


SILENT = 1e-7  # RMS; -140 dBFS


def centred_spectrum(x: Tensor, window: Tensor, hop: int) -> Tensor:
    """STFT of (b, n) as (b, t, f), t = 1 + n // hop, frames centred, mirrored at the ends; zeros extend short ones."""
    n_fft = window.shape[0]
    x = F.pad(x, (0, max(0, n_fft // 2 + 1 - x.shape[-1])))
    return torch.stft(x, n_fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True).transpose(
        1, 2
    )


def centred_waveform(spec: Tensor, window: Tensor, hop: int, samples: int) -> Tensor:
    """The inverse: (b, t, f) to all of (b, samples), also those after the centre of the last frame."""
    return torch.istft(spec.transpose(1, 2), window.shape[0], hop, window=window, length=samples)
