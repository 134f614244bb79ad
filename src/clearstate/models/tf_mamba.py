"""Mamba along time and along frequency of a channel-last map (b, t, k, c): what SEMamba is made of.

Chao et al. 2024 (arXiv:2405.06573), figure 2. A row is one sequence: the frames of one band, or the bands of one frame.

r rows, l steps of a row, c channels (the model width).
Without gradients on a CPU the bidirectional mixer runs as one compiled kernel, `mix_cpu.py`, if it is narrow enough for
a core's cache; otherwise as it is written down. Same weights, same function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from clearstate.models.codec import compiled
from clearstate.ssm import MambaBlock

NARROW = 128  # channels up to which the weights of a mixer and what it works on are at home in a core's cache
PIECE = 1 << 13  # steps (rows x length) that `UniMix` takes at a time without gradients


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
        if compiled(x) and x.shape[-1] <= NARROW:
            from clearstate.models import mix_cpu

            return mix_cpu.mix(x, self.ahead, self.back, self.merge)
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
