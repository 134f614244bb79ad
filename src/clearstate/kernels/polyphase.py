"""The inner loop of `audio/resample.py`, compiled."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.kernels.cache import njit


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def polyphase(
    x: NDArray[Any], table: NDArray[Any], start: int, up: int, down: int, x_from: int, y: NDArray[Any]
) -> None:  # pragma: no cover - compiled
    """`clearstate.audio.resample.polyphase`. reassoc lets the sum run in vector lanes: the order is
    fixed by the number of taps, so it is the same in every call. The slice tells the compiler that no index is
    negative, without which it does not use the lanes (measured: 2 against 15 multiplications a nanosecond).
    """
    taps = table.shape[1]
    step, turn = down // up, down % up
    for c in range(x.shape[0]):
        first = start // up - taps // 2 + 1 - x_from
        phase = start % up
        for m in range(y.shape[1]):
            row, near = table[phase], x[c, first : first + taps]
            total = np.float32(0.0)
            for j in range(taps):
                total += row[j] * near[j]
            y[c, m] = total
            first += step
            phase += turn
            if phase >= up:
                phase -= up
                first += 1
