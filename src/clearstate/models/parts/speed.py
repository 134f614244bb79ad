"""Signals at another speed, inside a network: a resampler that is one convolution, so ONNX has it too."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ZEROS = 16  # crossings of the sinc on each side
ROLLOFF = 0.94  # edge of the pass band, relative to the lower of both Nyquist frequencies


def resample(x: Tensor, up: int, down: int) -> Tensor:
    """Every `down` samples of x (b, n) become `up`: (b, up * ceil(n / down)), silent before and after. Zero phase.

    >>> x = torch.sin(torch.arange(1000) / 10)[None]
    >>> back = resample(resample(x, 9, 10), 10, 9)
    >>> torch.testing.assert_close(back[:, 50:-50], x[:, 50:-50], atol=1e-3, rtol=0)
    """
    filters = torch.from_numpy(_filters(up, down)).to(x)
    before = (filters.shape[1] - down) // 2
    x = F.pad(x, (before, before + -x.shape[-1] % down))
    return F.conv1d(x[:, None], filters[:, None], stride=down).transpose(1, 2).flatten(1)


@lru_cache(maxsize=8)
def _filters(up: int, down: int) -> np.ndarray:
    """One for each of the `up` samples: (up, taps), a sinc under a Hann window."""
    edge = ROLLOFF * min(1.0, up / down)  # relative to the Nyquist frequency of the input
    half = math.ceil(ZEROS / edge)
    taps = np.arange(-half, down + half)
    distance = taps - np.arange(up)[:, None] * (down / up)  # in samples of the input
    window = np.cos(0.5 * np.pi * np.clip(distance / half, -1, 1)) ** 2
    return (edge * np.sinc(edge * distance) * window).astype(np.float32)
