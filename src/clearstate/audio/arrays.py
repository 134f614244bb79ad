"""Anything like an array as a NumPy array: lists, torch tensors, pandas, buffers.

torch is never imported here: a tensor can only arrive where it has been imported already.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(signal: Any, what: str = "signal") -> NDArray[Any]:
    """Whatever holds numbers as a NumPy array in the machine's byte order; it may share memory with the signal.

    Raises:
        ValueError: for what is not an array of numbers, and for masked samples.
    """
    torch = sys.modules.get("torch")
    try:
        if torch is not None and isinstance(signal, torch.Tensor):
            wide = signal.detach().cpu()
            signal = (wide.float() if wide.dtype == torch.bfloat16 else wide).numpy()
        if np.ma.is_masked(signal):
            raise ValueError("some samples are masked; fill them first, as with signal.filled(0)")
        x = np.asarray(signal)
        if x.dtype == object:
            x = x.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{what} of type {type(signal).__name__}: expected an array of numbers ({reason})") from None
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
