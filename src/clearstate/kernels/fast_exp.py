"""Fast powers of two for inner loops of compiled code, and SiLU and softplus from them, with a relative error of 3e-6.

The recurrence of Mamba needs one power per channel, state and step, which is most of its work. With AVX-512, the
exponent is rounded to sixteenths, whose powers are a lookup table in one register. The rest, |r| <= 1/32, needs only a
square:

    2^r = c (r + s)^2 + c e,   c from the table, s part of the rounding: two multiplications and a square in total

A polynomial over |r| <= 1/2 needs four multiplications. The table makes the recurrence 19 % faster (Zen 4, 1.9 instead
of 2.35 ns per vector). Other machines use the polynomial.
"""

from typing import Any

import numpy as np
from llvmlite import ir

from clearstate.kernels.simd import (
    _INTEGERS,
    _VECTOR,
    LANES,
    LOG2E,
    WHOLE,
    _call,
    _fma,
    _integer,
    _number,
    _polynomial,
    inner_njit,
    intrinsic,
    lanes,
    larger,
    smaller,
    splat,
    wide_registers_of,
)

LARGEST = 5e5  # largest size x rate of `decay`
WITHIN = 120.0  # range of `power`, and limit of `decay`
# 2^r on [-1/2, 1/2] with the constant term held at 1; largest relative error 2.8e-6.
POLYNOMIAL = (0.69312419, 0.24024099, 0.05590643, 0.00958285)
# 2^r = 1 + b r + c r^2 on [-1/32, 1/32] with the smallest error / r, so that slow decays are exact; the last digits are
# chosen so that 2^0 is 1 after rounding.
LINEAR, SQUARE = 0.69317428, 0.2402331768
# log(1 + v) / v on [0, 1] in powers of v, interpolated at Chebyshev nodes; largest relative error 2.5e-7.
LOG1P = (0.999999781, -0.499971745, 0.332719284, -0.244747742, 0.176874767, -0.106850029, 0.0434938998, -0.00837115255)
SIXTEENTHS = 1.5 * 2**19  # as WHOLE, for sixteenths
SHIFT = 23 / 16  # b / 2 c in sixteenths, rounded
REST = float(np.float32(LINEAR / (2 * SQUARE) - SHIFT))  # the rounding error
MORE = float(np.float32(1 / SQUARE - (SHIFT + REST) ** 2))


def by_table(b: Any, size: Any, rate: Any, cut: bool) -> Any:
    """2^(size rate) with AVX-512, see above. (r + s) is exact, so near 2^0 only the square is rounded."""
    x = _fma(b, size, rate, _number(REST))
    shifted = b.fadd(x, _number(SIXTEENTHS))
    r = b.fsub(x, b.fsub(shifted, _number(SIXTEENTHS + SHIFT)))  # with s
    bits = b.bitcast(shifted, _INTEGERS)
    table = np.float32(SQUARE * 2.0 ** (np.arange(LANES) / LANES)).view(np.int32) - (np.arange(LANES) << 19)
    numbers = b.bitcast(ir.Constant(_INTEGERS, table.tolist()), _VECTOR)
    kind = ir.FunctionType(_VECTOR, [_VECTOR, _INTEGERS])
    found = _call(b, "llvm.x86.avx512.permvar.sf.512", kind, numbers, bits)  # by the last four bits
    if cut:
        bits = _not_below(b, bits, SIXTEENTHS, 16)
    c = b.bitcast(b.add(b.bitcast(found, _INTEGERS), b.shl(bits, _integer(19))), _VECTOR)
    return b.fmul(_fma(b, r, r, _number(MORE)), c, flags=("contract",))


def by_polynomial(b: Any, size: Any, rate: Any, cut: bool) -> Any:
    """The same on any machine."""
    x = b.fmul(size, rate, flags=("contract",))
    shifted = b.fadd(x, _number(WHOLE))
    r = b.fsub(x, b.fsub(shifted, _number(WHOLE)))
    bits = b.bitcast(shifted, _INTEGERS)
    if cut:
        bits = _not_below(b, bits, WHOLE, 1)
    p = b.bitcast(_polynomial(b, r, (*reversed(POLYNOMIAL), 1.0)), _INTEGERS)
    return b.bitcast(b.add(p, b.shl(bits, _integer(23))), _VECTOR)


def _not_below(b: Any, bits: Any, zero: float, one: int) -> Any:
    """Limit exponents to -WITHIN as integers; unsigned, so that a NaN is larger than any number."""
    least = _integer(int(np.float32(zero).view(np.int32)) - int(WITHIN) * one)
    return b.select(b.icmp_unsigned("<", bits, least), least, bits)


def _emit(context: Any, b: Any, size: Any, rate: Any, cut: bool) -> Any:
    return (by_table if wide_registers_of(context) else by_polynomial)(b, size, rate, cut)


@intrinsic
def decay(typingctx, size, rate):
    """2^(size rate) for products from -5e5 to 0; below 1e-35, some number below 1e-35."""

    def codegen(context, builder, sig, args):
        size, rate = args
        return _emit(context, builder, size, rate, True)

    return lanes(lanes, lanes), codegen


@intrinsic
def power(typingctx, size, rate):
    """2^(size rate) for products from -120 to 120; undefined beyond."""

    def codegen(context, builder, sig, args):
        size, rate = args
        return _emit(context, builder, size, rate, False)

    return lanes(lanes, lanes), codegen


@intrinsic
def _log1p_part(typingctx, v):
    """log(1 + v) / v for 0 <= v <= 1."""

    def codegen(context, builder, sig, args):
        return _polynomial(builder, args[0], LOG1P[::-1])

    return lanes(lanes), codegen


@inner_njit
def quick_silu(x):
    """x / (1 + exp(-x))."""
    return x / (power(smaller(larger(x, -80.0), 80.0), splat(-LOG2E)) + 1.0)


@inner_njit
def quick_softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    v = power(smaller(larger(x, 0.0 - x), 80.0), splat(-LOG2E))
    return v * _log1p_part(v) + larger(x, 0.0)
