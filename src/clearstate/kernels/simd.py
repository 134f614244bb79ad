"""A vector of sixteen float32 numbers as a value of compiled code: `a * b + c`, `exp(a)`, `load`, `store`.

LLVM vectorises a plain loop only if it can prove that no two arrays overlap, and keeps sums in memory where registers
would do. With this type a kernel says itself what a register holds, in Python and not in LLVM's language. LLVM maps a
vector to what the machine has: one AVX-512 register, two of AVX2, four of NEON.

Arrays are flat, C-contiguous float32; positions count numbers, and nothing is checked. A NaN stays a NaN.
"""

import operator
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from clearstate.kernels.cache import njit
from clearstate.kernels.scan_loops import EXP2, LOG2E

LANES = 16
FAST = {"contract", "nsz", "arcp"}  # a * b + c is one instruction; sums stay in the order in which they are written
# For what compiled code calls. Python may not call it: without the wrappers for that it compiles a sixth faster.
inner_njit: Any = njit(fastmath=FAST, no_cpython_wrapper=True, no_cfunc_wrapper=True)
intrinsic: Any = numba.extending.intrinsic  # whose first parameter, the typing context, callers do not pass

_SCALAR, _INTEGER = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTEGERS = ir.VectorType(_SCALAR, LANES), ir.VectorType(_INTEGER, LANES)


def rounded_up(count: int) -> int:
    """The next multiple of a vector's length."""
    return (count + LANES - 1) // LANES * LANES


rounded = inner_njit(rounded_up)  # for compiled code


class Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR)


# -- building blocks: functions of llvmlite's builder ----------------------------------------------------------------


def _splat(b, value):
    one = b.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_INTEGER, 0))
    return b.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_INTEGERS, [0] * LANES))


def _number(value):
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


def _integer(value):
    return ir.Constant(_INTEGERS, [value] * LANES)


def _call(b, name, kind, *args, **options):
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, args, **options)


def _unary(b, name, value):
    return _call(b, f"llvm.{name}.v{LANES}f32", ir.FunctionType(_VECTOR, [_VECTOR]), value)


def _fma(b, x, y, z):
    return b.fadd(b.fmul(x, y, flags=("contract",)), z, flags=("contract",))


def _polynomial(b, x, coefficients):
    """Highest power first."""
    total = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        total = _fma(b, total, x, _number(coefficient))
    return total


def _at(context, b, kind, array, position, pointed):
    return b.bitcast(b.gep(context.make_array(kind)(context, b, array).data, [position]), pointed.as_pointer())


def _two_to(b, whole, fraction):
    """2**(whole + fraction): |fraction| <= 1/2, and a whole number that a normal float32 has as its exponent."""
    p = _polynomial(b, fraction, (*reversed(EXP2), 1.0))
    exponent = b.shl(b.fptosi(whole, _INTEGERS), _integer(23))
    return b.bitcast(b.add(b.bitcast(p, _INTEGERS), exponent), _VECTOR)


def _within(b, x, low, high):
    """x cut to [low, high]; comparisons are ordered, so a NaN passes through."""
    x = b.select(b.fcmp_ordered("<", x, _number(low)), _number(low), x)
    return b.select(b.fcmp_ordered(">", x, _number(high)), _number(high), x)


def _exp2(b, x):
    x = _within(b, x, -126.0, 127.0)
    whole = _unary(b, "nearbyint", x)
    return _two_to(b, whole, b.fsub(x, whole))


# -- arithmetic between vectors, and between a vector and a number ---------------------------------------------------


def _define(symbol, method) -> None:
    pairs = [(lanes, lanes), (lanes, types.float32), (types.float32, lanes)]

    @infer_global(symbol)
    class _Typing(ConcreteTemplate):
        cases = tuple(signature(lanes, *pair) for pair in pairs)

    def lower(context, builder, sig, args):
        x, y = (value if kind is lanes else _splat(builder, value) for kind, value in zip(sig.args, args, strict=True))
        return getattr(builder, method)(x, y)

    for pair in pairs:
        lower_builtin(symbol, *pair)(lower)


for _symbol, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_symbol, _method)


@intrinsic
def load(typingctx, array, position):
    """array[position : position + 16]"""

    def codegen(context, builder, sig, args):
        return builder.load(_at(context, builder, sig.args[0], args[0], args[1], _VECTOR), align=4)

    return lanes(array, types.intp), codegen


@intrinsic
def store(typingctx, array, position, value):
    """array[position : position + 16] = value"""

    def codegen(context, builder, sig, args):
        array, position, value = args
        builder.store(value, _at(context, builder, sig.args[0], array, position, _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def spread(typingctx, array, position):
    """array[position] in every lane."""

    def codegen(context, builder, sig, args):
        return _splat(builder, builder.load(_at(context, builder, sig.args[0], args[0], args[1], _SCALAR)))

    return lanes(array, types.intp), codegen


@intrinsic
def spread_four(typingctx, array, position):
    """array[position : position + 4], four times."""

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(_SCALAR, 4)
        four = builder.load(_at(context, builder, sig.args[0], args[0], args[1], kind), align=4)
        lanes_of = ir.Constant(_INTEGERS, list(range(4)) * (LANES // 4))
        return builder.shuffle_vector(four, ir.Constant(kind, ir.Undefined), lanes_of)

    return lanes(array, types.intp), codegen


@intrinsic
def sum_fours(typingctx, x):
    """In every lane the sum of the four lanes that it is one of."""

    def codegen(context, builder, sig, args):
        x = args[0]
        for distance in (1, 2):
            others = ir.Constant(_INTEGERS, [lane ^ distance for lane in range(LANES)])
            x = builder.fadd(x, builder.shuffle_vector(x, ir.Constant(_VECTOR, ir.Undefined), others))
        return x

    return lanes(lanes), codegen


@intrinsic
def splat(typingctx, value):
    """A number in every lane."""

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0])

    return lanes(types.float32), codegen


@intrinsic
def below(typingctx, count, x, other):
    """The first `count` lanes of x, the rest of `other`."""

    def codegen(context, builder, sig, args):
        count, x, other = args
        number = builder.trunc(count, _INTEGER)
        one = builder.insert_element(ir.Constant(_INTEGERS, ir.Undefined), number, ir.Constant(_INTEGER, 0))
        wanted = builder.shuffle_vector(one, ir.Constant(_INTEGERS, ir.Undefined), _integer(0))
        return builder.select(builder.icmp_signed("<", ir.Constant(_INTEGERS, list(range(LANES))), wanted), x, other)

    return lanes(types.intp, lanes, lanes), codegen


def _reduction(name, start):
    def codegen(context, builder, sig, args):
        first = [] if start is None else [ir.Constant(_SCALAR, start)]
        kind = ir.FunctionType(_SCALAR, [*(x.type for x in first), _VECTOR])
        return _call(builder, f"llvm.vector.reduce.{name}.v{LANES}f32", kind, *first, *args, fastmath=("reassoc",))

    return codegen


@intrinsic
def total(typingctx, x):
    """Sum of the lanes, in a fixed order."""
    return types.float32(lanes), _reduction("fadd", 0.0)


@intrinsic
def highest(typingctx, x):
    """Largest of the lanes; NaN lanes are passed over."""
    return types.float32(lanes), _reduction("fmax", None)


@intrinsic
def larger(typingctx, x, y):
    """The larger number, lane by lane; x where one is NaN."""

    def codegen(context, builder, sig, args):
        x, y = args
        return builder.select(builder.fcmp_ordered("<", x, y), y, x)

    return lanes(lanes, lanes), codegen


@intrinsic
def smaller(typingctx, x, limit):
    """The smaller of x and a number, lane by lane; x where it is NaN."""

    def codegen(context, builder, sig, args):
        x, limit = args[0], _splat(builder, args[1])
        return builder.select(builder.fcmp_ordered("<", limit, x), limit, x)

    return lanes(lanes, types.float32), codegen


@intrinsic
def where_positive(typingctx, condition, x, other):
    """x where condition > 0, lane by lane; the other where it is not, or NaN."""

    def codegen(context, builder, sig, args):
        condition, x, other = args
        return builder.select(builder.fcmp_ordered(">", condition, _number(0.0)), x, other)

    return lanes(lanes, lanes, lanes), codegen


@intrinsic
def root(typingctx, x):
    def codegen(context, builder, sig, args):
        return _unary(builder, "sqrt", args[0])

    return lanes(lanes), codegen


@intrinsic
def exp2(typingctx, x):
    """2**x, cut to what a normal float32 holds."""

    def codegen(context, builder, sig, args):
        return _exp2(builder, args[0])

    return lanes(lanes), codegen


@intrinsic
def exp(typingctx, x):
    """e**x, likewise."""

    def codegen(context, builder, sig, args):
        return _exp2(builder, builder.fmul(args[0], _number(LOG2E)))

    return lanes(lanes), codegen


@intrinsic
def power(typingctx, x, exponent):
    """x**exponent for normal x > 0, to a few units in the last place, by 2**(exponent log2(x)).

    With x = m 2**e and m within [3/4, 3/2], log2(m) = 2 artanh((m - 1) / (m + 1)) / ln 2 is an odd series, and the
    large part, exponent e, is split into a whole number and a fraction before anything is added to it.
    """

    def codegen(context, builder, sig, args):
        b, x, exponent = builder, args[0], _splat(builder, args[1])
        bits = b.bitcast(x, _INTEGERS)
        three_quarters = _integer(0x3F400000)
        e = b.ashr(b.sub(bits, three_quarters), _integer(23))
        m = b.bitcast(b.sub(bits, b.shl(e, _integer(23))), _VECTOR)
        s = b.fdiv(b.fsub(m, _number(1.0)), b.fadd(m, _number(1.0)))
        series = _polynomial(b, b.fmul(s, s), [2 * LOG2E / k for k in (11, 9, 7, 5, 3, 1)])
        e = b.sitofp(e, _VECTOR)
        large = b.fmul(exponent, e)
        lost = _fma(b, exponent, e, b.fneg(large))  # what rounding took, where the machine has a fused instruction
        large = _within(b, large, -125.0, 126.0)
        whole = _unary(b, "nearbyint", large)
        fraction = b.fadd(b.fsub(large, whole), _fma(b, b.fmul(exponent, s), series, lost))
        more = _unary(b, "nearbyint", fraction)
        raised = _two_to(b, b.fadd(whole, more), b.fsub(fraction, more))
        return b.select(b.fcmp_unordered("uno", x, x), x, raised)

    return lanes(lanes, types.float32), codegen


def wide_registers_of(context: Any) -> bool:
    """Whether the machine that is compiled for has AVX-512: a vector is one register, and there are 32 of them."""
    _, _, features = context.codegen().magic_tuple()
    return "+avx512f" in features.split(",")


@intrinsic
def wide_registers(typingctx):
    """`wide_registers_of` as a constant: what it rules out is never compiled.

    Elsewhere a vector takes two or more of sixteen registers, and a tile of more than four spills its sums.
    """

    def codegen(context, builder, sig, args):
        return context.get_constant(types.boolean, wide_registers_of(context))

    return types.boolean(), codegen


@intrinsic
def apart(typingctx):
    """As the first line of a function: it is compiled once and called, not copied to where it is called from."""

    def codegen(context, builder, sig, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@inner_njit
def silu(x):
    """x / (1 + exp(-x))."""
    return x / (exp(np.float32(0.0) - x) + np.float32(1.0))


@inner_njit
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), with log1p(v) = 2 artanh(v / (2 + v)) as an odd series."""
    zero = np.float32(0.0)
    v = exp(zero - larger(x, zero - x))
    s = v / (v + np.float32(2.0))
    q = s * s
    series = q * np.float32(1 / 13) + np.float32(1 / 11)
    series = q * series + np.float32(1 / 9)
    series = q * series + np.float32(1 / 7)
    series = q * series + np.float32(1 / 5)
    series = q * series + np.float32(1 / 3)
    series = q * series + np.float32(1.0)
    return s * np.float32(2.0) * series + larger(x, splat(zero))
