"""Estimate the median pitch of a voice, accurately enough to find similar voices."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import signal

LOWEST, HIGHEST = 70.0, 400.0  # Hz, of voices
RATE = 4_000  # Hz, that is looked at: a lag is some half of a semitone
FRAME = 256  # samples, 64 ms: four periods of the lowest
OCTAVE = 0.8  # of the highest peak: the first that reaches it counts, for two periods correlate as one does
VOICED = 0.5  # the least correlation with the period before, of a frame that is counted


def median_pitch(x: np.ndarray, rate: int) -> float | None:
    """The median over voiced frames of a voice (n,) at `rate` Hz, in Hz; None where hardly any frame is.

    Autocorrelation of a windowed frame over that of the window (P. Boersma 1993), at lags of whole samples.
    """
    x = signal.resample_poly(x, RATE // 100, rate // 100)
    if len(x) < FRAME:
        return None
    window, own = _window()
    frames = np.lib.stride_tricks.sliding_window_view(x, FRAME)[::FRAME] * window
    power = np.square(frames).sum(axis=1)
    frames = frames[power > 0.05 * power.max()]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * FRAME)) ** 2)
    shortest, longest = int(RATE / HIGHEST), int(RATE / LOWEST)
    correlation = correlation[:, shortest - 1 : longest + 1] / correlation[:, :1] / own[shortest - 1 : longest + 1]
    middle = correlation[:, 1:-1]
    peak = (middle >= correlation[:, :-2]) & (middle >= correlation[:, 2:])
    most = np.where(peak, middle, 0.0).max(axis=1)
    lag = shortest + (peak & (middle >= OCTAVE * most[:, None])).argmax(axis=1)
    voiced = lag[most > VOICED]
    return RATE / float(np.median(voiced)) if len(voiced) > 3 else None


@lru_cache(maxsize=1)
def _window() -> tuple[np.ndarray, np.ndarray]:
    window = np.hanning(FRAME)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * FRAME)) ** 2)
    return window, own / own[0]
