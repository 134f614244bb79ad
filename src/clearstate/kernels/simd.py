"""A vector of sixteen numbers as a value of compiled code: `a * b + c`, `exp(a)`, `load`, `store`.

LLVM vectorises a plain loop only if it can prove that no two arrays overlap, and keeps sums in memory where registers
would do. With this type a kernel says itself what a register holds, in Python and not in LLVM's language. LLVM maps a
vector to what the machine has: one AVX-512 register, two of AVX2, four of NEON.

Arrays are flat and C-contiguous; positions count numbers, and nothing is checked. A NaN stays a NaN. The type of an
array decides the type of the vector: float32, or float64 for gradient checks, which only the scan uses.
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

LANES = 16
LOG2E = 1.4426950408889634
# 2**r on [-1/2, 1/2] with the constant term held at 1; largest relative error 9.1e-8.
EXP2 = (0.69314698, 0.24022242, 0.05550734, 0.00967151, 0.00132647)
WHOLE = 1.5 * 2**23  # added to a number, it leaves the nearest whole number in its last bits
FAST = {"contract", "nsz", "arcp"}  # a * b + c is one instruction; sums stay in the order in which they are written
# For what compiled code calls. Python may not call it: without the wrappers for that it compiles a sixth faster.
inner_njit: Any = njit(fastmath=FAST, no_cpython_wrapper=True, no_cfunc_wrapper=True)
intrinsic: Any = numba.extending.intrinsic  # whose first parameter, the typing context, callers do not pass

_INTEGER = ir.IntType(32)
_VECTOR, _INTEGERS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_INTEGER, LANES)


def rounded_up(count: int) -> int:
    """The next multiple of a vector's length."""
    return (count + LANES - 1) // LANES * LANES


rounded = inner_njit(rounded_up)  # for compiled code


class Lanes(types.Type):
    def __init__(self, scalar) -> None:
        super().__init__(name=f"{scalar}x{LANES}")
        self.scalar = scalar


lanes = Lanes(types.float32)
OF = {types.float32: lanes, types.float64: Lanes(types.float64)}


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, ir.VectorType(manager[kind.scalar].get_value_type(), LANES))


# -- building blocks: functions of llvmlite's builder ----------------------------------------------------------------


def _splat(b, value):
    kind = ir.VectorType(value.type, LANES)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INTEGER, 0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTEGERS, [0] * LANES))


def _number(value, kind=_VECTOR):
    return ir.Constant(kind, [float(np.float32(value)) if kind == _VECTOR else value] * LANES)


def _integer(value):
    return ir.Constant(_INTEGERS, [value] * LANES)


def _call(b, name, kind, *args, **options):
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, args, **options)


def _suffix(kind):
    return f"v{LANES}f{32 if kind == _VECTOR else 64}"


def _unary(b, name, x):
    return _call(b, f"llvm.{name}.{_suffix(x.type)}", ir.FunctionType(x.type, [x.type]), x)


def _fma(b, x, y, z):
    return b.fadd(b.fmul(x, y, flags=("contract",)), z, flags=("contract",))


def _polynomial(b, x, coefficients):
    """Highest power first."""
    total = _number(coefficients[0], x.type)
    for coefficient in coefficients[1:]:
        total = _fma(b, total, x, _number(coefficient, x.type))
    return total


def _at(context, b, kind, array, position, pointed=None):
    """Pointer to a number of an array, or to something else there."""
    pointer = b.gep(context.make_array(kind)(context, b, array).data, [position])
    return b.bitcast(pointer, pointed.as_pointer()) if pointed else pointer


def _as_lanes(context, b, value, kind, wanted):
    """A vector as it is, a number in every lane."""
    return value if kind == wanted else _splat(b, context.cast(b, value, kind, wanted.scalar))


def _two_to(b, bits, fraction):
    """2**(k + fraction): |fraction| <= 1/2, and k in the last bits of `bits`."""
    p = _polynomial(b, fraction, (*reversed(EXP2), 1.0))
    return b.bitcast(b.add(b.bitcast(p, _INTEGERS), b.shl(bits, _integer(23))), _VECTOR)


def _within(b, x, low, high):
    """x cut to [low, high]; comparisons are ordered, so a NaN passes through."""
    x = b.select(b.fcmp_ordered("<", x, _number(low)), _number(low), x)
    return b.select(b.fcmp_ordered(">", x, _number(high)), _number(high), x)


def _exp2(b, x):
    if x.type != _VECTOR:
        return _unary(b, "exp2", x)
    x = _within(b, x, -126.0, 128.0)  # 128 has the bits of infinity
    shifted = b.fadd(x, _number(WHOLE))
    return _two_to(b, b.bitcast(shifted, _INTEGERS), b.fsub(x, b.fsub(shifted, _number(WHOLE))))


# -- arithmetic between vectors, and between a vector and a number ---------------------------------------------------


def _define(symbol, method) -> None:
    pairs = [pair for kind in OF.values() for number in OF for pair in ((kind, kind), (kind, number), (number, kind))]

    @infer_global(symbol)
    class _Typing(ConcreteTemplate):
        cases = tuple(signature(x if isinstance(x, Lanes) else y, x, y) for x, y in pairs)

    def lower(context, builder, sig, args):
        x, y = (_as_lanes(context, builder, *each, sig.return_type) for each in zip(args, sig.args, strict=True))
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
        vector = context.get_value_type(sig.return_type)
        align = sig.args[0].dtype.bitwidth // 8
        return builder.load(_at(context, builder, sig.args[0], args[0], args[1], vector), align=align)

    return OF[array.dtype](array, types.intp), codegen


@intrinsic
def store(typingctx, array, position, value):
    """array[position : position + 16] = value"""

    def codegen(context, builder, sig, args):
        array, position, value = args
        align = sig.args[0].dtype.bitwidth // 8
        builder.store(value, _at(context, builder, sig.args[0], array, position, value.type), align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, OF[array.dtype]), codegen


@intrinsic
def spread(typingctx, array, position):
    """array[position] in every lane."""

    def codegen(context, builder, sig, args):
        return _splat(builder, builder.load(_at(context, builder, sig.args[0], args[0], args[1])))

    return OF[array.dtype](array, types.intp), codegen


@intrinsic
def spread_four(typingctx, array, position):
    """array[position : position + 4], four times."""

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(_VECTOR.element, 4)
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
        vector = args[0].type
        first = [] if start is None else [ir.Constant(vector.element, start)]
        kind = ir.FunctionType(vector.element, [*(x.type for x in first), vector])
        return _call(
            builder, f"llvm.vector.reduce.{name}.{_suffix(vector)}", kind, *first, *args, fastmath=("reassoc",)
        )

    return codegen


@intrinsic
def total(typingctx, x):
    """Sum of the lanes, in a fixed order."""
    return x.scalar(x), _reduction("fadd", 0.0)


@intrinsic
def highest(typingctx, x):
    """Largest of the lanes; NaN lanes are passed over."""
    return x.scalar(x), _reduction("fmax", None)


def _choice(order):
    def codegen(context, builder, sig, args):
        x, other = args[0], _as_lanes(context, builder, args[1], sig.args[1], sig.args[0])
        return builder.select(builder.fcmp_ordered(order, other, x), other, x)

    return codegen


@intrinsic
def larger(typingctx, x, other):
    """The larger number, lane by lane; x where one is NaN. `other` is a vector or a number."""
    return x(x, other), _choice(">")


@intrinsic
def smaller(typingctx, x, other):
    """The smaller number, likewise."""
    return x(x, other), _choice("<")


@intrinsic
def root(typingctx, x):
    return x(x), lambda context, builder, sig, args: _unary(builder, "sqrt", args[0])


@intrinsic
def exp2(typingctx, x):
    """2**x; the least is that of a normal float32."""
    return x(x), lambda context, builder, sig, args: _exp2(builder, args[0])


@inner_njit
def exp(x):
    """e**x, likewise."""
    return exp2(x * LOG2E)


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
        raised = _two_to(b, b.fptosi(b.fadd(whole, more), _INTEGERS), b.fsub(fraction, more))
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
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (exp2(x * -LOG2E) + 1.0)


@inner_njit
def silu(x):
    """x / (1 + exp(-x))."""
    return x / (exp2(x * -LOG2E) + 1.0)


@intrinsic
def _artanh_part(typingctx, q):
    """artanh(s) / s for q = s**2 <= 1/9, as a series whose terms fall by 9 each."""

    def codegen(context, builder, sig, args):
        terms = 7 if sig.args[0] == lanes else 17
        return _polynomial(builder, args[0], [1 / (2 * k + 1) for k in reversed(range(terms))])

    return q(q), codegen


@inner_njit
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), with log1p(v) = 2 artanh(v / (2 + v))."""
    v = exp2(larger(x, 0.0 - x) * -LOG2E)
    s = v / (v + 2.0)
    return s * 2.0 * _artanh_part(s * s) + larger(x, 0.0)
