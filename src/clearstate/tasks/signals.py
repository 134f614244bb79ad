"""Arrays of any kind in, the same kind out: NumPy, torch tensors, lists, pandas, buffers.

torch is never imported here: a tensor can only arrive where it has been imported already.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.arrays import as_array

Array = NDArray[Any]

MOST_CHANNELS = 64  # more, and more than samples: somebody has put the samples first
FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}  # integer signals that are accepted


def like(signal: Any, work: Callable[[Array], Array]) -> Any:
    """`work` done on the signal as an array; a tensor gets a tensor of its type and device, anything else an array.

    The type of the samples is the signal's, and no memory is shared with it.
    """
    x = as_array(signal)
    y = work(x)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(signal, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray(y)).to(signal)
    kind = getattr(signal, "dtype", x.dtype)
    return y.astype(kind, copy=False) if isinstance(kind, np.dtype) and kind.kind == x.dtype.kind else y


def as_floats(signal: Array) -> NDArray[np.floating]:
    """float32 or float64 with full scale at 1, or an error that says what is wrong with the signal."""
    if signal.ndim not in (1, 2, 3) or 0 in signal.shape:
        raise ValueError(
            f"signal of shape {signal.shape}: expected (n,), (channels, n) or (batch, channels, n), none of them 0"
        )
    if signal.ndim > 1 and signal.shape[-2] > max(MOST_CHANNELS, signal.shape[-1]):
        raise ValueError(
            f"signal of shape {signal.shape}: {signal.shape[-2]} channels of {signal.shape[-1]} samples; "
            "channels come first: transpose it"
        )
    if signal.dtype in FULL_SCALE:
        return signal / FULL_SCALE[signal.dtype]
    if signal.dtype.kind != "f":
        raise ValueError(f"signal of type {signal.dtype}: expected floating point (full scale 1), int16 or int32")
    if not np.isfinite(signal).all():
        where = np.argwhere(~np.isfinite(signal))[0]
        raise ValueError(
            f"signal[{', '.join(map(str, where))}] is {signal[tuple(where)]}: expected numbers; "
            "numpy.nan_to_num(signal, posinf=0, neginf=0) would make it silence"
        )
    return signal.astype(np.float64 if signal.dtype.itemsize >= 8 else np.float32, copy=False)


def as_type(x: NDArray[np.floating], dtype: np.dtype[Any]) -> Array:
    """Back from full scale 1; integers round to nearest and clip."""
    if dtype in FULL_SCALE:
        full = FULL_SCALE[dtype]
        return np.clip(np.rint(x * full), -full, full - 1).astype(dtype)
    return x.astype(dtype, copy=False)
