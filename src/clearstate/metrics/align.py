"""Measure the delay of an estimate. PESQ ignores delays and SI-SDR does not, so scores are reported with the delay."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from clearstate.metrics.intrusive import si_sdr
from clearstate.metrics.pairs import as_pair


class Delay(NamedTuple):
    """Delay in `samples` (negative: the estimate is early), and SI-SDR in dB before and after its removal."""

    samples: int
    si_sdr: float
    aligned: float


def delay(reference: ArrayLike, estimate: ArrayLike, at_most: int = 8_000, gain_db: float = 0.5) -> Delay:
    """Find the delay of the estimate by cross-correlation.

    A shift counts only if SI-SDR gains `gain_db` by taking it out: in loud low-pitched noise the correlation can peak a
    sample or two off without anything being late. A fraction of a sample shows as its nearest whole one.

    Args:
        reference, estimate: (samples,).
        at_most: samples looked at to either side.
    """
    r, d = as_pair(reference, estimate)
    now = si_sdr(r, d)
    if not r.any() or not d.any():
        return Delay(0, now, now)
    n_fft = 1 << (2 * len(r)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(d, n_fft) * np.fft.rfft(r, n_fft).conj(), n_fft)
    reach = min(at_most, len(r) - 1)
    lags = np.r_[0 : reach + 1, -reach:0]
    samples = int(lags[np.argmax(np.abs(correlation[lags]))])
    if samples == 0:
        return Delay(0, now, now)
    aligned = si_sdr(r[: len(r) - samples], d[samples:]) if samples > 0 else si_sdr(r[-samples:], d[:samples])
    return Delay(samples, now, aligned) if aligned > now + gain_db else Delay(0, now, now)
