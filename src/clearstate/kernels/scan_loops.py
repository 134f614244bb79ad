"""The inner loops of the CPU scan, written as vector code.

LLVM gives up on vectorising a loop over many arrays, because it cannot prove that they do not overlap. The three
functions here therefore emit vector instructions themselves, 16 channels to a vector; LLVM maps a vector to
whatever the machine has (one AVX-512 register, two of AVX2, four of NEON). They are called from `scan.py`
like any other function; `ssm.scan.selective_scan_reference` is their slow twin.

All rows live in one scratch array and are `BLOCK` numbers long, so that no row has a ragged end.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 64  # channels of one task: four vectors a row; block x states fits the first-level cache
LANES = 16  # channels of one vector
LOG2E = 1.4426950408889634

# 2**r on [-1/2, 1/2] with the constant term held at 1; largest relative error 9.1e-8.
EXP2 = (0.69314698, 0.24022242, 0.05550734, 0.00967151, 0.00132647)


class _Vectors:
    """Arithmetic on vectors of one dtype: a thin layer over llvmlite's builder."""

    def __init__(self, context, builder, array_type, array):
        self.builder = builder
        self.scalar = context.get_value_type(array_type.dtype)
        self.double = array_type.dtype == types.float64
        self.vector = ir.VectorType(self.scalar, LANES)
        self.base = context.make_array(array_type)(context, builder, array).data
        self.index = context.get_value_type(types.intp)

    def number(self, value):
        return ir.Constant(self.vector, [value if self.double else float(np.float32(value))] * LANES)

    def load(self, offset):
        pointer = self.builder.bitcast(self.builder.gep(self.base, [offset]), self.vector.as_pointer())
        return self.builder.load(pointer, align=4 if not self.double else 8)

    def store(self, value, offset):
        pointer = self.builder.bitcast(self.builder.gep(self.base, [offset]), self.vector.as_pointer())
        self.builder.store(value, pointer, align=4 if not self.double else 8)

    def splat(self, scalar):
        """The same number in every lane."""
        one = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
        )
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, ir.Constant(self.vector, ir.Undefined), mask)

    def broadcast(self, array, position):
        """One number of `array` in every lane."""
        return self.splat(self.builder.load(self.builder.gep(array, [position])))

    def mul(self, a, b):
        return self.builder.fmul(a, b, flags=("contract",))

    def fma(self, a, b, c):
        """a * b + c; "contract" lets the machine's fused instruction be taken where it has one."""
        return self.builder.fadd(self.builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    def exp2(self, x):
        """2**x: the fraction by a polynomial, the whole part as exponent bits.

        Comparisons are ordered, so a NaN passes through.
        """
        b = self.builder
        if self.double:
            return b.call(self.intrinsic(f"llvm.exp2.v{LANES}f64", ir.FunctionType(self.vector, [self.vector])), [x])
        x = b.select(b.fcmp_ordered("<", x, self.number(-126.0)), self.number(-126.0), x)
        x = b.select(b.fcmp_ordered(">", x, self.number(128.0)), self.number(128.0), x)  # whose bits are infinity's
        shifted = b.fadd(x, self.number(12582912.0))
        r = b.fsub(x, b.fsub(shifted, self.number(12582912.0)))
        p = self.number(EXP2[-1])
        for coefficient in reversed((1.0, *EXP2[:-1])):
            p = self.fma(p, r, self.number(coefficient))
        integers = ir.VectorType(ir.IntType(32), LANES)
        k = b.shl(b.bitcast(shifted, integers), ir.Constant(integers, [23] * LANES))
        return b.bitcast(b.add(b.bitcast(p, integers), k), self.vector)

    def sigmoid(self, x):
        """1 / (1 + exp(-x))."""
        one = self.number(1.0)
        return self.builder.fdiv(one, self.builder.fadd(one, self.exp2(self.mul(x, self.number(-LOG2E)))))

    def softplus(self, x):
        """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), with log1p(v) = 2 artanh(v / (2 + v)) as an odd series."""
        b, zero = self.builder, self.number(0.0)
        negative = b.fcmp_ordered("<", x, zero)
        v = self.exp2(self.mul(b.select(negative, x, b.fsub(zero, x)), self.number(LOG2E)))
        s = b.fdiv(v, b.fadd(v, self.number(2.0)))  # at most 1/3, so the series falls by 9 a term
        q = self.mul(s, s)
        series = self.number(0.0)
        for k in range(33 if self.double else 13, 1, -2):
            series = self.mul(q, b.fadd(series, self.number(1.0 / k)))
        log1p = self.mul(self.mul(s, self.number(2.0)), b.fadd(series, self.number(1.0)))
        return b.fadd(b.select(negative, zero, x), log1p)

    def intrinsic(self, name, signature):
        return self.builder.module.globals.get(name) or ir.Function(self.builder.module, signature, name)

    def sum(self, a):
        """Sum of the lanes, as a scalar."""
        kind = "f64" if self.double else "f32"
        signature = ir.FunctionType(self.scalar, [self.scalar, self.vector])
        function = self.intrinsic(f"llvm.vector.reduce.fadd.v{LANES}{kind}", signature)
        return self.builder.call(function, [ir.Constant(self.scalar, 0.0), a], fastmath=("reassoc",))

    def rows_at(self, at, column):
        """Offsets of the named rows of the step whose rows start at `at`."""
        return lambda name: self.row(self.builder.add(at, ir.Constant(self.index, name)), column)

    def row(self, number, column):
        """Offset of a row of the scratch array, plus a column."""
        b = self.builder
        number = number if isinstance(number, ir.Value) else ir.Constant(self.index, number)
        return b.add(b.mul(number, ir.Constant(self.index, BLOCK)), column)


def _each_vector(v, width):
    """Loop over the vectors of a row: yields (column, loop)."""
    return cgutils.for_range_slice(v.builder, ir.Constant(v.index, 0), width, ir.Constant(v.index, LANES), v.index)


def _data(context, builder, array_type, array):
    return context.make_array(array_type)(context, builder, array).data


# Rows of the scratch array. Two belong to the block of channels, the next ones to one time step (a step's rows
# start at `at`); the rest are blocks of one row a state whose first row the caller names.
BIAS, SKIP = range(2)
DT, X, Y, Z, RAW, U, G, DU = range(8)
STEP_ROWS = 8


@intrinsic
def enter(typingctx, scratch, at, width, use_softplus):
    """Begin a step: RAW += BIAS, DT = softplus(RAW) (or RAW), X = DT U, Y = SKIP U."""

    def codegen(context, builder, signature, args):
        _, at, width, use_softplus = args
        v = _Vectors(context, builder, signature.args[0], args[0])
        with _each_vector(v, width) as (column, _):
            row = v.rows_at(at, column)
            u = v.load(row(U))
            raw = builder.fadd(v.load(row(RAW)), v.load(v.row(BIAS, column)))
            dt = cgutils.alloca_once_value(builder, raw)
            with builder.if_then(use_softplus):
                builder.store(v.softplus(raw), dt)
            v.store(raw, row(RAW))
            v.store(builder.load(dt), row(DT))
            v.store(v.mul(u, builder.load(dt)), row(X))
            v.store(v.mul(u, v.load(v.row(SKIP, column))), row(Y))
        return context.get_dummy_value()

    return types.void(scratch, at, width, use_softplus), codegen


def _emit_advance(context, builder, signature, args, keep_decay):
    _, at, a_row, from_row, to_row, width, states, b, pb, c, pc = args[:11]
    v = _Vectors(context, builder, signature.args[0], args[0])
    b, c = (_data(context, builder, signature.args[k], args[k]) for k in (7, 9))
    with _each_vector(v, width) as (column, _):
        row = v.rows_at(at, column)
        dt, x = v.load(row(DT)), v.load(row(X))
        y = cgutils.alloca_once_value(builder, v.load(row(Y)))
        with cgutils.for_range(builder, states, intp=v.index) as loop:
            n = loop.index
            decay = v.exp2(v.mul(dt, v.load(v.row(builder.add(a_row, n), column))))
            enters = v.mul(x, v.broadcast(b, builder.add(pb, n)))
            h = v.fma(decay, v.load(v.row(builder.add(from_row, n), column)), enters)
            v.store(h, v.row(builder.add(to_row, n), column))
            if keep_decay:
                v.store(decay, v.row(builder.add(args[11], n), column))
            builder.store(v.fma(h, v.broadcast(c, builder.add(pc, n)), builder.load(y)), y)
        v.store(builder.load(y), row(Y))
    return context.get_dummy_value()


@intrinsic
def advance(typingctx, scratch, at, a_row, from_row, to_row, width, states, b, pb, c, pc):
    """The recurrence: h'[n] = exp2(DT A[n]) h[n] + X B[n] and Y += C[n] h'[n] for every state n.

    A carries the factor log2(e); B[n] is b[pb + n]; h is read at `from_row` and written at `to_row`.
    """

    def codegen(context, builder, signature, args):
        return _emit_advance(context, builder, signature, args, keep_decay=False)

    return types.void(scratch, at, a_row, from_row, to_row, width, states, b, pb, c, pc), codegen


@intrinsic
def advance_keeping(typingctx, scratch, at, a_row, from_row, to_row, width, states, b, pb, c, pc, decay_row):
    """`advance` that also writes exp2(DT A[n]) to `decay_row` + n, for the way back."""

    def codegen(context, builder, signature, args):
        return _emit_advance(context, builder, signature, args, keep_decay=True)

    return types.void(scratch, at, a_row, from_row, to_row, width, states, b, pb, c, pc, decay_row), codegen


@intrinsic
def gate(typingctx, scratch, at, width):
    """End a step: Y = Y SiLU(Z)."""

    def codegen(context, builder, signature, args):
        v = _Vectors(context, builder, signature.args[0], args[0])
        with _each_vector(v, args[2]) as (column, _):
            row = v.rows_at(args[1], column)
            z = v.load(row(Z))
            v.store(v.mul(v.load(row(Y)), v.mul(z, v.sigmoid(z))), row(Y))
        return context.get_dummy_value()

    return types.void(scratch, at, width), codegen


@intrinsic
def ungate(typingctx, scratch, at, width):
    """Gradient of `gate`, with Y before it and G the gradient of its result: Z = dZ, G = dY."""

    def codegen(context, builder, signature, args):
        v = _Vectors(context, builder, signature.args[0], args[0])
        with _each_vector(v, args[2]) as (column, _):
            row = v.rows_at(args[1], column)
            z, g, one = v.load(row(Z)), v.load(row(G)), v.number(1.0)
            sigmoid = v.sigmoid(z)
            slope = v.mul(sigmoid, v.fma(z, builder.fsub(one, sigmoid), one))  # d SiLU(z) / dz
            v.store(v.mul(g, v.mul(v.load(row(Y)), slope)), row(Z))
            v.store(v.mul(g, v.mul(z, sigmoid)), row(G))
        return context.get_dummy_value()

    return types.void(scratch, at, width), codegen


@intrinsic
def retreat(
    typingctx, scratch, at, a_row, before_row, after_row, decay_row, lam_row, da_row, db_row, dc_row, dskip_row,
    width, states, use_softplus, b, pb, c, pc,
):  # fmt: skip
    """One step of the adjoint recurrence, backwards in time.

    With lam[n] the gradient that later steps send to h'[n], and l = lam[n] + C[n] G:

        dC[n] += G h'[n]        dB[n] += l X            dA[n] += l exp2(DT A[n]) h[n] DT
        dDT    = sum_n l exp2(DT A[n]) h[n] A[n] + U sum_n l B[n]
        DU     = DT sum_n l B[n] + SKIP G               lam[n] = l exp2(DT A[n])

    RAW becomes the gradient of delta. The rows at `db_row` and `dc_row` are one vector wide: sums over the
    block's vectors, whose lanes `sum_lanes` adds up.
    """

    def codegen(context, builder, signature, args):
        (_, at, a_row, before_row, after_row, decay_row, lam_row, da_row, db_row, dc_row, dskip_row,
         width, states, use_softplus, b, pb, c, pc) = args  # fmt: skip
        v = _Vectors(context, builder, signature.args[0], args[0])
        b, c = (_data(context, builder, signature.args[k], args[k]) for k in (14, 16))
        first = ir.Constant(v.index, 0)
        with _each_vector(v, width) as (column, _):
            row = v.rows_at(at, column)
            dt, x, g, u = (v.load(row(name)) for name in (DT, X, G, U))
            through_b = cgutils.alloca_once_value(builder, v.number(0.0))
            through_a = cgutils.alloca_once_value(builder, v.number(0.0))
            with cgutils.for_range(builder, states, intp=v.index) as loop:

                def state(row_number, column=column, loop=loop):
                    return v.row(builder.add(row_number, loop.index), column)

                position = loop.index
                ell = v.fma(g, v.broadcast(c, builder.add(pc, position)), v.load(state(lam_row)))
                passed = v.mul(ell, v.load(state(decay_row)))
                v.store(passed, state(lam_row))
                q = v.mul(passed, v.load(state(before_row)))
                v.store(v.fma(q, dt, v.load(state(da_row))), state(da_row))
                builder.store(v.fma(q, v.load(state(a_row)), builder.load(through_a)), through_a)
                enters = v.broadcast(b, builder.add(pb, position))
                builder.store(v.fma(ell, enters, builder.load(through_b)), through_b)
                db_at, dc_at = state(db_row, first), state(dc_row, first)
                v.store(v.fma(ell, x, v.load(db_at)), db_at)
                v.store(v.fma(g, v.load(state(after_row)), v.load(dc_at)), dc_at)
            s = builder.load(through_b)
            skip = v.load(v.row(SKIP, column))
            v.store(v.fma(s, dt, v.mul(skip, g)), row(DU))
            ddt = v.fma(s, u, v.mul(builder.load(through_a), v.number(1.0 / LOG2E)))
            ddelta = cgutils.alloca_once_value(builder, ddt)
            with builder.if_then(use_softplus):
                builder.store(v.mul(ddt, v.sigmoid(v.load(row(RAW)))), ddelta)
            v.store(builder.load(ddelta), row(RAW))
            dskip_at = v.row(dskip_row, column)
            v.store(v.fma(g, u, v.load(dskip_at)), dskip_at)
        return context.get_dummy_value()

    return types.void(
        scratch, at, a_row, before_row, after_row, decay_row, lam_row, da_row, db_row, dc_row, dskip_row,
        width, states, use_softplus, b, pb, c, pc,
    ), codegen  # fmt: skip


@intrinsic
def sum_lanes(typingctx, scratch, row, states, out, position):
    """out[position + n] = sum of the lanes of row + n, which is then cleared."""

    def codegen(context, builder, signature, args):
        _, first_row, states, _, position = args
        v = _Vectors(context, builder, signature.args[0], args[0])
        out = _data(context, builder, signature.args[3], args[3])
        with cgutils.for_range(builder, states, intp=v.index) as loop:
            at = v.row(builder.add(first_row, loop.index), ir.Constant(v.index, 0))
            target = builder.gep(out, [builder.add(position, loop.index)])
            builder.store(v.sum(v.load(at)), target)
            v.store(v.number(0.0), at)
        return context.get_dummy_value()

    return types.void(scratch, row, states, out, position), codegen


# The causal depthwise convolution uses scratch rows of its own: row 0 the bias, then one row a tap.
TAP_ROWS = 1


@intrinsic
def convolve(typingctx, scratch, x_row, pre_row, out_row, width, taps):
    """One output of the convolution: pre = bias + sum_j w[j] x[j], out = SiLU(pre).

    `x_row` is the row of the oldest input that the output sees; the `taps` inputs lie one row after another.
    """

    def codegen(context, builder, signature, args):
        _, x_row, pre_row, out_row, width, taps = args
        v = _Vectors(context, builder, signature.args[0], args[0])
        with _each_vector(v, width) as (column, _):
            pre = cgutils.alloca_once_value(builder, v.load(v.row(0, column)))
            with cgutils.for_range(builder, taps, intp=v.index) as loop:
                w = v.load(v.row(builder.add(loop.index, ir.Constant(v.index, TAP_ROWS)), column))
                x = v.load(v.row(builder.add(loop.index, x_row), column))
                builder.store(v.fma(w, x, builder.load(pre)), pre)
            value = builder.load(pre)
            v.store(value, v.row(pre_row, column))
            v.store(v.mul(value, v.sigmoid(value)), v.row(out_row, column))
        return context.get_dummy_value()

    return types.void(scratch, x_row, pre_row, out_row, width, taps), codegen


@intrinsic
def convolve_back(typingctx, scratch, x_row, pre_row, dy_row, dx_row, dw_row, width, taps):
    """Gradient of `convolve`: dx[j] += w[j] dpre, dw[j] += dpre x[j], and the bias's at dw_row + taps."""

    def codegen(context, builder, signature, args):
        _, x_row, pre_row, dy_row, dx_row, dw_row, width, taps = args
        v = _Vectors(context, builder, signature.args[0], args[0])
        with _each_vector(v, width) as (column, _):
            pre, one = v.load(v.row(pre_row, column)), v.number(1.0)
            sigmoid = v.sigmoid(pre)
            slope = v.mul(sigmoid, v.fma(pre, builder.fsub(one, sigmoid), one))
            dpre = v.mul(v.load(v.row(dy_row, column)), slope)
            with cgutils.for_range(builder, taps, intp=v.index) as loop:
                w = v.load(v.row(builder.add(loop.index, ir.Constant(v.index, TAP_ROWS)), column))
                dx_at, dw_at = (v.row(builder.add(loop.index, row), column) for row in (dx_row, dw_row))
                v.store(v.fma(w, dpre, v.load(dx_at)), dx_at)
                v.store(v.fma(dpre, v.load(v.row(builder.add(loop.index, x_row), column)), v.load(dw_at)), dw_at)
            bias_at = v.row(builder.add(dw_row, taps), column)
            v.store(builder.fadd(v.load(bias_at), dpre), bias_at)
        return context.get_dummy_value()

    return types.void(scratch, x_row, pre_row, dy_row, dx_row, dw_row, width, taps), codegen
