"""One check for every sample rate that a caller gives."""

from numbers import Real
from typing import Any

import numpy as np

HIGHEST = 2**31 - 1  # Hz: what file headers hold


def whole_rate(value: Any, what: str = "sample rate") -> int:
    """A sample rate of any numeric type as an int.

    NumPy integers overflow in products of rates, and floats are no index, so no rate is used as it was given.

    Raises:
        ValueError: for anything but a whole number of Hz, at least 1.

    >>> whole_rate(np.uint16(44_100)), whole_rate(48_000.0)
    (44100, 48000)
    """
    number: Any = value
    if (not isinstance(value, (Real, str, bytes)) and np.ndim(value) == 0) or isinstance(value, np.ndarray):
        try:
            number = np.asarray(value).item()  # one number in an array, as .mat and HDF5 files give it
        except (TypeError, ValueError, RuntimeError):
            number = None
    rate = float(number) if isinstance(number, Real) and not isinstance(number, bool) else 0.0
    if not (1 <= rate <= HIGHEST and rate == int(rate)):
        raise ValueError(f"{what} {value!r}: expected a whole number of Hz, such as 16000 or 48000")
    return int(rate)
