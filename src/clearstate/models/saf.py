"""SAF: Long et al. 2023, "Efficient Monaural Speech Enhancement using Spectrum Attention Fusion" (arXiv:2308.02263).

*Our completion.* The paper names the parts and a total of 0.58 M parameters; sizes, order and everything else below are
ours, chosen to have every published property. No agreement with the authors' own layers is claimed.

    |X|^c, arg X -- encoder --+                                                   +-- decoder: ratio mask M
                              +-- join -- [convolutional attention,               |
    |X|^c e^(j arg X) -- encoder --+       attention over 3 bands, TCN] x 4 ------+-- decoder: complex bias B

    Y_c = M X_c + B,   X_c = |X|^c e^(j arg X),   Y = |Y_c|^(1/c) e^(j arg Y_c)

The mask scales with the noisy phase; the bias is what can turn it, so it must be complex. Not causal by default: 155
frames to both sides, 2.5 s. With `causal` every convolution looks back only, and the model streams.

b batch, n samples, t frames, f bins, k = ceil(f / 2) bands, c channels; tensors are channel-last, (b, t, k, c).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts.running_level import running_power
from clearstate.models.parts.stft import analyse, compress, dual_window, expand, phase, sqrt_hann, synthesise


@dataclass(frozen=True)
class SAFConfig:
    """Sizes and signal settings of `SAF`."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 512  # samples: 32 ms; 400 with hop 100 is the transform of SEMamba and MP-SENet
    hop: int = 256  # samples: 16 ms
    exponent: float = 0.3  # of the magnitudes the network sees and masks
    causal: bool = False  # True looks back only, and can stream
    level_seconds: float = 1.0  # time constant of the running level, if causal; else the whole signal has one level
    channels: int = 64
    layers: int = 4  # of spectrum attention fusion
    heads: int = 4
    kernel: int = 11  # frames and bands of the convolutional attention; odd
    bands: int = 3  # that the local attention sees: its own and its neighbours; odd
    hidden: int = 128  # channels within a TCN block
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)  # frames, one TCN block each
    # over the channels of a bin; "group": in as many groups as heads; "batch": over everything else
    norm: Literal["layer", "rms", "group", "batch"] = "layer"
    # beside the magnitude: arg X / pi, or its cos and sin; "none": both encoders see the magnitude alone
    phase: Literal["angle", "cossin", "none"] = "angle"
    attention: Literal["convolutional", "self"] = "convolutional"  # "self": of all bands of a frame, for comparison
    bias: bool = True  # add the complex bias; False: the mask alone


class SAFState(NamedTuple):
    """What the causal model carries from one chunk to the next."""

    past: Tensor  # the last n_fft - hop samples (b, n_fft - hop)
    level: Tensor  # running power and its weight (b, 2, 1)
    frames: tuple[Tensor, ...]  # the last input frames of each convolution along time, in order
    tail: Tensor  # samples that later frames still add to (b, n_fft - hop)


class Context:
    """What convolutions along time see around a chunk, for one pass through the network.

    Whole signals have zeros on both sides; chunks of a stream have the frames before them, which each convolution is
    handed in the order in which they ask, and leaves for the next chunk in `after`.
    """

    def __init__(self, before: tuple[Tensor, ...] | None = None) -> None:
        self.streaming = before is not None
        self.before = iter(before or ())
        self.after: list[Tensor] = []

    def extend(self, x: Tensor, reach: int) -> Tensor:
        """x (b, t, k, c) with `reach` more frames: before it, or half of them on each side."""
        if not reach:
            return x
        if not self.streaming:
            return F.pad(x, (0, 0, 0, 0, reach // 2, reach // 2))
        x = torch.cat([next(self.before), x], dim=1)
        self.after.append(x[:, x.shape[1] - reach :])
        return x


class Conv(nn.Conv2d):
    """A convolution over frames and bands of (b, t, k, c). Bands are padded with zeros, frames by a `Context`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], bands: int, dilation: int = 1, stride: int = 1,
        depthwise: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            inputs, outputs, kernel, (1, stride), (0, kernel[1] // 2), (dilation, 1), inputs if depthwise else 1
        )
        self.reach = (kernel[0] - 1) * dilation  # frames
        self.past = (self.reach, bands, inputs)  # shape of what a stream carries

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]  # convolutions have one input
        """(b, t, k, inputs) to (b, t, k / stride, outputs)."""
        x = context.extend(x, self.reach).permute(0, 3, 1, 2)
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return self._conv_forward(x, weight, self.bias).permute(0, 2, 3, 1)


class PReLU(nn.PReLU):
    """A slope for each channel of (b, t, k, c)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x.movedim(-1, 1), self.weight).movedim(1, -1)


class BatchNorm(nn.BatchNorm1d):
    """Over everything but the channels of (b, t, k, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)


class GroupNorm(nn.GroupNorm):
    """Over each group of the channels of a bin of (b, t, k, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)


def norm_of(config: SAFConfig, channels: int) -> nn.Module:
    """The norm of a layer. Over channels alone, so that length, number of bands and streaming are free."""
    if config.norm == "batch":
        return BatchNorm(channels)
    if config.norm == "group":
        return GroupNorm(config.heads, channels)
    return nn.LayerNorm(channels) if config.norm == "layer" else nn.RMSNorm(channels, eps=1e-5)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The last layer of a residual block that changes nothing while it is fresh."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# ----------------------------------------------------------------------------------------------- encoder and decoders


class Separable(nn.Module):
    """Depthwise convolution, 1 x 1 convolution, norm, PReLU; `residual` adds the input."""

    def __init__(
        self, config: SAFConfig, kernel: tuple[int, int], bands: int, dilation: int = 1, stride: int = 1,
        residual: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        c = config.channels
        self.residual = residual
        self.spread = Conv(c, c, kernel, bands, dilation, stride, depthwise=True)
        self.mix = nn.Linear(c, c)
        self.norm, self.activate = norm_of(config, c), PReLU(c)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        y = self.activate(self.norm(self.mix(self.spread(x, context))))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """Some numbers a bin (b, t, f, inputs) to features on half the bins (b, t, k, c)."""

    def __init__(self, config: SAFConfig, inputs: int, bins: int) -> None:
        super().__init__()
        c, bands = config.channels, (bins + 1) // 2
        self.enter = Conv(inputs, c, (3, 3), bins)
        self.norm, self.activate = norm_of(config, c), PReLU(c)
        self.down = Separable(config, (3, 5), bins, stride=2)
        self.wider = Separable(config, (3, 3), bands, dilation=2, residual=True)
        self.widest = Separable(config, (3, 3), bands, dilation=4, residual=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.activate(self.norm(self.enter(x, context)))  # (b, t, f, c)
        x = self.down(x, context)  # (b, t, k, c)
        return self.widest(self.wider(x, context), context)


class Decoder(nn.Module):
    """Features (b, t, k, c) to a few numbers a bin (b, t, f, outputs)."""

    def __init__(self, config: SAFConfig, outputs: int, bins: int) -> None:
        super().__init__()
        c, bands = config.channels, (bins + 1) // 2
        self.bins = bins
        self.first, self.second = (Separable(config, (3, 3), bands) for _ in range(2))
        self.up = nn.Linear(c, 2 * c)
        self.norm, self.activate = norm_of(config, c), PReLU(c)
        self.leave = Conv(c, outputs, (3, 3), bins)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.up(self.second(self.first(x, context), context))  # (b, t, k, 2 c): two bins of a band
        x = x.reshape(*x.shape[:2], 2 * x.shape[2], -1)[:, :, : self.bins]  # (b, t, f, c)
        return self.leave(self.activate(self.norm(x)), context)


# ----------------------------------------------------------------------------------------- spectrum attention fusion


class ConvolutionalAttention(nn.Module):
    """x + W_o (A * V): a large depthwise convolution says how much of each value passes.

    A = DW(GELU(W_a norm(x))) has the place of the attention weights: the "convolutional modulation" of Conv2Former
    (Hou et al. 2022, arXiv:2211.11943). In a product element by element a split into heads does nothing; here A is
    divided by its RMS over the channels of each head, so that each head weighs by itself.
    """

    def __init__(self, config: SAFConfig, bands: int) -> None:
        super().__init__()
        c = config.channels
        self.heads = config.heads
        self.norm = norm_of(config, c)
        self.enter, self.value, self.out = nn.Linear(c, c), nn.Linear(c, c), zeroed(nn.Linear(c, c))
        self.spread = Conv(c, c, (config.kernel, config.kernel), bands, depthwise=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        normed = self.norm(x)
        weights = self.spread(F.gelu(self.enter(normed)), context)  # (b, t, k, c)
        split = weights.unflatten(-1, (self.heads, -1))
        weights = F.rms_norm(split, split.shape[-1:], eps=1e-6).flatten(-2)
        return x + self.out(weights * self.value(normed))


class SelfAttention(nn.Module):
    """x + W_o attention of each band to all bands of the same frame: what `ConvolutionalAttention` stands in for."""

    def __init__(self, config: SAFConfig) -> None:
        super().__init__()
        c = config.channels
        self.heads = config.heads
        self.norm = norm_of(config, c)
        self.qkv, self.out = nn.Linear(c, 3 * c), zeroed(nn.Linear(c, c))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        y = F.scaled_dot_product_attention(q, k, v)  # (b, t, heads, k, c / heads)
        return x + self.out(y.transpose(2, 3).flatten(-2))


class BandAttention(nn.Module):
    """x + W_o attention of each band to its neighbours in the same frame."""

    def __init__(self, config: SAFConfig) -> None:
        super().__init__()
        c = config.channels
        self.norm = norm_of(config, c)
        self.qkv, self.out = nn.Linear(c, 3 * c), zeroed(nn.Linear(c, c))
        self.offset = nn.Parameter(torch.zeros(config.heads, config.bands))  # a preference for each neighbour

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend(self.qkv(self.norm(x)), self.offset))


def attend(qkv: Tensor, offset: Tensor) -> Tensor:
    """Dot-product attention of each band to its neighbours in the same frame, (b, t, k, c), head by head.

    Shifts instead of a gather: with three bands there are three products a bin. Bands beyond the edge take no part in
    the softmax; zeros in their place would get a weight of e^0.

    Args:
        qkv: queries, keys and values side by side (b, t, k, 3 c).
        offset: what is added to the scores (heads, neighbours), the number of neighbours odd.
    """
    (b, t, k, c), (heads, around) = qkv.shape, offset.shape
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


class TCNBlock(nn.Module):
    """Residual block of a temporal convolution network: 1 x 1, three dilated taps along time, 1 x 1."""

    def __init__(self, config: SAFConfig, dilation: int, bands: int) -> None:
        super().__init__()
        c, hidden = config.channels, config.hidden
        self.norm = norm_of(config, c)
        self.widen, self.narrow = nn.Linear(c, hidden), zeroed(nn.Linear(hidden, c))
        self.activate, self.activate_again = PReLU(hidden), PReLU(hidden)
        self.along = Conv(hidden, hidden, (3, 1), bands, dilation, depthwise=True)
        self.inner_norm = norm_of(config, hidden)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        y = self.activate(self.widen(self.norm(x)))  # (b, t, k, hidden)
        y = self.activate_again(self.inner_norm(self.along(y, context)))
        return x + self.narrow(y)


class Fusion(nn.Module):
    """One layer of spectrum attention fusion."""

    def __init__(self, config: SAFConfig, bands: int) -> None:
        super().__init__()
        wide = config.attention == "convolutional"
        self.convolutional = ConvolutionalAttention(config, bands) if wide else SelfAttention(config)
        self.local = BandAttention(config)
        self.tcn = nn.ModuleList(TCNBlock(config, dilation, bands) for dilation in config.dilations)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.local(self.convolutional(x, context))
        for block in self.tcn:
            x = block(x, context)
        return x


# ----------------------------------------------------------------------------------------------------------- the model


class SAF(nn.Module):
    """See the module's drawing. Maps noisy (b, n) to enhanced (b, n); if causal, `step` does the same hop by hop."""

    Config = SAFConfig
    window: Tensor
    synthesis: Tensor

    def __init__(self, config: SAFConfig | None = None) -> None:
        super().__init__()
        self.config = config = SAFConfig() if config is None else config
        check(config)
        self.sample_rate, self.hop, self.causal = config.sample_rate, config.hop, config.causal
        self.latency = config.n_fft - config.hop  # samples by which step() trails forward()
        window = sqrt_hann(config.n_fft) if config.n_fft == 2 * config.hop else torch.hann_window(config.n_fft)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("synthesis", dual_window(window, config.hop), persistent=False)
        bins, c = config.n_fft // 2 + 1, config.channels
        self.polar = Encoder(config, {"angle": 2, "cossin": 3, "none": 1}[config.phase], bins)
        self.cartesian = Encoder(config, 1 if config.phase == "none" else 2, bins)
        self.join, self.join_norm = nn.Linear(2 * c, c), norm_of(config, c)
        self.layers = nn.ModuleList(Fusion(config, (bins + 1) // 2) for _ in range(config.layers))
        self.mask = Decoder(config, 1, bins)
        self.bias = Decoder(config, 2, bins) if config.bias else None
        with torch.no_grad():  # begin near a mask of one, at sigmoid(3), and without a bias
            self.mask.leave.weight.mul_(0.1)
            self.mask.leave.bias.fill_(3.0)  # type: ignore[union-attr]  # it has one
            if self.bias is not None:
                self.bias.leave.weight.zero_()
                self.bias.leave.bias.zero_()  # type: ignore[union-attr]

    def forward(self, noisy: Tensor, overview: Tensor | None = None) -> Tensor:
        """Enhance signals (b, n), n >= 1.

        Args:
            overview: of the signals that these are blocks of (see `overview`); None if they are whole, or if causal.
        """
        samples = noisy.shape[-1]
        padded = F.pad(noisy, (0, self.latency + -samples % self.hop))
        if self.causal:
            y, _ = self.step(padded, self.init_state(noisy.shape[0]))
        else:
            level = rms(noisy) if overview is None else overview
            level = level * self.window.norm()  # (b, 1); spectra then have bins near 1
            padded = F.pad(padded, (self.latency, 0))
            spec = analyse(padded / level.clamp_min(1e-37), self.window, self.hop)  # (b, t, f)
            y, _ = synthesise(self.enhance_spectrum(spec, Context()) * level[..., None], self.synthesis, self.hop)
        return y[:, self.latency : self.latency + samples]

    def overview(self, pieces: Tensor, gain: Tensor) -> Tensor:
        """What blocks of a long signal need to know of it: its level, (b, 1).

        Args:
            pieces: of each signal, from all over it (b, p, n); not needed here.
            gain: (b, 1), 1 / RMS of each whole signal.
        """
        return 1 / gain

    def init_state(self, batch: int) -> SAFState:
        """The state before the first sample."""
        zeros = self.window.new_zeros
        frames = tuple(zeros(batch, *m.past) for m in self.modules() if isinstance(m, Conv) and m.reach)
        return SAFState(zeros(batch, self.latency), zeros(batch, 2, 1), frames, zeros(batch, self.latency))

    def step(self, x: Tensor, state: SAFState) -> tuple[Tensor, SAFState]:
        """Enhance the next samples of a stream: x (b, m * hop) gives as many, `latency` samples late.

        Raises:
            ValueError: if the number of samples is not a multiple of the hop, or the model is not causal.
        """
        if not self.causal:
            raise ValueError("this SAF looks 2.5 s ahead and cannot stream: build('saf-causal') can")
        if extra := x.shape[-1] % self.hop:
            raise ValueError(
                f"step() got {x.shape[-1]} samples, not a multiple of hop={self.hop}: "
                f"hold the last {extra} back and send them with the next chunk"
            )
        x = torch.cat([state.past, x], dim=-1)
        spec = analyse(x, self.window, self.hop)  # (b, t, f) complex
        frames = self.config.level_seconds * self.sample_rate / self.hop
        power, level_state = running_power(spec, state.level, frames)
        level = power.sqrt()  # (b, t, 1); zero until something is heard, and then nothing comes out
        context = Context(state.frames)
        enhanced = self.enhance_spectrum(spec / level.clamp_min(1e-6), context) * level
        y, tail = synthesise(enhanced, self.synthesis, self.hop, state.tail)
        return y, SAFState(x[:, x.shape[-1] - self.latency :], level_state, tuple(context.after), tail)

    def enhance_spectrum(self, spec: Tensor, context: Context) -> Tensor:
        """The model between STFT and iSTFT: spectra (b, t, f) at a level near 1 to spectra."""
        parts = compress(spec, self.config.exponent)  # (b, t, f, 2)
        polar = self.polar_input(spec)
        cartesian = polar if self.config.phase == "none" else parts
        x = torch.cat([self.polar(polar, context), self.cartesian(cartesian, context)], dim=-1)
        x = self.join_norm(self.join(x))  # (b, t, k, c)
        for layer in self.layers:
            x = layer(x, context)
        enhanced = torch.sigmoid(self.mask(x, context)) * parts  # (b, t, f, 2)
        if self.bias is not None:
            enhanced = enhanced + self.bias(x, context)
        return expand(enhanced, self.config.exponent, floor=1e-10)

    def polar_input(self, spec: Tensor) -> Tensor:
        """Compressed magnitude, and the phase as it is configured: (b, t, f, 1 ... 3)."""
        magnitude = spec.abs().clamp_min(1e-10) ** self.config.exponent
        angle = phase(spec)
        beside = {"angle": [angle / torch.pi], "cossin": [angle.cos(), angle.sin()], "none": []}[self.config.phase]
        return torch.stack([magnitude, *beside], dim=-1)


def rms(x: Tensor) -> Tensor:
    """Root mean square (b, 1) of each signal (b, n), also of those whose squares would underflow."""
    peak = x.abs().amax(-1, keepdim=True)
    return (x / peak.clamp_min(1e-37)).square().mean(-1, keepdim=True).sqrt() * peak


def check(config: SAFConfig) -> None:
    """Raise a ValueError for what cannot be built."""
    for name in ("kernel", "bands"):
        if getattr(config, name) % 2 == 0:
            raise ValueError(f"{name}={getattr(config, name)}: expected an odd number, so that it has a middle")
    if config.channels % config.heads:
        raise ValueError(f"channels={config.channels} do not divide into heads={config.heads}")
    if config.n_fft % config.hop:
        raise ValueError(f"n_fft={config.n_fft} is not a multiple of hop={config.hop}")
