"""Mamba along time and along frequency of a channel-last map (b, t, k, c): what SEMamba is made of.

Chao et al. 2024 (arXiv:2405.06573), figure 2. A row is one sequence: the frames of one band, or the bands of one frame.

r rows, l steps of a row, c channels (the model width), d inner channels of a mixer.
Without gradients on a CPU the bidirectional mixer runs in its folded form, piece by piece over the rows, so that what
lies between two layers stays in the cache; otherwise as it is written down. Same weights, same function.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.codec import compiled
from clearstate.ssm import Mamba, MambaBlock, causal_conv1d_silu, selective_scan

PIECE = 1 << 12  # steps (rows x length) that the folded form takes at a time


class BiMix(nn.Module):
    """One residual block each way, joined by a linear layer, and a residual around both.

        y = x + W [ahead(x), back(x)] + bias

    The residuals are doubled, as in the published code; its paper draws the inner ones only.
    """

    def __init__(self, channels: int, states: int = 16, taps: int = 4, expand: float = 4) -> None:
        super().__init__()
        self.ahead = MambaBlock(channels, d_state=states, d_conv=taps, expand=expand)
        self.back = MambaBlock(channels, d_state=states, d_conv=taps, expand=expand, reverse=True)
        self.merge = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (r, l, c) to the same."""
        if compiled(x):
            folded = fold(self)
            size = max(1, PIECE // x.shape[1])
            return torch.cat([mix_folded(rows, self, folded) for rows in x.split(size)])
        return x + self.merge(torch.cat([self.ahead(x)[0], self.back(x)[0]], dim=-1))


class UniMix(nn.Module):
    """A residual block that looks only back."""

    def __init__(self, channels: int, states: int = 16, taps: int = 4, expand: float = 2) -> None:
        super().__init__()
        self.ahead = MambaBlock(channels, d_state=states, d_conv=taps, expand=expand)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (r, l, c) to the same."""
        if compiled(x):
            return torch.cat([self.ahead(rows)[0] for rows in x.split(max(1, PIECE // x.shape[1]))])
        return self.ahead(x)[0]


class Folded(NamedTuple):
    """The weights of a `BiMix` with everything linear multiplied out."""

    enter: Tensor  # (4 d, c): the input projections of both mixers, with the gains of their norms
    leave: tuple[Tensor, Tensor]  # (c, d) each: a mixer's output projection, then its half of the merge
    keep: Tensor  # (c, c): the outer residual, and the inner ones through the merge


def fold(block: BiMix) -> Folded:
    """Multiply out what is linear. Costs about a thousandth of a second of audio, so nothing is kept between calls."""
    ahead, back = block.ahead, block.back
    to_ahead, to_back = block.merge.weight.chunk(2, dim=1)  # (c, c) each
    return Folded(
        torch.cat([side.mixer.in_proj.weight * side.norm.weight for side in (ahead, back)]),
        (to_ahead @ ahead.mixer.out_proj.weight, to_back @ back.mixer.out_proj.weight),
        torch.eye(to_ahead.shape[0]) + to_ahead + to_back,
    )


def mix_folded(x: Tensor, block: BiMix, folded: Folded) -> Tensor:
    """`BiMix.forward` on rows (r, l, c) with folded weights: one norm and one projection into both mixers."""
    sides = block.ahead, block.back
    normed = F.rms_norm(x, (x.shape[-1],), eps=block.ahead.norm.eps)
    inner = F.linear(normed, folded.enter).chunk(2, dim=-1)  # (r, l, 2 d) each
    y = F.linear(x, folded.keep, block.merge.bias)
    flat = y.view(-1, y.shape[-1])
    for side, entered, leave in zip(sides, inner, folded.leave, strict=True):
        mixed = mix_inner(side.mixer, *entered.chunk(2, dim=-1))
        flat.addmm_(mixed.view(-1, mixed.shape[-1]), leave.T)
    return y


def mix_inner(mixer: Mamba, u: Tensor, z: Tensor) -> Tensor:
    """What a mixer does between its input and output projections: convolution, scan and gate, (r, l, d)."""
    u, _ = causal_conv1d_silu(u, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, reverse=mixer.reverse)
    delta, B, C = mixer.x_proj(u).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    y, _ = selective_scan(
        u, F.linear(delta, mixer.dt_proj.weight), -torch.exp(mixer.A_log), B, C, mixer.D, z, mixer.dt_proj.bias,
        delta_softplus=True, reverse=mixer.reverse,
    )  # fmt: skip
    return y


def along_frequency(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a mixer of rows (r, l, c) to the bands of each frame of (b, t, k, c)."""
    b, t, k, c = x.shape
    return mix(x.reshape(b * t, k, c)).view(b, t, k, c)


def along_time(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a mixer of rows (r, l, c) to the frames of each band of (b, t, k, c)."""
    b, t, k, c = x.shape
    return mix(x.transpose(1, 2).reshape(b * k, t, c)).view(b, k, t, c).transpose(1, 2)
