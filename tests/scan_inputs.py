"""Random inputs of the recurrences, and the names that tests use for them."""

import torch
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "state")


def scan_inputs(b: int, t: int, d: int, n: int, dtype=torch.float32) -> dict[str, Tensor]:
    """Every input of `selective_scan` as a separate contiguous leaf."""
    shapes = {
        "u": (b, t, d), "delta": (b, t, d), "B": (b, t, n), "C": (b, t, n), "D": (d,), "z": (b, t, d),
        "delta_bias": (d,), "state": (b, d, n),
    }  # fmt: skip
    inputs = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    inputs["A"] = -torch.rand(d, n, dtype=dtype) * n - 0.1
    return {name: inputs[name] for name in NAMES}


def leaves(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, each ready to collect a gradient."""
    return {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
