"""Check sample rates that a caller passes."""

from numbers import Real
from typing import Any

import numpy as np

HIGHEST = 2**31 - 1  # Hz; the limit of file headers


def whole_rate(value: Any, what: str = "sample rate") -> int:
    """Convert a sample rate of any numeric type to int.

    NumPy integers overflow in products of rates, and floats cannot be an index, so every rate becomes an int.

    Raises:
        ValueError: unless `value` is a whole number of Hz, at least 1.

    >>> whole_rate(np.uint16(44_100)), whole_rate(48_000.0)
    (44100, 48000)
    """
    number: Any = value
    if (not isinstance(value, (Real, str, bytes)) and np.ndim(value) == 0) or isinstance(value, np.ndarray):
        try:
            number = np.asarray(value).item()  # one number in an array, as in .mat and HDF5 files
        except (TypeError, ValueError, RuntimeError):
            number = None
    rate = float(number) if isinstance(number, Real) and not isinstance(number, bool) else 0.0
    if not (1 <= rate <= HIGHEST and rate == int(rate)):
        raise ValueError(f"{what} {value!r}: expected a whole number of Hz, such as 16000 or 48000")
    return int(rate)
