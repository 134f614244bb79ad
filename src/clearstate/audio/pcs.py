"""Perceptual contrast stretching: bins that matter for understanding speech are made louder, the louder the more.

Chao et al. 2022 (arXiv:2203.17152). For bin k of a spectrum X, with I the importance of its critical band,

    log(1 + |Y[k]|) = g[k] log(1 + |X[k]|),   g = 1 + 0.4 min(I / 0.057, 1),   phase kept

It raises PESQ and lowers what measures the background; it works after any enhancement, or as the target of training.
Being logarithmic in 1 + |X| it depends on the level: quiet bins keep theirs, loud ones gain.

b batch, n samples, t frames, f bins.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Makeup = Literal["rms", "peak", "none"]

IMPORTANCE = (0.0, 0.010, 0.026, 0.041, 0.057, 0.046, 0.034, 0.023, 0.011)  # of the bands, low to high
FIRST_BINS = {  # at 16 kHz, for each n_fft: where each of these bands begins
    400: (0, 3, 5, 8, 10, 110, 130, 160, 190),
    512: (0, 3, 6, 9, 12, 138, 166, 200, 241),
}
REFERENCE_RMS = 10 ** (-26 / 20)  # of full scale: the level at which speech is stretched if its own is to be kept


def gains(n_fft: int = 400) -> Tensor:
    """The exponent of each bin at 16 kHz, (f,) float64.

    Raises:
        ValueError: for an n_fft without published bands.

    >>> gains(400)[[0, 4, 60, 200]]
    tensor([1.0000, 1.0702, 1.4000, 1.0772], dtype=torch.float64)
    """
    if n_fft not in FIRST_BINS:
        raise ValueError(f"no bands are published for n_fft={n_fft}: take {' or '.join(map(str, FIRST_BINS))}")
    first = FIRST_BINS[n_fft]
    g = torch.ones(n_fft // 2 + 1, dtype=torch.float64)
    last = n_fft // 2 + (n_fft == 400)  # the published 512-point table leaves the highest bin alone
    for begin, end, importance in zip(first, (*first[1:], last), IMPORTANCE, strict=True):
        g[begin:end] = 1 + 0.4 * min(importance / 0.057, 1.0)
    return g


def stretch_contrast(x: Tensor, makeup: Makeup = "rms", n_fft: int = 400) -> Tensor:
    """Stretch the contrast of signals at 16 kHz, (..., n) to the same; frames of n_fft samples every quarter.

    Args:
        x: full scale 1.
        makeup: what happens to the level. "rms": each signal is stretched at -26 dB RMS and comes out at the RMS it
            had, so the result scales with the input. "peak": as published, stretched as it is and then divided by its
            peak, which is then 1. "none": stretched as it is.
    Raises:
        ValueError: for an n_fft without published bands, or an unknown makeup.
    """
    if makeup not in ("rms", "peak", "none"):
        raise ValueError(f"makeup {makeup!r}: expected 'rms', 'peak' or 'none'")
    g = gains(n_fft).to(x)
    flat = x.reshape(-1, x.shape[-1])  # (b, n)
    level = _rms(flat)
    if makeup == "rms":
        flat = torch.where(level > 0, flat * (REFERENCE_RMS / level.clamp_min(1e-30)), flat)
    y = _stretch(flat, g, n_fft)
    if makeup == "rms":
        y = y * (level / _rms(y).clamp_min(1e-30))
    elif makeup == "peak":
        peak = y.abs().amax(-1, keepdim=True)
        y = torch.where(peak > 0, y / peak.clamp_min(1e-30), y)
    return y.reshape(x.shape)


def _stretch(x: Tensor, g: Tensor, n_fft: int) -> Tensor:
    samples, hop = x.shape[-1], n_fft // 4
    window = torch.hamming_window(n_fft, periodic=False, dtype=x.dtype, device=x.device)
    padded = F.pad(x, (0, n_fft // 2))
    spec = torch.stft(padded, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    magnitude = spec.abs()
    # (1 + |X|)^g - 1 over |X|; where |X| is 0 the ratio's limit is g, and 0 times it is 0.
    ratio = torch.expm1(g[:, None] * torch.log1p(magnitude)) / magnitude.clamp_min(1e-20)
    return torch.istft(spec * ratio, n_fft, hop, window=window, length=samples)


def _rms(x: Tensor) -> Tensor:
    peak = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)  # squares of what is very quiet would underflow
    return (x / peak).square().mean(-1, keepdim=True).sqrt() * peak
