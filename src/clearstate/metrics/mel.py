"""The mel spectrogram of the learned metrics in NumPy, equal to that of librosa, with which they were trained."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def mel_spectrogram(
    x: np.ndarray,
    sample_rate: int,
    *,
    n_fft: int,
    hop: int,
    window: int | None = None,
    mels: int,
    highest: float | None = None,
    power: float = 2.0,
    padding: str = "constant",
) -> np.ndarray:
    """Hann STFT, centred, to Slaney mel bands: (samples,) -> (frames, mels).

    Args:
        window: samples of the Hann window, centred in n_fft; n_fft where None.
        highest: Hz, upper end of the last band; half the rate where None.
        power: of the magnitudes.
        padding: of the half frames at both ends, as `np.pad` calls it.
    """
    window = window or n_fft
    taper = np.zeros(n_fft)
    start = (n_fft - window) // 2
    taper[start : start + window] = 0.5 * (1 - np.cos(2 * np.pi * np.arange(window) / window))
    x = np.pad(x, n_fft // 2, mode=padding)  # type: ignore[call-overload]  # the mode is the caller's
    frames = np.lib.stride_tricks.sliding_window_view(x, n_fft)[::hop]  # (frames, n_fft)
    spec = np.abs(np.fft.rfft(frames * taper)) ** power  # (frames, n_fft / 2 + 1)
    return spec @ mel_filters(sample_rate, n_fft, mels, highest or sample_rate / 2).T


@lru_cache
def mel_filters(sample_rate: int, n_fft: int, mels: int, highest: float) -> np.ndarray:
    """Triangular filters of unit area (mels, n_fft / 2 + 1), on Slaney's scale: linear to 1 kHz, then logarithmic."""
    edges = _to_hz(np.linspace(0, _to_mel(highest), mels + 2))  # Hz
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft  # Hz
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (edges[2:] - edges[:-2]))[:, None]


_LINEAR_STEP = 200 / 3  # Hz a mel below 1 kHz
_KNEE = 1000 / _LINEAR_STEP  # mel at 1 kHz
_LOG_STEP = np.log(6.4) / 27  # a mel above


def _to_mel(hz: float) -> float:
    return hz / _LINEAR_STEP if hz < 1000 else _KNEE + np.log(hz / 1000) / _LOG_STEP


def _to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _KNEE, mel * _LINEAR_STEP, 1000 * np.exp(_LOG_STEP * (mel - _KNEE)))


def to_db(power: np.ndarray, *, floor: float, below_top: float = 80.0) -> np.ndarray:
    """10 log10(power), floored at `floor` and at `below_top` dB under the loudest value."""
    level = 10 * np.log10(np.maximum(power, floor))
    return np.maximum(level, level.max() - below_top)
