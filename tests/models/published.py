"""What the tests of published checkpoints share: filled tensors, a file of them, and a Mamba mixer from its names."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clearstate.ssm.scan import selective_scan_reference

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def filled(shapes: Shapes) -> State:
    """Numbers of a size that keeps signals going, no two tensors alike."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        if name.endswith("A_log"):
            state[name] = x * 0.1 + torch.log(torch.arange(1.0, 17))
        elif "bias" in name:
            state[name] = 0.3 * x
        elif len(shape) == 1 or name.endswith("slope"):
            state[name] = 1 + 0.3 * x
        else:
            state[name] = x / x[0].numel() ** 0.5
    return state


def saved(folder: Path, state: State) -> Path:
    """A checkpoint as published."""
    file = folder / "official.pth"
    torch.save({"generator": state}, file)
    return file


def mixer_shapes(inner: int) -> Shapes:
    """The tensors of a Mamba mixer of 64 channels."""
    return {
        "in_proj.weight": (2 * inner, 64), "conv1d.weight": (inner, 1, 4), "conv1d.bias": (inner,),
        "x_proj.weight": (36, inner), "dt_proj.weight": (inner, 4), "dt_proj.bias": (inner,), "A_log": (inner, 16),
        "D": (inner,), "out_proj.weight": (64, inner),
    }  # fmt: skip


def mixer(s: State, at: str, x: Tensor) -> Tensor:
    """A Mamba mixer on rows (r, l, 64), by the equation."""
    u, z = (x @ s[f"{at}.in_proj.weight"].T).chunk(2, -1)
    u = F.conv1d(F.pad(u.mT, (3, 0)), s[f"{at}.conv1d.weight"], s[f"{at}.conv1d.bias"], groups=u.shape[-1])
    u = F.silu(u).mT
    delta, B, C = (u @ s[f"{at}.x_proj.weight"].T).split([4, 16, 16], -1)
    delta = F.softplus(delta @ s[f"{at}.dt_proj.weight"].T + s[f"{at}.dt_proj.bias"])
    y, _ = selective_scan_reference(u, delta, -s[f"{at}.A_log"].exp(), B, C)
    return ((y + s[f"{at}.D"] * u) * F.silu(z)) @ s[f"{at}.out_proj.weight"].T
