"""Composite opinion scores CSIG, CBAK and COVL, and the two spectral distances they use.

Hu & Loizou 2008, "Evaluation of Objective Quality Measures for Speech Enhancement", IEEE TASLP 16(1); details as in
the MATLAB scripts of Loizou's book, which this file matches to the three decimals they print.

Two scales. The scripts divide integer samples by 32768 before the spectrum. Some evaluation code also divides floats in
[-1, 1], which moves most of the spectrum below the -100 dB floor: WSS falls and all three scores rise, by 0.1 on most
corpora and by 0.3 on a noisier one. `composite` uses the MATLAB scale. `divided=True` reproduces the other scale, for
comparison with results published that way. Never mix the two in one column.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from clearstate.audio.rates import whole_rate
from clearstate.metrics.intrusive import EPS, hu_loizou_window, segmental_snr
from clearstate.metrics.pairs import as_pair, frames
from clearstate.metrics.perceptual import pesq_wb

# Klatt's 25 critical bands, Hz.
CENTRES = np.array(
    [50.0, 120, 190, 260, 330, 400, 470, 540, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30, 1288.72, 1442.54]
    + [1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63]
)
WIDTHS = np.array(
    [70.0, 70, 70, 70, 70, 70, 70, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154]
    + [183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136]
)


class Composite(NamedTuple):
    """Predicted opinions on 1..5: signal distortion, background intrusiveness, overall quality."""

    csig: float
    cbak: float
    covl: float


def composite(
    reference: ArrayLike, estimate: ArrayLike, sample_rate: int, *, pesq: float | None = None, divided: bool = False
) -> Composite:
    """CSIG, CBAK and COVL, each cut to [1, 5].

        CSIG = 3.093 - 1.029 LLR + 0.603 PESQ - 0.009 WSS
        CBAK = 1.634 + 0.478 PESQ - 0.007 WSS + 0.063 SSNR
        COVL = 1.594 + 0.805 PESQ - 0.512 LLR - 0.007 WSS

    PESQ is the wide-band MOS-LQO, as every VoiceBank+DEMAND table has it (the regression was fitted to the
    narrow-band one). NaN where PESQ is undefined.

    Args:
        reference, estimate: (samples,) in [-1, 1].
        sample_rate: Hz, 16000.
        pesq: the wide-band PESQ if it is already known; computed here otherwise.
        divided: the other scale (see the head of this file).
    """
    sample_rate = whole_rate(sample_rate)
    r, d = as_pair(reference, estimate)
    if pesq is None:
        pesq = pesq_wb(r, d, sample_rate)
    distance, slope = llr(r, d, sample_rate), wss(r, d, sample_rate, divided=divided)
    return regression(pesq, distance, slope, segmental_snr(r, d, sample_rate))


def regression(pesq: float, llr: float, wss: float, ssnr: float) -> Composite:
    """The three opinions from the four scores they are regressed on, each cut to [1, 5]; equations in `composite`."""
    csig = 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss
    cbak = 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr
    covl = 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss
    return Composite(*(float(np.clip(score, 1, 5)) for score in (csig, cbak, covl)))


def llr(reference: ArrayLike, estimate: ArrayLike, sample_rate: int) -> float:
    """Log-likelihood ratio of linear predictors: log(a_d R_r a_d' / a_r R_r a_r'), mean over the best 95 % of frames.

    a_r, a_d predict the reference's and the estimate's frame (order 16, or 10 below 10 kHz); R_r is the reference's
    autocorrelation matrix. Frames of 30 ms, hop a quarter. NaN when the signal is shorter than one frame.
    """
    sample_rate = whole_rate(sample_rate)
    rf, df = _windowed(reference, estimate, sample_rate)
    if not len(rf):
        return float("nan")
    order = 16 if sample_rate >= 10_000 else 10
    r_lags, d_lags = _autocorrelation(rf, order), _autocorrelation(df, order)  # (frames, order + 1)
    a_r, a_d = levinson(r_lags), levinson(d_lags)
    lag = np.abs(np.arange(order + 1)[:, None] - np.arange(order + 1))
    R = r_lags[:, lag]  # (frames, order + 1, order + 1)
    error_d = np.einsum("fi,fij,fj->f", a_d, R, a_d)
    error_r = np.einsum("fi,fij,fj->f", a_r, R, a_r)
    tiny = np.finfo(np.float64).tiny
    return _best_95(np.log(np.maximum(error_d, tiny) / np.maximum(error_r, tiny)))


def levinson(lags: np.ndarray) -> np.ndarray:
    """Prediction error filters (frames, p + 1), first tap 1, from autocorrelations (frames, p + 1)."""
    a = np.zeros_like(lags)
    a[:, 0] = 1
    error = lags[:, 0].copy()
    for i in range(1, lags.shape[1]):
        reflection = -(a[:, :i] * lags[:, i:0:-1]).sum(1) / np.where(error == 0, EPS, error)
        a[:, 1 : i + 1] += reflection[:, None] * a[:, i - 1 :: -1][:, :i]
        error = error * (1 - reflection**2)
    return a


def wss(reference: ArrayLike, estimate: ArrayLike, sample_rate: int, *, divided: bool = False) -> float:
    """Weighted spectral slope distance (Klatt 1982) in 25 critical bands: mean over the best 95 % of frames.

    Per frame sum(W (s_r - s_d)^2) / sum(W), with s the slopes of the band energies in dB and W weighing bands near
    the overall and the nearest local peak. NaN when the signal is shorter than one frame.
    """
    sample_rate = whole_rate(sample_rate)
    rf, df = _windowed(reference, estimate, sample_rate)
    if not len(rf):
        return float("nan")
    scale = 32768.0 if divided else 1.0
    r_bands, d_bands = (_band_energies(x / scale, sample_rate) for x in (rf, df))  # (frames, 25) dB
    r_slopes, d_slopes = np.diff(r_bands), np.diff(d_bands)  # (frames, 24)
    weight = (_slope_weights(r_bands, r_slopes) + _slope_weights(d_bands, d_slopes)) / 2
    return _best_95((weight * (r_slopes - d_slopes) ** 2).sum(1) / weight.sum(1))


def _windowed(reference: ArrayLike, estimate: ArrayLike, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    r, d = as_pair(reference, estimate)
    length = round(0.030 * sample_rate)
    window = hu_loizou_window(length)
    return frames(r + EPS, length, length // 4) * window, frames(d + EPS, length, length // 4) * window


def _autocorrelation(x: np.ndarray, order: int) -> np.ndarray:
    """Lags 0..order of every frame: (frames, length) -> (frames, order + 1)."""
    length = x.shape[1]
    return np.stack([np.einsum("fn,fn->f", x[:, : length - k], x[:, k:]) for k in range(order + 1)], axis=1)


def _band_energies(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """Energies of the critical bands in dB, floored at -100: (frames, length) -> (frames, 25)."""
    n_fft = 1 << (2 * x.shape[1] - 1).bit_length()
    power = np.abs(np.fft.rfft(x, n_fft)[:, : n_fft // 2]) ** 2  # (frames, n_fft / 2)
    return 10 * np.log10(np.maximum(power @ _critical_bands(n_fft, sample_rate).T, 1e-10))


def _critical_bands(n_fft: int, sample_rate: int) -> np.ndarray:
    """Gaussian band filters (25, n_fft / 2), cut off 30 dB down."""
    bins_per_hz = n_fft / sample_rate
    j = np.arange(n_fft // 2)
    centre, width = np.floor(CENTRES * bins_per_hz)[:, None], (WIDTHS * bins_per_hz)[:, None]
    filters = np.exp(-11 * ((j - centre) / width) ** 2) * (WIDTHS[0] / WIDTHS)[:, None]
    return filters * (filters > np.exp(-30 / (2 * 2.303)))


def _slope_weights(energy: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """20 / (20 + max - E) * 1 / (1 + peak - E), with the peak as the scripts find it: (frames, 24).

    From a rising slope they walk up to the first band that does not rise and take the one before it; from a falling
    one down to the last that rises and take the one after.
    """
    bands = slope.shape[1]
    here = np.arange(bands)
    stop = np.minimum.accumulate(np.where(slope <= 0, here, bands)[:, ::-1], axis=1)[:, ::-1]
    start = np.maximum.accumulate(np.where(slope > 0, here, -1), axis=1)
    peak = np.take_along_axis(energy, np.where(slope > 0, stop - 1, start + 1), axis=1)
    low = energy[:, :-1]
    return 20 / (20 + energy.max(1, keepdims=True) - low) * (1 / (1 + peak - low))


def _best_95(distances: np.ndarray) -> float:
    keep = round(0.95 * len(distances))
    return float(np.sort(distances)[:keep].mean()) if keep else float("nan")
