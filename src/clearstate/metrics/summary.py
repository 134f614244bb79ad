"""Mean, 95 % interval and count over files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Summary(NamedTuple):
    """Mean, 95 % interval and number of files with a value, for one score."""

    mean: float
    low: float
    high: float
    files: int


def summarise(values: Sequence[float], weights: Sequence[float] | None = None) -> Summary:
    """Mean of the defined values, with a percentile bootstrap over files (Efron 1979), 2000 resamples.

    The resampling is seeded, so the same files give the same interval. With fewer than two values the interval is the
    mean itself.

    Args:
        values: one a file; NaN is left out.
        weights: of each file, e.g. the words it holds: the mean is then sum(w v) / sum(w), as for a word error rate.
    """
    v = np.asarray(values, dtype=np.float64)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=np.float64)
    defined = np.isfinite(v) & (w > 0)
    v, w = v[defined], w[defined]
    if not len(v):
        return Summary(float("nan"), float("nan"), float("nan"), 0)
    mean = float((w * v).sum() / w.sum())
    if len(v) < 2:
        return Summary(mean, mean, mean, len(v))
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(v), np.full(len(v), 1 / len(v)), size=RESAMPLES)  # (resamples, files): times drawn
    means = (draws @ (w * v)) / (draws @ w)
    low, high = np.percentile(means, [2.5, 97.5])
    return Summary(mean, float(low), float(high), len(v))


def groups(records: Mapping[str, Mapping[str, object]], names: Sequence[str], by: str) -> dict[str, list[str]]:
    """File names by the value of one field of their records, in the order of the values (numbers as numbers)."""
    values = {name: records[name][by] for name in names if name in records and records[name].get(by) not in (None, "")}
    order = sorted(set(values.values()), key=lambda v: (isinstance(v, str), v))
    return {str(value): [name for name, own in values.items() if own == value] for value in order}
