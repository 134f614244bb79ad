"""SEMamba: Chao et al. 2024, "An investigation of incorporating Mamba for speech enhancement" (arXiv:2405.06573).

The advanced network, not causal: MP-SENet's codec around four time-frequency Mamba blocks.

    noisy -- level -- STFT -- |X|^0.3, arg X -- encoder -- [time, frequency] x 4 --+-- mask M:  |Y| = |X| M^(1/0.3)
                                                                                  +-- phase of Y
    Y -- iSTFT -- level back

`core` chooses what mixes: `bidirectional` is the model everybody means, `unidirectional` the row "Mamba (Uni)" of the
paper's table 2, and `conformer` its baseline (MP-SENet of 2023, arXiv:2305.13686). The causal networks are in
`semamba_causal.py`, the basic ones of table 1 in `semamba_basic.py`.

b batch, n samples, t frames, f bins, k = (f - 1) / 2 bands, c channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts import dense_codec as codec
from clearstate.models.parts.dense_codec import MomentsOf
from clearstate.models.parts.dual_path import BiMix, UniMix, along_frequency, along_time
from clearstate.models.parts.magnitude_phase import Estimate, MagnitudePhase
from clearstate.models.parts.stft import phase


@dataclass(frozen=True)
class SEMambaConfig:
    """Sizes and signal settings of `SEMamba`."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 400  # samples: 25 ms
    hop: int = 100  # samples: 6.25 ms
    exponent: float = 0.3  # of the magnitudes the network sees
    channels: int = 64
    blocks: int = 4  # time-frequency blocks
    core: Literal["bidirectional", "unidirectional", "conformer"] = "bidirectional"
    states: int = 16  # of a Mamba, for each inner channel
    taps: int = 4  # of its convolution
    expand: float = 4  # inner channels of a Mamba / channels; the published unidirectional model has 2
    ceiling: float = 2.0  # largest gain of a compressed magnitude: 2^(1/0.3), 20 dB, of a magnitude
    heads: int = 4  # of the Conformer's attention
    dropout: float = 0.2  # in the Conformer's feed-forward layers and attention


class TimeFrequencyBlock(nn.Module):
    """Mix the frames of each band, then the bands of each frame."""

    def __init__(self, config: SEMambaConfig) -> None:
        super().__init__()
        self.time, self.frequency = mixer(config), mixer(config)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, k, c) to the same."""
        return along_frequency(self.frequency, along_time(self.time, x))


def mixer(config: SEMambaConfig) -> nn.Module:
    """What mixes the rows (r, l, c) of a map along l."""
    if config.core == "conformer":
        return Conformer(config.channels, config.heads, config.dropout)
    kind = BiMix if config.core == "bidirectional" else UniMix
    return kind(config.channels, config.states, config.taps, config.expand)


class SEMamba(MagnitudePhase):
    """See the module's drawing. Maps noisy (b, n) to enhanced (b, n); every output depends on the whole signal."""

    Config = SEMambaConfig

    def __init__(self, config: SEMambaConfig | None = None) -> None:
        config = SEMambaConfig() if config is None else config
        super().__init__(config)
        bins = config.n_fft // 2 + 1
        self.encoder = codec.Encoder(config.channels)
        self.blocks = nn.ModuleList(TimeFrequencyBlock(config) for _ in range(config.blocks))
        self.mask = codec.MaskDecoder(config.channels, bins, config.ceiling)
        self.phase = codec.PhaseDecoder(config.channels)

    def estimate(self, spec: Tensor, moments_of: MomentsOf = codec.own_moments) -> Estimate:
        """The network itself: noisy spectra (b, t, f) to what is to be done with them."""
        x = torch.stack([spec.abs() ** self.config.exponent, phase(spec)], dim=-1)  # (b, t, f, 2)
        x = self.encoder(x, moments_of)  # (b, t, k, c)
        for block in self.blocks:
            x = block(x)
        return Estimate(self.mask(x, moments_of), *self.phase(x, moments_of))


# ----------------------------------------------------------------------------------------------- the baseline


class Conformer(nn.Module):
    """A Conformer block (Gulati et al. 2020, arXiv:2005.08100) on rows (r, l, c), as MP-SENet of 2023 has it.

    Half a feed-forward layer, attention without positions, a convolution of 31 taps, half a feed-forward layer, norm;
    and a residual around all of it.
    """

    def __init__(self, channels: int, heads: int = 4, dropout: float = 0.2, taps: int = 31) -> None:
        super().__init__()
        self.first, self.second = (feed_forward(channels, dropout) for _ in range(2))
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.convolution_norm = nn.LayerNorm(channels)
        self.gated = nn.Linear(channels, 4 * channels)
        self.along = nn.Conv1d(2 * channels, 2 * channels, taps, padding=taps // 2, groups=2 * channels)
        self.batch_norm = nn.BatchNorm1d(2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.last_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(r, l, c) to the same."""
        y = x + 0.5 * self.first(x)
        y = y + self.attend(self.attention_norm(y))
        gated = F.glu(self.gated(self.convolution_norm(y)), dim=-1).transpose(1, 2)  # (r, 2 c, l)
        y = y + self.narrow(F.silu(self.batch_norm(self.along(gated))).transpose(1, 2))
        return x + self.last_norm(y + 0.5 * self.second(y))

    def attend(self, x: Tensor) -> Tensor:
        r, l, c = x.shape  # noqa: E741  # rows and their length, as in models/parts/dual_path.py
        q, k, v = self.qkv(x).view(r, l, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(r, l, c))


def feed_forward(channels: int, dropout: float) -> nn.Sequential:
    """A feed-forward layer of the Conformer, without its residual."""
    wide = 4 * channels
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, wide), nn.SiLU(), nn.Dropout(dropout), nn.Linear(wide, channels),
        nn.Dropout(dropout),
    )  # fmt: skip
