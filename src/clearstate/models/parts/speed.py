"""Signals at another speed, inside a network, and networks that hear a signal at several speeds.

A network errs differently in a signal and in the same signal a little faster, so their mean is better. Networks do so
when they are trained: each of the passes costs as much as the only one in training.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clearstate.audio.resample import filter_table, half_width


def at_speeds(
    hear: Callable[[Tensor], Tensor],
    x: Tensor,
    slow: int,
    *fast: int,
    matched: Callable[[Tensor, Tensor], Tensor] = lambda first, second: second,
) -> Tensor:
    """The mean of what a network makes of a signal and of the same signal with `fast` samples instead of `slow`.

    Args:
        hear: (b, n) to (b, ..., n).
        x: (b, n), n >= 1.
        slow, fast: 25 and 24: also four percent faster; 25, 24 and 23: and eight percent faster; fast < slow.
        matched: gives the second of two outputs in the order of the first, if outputs have none of their own.
    Returns:
        (b, ..., n). Above the pass band of the filters, 7 kHz of 8, it is what the network makes of x itself.
    """
    b, n = x.shape
    x = F.pad(x, (0, -n % slow))
    m = x.shape[1]
    quick = [resample(x, some, slow) for some in fast]
    heard = hear(torch.cat([x, *(F.pad(y, (0, m - y.shape[1])) for y in quick)]))  # (b passes, ..., m)
    plain = mean = heard[:b]
    for i, some in enumerate(fast, 1):
        y = heard[i * b : (i + 1) * b, ..., : quick[i - 1].shape[1]]
        low = resample(resample(plain.reshape(-1, m), some, slow), slow, some).view(plain.shape)
        again = resample(y.reshape(-1, y.shape[-1]), slow, some).view(plain.shape)
        mean = mean + (matched(low, again) - low) / (1 + len(fast))
    return mean[..., :n]


def resample(x: Tensor, up: int, down: int) -> Tensor:
    """Every `down` samples of x (b, n) become `up`: (b, up * ceil(n / down)), silent before and after. Zero phase.

    >>> x = torch.sin(torch.arange(1000) / 10)[None]
    >>> back = resample(resample(x, 9, 10), 10, 9)
    >>> torch.testing.assert_close(back[:, 100:-100], x[:, 100:-100], atol=1e-4, rtol=0)
    """
    filters = torch.from_numpy(_filters(up, down)).to(x)
    before = half_width(up, down) - 1
    x = F.pad(x, (before, filters.shape[1] - down - before + -x.shape[-1] % down))
    return F.conv1d(x[:, None], filters[:, None], stride=down).transpose(1, 2).flatten(1)


@lru_cache(maxsize=8)
def _filters(up: int, down: int) -> np.ndarray:
    """The filter of each of the `up` samples where it begins: (up, taps), zero elsewhere."""
    table = filter_table(up, down)
    filters = np.zeros((up, down + table.shape[1]), np.float32)
    for i in range(up):
        first = i * down // up
        filters[i, first : first + table.shape[1]] = table[i * down % up]
    return filters
