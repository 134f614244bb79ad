"""Measure the bandwidth of a signal: the upper edge of its long-term spectrum, independent of its sample rate.

A low-pass filter, a resampler or a codec leaves a cliff in the spectrum: all levels above are far below the levels just
under it. Natural spectra have slopes. So the edge is the deepest drop over 350 Hz (at 48 kHz), if it is at least 20 dB.
A gentle filter has no cliff, but its slope is steeper than nature's. So without a cliff, a fall of 40 dB or more over
half an octave is taken for a filter, which none of 84 clips of speech had (docs/LOG.md), and the edge is where 10 dB of
it are lost. A signal without either has the full bandwidth of its sample rate.

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
SLOPE_DB = 40.0  # over half an octave: steeper than any voice
LOST_DB = 10.0  # at the edge that a slope has
STEPS = 24  # of an octave, in which slopes are looked for
SLOPES_FROM = 1 / 48  # of the sample rate, 1 kHz at 48 kHz
SLOPES_TO = 0.8  # of half the sample rate: above, the filter of a converter falls
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

    Half the rate if there is no edge or no signal. The edge is the start of the drop. For a vertical drop it is one
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
    return np.where(cliff.any(-1), cliff.argmax(-1) * spacing, slope_start(power, sample_rate))


def slope_start(power: Floats, sample_rate: float) -> Floats:
    """Where spectra have lost 10 dB to a slope steeper than that of speech, in Hz, (b,); half the rate if to none.

    >>> f = np.linspace(1, 24_000, 1025)
    >>> butterworth = [1 / (1 + (f / 4_000) ** order) for order in (16, 32)]  # 48 and 96 dB an octave
    >>> slope_start(np.array(butterworth), 48_000).round()
    array([24000.,  4490.])
    """
    bins, start = power.shape[-1], SLOPES_FROM * sample_rate
    octaves = np.log2(sample_rate / 2 / start)
    centres = start * 2 ** (np.arange(int(octaves * STEPS)) / STEPS)  # Hz
    low, high = (
        np.round(centres * 2.0**side / (sample_rate / 2) * (bins - 1)).astype(int) for side in (-1 / 12, 1 / 12)
    )
    total = np.pad(np.cumsum(power, axis=-1, dtype=np.float64), ((0, 0), (1, 0)))
    mean = (total[:, np.minimum(high + 1, bins)] - total[:, low]) / (np.minimum(high + 1, bins) - low)
    loudest = mean.max(-1, keepdims=True)
    level = 10 * np.log10(np.maximum(mean / np.maximum(loudest, 1e-38), 10 ** (-RANGE_DB / 10)))  # (b, steps)
    most_above = np.maximum.accumulate(level[:, ::-1], axis=-1)[:, ::-1]
    half = STEPS // 2
    last = int(np.sum(centres <= SLOPES_TO * sample_rate / 2))
    drop = level[:, : last - half] - most_above[:, half:last]
    steep = (drop >= SLOPE_DB) & (loudest > 0)
    top = steep.argmax(-1)[:, None]  # where the slope begins
    fallen = (level <= np.take_along_axis(level, top, -1) - LOST_DB) & (np.arange(len(centres)) > top)
    return np.where(steep.any(-1), centres[fallen.argmax(-1)], sample_rate / 2)


def bandwidth(x: Floats, sample_rate: float) -> Floats:
    """The bandwidth in Hz, (b,), of signals (b, n)."""
    return upper_edge(power_spectrum(x), sample_rate)
