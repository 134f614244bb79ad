"""How far up a signal really reaches: the sharp upper edge of its long-term spectrum, whatever its sample rate says.

A low-pass filter, a resampler or a codec leaves a cliff behind: everything above lies far under everything just below.
Nature has slopes. So the edge is looked for where the drop over 350 Hz (at 48 kHz) is deepest, and a signal without a
drop of at least 20 dB has the bandwidth of its sample rate.

b batch, n samples, f bins.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.floating]

N_FFT = 2048  # samples: bins 23 Hz apart at 48 kHz
HOP = 1024
LEAST_DROP_DB = 20.0
BELOW = 1 / 96  # of the sample rate, 500 Hz at 48 kHz: the signal must be there all along this stretch under the edge,
GUARD = 1 / 137  # 350 Hz: and gone this much above it
PLATEAU = 0.8  # share of the deepest drop that counts as much: in the slope of a filter the drop is the same all along
SMOOTH = 5  # bins
RANGE_DB = 140.0  # under the loudest bin: what is fainter is nothing


def power_spectrum(x: Floats) -> Floats:
    """Sum over Hann frames of N_FFT samples of the power in each bin: (b, n) to (b, f); shorter signals are padded.

    Sums of the parts of a signal, cut at multiples of HOP with N_FFT - HOP samples of overlap, add up to its sum.
    """
    x = np.pad(x, ((0, 0), (0, max(0, N_FFT - x.shape[-1]))))
    window = np.hanning(N_FFT + 1)[:-1].astype(x.dtype)
    frames = np.fft.rfft(sliding_window_view(x, N_FFT, axis=-1)[:, ::HOP] * window)  # (b, t, f)
    return (frames.real**2 + frames.imag**2).sum(1)


def upper_edge(power: Floats, sample_rate: float) -> Floats:
    """The frequency in Hz, (b,), up to which a spectrum reaches: power (b, f), bins evenly from 0 to half the rate.

    Half the rate where there is no cliff, or no signal at all. The edge is where the fall begins; if
    that is vertical, the width of the guard before it.

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
    most_above = np.maximum.accumulate(smooth[:, ::-1], axis=-1)[:, ::-1]  # of this bin and all above
    drop = least_below[:, : bins - guard] - most_above[:, guard:]  # (b, f - guard)
    deepest = drop.max(-1, keepdims=True)
    cliff = (drop >= PLATEAU * deepest) & (deepest >= LEAST_DROP_DB) & (loudest > 0)
    return np.where(cliff.any(-1), cliff.argmax(-1) * spacing, sample_rate / 2)


def bandwidth(x: Floats, sample_rate: float) -> Floats:
    """The bandwidth in Hz, (b,), of signals (b, n)."""
    return upper_edge(power_spectrum(x), sample_rate)
