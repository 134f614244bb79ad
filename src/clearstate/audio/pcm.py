"""Raw samples: bytes of interleaved, little-endian numbers to arrays and back."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

SampleType = Literal["<i2", "<f4"]  # 16-bit integers, or 32-bit floats with full scale 1


def decode(data: bytes | memoryview, channels: int, kind: SampleType = "<i2") -> NDArray[np.float32]:
    """Convert bytes to float32 samples (channels, n) with full scale 1.

    >>> decode(bytes([0, 64, 0, 192]), channels=2)
    array([[ 0.5],
           [-0.5]], dtype=float32)
    """
    flat = np.frombuffer(data, kind).astype(np.float32)
    if kind == "<i2":
        flat /= 32768
    return np.ascontiguousarray(flat.reshape(-1, channels).T)  # (channels, n)


def encode(samples: NDArray[np.float32], kind: SampleType = "<i2") -> bytes:
    """Convert float samples (channels, n) to bytes; integers are rounded and clipped.

    >>> list(encode(np.array([[0.5], [-0.5]], np.float32)))
    [0, 64, 0, 192]
    """
    flat = np.asarray(samples, np.float32).T  # (n, channels)
    if kind == "<i2":
        flat = np.clip(np.rint(flat * 32768), -32768, 32767)
    return flat.astype(kind, order="C").tobytes()
