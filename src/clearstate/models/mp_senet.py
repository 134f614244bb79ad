"""MP-SENet (Lu et al. 2024, arXiv:2308.08926), and its hybrid with Mamba: two branches that meet in cross-attention.

    noisy -- level -- STFT -- |X|^0.3, arg X -- encoder -- shared blocks --+-- mask decoder M:  |Y| = |X| M^(1/0.3)
                                                                          +-- phase decoder: arg Y      -- iSTFT

`mp-senet` is this: four Transformer blocks over time and frequency. In the hybrid, published as code only, the features
part after the shared blocks: Mamba blocks for the magnitude, Transformer blocks for the phase, and each branch then
attends to the other before it is decoded.

        shared --+-- linear -- Mamba blocks -------- m --+--  m + T(m, p) -- mask decoder
                 +-- linear -- Transformer blocks -- p --+--  p + T(p, m) -- phase decoder

Departures from both published codes. There attention and GRU are built for sequences first and given batches first:
what is called time runs over frequency and the other way round, the items of a batch hear each other, and the hybrid's
cross-attention attends over the batch. Here the axes are what they are called, and fusion attends over the bands of a
frame (`fusion`). Their arrangement at batch 1 is the same network with the axes' order turned (`order`) and a fusion
of single bins: so their checkpoints load, and `convert.py` sets these options. Attention never holds its weights, and
without gradients rows and frames go through in pieces: memory grows with the length, not its square.

b batch, n samples, t frames, f bins, k = (f + 1) / 2 bands, c channels; tensors are channel-last, (b, t, k, c).
A row is what a block mixes: r rows of l steps, (r, l, c).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts import dense_codec as codec
from clearstate.models.parts.dense_codec import MomentsOf, NormPReLU, convolve
from clearstate.models.parts.magnitude_phase import Estimate, MagnitudePhase
from clearstate.ssm import Mamba

Axis = Literal["time", "frequency", "bin"]

STEPS = 1 << 15  # rows x length that a Transformer block takes at a time without gradients
MAMBA_STEPS = 1 << 12  # the same for Mamba, which is faster the less leaves the cache
FRAMES = 256  # that a dense block takes at a time without gradients ...
TILED = 3_300  # ... if its signals have more than so many, 20 s; fewer are faster whole, in 1.3 times the memory


@dataclass(frozen=True)
class MPSENetConfig:
    """Sizes and signal settings of `MPSENet`."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 400  # samples: 25 ms
    hop: int = 100  # samples: 6.25 ms
    exponent: float = 0.3  # of the magnitudes the network sees
    channels: int = 64
    shared: Literal["transformer", "mamba"] = "transformer"  # what the shared blocks are
    shared_blocks: int = 4
    branch_blocks: int = 0  # Mamba blocks of the magnitude and Transformer blocks of the phase; 0: no branches
    fusion: Axis = "frequency"  # what the branches attend over: bands, frames, or nothing ("bin", as published)
    order: Literal["time_first", "frequency_first"] = "time_first"  # of a Transformer block; as published: the second
    kv_norm: Literal["shared", "none"] = "shared"  # keys and values with the query's norm; "none": the published hybrid
    heads: int = 4
    hidden: int = 128  # of the GRU, each way
    states: int = 16  # of a Mamba, for each inner channel
    taps: int = 4  # of its convolution
    expand: float = 2  # its inner channels / channels
    one_mixer: bool = False  # one Mamba for both axes of a block, as in the small hybrid
    bidirectional: bool = False  # Mamba both ways; published: ahead in time, upwards in frequency
    ceiling: float = 2.0  # largest gain of a compressed magnitude: 2^(1/0.3), 20 dB, of a magnitude


# ------------------------------------------------------------------------------------------------------------ the codec


class PastLayer(nn.Module):
    """2 x 3 convolution whose older tap lies `dilation` frames back, instance norm, PReLU."""

    def __init__(self, channels: int, inputs: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, (2, 3), dilation=(dilation, 1), padding=(0, 1))
        self.norm = NormPReLU(channels)
        self.reach = dilation

    def forward(self, maps: list[Tensor], moments_of: MomentsOf) -> Tensor:
        """Maps (b, t, f, c) each, the channels of the convolution's input in order, to one (b, t, f, c)."""
        frames = maps[0].shape[1]
        if torch.is_grad_enabled() or frames <= FRAMES:
            return self.norm(self.convolve(maps, 0, frames), moments_of)
        y = torch.empty_like(maps[0])
        for start in range(0, frames, FRAMES):  # of a minute's maps, 0.5 GB each, five lie in memory and no more
            y[:, start : start + FRAMES] = self.convolve(maps, start, min(start + FRAMES, frames))
        return self.norm(y, moments_of, reuse=True)

    def convolve(self, maps: list[Tensor], start: int, end: int) -> Tensor:
        """Frames start .. end of the convolution."""
        first = max(0, start - self.reach)
        x = torch.cat([m[:, first:end] for m in maps], dim=-1)
        return convolve(F.pad(x, (0, 0, 0, 0, self.reach - (start - first), 0)), self.conv)


class PastDenseBlock(nn.Module):
    """Four layers; each sees the outputs of all before it, newest first, and the block's input. None looks ahead."""

    def __init__(self, channels: int, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PastLayer(channels, (i + 1) * channels, 2**i) for i in range(depth))

    def forward(self, x: Tensor, moments_of: MomentsOf = codec.own_moments) -> Tensor:
        """(b, t, f, c) to the same."""
        if codec.fast(x) and x.shape[0] * x.shape[1] <= TILED:
            return codec.in_tiles(self.layers, x, moments_of)
        maps = [x]
        for layer in self.layers:
            maps.insert(0, layer(maps, moments_of))
        return maps[0]


class Encoder(codec.Encoder):
    """Compressed magnitude and phase (b, t, f, 2) to features on half the bins (b, t, k, c), k = (f + 1) / 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.dense = PastDenseBlock(channels)  # type: ignore[assignment]  # the same, with other convolutions
        self.down = nn.Conv2d(channels, channels, (1, 3), stride=(1, 2), padding=(0, 1))


class Decoder(nn.Module):
    """Features (b, t, k, c) to a few numbers a bin (b, t, f, outputs): dense block, sub-pixel convolution, heads."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.dense = PastDenseBlock(channels)
        self.up = nn.Conv2d(channels, 2 * channels, (1, 3), padding=(0, 1))
        self.norm = NormPReLU(channels)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, (1, 2)) for _ in range(outputs))

    def forward(self, x: Tensor, moments_of: MomentsOf = codec.own_moments) -> Tensor:
        x = convolve(self.dense(x, moments_of), self.up)  # (b, t, k, 2 c): a band's two halves are neighbouring bins
        x = self.norm(x.reshape(*x.shape[:2], 2 * x.shape[2], -1), moments_of)  # (b, t, f + 1, c)
        return torch.cat([convolve(x, head) for head in self.heads], dim=-1)  # type: ignore[arg-type]  # all Conv2d


class MaskDecoder(Decoder):
    """Features (b, t, k, c) to a gain in (0, ceiling) for the compressed magnitude of each bin (b, t, f)."""

    def __init__(self, channels: int, bins: int, ceiling: float) -> None:
        super().__init__(channels, outputs=1)
        self.ceiling = ceiling
        self.slope = nn.Parameter(torch.ones(bins))  # of the sigmoid, learnt for each bin

    def forward(self, x: Tensor, moments_of: MomentsOf = codec.own_moments) -> Tensor:
        return self.ceiling * torch.sigmoid(self.slope * super().forward(x, moments_of)[..., 0])


# ---------------------------------------------------------------------------------------- what mixes time and frequency


def along(axis: Axis, block: Callable[..., Tensor], *maps: Tensor, steps: int = STEPS) -> Tensor:
    """Apply a block of rows (r, l, c) to the frames of each band, the bands of each frame, or each bin by itself.

    Args:
        maps: one or more (b, t, k, c), the block's arguments.
        steps: r l that are taken at a time where no gradient is asked for.
    Returns:
        (b, t, k, c).
    """
    b, t, k, c = maps[0].shape
    if axis == "time":
        rows = [x.transpose(1, 2).reshape(b * k, t, c) for x in maps]
    else:
        rows = [x.reshape(b * t, k, c) if axis == "frequency" else x.reshape(-1, 1, c) for x in maps]
    size = len(rows[0]) if torch.is_grad_enabled() else max(1, steps // rows[0].shape[1])
    y = torch.cat([block(*piece) for piece in zip(*(x.split(size) for x in rows), strict=True)])
    return y.view(b, k, t, c).transpose(1, 2) if axis == "time" else y.view(b, t, k, c)


class TransformerBlock(nn.Module):
    """Attention, then a recurrent feed-forward layer, each with a residual, then a norm; on rows.

    a = x + MHA(query LN1(x), key and value from x or from `other`),   f = a + W LeakyReLU(GRU(LN2(a))),   LN3(f)
    """

    def __init__(self, config: MPSENetConfig) -> None:
        super().__init__()
        c = config.channels
        self.heads, self.kv_norm = config.heads, config.kv_norm
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.gru = nn.GRU(c, config.hidden, bidirectional=True, batch_first=True)
        self.leave = nn.Linear(2 * config.hidden, c)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Rows (r, l, c) to the same; they attend to themselves, or to those of `other` (r, l, c)."""
        query = self.norm1(x)
        source = x if other is None else other
        if self.kv_norm == "shared":
            source = query if other is None else self.norm1(other)
        x = x + self.attend(query, source)
        y = self.gru(self.norm2(x))[0]  # (r, l, 2 hidden)
        return self.norm3(x + self.leave(F.leaky_relu(y)))

    def attend(self, query: Tensor, source: Tensor) -> Tensor:
        r, steps, c = query.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(query, weight[:c], bias[:c])
        k, v = F.linear(source, weight[c:], bias[c:]).chunk(2, dim=-1)
        q, k, v = (x.view(r, steps, self.heads, -1).transpose(1, 2) for x in (q, k, v))  # (r, heads, l, c / heads)
        y = F.scaled_dot_product_attention(q, k, v)  # fused: its weights are never all in memory
        return self.out(y.transpose(1, 2).reshape(r, steps, c))


class TransformerPair(nn.Module):
    """Mix the frames of each band, then the bands of each frame; or the other way round."""

    def __init__(self, config: MPSENetConfig) -> None:
        super().__init__()
        self.time, self.frequency = TransformerBlock(config), TransformerBlock(config)
        self.order = config.order

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, k, c) to the same."""
        if self.order == "frequency_first":
            x = x + along("frequency", self.frequency, x)
            return x + along("time", self.time, x)
        x = x + along("time", self.time, x)
        return x + along("frequency", self.frequency, x)


class Mixer(nn.Module):
    """Mamba on rows (r, l, c): ahead, or both ways joined by a linear layer."""

    def __init__(self, config: MPSENetConfig) -> None:
        super().__init__()
        c = config.channels
        self.ahead = Mamba(c, config.states, config.taps, config.expand)
        self.back = Mamba(c, config.states, config.taps, config.expand, reverse=True) if config.bidirectional else None
        self.merge = nn.Linear(2 * c, c) if config.bidirectional else None

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.ahead(x)
        if self.back is None or self.merge is None:
            return y
        return self.merge(torch.cat([y, self.back(x)[0]], dim=-1))


class MambaPair(nn.Module):
    """Mamba along the frames of each band, then along the bands of each frame, under one norm."""

    def __init__(self, config: MPSENetConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.channels)
        self.mixers = nn.ModuleList(Mixer(config) for _ in range(1 if config.one_mixer else 2))

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, k, c) to the same."""
        time, frequency = self.mixers[0], self.mixers[-1]
        x = x + along("time", lambda rows: time(self.norm(rows)), x, steps=MAMBA_STEPS)
        return x + along("frequency", lambda rows: frequency(self.norm(rows)), x, steps=MAMBA_STEPS)


class Branches(nn.Module):
    """Magnitude and phase apart: Mamba for one, Transformers for the other, then each attends to the other."""

    def __init__(self, config: MPSENetConfig) -> None:
        super().__init__()
        c, blocks = config.channels, range(config.branch_blocks)
        self.fusion = config.fusion
        self.to_magnitude, self.to_phase = nn.Linear(c, c), nn.Linear(c, c)
        self.magnitude = nn.ModuleList(MambaPair(config) for _ in blocks)
        self.phase = nn.ModuleList(TransformerPair(config) for _ in blocks)
        self.magnitude_hears, self.phase_hears = TransformerBlock(config), TransformerBlock(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shared features (b, t, k, c) to those of the magnitude and those of the phase."""
        m, p = self.to_magnitude(x), self.to_phase(x)
        for block in self.magnitude:
            m = block(m)
        for block in self.phase:
            p = block(p)
        return m + along(self.fusion, self.magnitude_hears, m, p), p + along(self.fusion, self.phase_hears, p, m)


# ------------------------------------------------------------------------------------------------------------ the model


class MPSENet(MagnitudePhase):
    """See the module's drawing. Maps noisy (b, n) to enhanced (b, n); every output depends on the whole signal."""

    Config = MPSENetConfig

    def __init__(self, config: MPSENetConfig | None = None) -> None:
        config = MPSENetConfig() if config is None else config
        super().__init__(config)
        self.encoder = Encoder(config.channels)
        shared = TransformerPair if config.shared == "transformer" else MambaPair
        self.shared = nn.ModuleList(shared(config) for _ in range(config.shared_blocks))
        self.branches = Branches(config) if config.branch_blocks else None
        self.mask = MaskDecoder(config.channels, config.n_fft // 2 + 1, config.ceiling)
        self.phase = Decoder(config.channels, outputs=2)

    def estimate(self, spec: Tensor, moments_of: MomentsOf = codec.own_moments) -> Estimate:
        """The network itself: noisy spectra (b, t, f) to what is to be done with them."""
        x = self.encoder(self.features(spec), moments_of)  # (b, t, k, c)
        for block in self.shared:
            x = block(x)
        m, p = (x, x) if self.branches is None else self.branches(x)
        real, imaginary = self.phase(p, moments_of).unbind(-1)
        return Estimate(self.mask(m, moments_of), real, imaginary)

    def features(self, spec: Tensor) -> Tensor:
        """Compressed magnitude and phase (b, t, f, 2), with the published offsets: a silent bin has phase 0."""
        power = spec.real.square() + spec.imag.square() + 1e-9
        phase = torch.atan2(spec.imag + 1e-10, spec.real + 1e-5)
        return torch.stack([power ** (self.config.exponent / 2), phase], dim=-1)
