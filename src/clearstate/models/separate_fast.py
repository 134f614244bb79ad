"""separate-fast: two voices apart in the time-frequency plane, for recordings. Our own design.

    mixture -- 2 STFTs -- compress -- bands -- [time, frequency, whole] x blocks -- masks x STFTs -- 2 iSTFTs -- voices

Voices are told apart by their harmonics, so the bands are two bins wide where those are, up to 2 kHz, and wider above.
Voices of nearly the same pitch have harmonics so close that only a longer window resolves them. So a band hears and
masks a second spectrum, of twice the window around the same instant.
Each block mixes the frames of a band (Mamba, both ways), the bands of a frame (attention), and then the frames of the
whole spectrum at once, which is what knows who speaks.

The masks of the speakers are complex and add up to one, those of the longer window to zero, so that the voices add up
to the mixture. The mixture is divided by its level first: the output scales with the input.

After training the network hears every mixture twice, as it is and a tenth faster, and gives the mean: it errs
differently in both, and at the higher pitch the harmonics of low voices are further apart.

b batch, n samples, t frames, f bins, k bands, c channels, s speakers.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts.band_attention import BandAttention
from clearstate.models.parts.speed import at_speeds
from clearstate.models.parts.stft import compress, dual_window, istft, sqrt_hann, stft
from clearstate.ssm.mamba import BiMamba

SPEEDS = (10, 9)  # it also hears nine samples for ten


@dataclass(frozen=True)
class SeparateFastConfig:
    """Sizes and signal settings of `SeparateFast`."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 512  # samples: 32 ms
    hop: int = 256  # samples: 16 ms
    long: int = 2  # the longer window, in windows of n_fft
    speakers: int = 2
    exponent: float = 0.3  # of the magnitudes that the network sees
    sections: tuple[tuple[int, int], ...] = ((2, 32), (8, 8), (16, 8))  # bins of a band, bands; from the lowest bin on
    channels: int = 48
    blocks: int = 6
    states: int = 8  # of Mamba along a band, a channel
    heads: int = 3  # of the attention over bands
    gathered: int = 8  # channels of each band that the mixer of the whole spectrum hears
    whole: int = 96  # its width
    whole_states: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", tuple(tuple(section) for section in self.sections))  # lists from JSON
        if (covered := sum(bins * bands for bins, bands in self.sections)) != self.n_fft // 2:
            raise ValueError(
                f"sections={self.sections} cover {covered} bins: expected n_fft / 2 = {self.n_fft // 2}, "
                "the last bin shares its neighbour's mask"
            )
        if (self.long - 1) * self.n_fft % (2 * self.hop):
            raise ValueError(f"long={self.long}: expected windows whose centres are a whole number of hops apart")

    @property
    def bands(self) -> int:
        return sum(bands for _, bands in self.sections)


class Block(nn.Module):
    """Time, frequency, and the whole spectrum; each a residual of (b, k, t, c)."""

    def __init__(self, config: SeparateFastConfig) -> None:
        super().__init__()
        c, gathered = config.channels, config.gathered * config.bands
        self.time = BiMamba(c, nn.LayerNorm, d_state=config.states, expand=1)
        self.frequency = BandAttention(c, config.heads)
        self.gather = nn.Linear(c, config.gathered)
        self.enter = nn.Linear(gathered, config.whole)
        self.whole = BiMamba(config.whole, nn.LayerNorm, d_state=config.whole_states, expand=1)
        self.leave = nn.Linear(config.whole, gathered)
        self.scatter = nn.Linear(config.gathered, c)

    def forward(self, x: Tensor) -> Tensor:
        b, k, t, c = x.shape
        x = self.time(x.flatten(0, 1)).view(b, k, t, c).transpose(1, 2)  # (b, t, k, c)
        x = self.frequency(x)
        whole = self.leave(self.whole(self.enter(self.gather(x).flatten(2))))  # (b, t, gathered k)
        x = x + self.scatter(whole.unflatten(2, (k, -1)))
        return x.transpose(1, 2).contiguous()


class SeparateFast(nn.Module):
    """Mixture (b, n) to voices (b, s, n), n >= 1, in an order of the model's own; every output hears all of the signal.

    All items of a batch have the same length.
    """

    Config = SeparateFastConfig
    task = "separate"
    causal = False
    window: Tensor
    long_window: Tensor

    def __init__(self, config: SeparateFastConfig | None = None) -> None:
        super().__init__()
        self.config = config = SeparateFastConfig() if config is None else config
        self.sample_rate, self.speakers = config.sample_rate, config.speakers
        c = config.channels
        self.register_buffer("window", sqrt_hann(config.n_fft), persistent=False)
        self.register_buffer("long_window", sqrt_hann(config.long * config.n_fft), persistent=False)
        self.encode = nn.ModuleList(nn.Linear(2 * bins * 3, c) for bins, _ in config.sections)
        self.encode_long = nn.ModuleList(
            nn.Linear(2 * config.long * bins * 3, c, bias=False) for bins, _ in config.sections
        )
        self.place = nn.Parameter(0.02 * torch.randn(config.bands, c))  # what tells one band from another
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(c)
        self.head = nn.ModuleList(nn.Linear(c, bins * 2 * config.speakers) for bins, _ in config.sections)
        self.head_long = nn.ModuleList(
            nn.Linear(c, config.long * bins * 2 * config.speakers) for bins, _ in config.sections
        )

    def forward(self, mixture: Tensor) -> Tensor:
        level = mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)  # (b, 1)
        signal = mixture / level
        voices = self.hear(signal) if self.training else at_speeds(self.hear, signal, *SPEEDS, matched=in_the_order_of)
        return voices * level[..., None]

    def hear(self, signal: Tensor) -> Tensor:
        """A mixture (b, n) of level one to voices (b, s, n)."""
        config, samples = self.config, signal.shape[-1]
        spec = stft(signal, self.window, config.hop)  # (b, t, f) complex
        t = spec.shape[1]
        around = (config.long - 1) * config.n_fft // config.hop // 2  # hops by which the longer window begins earlier
        long = stft(signal, self.long_window, config.hop)[:, around : around + t]  # (b, t, F): the same instants
        x = self.to_bands(compress(spec, config.exponent), self.encode, 1) + self.place[:, None]  # (b, k, t, c)
        x = x + self.to_bands(compress(long, config.exponent), self.encode_long, config.long)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        voices = masked(self.masks(x, self.head, 1) + 1 / self.speakers, spec)
        y = istft(voices, self.window, config.hop, samples)  # (b s, n)
        voices = masked(self.masks(x, self.head_long, config.long), long)
        voices = torch.view_as_complex(F.pad(torch.view_as_real(voices), (0, 0, 0, 0, around, around)))
        y = y + istft(voices, dual_window(self.long_window, config.hop), config.hop, samples)
        return y.view(signal.shape[0], config.speakers, -1)

    def to_bands(self, parts: Tensor, encoders: nn.ModuleList, finer: int) -> Tensor:
        """The bins of each band and half as many again on both sides: (b, t, f, 2) to (b, k, t, c).

        The magnitude is given beside real and imaginary part: their signs are random, and no linear layer finds it.

        Args:
            finer: how many times as many bins as in `sections` there are.
        """
        magnitude = (parts.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        x = torch.cat([parts, magnitude], dim=-1)[:, :, :-1]  # (b, t, f - 1, 3)
        bands, first = [], 0
        for (bins, count), encode in zip(self.config.sections, encoders, strict=True):
            bins = finer * bins
            near = F.pad(x, (0, 0, bins // 2, bins // 2))[:, :, first : first + (count + 1) * bins]
            bands.append(encode(near.unfold(2, 2 * bins, bins).flatten(3)))  # (b, t, count, c)
            first += count * bins
        return torch.cat(bands, dim=2).transpose(1, 2).contiguous()

    def masks(self, x: Tensor, heads: nn.ModuleList, finer: int) -> Tensor:
        """(b, k, t, c) to complex masks (b, s, t, f) that add up to zero. For `finer` see `to_bands`."""
        sizes = [count for _, count in self.config.sections]
        parts = []
        for (bins, _), head, band in zip(self.config.sections, heads, x.split(sizes, dim=1), strict=True):
            y = head(band).unflatten(3, (self.speakers, finer * bins, 2))  # (b, count, t, s, bins, 2)
            parts.append(y.permute(0, 3, 2, 1, 4, 5).flatten(3, 4))
        y = torch.cat(parts, dim=3)  # (b, s, t, f - 1, 2)
        y = torch.cat([y, y[:, :, :, -1:]], dim=3)  # the highest bin shares its neighbour's
        return torch.view_as_complex(y - y.mean(1, keepdim=True))


def in_the_order_of(first: Tensor, second: Tensor) -> Tensor:
    """The voices of `second` in the order that fits those of `first` best, both (b, s, n)."""
    speakers = first.shape[1]
    orders = torch.from_numpy(np.array(list(permutations(range(speakers))))).to(first.device)  # (p, s)
    products = first @ second.transpose(1, 2)  # (b, s, s)
    scores = products[:, torch.arange(speakers), orders].sum(-1)  # (b, p)
    order = orders[scores.argmax(-1)]  # (b, s)
    return second.gather(1, order[..., None].expand_as(second))


def masked(masks: Tensor, spec: Tensor) -> Tensor:
    """Masks (b, s, t, f) times a spectrum (b, t, f): (b s, t, f), complex."""
    alone = torch.view_as_complex(torch.view_as_real(spec)[:, None])  # (b, 1, t, f)
    return torch.view_as_complex(torch.view_as_real(masks * alone).flatten(0, 1))
