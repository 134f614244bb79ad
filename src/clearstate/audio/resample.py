"""Resample in chunks, with a latency that is known before the start.

The filter is a windowed-sinc low-pass, evaluated at the output instants (Smith and Gossett 1984, "A flexible
sampling-rate conversion method"). For a ratio up/down in lowest terms, output m is at input instant m down/up. There
are only `up` different distances between an output instant and the input grid, so the filter is a table of `up` rows.

    y[m] = sum_j  h[phase(m), j]  x[first(m) + j]

The filter is symmetric about the output instant, so it does not shift the signal in time. An output only waits for the
`lookahead` input samples to its right. The terms of each output are summed in a fixed order, so the result does not
depend on the chunks, to the last bit.

Why not soxr: its stream mode is also exact and independent of the chunks, but its HQ setting has a latency of 36 to
58 ms (measured with chunks of 10 ms, 16 <-> 44.1 and 48 kHz), twice per round trip. Here it is 3 ms. In return, the
transition band is wider: the top tenth of the lower rate's band.
"""

from collections.abc import Callable
from functools import lru_cache
from math import ceil, gcd
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.rates import whole_rate
from clearstate.installed import can_compile

Floats = NDArray[np.floating]

ZEROS = 48  # zero crossings of the sinc on each side: 3 ms at 16 kHz
STOP_BAND_DB = 80.0  # attenuation beyond the Nyquist frequency of the lower rate
AT_ONCE = 4096  # outputs of `polyphase`, to bound its memory
SMALL_TABLE = 1_000_000  # entries (4 MB); all usual rates have less
DESIGNED = 1 << 18  # entries of a table computed at once: 2 MB
MAX_TABLE = 32_000_000  # entries (128 MB); only two large coprime rates come near it


class Resampler:
    """Resample one signal of several channels, chunk by chunk.

    Args:
        rate_in, rate_out: Hz, whole numbers of any numeric type.
        channels: rows of every chunk.
        fold: centre the transition band on the lower rate's Nyquist frequency instead of placing it below. Frequencies
            just above it then alias, and the top of the band is not empty.

    Attributes:
        lookahead: input samples after an output's instant that the output needs.

    >>> resampler = Resampler(48_000, 16_000, channels=1)
    >>> pieces = [resampler.push(chunk) for chunk in np.split(np.ones((1, 480), dtype=np.float32), 3, axis=1)]
    >>> np.concatenate([*pieces, resampler.flush()], axis=1).shape
    (1, 160)
    """

    def __init__(self, rate_in: int, rate_out: int, channels: int, fold: bool = False) -> None:
        rate_in, rate_out = whole_rate(rate_in), whole_rate(rate_out)
        common = gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self.channels = channels
        self.table = filter_table(self.up, self.down, fold)  # (up, taps)
        self.lookahead = self.table.shape[1] // 2
        self.reset()

    def reset(self) -> None:
        """Forget the signal so far."""
        self.received = 0  # input samples
        self.produced = 0  # output samples
        self._held = np.zeros((self.channels, self.lookahead - 1), dtype=np.float32)
        self._held_from = 1 - self.lookahead  # input index of the first buffered sample; zeros before the start

    def push(self, x: Floats) -> NDArray[np.float32]:
        """Process the next samples: x (channels, n) to the outputs that they complete (channels, m), float32."""
        self.received += x.shape[1]
        return self._run(x, self.available(self.received))

    def flush(self) -> NDArray[np.float32]:
        """Return the remaining output, as if silence followed: ceil(n up / down) samples in total for n of input."""
        silence = np.zeros((self.channels, self.lookahead), dtype=np.float32)
        return self._run(silence, -(-self.received * self.up // self.down))

    def available(self, received: int) -> int:
        """Number of outputs that `received` input samples complete."""
        last = received - 1 - self.lookahead  # output m needs floor(m down / up) <= last
        return max(0, -(-(last + 1) * self.up // self.down))

    def _run(self, x: Floats, until: int) -> NDArray[np.float32]:
        held = np.concatenate([self._held, x.astype(np.float32, copy=False)], axis=1)
        y = np.empty((self.channels, max(0, until - self.produced)), dtype=np.float32)
        fastest()(held, self.table, self.produced * self.down, self.up, self.down, self._held_from, y)
        self.produced += y.shape[1]
        oldest = (
            self.produced * self.down // self.up - self.lookahead + 1
        )  # the first sample that the next output needs
        self._held = held[:, oldest - self._held_from :].copy()
        self._held_from = oldest
        return y


def resample(x: Floats, rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """Resample a whole signal: (channels, n) to (channels, ceil(n rate_out / rate_in)), aligned in time."""
    if whole_rate(rate_in) == whole_rate(rate_out):
        return x.astype(np.float32)
    resampler = Resampler(rate_in, rate_out, len(x))
    return np.concatenate([resampler.push(x), resampler.flush()], axis=1)


def half_width(up: int, down: int) -> int:
    """Half the filter length in input samples."""
    return ceil(ZEROS * max(1.0, down / up))


def table_bytes(rate_in: int, rate_out: int) -> int:
    """Memory of the filter for these rates."""
    common = gcd(rate_in, rate_out)
    up, down = rate_out // common, rate_in // common
    return up * 2 * half_width(up, down) * np.dtype(np.float32).itemsize


def filter_table(up: int, down: int, fold: bool = False) -> NDArray[np.float32]:
    """`design`, with one copy for all who use it. Small ones stay for the next signal; large ones do not."""
    if up * 2 * half_width(up, down) <= SMALL_TABLE:
        return _small_table(up, down, fold)
    table = _large_tables.get((up, down, fold))
    if table is None:
        table = _large_tables[up, down, fold] = design(up, down, fold)
    return table


_large_tables: "WeakValueDictionary[tuple[int, int, bool], NDArray[np.float32]]" = WeakValueDictionary()


@lru_cache(maxsize=8)
def _small_table(up: int, down: int, fold: bool) -> NDArray[np.float32]:
    return design(up, down, fold)


def design(up: int, down: int, fold: bool) -> NDArray[np.float32]:
    """The low-pass at the `up` distances between output instants and the input grid: (up, 2 half_width).

    Kaiser window for STOP_BAND_DB; the transition band ends at the Nyquist frequency of the lower rate, so nothing
    folds back (with `fold` it is centred there). Every row sums to one: a constant passes exactly, whatever the phase.
    """
    half = half_width(up, down)
    if up * 2 * half > MAX_TABLE:
        raise ValueError(
            f"cannot convert by the ratio {up}/{down}: the filter would need {up} phases; "
            "use a sample rate that shares a larger divisor with the other one (such as 44100 or 48000)"
        )
    lower = min(1.0, up / down)  # the lower rate, in units of the input rate
    beta = 0.1102 * (STOP_BAND_DB - 8.7)
    transition = (STOP_BAND_DB - 7.95) / 14.36 / (2 * ZEROS)  # Kaiser's length formula, in units of the lower rate
    cutoff = lower * (1 if fold else 1 - transition)  # twice the -6 dB frequency, in units of the input rate
    # The Bessel function is slow, and odd ratios have millions of entries: the window is read off a fine curve.
    curve = np.linspace(0, 1, 2**15)
    kaiser = np.i0(beta * np.sqrt(1 - curve**2))
    table = np.empty((up, 2 * half), dtype=np.float32)
    for rows in np.array_split(np.arange(up), ceil(table.size / DESIGNED)):
        offset = np.arange(1 - half, half + 1) - rows[:, None] / up  # (rows, taps): grid minus output instant
        window = np.interp(np.abs(offset) / half, curve, kaiser) * (np.abs(offset) < half)  # symmetric: neither end
        values = window * np.sinc(cutoff * offset)
        table[rows] = values / values.sum(axis=1, keepdims=True)
    return table


def polyphase(
    x: Floats, table: NDArray[np.float32], start: int, up: int, down: int, x_from: int, y: NDArray[np.float32]
) -> None:
    """y[c, m] = sum_j table[phase, j] x[c, first + j] for outputs at instants (start + m down) / up.

    `kernels/polyphase.py` has the same loop compiled.

    Args:
        x: (c, n), begins at input index x_from.   table: (up, taps).   y: (c, m), is filled.
    """
    taps = table.shape[1]
    for begin in range(0, y.shape[1], AT_ONCE):
        instants = start + down * np.arange(begin, min(begin + AT_ONCE, y.shape[1]))
        first = instants // up - taps // 2 + 1 - x_from
        near = np.lib.stride_tricks.sliding_window_view(x, taps, axis=1)[:, first]  # (c, m, taps)
        np.einsum("cmt,mt->cm", near, table[instants % up], out=y[:, begin : begin + AT_ONCE])


@lru_cache(maxsize=1)
def fastest() -> Callable[..., None]:
    """The compiled form of `polyphase` where Numba is installed, else `polyphase` itself."""
    if not can_compile():
        return polyphase
    from clearstate.kernels.polyphase import polyphase as compiled

    return compiled
