"""Powers of two for inner loops of compiled code, and SiLU and softplus made of them; to 3e-6 of their value.

The recurrence of a Mamba asks for one power a channel, state and step, which is most of its work. On AVX-512 the
exponent is cut to sixteenths, whose powers are one register that an instruction looks numbers up in, so that for the
rest, |r| <= 1/32, a square does:

    2^r = c (r + s)^2 + c e,   c in the register, s within the cut: two multiplications and a square in all

where a polynomial over |r| <= 1/2 takes four. 19 % of the time of the recurrence (Zen 4, 1.9 for 2.35 ns a vector).
Elsewhere it is that polynomial.
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

LARGEST = 5e5  # of what `decay` takes, size x rate
WITHIN = 120.0  # of what `power` takes, and what `decay` cuts at
# 2^r on [-1/2, 1/2] with the constant term held at 1; largest relative error 2.8e-6.
POLYNOMIAL = (0.69312419, 0.24024099, 0.05590643, 0.00958285)
# 2^r = 1 + b r + c r^2 on [-1/32, 1/32], least in error / r, so that what hardly decays does so at its rate; in the
# last digits so that 2^0 is 1 when all is rounded.
LINEAR, SQUARE = 0.69317428, 0.2402331768
# log(1 + v) / v on [0, 1] in powers of v, interpolated at Chebyshev nodes; largest relative error 2.5e-7.
LOG1P = (0.999999781, -0.499971745, 0.332719284, -0.244747742, 0.176874767, -0.106850029, 0.0434938998, -0.00837115255)
SIXTEENTHS = 1.5 * 2**19  # as WHOLE, for sixteenths
SHIFT = 23 / 16  # next to b / 2 c, in sixteenths
REST = float(np.float32(LINEAR / (2 * SQUARE) - SHIFT))  # and what that lacks
MORE = float(np.float32(1 / SQUARE - (SHIFT + REST) ** 2))


def by_table(b: Any, size: Any, rate: Any, cut: bool) -> Any:
    """2^(size rate), with AVX-512; see the module's text. (r + s) is exact, so that near 2^0 only the square rounds."""
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
    """Exponents cut at -WITHIN as integers; unsigned, so that the bits of a NaN are larger than any."""
    least = _integer(int(np.float32(zero).view(np.int32)) - int(WITHIN) * one)
    return b.select(b.icmp_unsigned("<", bits, least), least, bits)


def _emit(context: Any, b: Any, size: Any, rate: Any, cut: bool) -> Any:
    return (by_table if wide_registers_of(context) else by_polynomial)(b, size, rate, cut)


@intrinsic
def decay(typingctx, size, rate):
    """2^(size rate) for products from -5e5 to 0; less than 1e-35 where that is less."""

    def codegen(context, builder, sig, args):
        size, rate = args
        return _emit(context, builder, size, rate, True)

    return lanes(lanes, lanes), codegen


@intrinsic
def power(typingctx, size, rate):
    """2^(size rate) for products from -120 to 120; anything beyond."""

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
    cut = smaller(larger(x, splat(np.float32(-80))), np.float32(80))
    return x / (power(cut, splat(np.float32(-LOG2E))) + np.float32(1))


@inner_njit
def quick_softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    zero = np.float32(0)
    v = power(smaller(larger(x, zero - x), np.float32(80)), splat(np.float32(-LOG2E)))
    return v * _log1p_part(v) + larger(x, splat(zero))
