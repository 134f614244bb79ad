"""Level of a signal: decibels as a gain, mean power, RMS, power frame by frame, level of speech without its pauses."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def db_to_gain(db: float) -> float:
    """The factor on amplitudes of a gain in dB.

    >>> db_to_gain(-20)
    0.1
    """
    return float(10.0 ** (db / 20))


def mean_power(x: Floats) -> float:
    """Mean square of one signal (n,).

    >>> mean_power(np.array([3.0, 4.0]))
    12.5
    """
    return float(np.dot(x, x)) / len(x)


def rms(x: Floats) -> Floats:
    """Root mean square over time, (..., n) to (..., 1), for signals of any level.

    The peak is divided out first, because the squares of very quiet samples underflow in float32.
    """
    peak = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-30)
    return np.sqrt(np.square(x / peak).mean(-1, keepdims=True)) * peak


def frame_power(x: Floats, rate: int) -> Floats:
    """Mean power of each whole 20 ms frame of a signal (n,); a shorter signal is one frame."""
    size = min(rate // 50, max(1, len(x)))
    frames = x[: len(x) // size * size].reshape(-1, size)
    return np.einsum("tn,tn->t", frames, frames) / size


def active_level(x: Floats, rate: int, gate_db: float = 30.0) -> float:
    """RMS in dBFS over the 20 ms frames within `gate_db` of the loudest; -inf for digital silence.

    This is the level of speech without its pauses. It follows the idea of ITU-T P.56, with a fixed gate, which is fast.
    """
    power = frame_power(x, rate)
    loudest = float(power.max(initial=0.0))
    if loudest <= 0.0:
        return -np.inf
    return 10 * float(np.log10(power[power >= loudest * 10 ** (-gate_db / 10)].mean()))
