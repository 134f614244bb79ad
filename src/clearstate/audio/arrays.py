"""Convert array-like objects to NumPy arrays: lists, torch tensors, pandas, buffers.

This module never imports torch: a caller that passes a tensor has imported it already.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(signal: Any, what: str = "signal") -> NDArray[Any]:
    """Convert any array of numbers to NumPy in native byte order; the result may share memory with `signal`.

    Raises:
        ValueError: for anything but an array of numbers, and for masked samples.
    """
    torch = sys.modules.get("torch")
    try:
        if torch is not None and isinstance(signal, torch.Tensor):
            wide = signal.detach().cpu()
            signal = (wide.float() if wide.dtype == torch.bfloat16 else wide).numpy()
        if type(signal) is not np.ndarray and np.ma.is_masked(signal):
            raise ValueError("some samples are masked; fill them first, for example with signal.filled(0)")
        x = np.asarray(signal)
        if x.dtype == object:
            x = x.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{what} of type {type(signal).__name__}: expected an array of numbers ({reason})") from None
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
