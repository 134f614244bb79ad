"""The Mamba mixer and its blocks (Gu & Dao 2023, arXiv:2312.00752, figure 3), with explicit state.

b batch, t time, m model width, d = expand * m inner channels, n states, k taps of the short convolution.
Parameter names and shapes are those of the published Mamba-1 code, so that its checkpoints load.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conv import causal_conv1d_silu
from .scan import selective_scan


class MambaState(NamedTuple):
    """What a mixer carries from one chunk to the next; float32, also in half precision."""

    conv: Tensor  # the last k - 1 inputs of the convolution (b, k-1, d)
    ssm: Tensor  # the recurrence (b, d, n)


class Mamba(nn.Module):
    """The selective state-space mixer.

    Args:
        d_model: width m of input and output.
        d_state: states n a channel.
        d_conv: taps k of the causal convolution.
        expand: inner channels d = expand * m.
        dt_rank: rank of the step-size projection; "auto" is ceil(m / 16).
        reverse: run against time (no streaming then: the state holds what comes after).
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: float = 2, dt_rank: int | str = "auto",
        reverse: bool = False, dt_min: float = 0.001, dt_max: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.d_inner, self.d_state, self.d_conv, self.dt_rank, self.reverse = inner, d_state, d_conv, rank, reverse
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))  # S4D-real
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        # Step sizes log-uniform in [dt_min, dt_max]; the bias is what softplus maps to them.
        dt = torch.exp(torch.rand(inner) * math.log(dt_max / dt_min) + math.log(dt_min)).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Mix x (b, t, m) along time. Returns y (b, t, m) and the state to pass with the next chunk."""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (b, t, d) each
        conv_state, ssm_state = (None, None) if state is None else state
        u, conv_state = causal_conv1d_silu(
            u, self.conv1d.weight[:, 0], self.conv1d.bias, state=conv_state, reverse=self.reverse
        )
        delta, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        wide = self._wide()
        y, ssm_state = selective_scan(
            u, F.linear(delta, self.dt_proj.weight), -torch.exp(self.A_log.to(wide)), B, C, self.D.to(wide), z,
            self.dt_proj.bias.to(wide), delta_softplus=True, state=ssm_state, reverse=self.reverse,
        )  # fmt: skip
        return self.out_proj(y), MambaState(conv_state, ssm_state)

    def init_state(self, batch: int) -> MambaState:
        """The state before the first step."""
        like, wide = self.D, self._wide()
        return MambaState(
            like.new_zeros(batch, self.d_conv - 1, self.d_inner, dtype=wide),
            like.new_zeros(batch, self.d_inner, self.d_state, dtype=wide),
        )

    def _wide(self) -> torch.dtype:
        """What the recurrence is kept in: float32 for half precision, else the parameters' own dtype."""
        return torch.promote_types(self.D.dtype, torch.float32)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x**2) + eps) * weight, over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) divided by its RMS over the last axis, times the weight."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class MambaBlock(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)). Arguments are those of `Mamba`."""

    def __init__(self, d_model: int, **mixer: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = Mamba(d_model, **mixer)

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """x (b, t, m) -> (b, t, m), and the state to pass with the next chunk."""
        y, state = self.mixer(self.norm(x), state)
        return x + y, state

    def init_state(self, batch: int) -> MambaState:
        """The state before the first step."""
        return self.mixer.init_state(batch)


class BiMamba(nn.Module):
    """Two mixers over one sequence, one along the axis and one against it; their outputs are added.

    Pre-norm and residual like `MambaBlock`: x + forward(norm(x)) + backward(norm(x)). `norm` makes the norm of a width;
    with gradients on a CPU nn.LayerNorm is the faster one.
    """

    def __init__(self, d_model: int, norm: Callable[[int], nn.Module] = RMSNorm, **mixer: Any) -> None:
        super().__init__()
        self.norm = norm(d_model)
        self.ahead = Mamba(d_model, **mixer)
        self.back = Mamba(d_model, reverse=True, **mixer)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, t, m) -> (b, t, m)."""
        normed = self.norm(x)
        return x + self.ahead(normed)[0] + self.back(normed)[0]
