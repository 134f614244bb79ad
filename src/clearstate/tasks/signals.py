"""Accept arrays of any kind and return the same kind: NumPy, torch tensors, lists, pandas, buffers.

This module never imports torch: a caller that passes a tensor has imported it already.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.arrays import as_array

Array = NDArray[Any]

MOST_CHANNELS = 64  # more channels than this and than samples: the axes are swapped
FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}  # integer signals that are accepted


def like(signal: Any, work: Callable[[Array], Array]) -> Any:
    """Apply `work` to the signal as an array. Return a tensor on the same device for a tensor, an array otherwise.

    The result has the sample type of the signal and shares no memory with it.
    """
    x = as_array(signal)
    y = work(x)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(signal, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray(y)).to(signal)
    kind = getattr(signal, "dtype", x.dtype)
    return y.astype(kind, copy=False) if isinstance(kind, np.dtype) and kind.kind == x.dtype.kind else y


def as_floats(signal: Array) -> NDArray[np.floating]:
    """Convert a signal to float32 or float64 with full scale at 1; raise a ValueError if it is invalid."""
    if signal.ndim not in (1, 2, 3) or 0 in signal.shape:
        raise ValueError(
            f"signal of shape {signal.shape}: expected (n,), (channels, n) or (batch, channels, n), none of them 0"
        )
    if signal.ndim > 1 and signal.shape[-2] > max(MOST_CHANNELS, signal.shape[-1]):
        raise ValueError(
            f"signal of shape {signal.shape}: {signal.shape[-2]} channels of {signal.shape[-1]} samples; "
            "channels come first; transpose the array"
        )
    if signal.dtype in FULL_SCALE:
        return signal / FULL_SCALE[signal.dtype]
    if signal.dtype.kind != "f":
        raise ValueError(f"signal of type {signal.dtype}: expected floating point (full scale 1), int16 or int32")
    if not np.isfinite(signal).all():
        where = np.argwhere(~np.isfinite(signal))[0]
        raise ValueError(
            f"signal[{', '.join(map(str, where))}] is {signal[tuple(where)]}: expected numbers; "
            "numpy.nan_to_num(signal, posinf=0, neginf=0) replaces it by silence"
        )
    return signal.astype(np.float64 if signal.dtype.itemsize >= 8 else np.float32, copy=False)


def as_type(x: NDArray[np.floating], dtype: np.dtype[Any]) -> Array:
    """Convert from full scale 1 to `dtype`; integers are rounded to nearest and clipped."""
    if dtype in FULL_SCALE:
        full = FULL_SCALE[dtype]
        return np.clip(np.rint(x * full), -full, full - 1).astype(dtype)
    return x.astype(dtype, copy=False)
