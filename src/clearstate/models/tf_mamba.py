"""Mamba along time and along frequency of a channel-last map (b, t, k, c): what SEMamba is made of.

Chao et al. 2024 (arXiv:2405.06573), figure 2. A row is one sequence: the frames of one band, or the bands of one frame.

r rows, l steps of a row, c channels (the model width), d inner channels of a mixer.
Without gradients on a CPU the bidirectional mixer runs in its folded form, piece by piece over the rows, so that what
lies between two layers stays in the cache; otherwise as it is written down. Same weights, same function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.codec import compiled
from clearstate.ssm import Mamba, MambaBlock, causal_conv1d_silu, selective_scan

PIECE = 1 << 13  # steps (rows x length) that the folded form takes at a time


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
            return mix_in_pieces(x.contiguous(), self)
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
    """The weights of a `BiMix` with everything linear multiplied out; matrices to multiply rows with."""

    enter: Tensor  # (c, 4 d): the input projections of both mixers, with the gains of their norms
    leave: tuple[Tensor, Tensor]  # (d, c) each: a mixer's output projection, then its half of the merge
    keep: Tensor  # (c, c): the outer residual, and the inner ones through the merge


def fold(block: BiMix) -> Folded:
    """Multiply out what is linear. Costs about a thousandth of a second of audio, so nothing is kept between calls."""
    ahead, back = block.ahead, block.back
    to_ahead, to_back = block.merge.weight.chunk(2, dim=1)  # (c, c) each
    return Folded(
        torch.cat([side.mixer.in_proj.weight * side.norm.weight for side in (ahead, back)]).T,
        ((to_ahead @ ahead.mixer.out_proj.weight).T, (to_back @ back.mixer.out_proj.weight).T),
        (torch.eye(to_ahead.shape[0]) + to_ahead + to_back).T,
    )


def mix_in_pieces(x: Tensor, block: BiMix) -> Tensor:
    """`BiMix.forward` on rows (r, l, c), some rows at a time: one norm and one projection lead into both mixers.

    Large results go to memory that is used again for every piece: on a CPU fresh memory costs as much as the product.
    """
    r, l, c = x.shape  # noqa: E741
    folded, sides = fold(block), (block.ahead, block.back)
    inner, rank, states = (getattr(block.ahead.mixer, name) for name in ("d_inner", "dt_rank", "d_state"))
    size = min(r, max(1, PIECE // l))  # rows of a piece
    entered, thin, delta = (x.new_empty(size * l, n) for n in (4 * inner, rank + 2 * states, inner))
    y = torch.empty_like(x)
    with quick_products():
        for rows, out in zip(x.split(size), y.split(size), strict=True):
            n, flat = rows.shape[0] * l, out.view(-1, c)
            normed = F.rms_norm(rows, (c,), eps=block.ahead.norm.eps)
            torch.mm(normed.view(n, c), folded.enter, out=entered[:n])
            torch.addmm(block.merge.bias, rows.view(n, c), folded.keep, out=flat)
            branches = entered[:n].view(-1, l, 4 * inner).split(inner, dim=-1)  # u, z ahead, u, z back
            for side, u, z, leave in zip(sides, branches[::2], branches[1::2], folded.leave, strict=True):
                mixed = mix_inner(side.mixer, u, z, thin[:n], delta[:n])
                flat.addmm_(mixed.view(n, inner), leave)
    return y


def mix_inner(mixer: Mamba, u: Tensor, z: Tensor, thin: Tensor, delta: Tensor) -> Tensor:
    """What a mixer does between its input and output projections: convolution, scan and gate on rows (r, l, d).

    Args:
        thin, delta: memory for step sizes, B and C before and after the second projection, (r l, ...).
    """
    r, l, d = u.shape  # noqa: E741
    u, _ = causal_conv1d_silu(u, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, reverse=mixer.reverse)
    torch.mm(u.view(r * l, d), mixer.x_proj.weight.T, out=thin)
    torch.mm(thin[:, : mixer.dt_rank], mixer.dt_proj.weight.T, out=delta)
    _, B, C = thin.view(r, l, -1).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    y, _ = selective_scan(
        u, delta.view(r, l, d), -torch.exp(mixer.A_log), B, C, mixer.D, z, mixer.dt_proj.bias,
        delta_softplus=True, reverse=mixer.reverse,
    )  # fmt: skip
    return y


@contextmanager
def quick_products() -> Iterator[None]:
    """Let oneDNN do PyTorch's float32 products where that costs no precision.

    On AMD processors it takes half of MKL's time. PyTorch hands products to it in its "medium" precision, which allows
    bfloat16; whether this machine makes use of that is measured once, and then the setting is left alone.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest" or not medium_is_exact():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def medium_is_exact() -> bool:
    """Whether products in "medium" precision are those of float32 on this machine."""
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        product = x @ x[:64].T
    finally:
        torch.set_float32_matmul_precision(before)
    exact = x.double() @ x[:64].double().T
    return bool((product - exact).abs().max() <= 5e-6 * exact.abs().max())  # bfloat16 errs by 1e-3, float32 by 1e-6


def along_frequency(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a mixer of rows (r, l, c) to the bands of each frame of (b, t, k, c)."""
    b, t, k, c = x.shape
    return mix(x.reshape(b * t, k, c)).view(b, t, k, c)


def along_time(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a mixer of rows (r, l, c) to the frames of each band of (b, t, k, c)."""
    b, t, k, c = x.shape
    return mix(x.transpose(1, 2).reshape(b * k, t, c)).view(b, k, t, c).transpose(1, 2)
