"""Closed-form scores against a clean reference: SNR, segmental SNR, SI-SDR, SDR, log-spectral distance.

Signals are (samples,) in [-1, 1]. For a silent reference, energy ratios are undefined and the score is NaN, not an
exception, so one bad file cannot stop a run. Callers count the NaNs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clearstate.audio.rates import whole_rate
from clearstate.metrics.extras import need
from clearstate.metrics.pairs import as_pair, decibels, frames

EPS = float(np.finfo(np.float64).eps)  # 2.2e-16, what Loizou's scripts add


def snr(reference: ArrayLike, estimate: ArrayLike) -> float:
    """Signal-to-noise ratio in dB: 10 log10(|r|^2 / |r - d|^2).

    Level and polarity count. NaN for a silent reference.

    >>> round(snr([1.0, -1.0], [0.9, -0.9]), 3)
    20.0
    """
    r, d = as_pair(reference, estimate)
    if not r.any():
        return float("nan")
    return decibels(float(r @ r), float((r - d) @ (r - d)))


def segmental_snr(reference: ArrayLike, estimate: ArrayLike, sample_rate: int) -> float:
    """Mean over 30 ms frames of the frame's SNR in dB, each held within [-10, 35].

    Hu & Loizou 2008 as their MATLAB does it: hop a quarter of the frame, Hann-like window, all frames kept, no
    removal of the mean and no matching of the gain (some packages do both, which moves CBAK by 0.02).
    NaN when the signal is shorter than one frame.
    """
    sample_rate = whole_rate(sample_rate)
    r, d = as_pair(reference, estimate)
    r, d = r + EPS, d + EPS
    length = round(0.030 * sample_rate)
    hop = length // 4
    window = hu_loizou_window(length)
    rf, df = frames(r, length, hop) * window, frames(d, length, hop) * window  # (frames, length)
    if not len(rf):
        return float("nan")
    ratio = (rf**2).sum(1) / (((rf - df) ** 2).sum(1) + EPS)
    return float(np.clip(10 * np.log10(ratio + EPS), -10, 35).mean())


def hu_loizou_window(length: int) -> np.ndarray:
    """0.5 (1 - cos(2 pi n / (N + 1))), n = 1..N: a Hann window without its two zeros."""
    n = np.arange(1, length + 1)
    return 0.5 * (1 - np.cos(2 * np.pi * n / (length + 1)))


def si_sdr(reference: ArrayLike, estimate: ArrayLike) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv:1811.02508, eq. 4).

        alpha = <d, r> / <r, r>,   SI-SDR = 10 log10(|alpha r|^2 / |alpha r - d|^2),   both of zero mean

    NaN for a silent reference; -100 dB for a silent estimate.

    >>> round(si_sdr([1.0, -1.0, 0.0, 0.0], [2.0, -2.0, 0.2, -0.2]), 3)
    20.0
    """
    r, d = as_pair(reference, estimate)
    r, d = r - r.mean(), d - d.mean()
    energy = float(r @ r)
    if energy <= EPS * len(r) * EPS:
        return float("nan")
    target = (d @ r) / energy * r
    return decibels(float(target @ target), float((target - d) @ (target - d)))


def sdr(reference: ArrayLike, estimate: ArrayLike, taps: int = 512) -> float:
    """Signal-to-distortion ratio in dB of BSS Eval 3 (Vincent et al. 2006): any filter of `taps` taps is allowed.

    The estimate is projected on `taps` delayed copies of the reference. With a the autocorrelation of r and c its
    cross-correlation with d, the filter solves the Toeplitz system A h = c and the share of d it explains is
    rho = c.h / |d|^2; SDR = 10 log10(rho / (1 - rho)) (Scheibler 2022, arXiv:2110.06440, eq. 18).
    NaN for a silent reference, -100 dB for a silent estimate.
    """
    solve_toeplitz = need("scipy.linalg", "metrics", "SDR").solve_toeplitz
    r, d = as_pair(reference, estimate)
    if not r.any():
        return float("nan")
    if not d.any():
        return decibels(0, 1)
    r, d = r / np.linalg.norm(r), d / np.linalg.norm(d)
    n_fft = 1 << (len(r) + taps - 1).bit_length()  # long enough that nothing wraps
    R, D = np.fft.rfft(r, n_fft), np.fft.rfft(d, n_fft)
    autocorrelation = np.fft.irfft(np.abs(R) ** 2)[:taps]
    crosscorrelation = np.fft.irfft(R.conj() * D)[:taps]
    filter_taps = solve_toeplitz(autocorrelation, crosscorrelation)
    explained = float(crosscorrelation @ filter_taps)
    return decibels(explained, 1 - explained)


def lsd(reference: ArrayLike, estimate: ArrayLike, sample_rate: int, above: float = 0.0, n_fft: int = 2048) -> float:
    """Log-spectral distance: root mean square over bins of the difference of log10 power, mean over frames.

    Hann 2048, hop 512, power floored at 1e-8, as bandwidth extension papers use at 48 kHz (AudioSR, AP-BWE). The
    level counts. A signal shorter than one frame is padded with zeros.

    Args:
        above: Hz; only bins from here up count (the part that bandwidth extension had to invent).
        n_fft: samples of a frame, four times the hop; NU-Wave and MambaWave have 1024.
    Raises:
        ValueError: if no bin lies above.
    """
    sample_rate = whole_rate(sample_rate)
    r, d = as_pair(reference, estimate)
    hop = n_fft // 4
    low = int(np.ceil(above * n_fft / sample_rate))
    if low > n_fft // 2:
        raise ValueError(f"no bin above {above:g} Hz at {sample_rate} Hz: expected less than {sample_rate / 2:g} Hz")

    def log_power(x: np.ndarray) -> np.ndarray:
        x = np.pad(x, (0, max(0, n_fft - len(x))))
        cut = np.lib.stride_tricks.sliding_window_view(x, n_fft)[::hop]  # (frames, n_fft)
        spec = np.fft.rfft(cut * np.hanning(n_fft + 1)[:-1])[:, low:]  # (frames, bins)
        return np.log10(np.maximum(np.abs(spec) ** 2, 1e-8))

    return float(np.sqrt(((log_power(r) - log_power(d)) ** 2).mean(1)).mean())
