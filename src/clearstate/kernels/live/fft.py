"""The transform of one frame, for compiled code that handles a frame at a time: samples to spectrum and back.

A real transform of n samples is a complex one of n / 2 (even samples are real parts, odd ones imaginary), and that is
two products with small matrices: with p = n / 32 rows of 16 columns, k = k1 + p k2 and m = 16 m1 + m2,

    Z[k1 + p k2] = sum_m2 w(16)^(m2 k2)  w(16 p)^(k1 m2)  sum_m1 w(p)^(m1 k1) z[16 m1 + m2]

with w(q) = exp(-2 pi i / q) (Cooley and Tukey 1965). `torch.fft` is the slow twin. Tape and blocks are those of
`layers.py`.
"""

import numpy as np

from clearstate.kernels.live.layers import Block, accumulate, clear, place
from clearstate.kernels.simd import apart, inner_njit, load, rounded, store

COLUMNS = 16  # of the matrix that holds the samples


def fits(n_fft: int) -> bool:
    return n_fft % (2 * COLUMNS) == 0


def transform_tape(window):
    """Constants of `spectrum` and `samples`: rows, twiddles, columns, and what tells a real signal's halves apart."""
    n, rows = len(window), len(window) // (2 * COLUMNS)

    def turns(count, of):
        return np.exp(-2j * np.pi * count / of)

    by_row = turns(np.outer(np.arange(rows), np.arange(rows)), rows)
    between = turns(np.outer(np.arange(rows), np.arange(COLUMNS)), rows * COLUMNS)
    by_column = turns(np.outer(np.arange(COLUMNS), np.arange(COLUMNS)), COLUMNS)
    halves = turns(np.arange(n // 2 + 1), n)
    return [
        window,
        np.block([[by_row.real, -by_row.imag], [by_row.imag, by_row.real]]),
        between.real, between.imag,
        np.block([[by_column.real, by_column.imag], [-by_column.imag, by_column.real]]),
        halves.real, halves.imag,
    ]  # fmt: skip


@inner_njit
def after_transform(n):
    """The position on the tape after `transform_tape`."""
    rows = n // (2 * COLUMNS)
    return rounded(n) + rounded(4 * rows * rows) + 2 * rows * COLUMNS + 4 * COLUMNS * COLUMNS + 2 * rounded(n // 2 + 1)


@inner_njit
def _transform(tape, memory, free, z, n):
    """Complex transform in place: z (2 p, 16), real parts above imaginary ones, in the order of time; then of k."""
    apart()
    rows = n // (2 * COLUMNS)
    at = rounded(n)
    first, free = place(memory, free, 2 * rows, COLUMNS)
    clear(memory, first)
    accumulate(tape, Block(at, 2 * rows, 2 * rows, 2 * rows), memory, z, memory, first)
    at += rounded(4 * rows * rows)
    side, free = place(memory, free, rows, 2 * COLUMNS)
    for k in range(rows):
        re = load(memory, first.at + k * COLUMNS)
        im = load(memory, first.at + (rows + k) * COLUMNS)
        cos, sin = load(tape, at + k * COLUMNS), load(tape, at + (rows + k) * COLUMNS)
        store(memory, side.at + k * side.step, re * cos - im * sin)
        store(memory, side.at + k * side.step + COLUMNS, re * sin + im * cos)
    at += 2 * rows * COLUMNS
    last, free = place(memory, free, rows, 2 * COLUMNS)
    clear(memory, last)
    accumulate(memory, side, tape, Block(at, 2 * COLUMNS, 2 * COLUMNS, 2 * COLUMNS), memory, last)
    for column in range(COLUMNS):
        for k in range(rows):
            memory[z.at + column * rows + k] = memory[last.at + k * last.step + column]
            memory[z.at + (column + COLUMNS) * rows + k] = memory[last.at + k * last.step + column + COLUMNS]


@inner_njit
def spectrum(tape, memory, free, frame, n, re, im):
    """Windowed spectrum of the n samples at `frame`: n / 2 + 1 real and imaginary parts at `re` and `im`."""
    apart()
    half = n // 2
    z, free = place(memory, free, 2 * (half // COLUMNS), COLUMNS)
    for k in range(half):
        memory[z.at + k] = memory[frame + 2 * k] * tape[2 * k]
        memory[z.at + half + k] = memory[frame + 2 * k + 1] * tape[2 * k + 1]
    _transform(tape, memory, free, z, n)
    cos, sin = after_transform(n) - 2 * rounded(half + 1), after_transform(n) - rounded(half + 1)
    for k in range(half + 1):
        here, there = z.at + k % half, z.at + (half - k) % half
        a, b, c, d = memory[here], memory[here + half], memory[there], memory[there + half]
        odd_re, odd_im = b + d, c - a  # (Z - conj Z') / i, twice
        memory[re + k] = np.float32(0.5) * (a + c + odd_re * tape[cos + k] - odd_im * tape[sin + k])
        memory[im + k] = np.float32(0.5) * (b - d + odd_re * tape[sin + k] + odd_im * tape[cos + k])


@inner_njit
def samples(tape, memory, free, re, im, n, frame):
    """The inverse of `spectrum`, windowed again; the imaginary parts of the first and last bin are not heard."""
    apart()
    half = n // 2
    z, free = place(memory, free, 2 * (half // COLUMNS), COLUMNS)
    cos, sin = after_transform(n) - 2 * rounded(half + 1), after_transform(n) - rounded(half + 1)
    memory[im], memory[im + half] = np.float32(0), np.float32(0)
    share = np.float32(0.5) / np.float32(half)
    for k in range(half):
        a, b, c, d = memory[re + k], memory[im + k], memory[re + half - k], memory[im + half - k]
        odd_re = (a - c) * tape[cos + k] + (b + d) * tape[sin + k]
        odd_im = (b + d) * tape[cos + k] - (a - c) * tape[sin + k]
        memory[z.at + k] = share * (a + c - odd_im)
        memory[z.at + half + k] = -share * (b - d + odd_re)  # conjugate: the transform forwards is then the inverse
    _transform(tape, memory, free, z, n)
    for k in range(half):
        memory[frame + 2 * k] = memory[z.at + k] * tape[2 * k]
        memory[frame + 2 * k + 1] = -memory[z.at + half + k] * tape[2 * k + 1]
