"""Measure the bandwidth of a signal: the sharp upper edge of its long-term spectrum, independent of its sample rate.

A low-pass filter, a resampler or a codec leaves a cliff in the spectrum: all levels above are far below the levels just
under it. Natural spectra have slopes. So the edge is the deepest drop over 350 Hz (at 48 kHz). A signal without a drop
of at least 20 dB has the full bandwidth of its sample rate.

b batch, n samples, f bins.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.floating]

N_FFT = 2048  # samples: bins 23 Hz apart at 48 kHz
HOP = 1024
LEAST_DROP_DB = 20.0
BELOW = 1 / 96  # of the sample rate, 500 Hz at 48 kHz; width of the band below the edge that must contain signal
GUARD = 1 / 137  # 350 Hz; distance above the edge at which the signal must end
PLATEAU = 0.8  # share of the deepest drop that counts as the edge, because the drop is constant along a filter slope
SMOOTH = 5  # bins
RANGE_DB = 140.0  # below the loudest bin; fainter bins count as empty


def power_spectrum(x: Floats) -> Floats:
    """Sum the power in each bin over Hann frames of N_FFT samples, (b, n) to (b, f). Short signals are padded.

    The sums of parts that are cut at multiples of HOP, with N_FFT - HOP samples of overlap, add up to the whole sum.
    """
    x = np.pad(x, ((0, 0), (0, max(0, N_FFT - x.shape[-1]))))
    window = np.hanning(N_FFT + 1)[:-1].astype(x.dtype)
    frames = np.fft.rfft(sliding_window_view(x, N_FFT, axis=-1)[:, ::HOP] * window)  # (b, t, f)
    return (frames.real**2 + frames.imag**2).sum(1)


def upper_edge(power: Floats, sample_rate: float) -> Floats:
    """The upper edge of spectra in Hz, (b,), from power (b, f) in evenly spaced bins from 0 to half the rate.

    Half the rate if there is no cliff or no signal. The edge is the start of the drop. For a vertical drop it is one
    guard width below it.

    >>> power = np.ones((1, 1025))
    >>> power[:, 342:] = 1e-9
    >>> upper_edge(power, 48_000).item(), upper_edge(np.ones((1, 1025)), 48_000).item()
    (7687.5, 24000.0)
    """
    bins = power.shape[-1]
    spacing = sample_rate / 2 / (bins - 1)  # Hz
    below, guard = (max(1, round(2 * share * (bins - 1))) for share in (BELOW, GUARD))
    loudest = power.max(-1, keepdims=True)
    level = 10 * np.log10(np.maximum(power / np.maximum(loudest, 1e-38), 10 ** (-RANGE_DB / 10)))
    half = SMOOTH // 2
    smooth = sliding_window_view(np.pad(level, ((0, 0), (half, half)), mode="edge"), SMOOTH, axis=-1).mean(-1)
    padded = np.pad(smooth, ((0, 0), (below - 1, 0)), constant_values=-RANGE_DB)
    least_below = sliding_window_view(padded, below, axis=-1).min(-1)
    most_above = np.maximum.accumulate(smooth[:, ::-1], axis=-1)[:, ::-1]  # maximum over this bin and all above
    drop = least_below[:, : bins - guard] - most_above[:, guard:]  # (b, f - guard)
    deepest = drop.max(-1, keepdims=True)
    cliff = (drop >= PLATEAU * deepest) & (deepest >= LEAST_DROP_DB) & (loudest > 0)
    return np.where(cliff.any(-1), cliff.argmax(-1) * spacing, sample_rate / 2)


def bandwidth(x: Floats, sample_rate: float) -> Floats:
    """The bandwidth in Hz, (b,), of signals (b, n)."""
    return upper_edge(power_spectrum(x), sample_rate)
