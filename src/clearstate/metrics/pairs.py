"""Check the two signals of an intrusive metric, and cut them into frames.

Letters: r reference (clean), d estimate (degraded or enhanced); both (samples,), in [-1, 1], NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearstate.audio.arrays import as_array

# Energy ratios are limited to +-100 dB: a float32 copy of a signal is no closer than that, and a silent output gets a
# finite number instead of minus infinity, so that means stay finite.
LIMIT_DB = 100.0


def as_signal(x: ArrayLike, name: str = "signal") -> NDArray[np.float64]:
    """`x` as a float64 vector (samples,).

    Raises:
        ValueError: for more than one channel, no samples, or a value that is not a number.
    """
    signal = as_array(x, name)
    if signal.dtype.kind not in "fiub":
        raise ValueError(f"{name} is of type {signal.dtype}, expected real numbers")
    signal = signal.astype(np.float64)
    if signal.ndim != 1:
        raise ValueError(
            f"{name} has shape {signal.shape}, expected (samples,): score one channel at a time, or mix to mono first"
        )
    if signal.size == 0:
        raise ValueError(f"{name} is empty: expected at least one sample")
    if not np.isfinite(signal).all():
        bad = int((~np.isfinite(signal)).sum())
        raise ValueError(f"{name} contains {bad} NaN or infinite samples: create the file again")
    return signal


def as_pair(reference: ArrayLike, estimate: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reference and estimate as float64 vectors of one length.

    Raises:
        ValueError: as `as_signal`, and when the lengths differ.
    """
    r, d = as_signal(reference, "reference"), as_signal(estimate, "estimate")
    if len(r) != len(d):
        n = min(len(r), len(d))
        raise ValueError(
            f"reference has {len(r)} samples and estimate {len(d)}: align them first, "
            f"or cut both with [:{n}] if they start together"
        )
    return r, d


def decibels(signal: float, error: float) -> float:
    """10 log10(signal / error), limited to +-`LIMIT_DB`; `error` may be 0."""
    if signal <= 0:
        return -LIMIT_DB
    if error <= 0:
        return LIMIT_DB
    return float(np.clip(10 * np.log10(signal / error), -LIMIT_DB, LIMIT_DB))


def frames(x: NDArray[np.float64], length: int, hop: int) -> NDArray[np.float64]:
    """Overlapping frames (count, length) of `x` as a view, with Loizou's count: one fewer than would fit."""
    count = int(len(x) / hop - length / hop)
    if count < 1:
        return np.empty((0, length))
    cut: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(x, length)[: count * hop : hop]
    return cut
