"""From the bins of a spectrum to a few bands and from these to a complex mask: what frames `live` and `studio`.

b batch, t frames, f bins, k bands (fine: f / 4, coarse: config.bands), c channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FineBlock(nn.Module):
    """Residual convolution over neighbouring fine bands of one frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.spread = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (b, t, k, c)
        y = self.spread(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels last throughout
        return x + self.mix(F.silu(y))


class BandCodec(nn.Module):
    """Encoder and decoder, each within a frame. A model derives from it and mixes the coarse bands between them."""

    def __init__(self, config: Any) -> None:  # a LiveConfig
        super().__init__()
        self.config = config
        fine, c, bands = config.fine_channels, config.channels, config.bands
        self.fine_bands = config.n_fft // 2 // config.fine_bins
        # Encoder: bins, half of them shared with the next band, to one fine band; fine bands to coarse ones.
        self.bins_to_fine = nn.Linear(2 * config.fine_bins * 3, fine)
        self.encoder = nn.ModuleList(FineBlock(fine) for _ in range(config.fine_blocks))
        self.fine_to_bands = nn.Linear(self.fine_bands, bands, bias=False)
        self.widen = nn.Linear(fine, c)
        self.place = nn.Parameter(0.02 * torch.randn(bands, c))  # what tells one band from another
        # Decoder.
        self.narrow = nn.Linear(c, fine)
        self.bands_to_fine = nn.Linear(bands, self.fine_bands, bias=False)
        self.joins = nn.ModuleList(nn.Linear(2 * fine, fine) for _ in range(config.fine_blocks))
        self.decoder = nn.ModuleList(FineBlock(fine) for _ in range(config.fine_blocks))
        self.head_norm = nn.LayerNorm(fine)
        self.head = nn.Linear(fine, 2 * config.fine_bins)
        self._start_transparent()

    def _start_transparent(self) -> None:
        """Begin with a mask of one, and with coarse bands that are local averages of fine ones."""
        fine, coarse = (torch.linspace(0, 1, n) for n in (self.fine_bands, self.config.bands))
        near = (1 - (coarse[:, None] - fine).abs() * (self.config.bands - 1)).clamp(min=0)  # (coarse, fine) triangles
        with torch.no_grad():
            self.fine_to_bands.weight.copy_(near / near.sum(1, keepdim=True) + 0.02 * torch.randn_like(near))
            self.bands_to_fine.weight.copy_(near.T + 0.02 * torch.randn_like(near.T))
            self.head.weight.mul_(0.1)
            self.head.bias.copy_(torch.tensor([1.0, 0.0]).repeat(self.config.fine_bins))

    def encode(self, parts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compressed spectra (b, t, f, 2) to coarse bands (b, t, k, c), and the fine ones that `decode` needs."""
        skips = [self.to_fine_bands(parts)]  # (b, t, k, c)
        for block in self.encoder:
            skips.append(block(skips[-1]))
        return self.fine_to_bands(self.widen(skips[-1]).transpose(2, 3)).transpose(2, 3) + self.place, skips

    def decode(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Coarse bands (b, t, k, c) to a complex mask (b, t, f)."""
        x = self.bands_to_fine(self.narrow(x).transpose(2, 3)).transpose(2, 3)  # (b, t, k, c)
        for join, block in zip(self.joins, self.decoder, strict=True):
            x = block(join(torch.cat([x, skips.pop()], dim=-1)))
        mask = self.head(self.head_norm(x)).flatten(2).unflatten(2, (-1, 2))  # (b, t, f - 1, 2)
        return torch.view_as_complex(
            torch.cat([mask, mask[:, :, -1:]], dim=2)
        )  # the highest bin shares its neighbour's

    def to_fine_bands(self, parts: Tensor) -> Tensor:
        """The bins in and around each group, twice as many, to one fine band: (b, t, f, 2) to (b, t, k, c).

        The magnitude is given beside real and imaginary part: their signs are random, and no linear layer finds it.
        """
        magnitude = (parts.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        x = torch.cat([parts, magnitude], dim=-1)[:, :, :-1]  # (b, t, f - 1, 3)
        bins = self.config.fine_bins
        x = F.pad(x, (0, 0, bins // 2, bins // 2)).unfold(2, 2 * bins, bins)  # (b, t, k, 3, bins)
        return self.bins_to_fine(x.flatten(3))
