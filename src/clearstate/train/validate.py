"""Scores of held-out pairs, with the averaged weights and in full length."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from clearstate.train.pool import ScorePool
from clearstate.train.scoring import METRICS


class Pairs(Protocol):
    """Held-out pairs in full length, at the model's rate."""

    def __len__(self) -> int: ...

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        """Noisy and clean waveform of pair i, (n,) each."""
        ...


@torch.no_grad()
def validate(
    fabric: Fabric,
    model: nn.Module,
    pairs: Pairs,
    chosen: Sequence[int],
    pool: ScorePool,
    sample_rate: int,
    stopped: Callable[[], bool] = lambda: False,
    metrics: Sequence[str] = METRICS,
) -> dict[str, float] | None:
    """Mean of each metric over the chosen pairs, shared out over the processes; same result on every rank.

    Args:
        stopped: asked before each pair; once it is true in some process, all of them give up.
        metrics: what the pool's function gives.
    Returns:
        The means, `items` (how many pairs) and `unscored` (pairs for which some metric is undefined or failed; they
        are left out of that metric's mean). None if it was stopped.
    """
    futures, unreadable = [], 0
    for i in chosen[fabric.global_rank :: fabric.world_size]:
        if stopped():
            break
        try:
            noisy, clean = pairs.pair(i)
        except (ValueError, OSError, RuntimeError) as error:  # it vanished, or is broken
            warnings.warn(f"a validation item is left out: {error}")
            unreadable += 1
            continue
        estimate = model(noisy[None].to(fabric.device))[0].float().cpu()
        futures += pool.submit([clean], [estimate], sample_rate)
    missing = dict.fromkeys(metrics, math.nan)
    rows = [row or missing for row in pool.collect(futures)] + [missing] * unreadable
    table = torch.tensor([[row[m] for m in metrics] for row in rows])
    table = table.reshape(-1, len(metrics)).double()
    defined = table.isfinite()
    sums = torch.stack([table.nan_to_num(0.0, 0.0, 0.0).sum(0), defined.sum(0).double()])  # (2, metrics)
    unscored = (~defined).any(1).sum().double()
    ends = torch.tensor([float(unscored), float(stopped())], dtype=torch.float64)
    total = fabric.all_reduce(torch.cat([sums.flatten(), ends]).to(fabric.device), reduce_op="sum")
    assert isinstance(total, Tensor)
    if total[-1]:
        return None
    means = total[: len(metrics)] / total[len(metrics) : -2]  # nan for a metric nothing could be scored with
    result = dict(zip(metrics, means.tolist(), strict=True))
    return {**result, "items": len(chosen), "unscored": int(total[-2])}


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` indices, drawn once and always the same ones.

    Not at even distances: validation folders often go through their conditions in turn, and every fifth pair may be
    the one with the lowest SNR.

    >>> len(spread(100, 40)), spread(3, None)
    (40, [0, 1, 2])
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(drawn[:wanted].tolist())
