"""One time step of the selective recurrence for one sequence, for compiled code that handles a frame at a time.

`scan_cpu.py` puts channels in the lanes of a vector, which pays over many steps; for a single step the state would
have to be turned around twice. Here the lanes are states, in the layout (d, n) in which the state is kept.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .math_cpu import FAST, exp
from .vector_cpu import EXP2, LOG2E

LANES = 8  # states of a vector; float32


@intrinsic
def _step_in_vectors(typingctx, h, a, dt, u, b, c, y, channels, states):
    """The body of `recur` for float32 and a number of states that is a multiple of `LANES`."""

    def codegen(context, builder, signature, args):
        h, a, dt, u, b, c, y = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:7], args[:7], strict=True)
        )
        channels, states = args[7:]
        index = channels.type
        scalar, vector = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)
        integers = ir.VectorType(ir.IntType(32), LANES)
        undefined = ir.Constant(vector, ir.Undefined)

        def at(array, offset):
            return builder.bitcast(builder.gep(array, [offset]), vector.as_pointer())

        def load(array, offset):
            return builder.load(at(array, offset), align=4)

        def splat(value):
            one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, undefined, ir.Constant(integers, [0] * LANES))

        def number(value):
            return ir.Constant(vector, [float(np.float32(value))] * LANES)

        def fma(p, q, r):
            return builder.fadd(builder.fmul(p, q, flags=("contract",)), r, flags=("contract",))

        def exp2(x):  # see vector_cpu.py for the method
            x = builder.select(builder.fcmp_ordered("<", x, number(-126.0)), number(-126.0), x)
            x = builder.select(builder.fcmp_ordered(">", x, number(127.0)), number(127.0), x)
            name = f"llvm.nearbyint.v{LANES}f32"  # safe where sums may be reordered, unlike rounding by addition
            near = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(vector, [vector]), name
            )
            whole = builder.call(near, [x])
            r = builder.fsub(x, whole)
            p = number(EXP2[-1])
            for coefficient in reversed((1.0, *EXP2[:-1])):
                p = fma(p, r, number(coefficient))
            k = builder.shl(builder.fptosi(whole, integers), ir.Constant(integers, [23] * LANES))
            return builder.bitcast(builder.add(builder.bitcast(p, integers), k), vector)

        with cgutils.for_range(builder, channels, intp=index) as channel:
            j = channel.index
            size = builder.load(builder.gep(dt, [j]))
            grown = splat(builder.fmul(size, ir.Constant(scalar, float(np.float32(LOG2E)))))
            enters = splat(builder.fmul(size, builder.load(builder.gep(u, [j]))))
            total = cgutils.alloca_once_value(builder, number(0.0))
            builder.store(number(0.0), total)
            first, step = ir.Constant(index, 0), ir.Constant(index, LANES)
            with cgutils.for_range_slice(builder, first, states, step, index) as (n, _):
                here = builder.add(builder.mul(j, states), n)
                decay = exp2(builder.fmul(grown, load(a, here)))
                value = fma(decay, load(h, here), builder.fmul(enters, load(b, n)))
                builder.store(value, at(h, here), align=4)
                builder.store(fma(value, load(c, n), builder.load(total)), total)
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            kind = ir.FunctionType(scalar, [scalar, vector])
            add = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            summed = builder.call(add, [ir.Constant(scalar, 0.0), builder.load(total)], fastmath=("reassoc",))
            builder.store(summed, builder.gep(y, [j]))
        return context.get_dummy_value()

    return types.void(h, a, dt, u, b, c, y, channels, states), codegen


@njit(fastmath=FAST)
def recur(h, a, dt, u, b, c, y):
    """h = exp(dt A) h + dt u B and y = C h, one step of one sequence.

    Args:
        h: state (d, n), written.   a: A (d, n).   dt, u: (d,).   b, c: (n,).   y: (d,), written. All float32.
    """
    channels, states = h.shape
    if states % LANES == 0:
        _step_in_vectors(h, a, dt, u, b, c, y, channels, states)
        return
    for j in range(channels):
        total = np.float32(0)
        for n in range(states):
            h[j, n] = exp(dt[j] * a[j, n]) * h[j, n] + dt[j] * u[j] * b[n]
            total += h[j, n] * c[n]
        y[j] = total
