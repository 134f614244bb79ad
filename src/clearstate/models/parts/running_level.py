"""The level of a signal so far, for causal models: what they divide by cannot depend on what is still to come.

b batch, t frames, f bins.
"""

import torch
from torch import Tensor

from clearstate.ssm import selective_scan

SILENT = 3e-10  # mean power of a bin: -120 dBFS with a window of 512 samples


@torch.no_grad()
def running_power(spec: Tensor, state: Tensor, frames: float) -> tuple[Tensor, Tensor]:
    """Mean power of a bin over the frames so far, the older the less; digital silence does not count.

    A running sum of powers over a running sum of weights, so that the first frame already has its own level, and zeros
    before a signal do not lower it. Zero until something is heard.

    Args:
        spec: (b, t, f) complex.   state: both sums, (b, 2, 1), zeros before the first frame.
        frames: time constant.
    Returns:
        Power (b, t, 1), without a gradient, and the state to pass with the next frames.
    """
    power = torch.view_as_real(spec).square().sum(-1).mean(-1)  # (b, t)
    counts = (power > SILENT).to(power.dtype)
    u = torch.stack([power * counts, counts], dim=-1)  # (b, t, 2)
    ones = torch.ones_like(counts)[..., None]
    sums, state = selective_scan(
        u, counts[..., None].expand_as(u), u.new_full((2, 1), -1 / frames), ones, ones, state=state
    )
    return sums[..., :1] / sums[..., 1:].clamp_min(1e-6), state
