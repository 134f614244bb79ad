"""Mamba along time and along frequency of a channel-last map (b, t, k, c): what SEMamba is made of.

Chao et al. 2024 (arXiv:2405.06573), figure 2. A row is one sequence: the frames of one band, or the bands of one frame.

r rows, l steps of a row, c channels (the model width).
Without gradients on a CPU the bidirectional mixer runs as one compiled kernel, `kernels/mamba_pair.py`, if it is narrow
enough for a core's cache; otherwise as it is written down. Same weights, same function.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clearstate.kernels.backend import fast
from clearstate.ssm import MambaBlock

NARROW = 128  # channels up to which the weights of a mixer and what it works on are at home in a core's cache
PIECE = 1 << 13  # steps (rows x length) that `UniMix` takes at a time without gradients


class BiMix(nn.Module):
    """One residual block each way, joined by a linear layer, and a residual around both.

        y = x + W [ahead(x), back(x)] + bias

    The residuals are doubled, as in the published code; its paper draws the inner ones only. W and its bias begin as
    those of a transposed convolution, which is what the published code has in its place.
    """

    def __init__(self, channels: int, states: int = 16, taps: int = 4, expand: float = 4) -> None:
        super().__init__()
        self.ahead = MambaBlock(channels, d_state=states, d_conv=taps, expand=expand)
        self.back = MambaBlock(channels, d_state=states, d_conv=taps, expand=expand, reverse=True)
        self.merge = nn.Linear(2 * channels, channels)
        for parameter in self.merge.parameters():
            nn.init.uniform_(parameter, -(channels**-0.5), channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (r, l, c) to the same."""
        if fast(x) and x.shape[-1] <= NARROW:
            from clearstate.kernels import mamba_pair

            return mamba_pair.mix(x, self.ahead, self.back, self.merge)
        return x + self.merge(torch.cat([self.ahead(x)[0], self.back(x)[0]], dim=-1))


class UniMix(nn.Module):
    """A residual block that looks only back."""

    def __init__(self, channels: int, states: int = 16, taps: int = 4, expand: float = 2) -> None:
        super().__init__()
        self.ahead = MambaBlock(channels, d_state=states, d_conv=taps, expand=expand)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (r, l, c) to the same."""
        if fast(x):
            return torch.cat([self.ahead(rows)[0] for rows in x.split(max(1, PIECE // x.shape[1]))])
        return self.ahead(x)[0]


def along_frequency(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a mixer of rows (r, l, c) to the bands of each frame of (b, t, k, c)."""
    b, t, k, c = x.shape
    return mix(x.reshape(b * t, k, c)).view(b, t, k, c)


def along_time(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a mixer of rows (r, l, c) to the frames of each band of (b, t, k, c)."""
    b, t, k, c = x.shape
    return mix(x.transpose(1, 2).reshape(b * k, t, c)).view(b, k, t, c).transpose(1, 2)
