"""A dense layer for compiled code that handles one frame at a time: y = x W + b for a few rows.

Too small for a BLAS call to pay, and LLVM keeps the sums in memory where registers would do; so the tile of four rows
by sixteen outputs is written as vector code. Other shapes take a plain loop.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .math_cpu import FAST

LANES = 16  # outputs of a tile
ROWS = 4  # rows of a tile


@intrinsic
def _tiles(typingctx, x, weight, bias, out, rows, inner, width):
    """out = x W + b for C-contiguous float32 arrays; rows a multiple of `ROWS`, width of `LANES`."""

    def codegen(context, builder, signature, args):
        x, weight, bias, out = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:4], args[:4], strict=True)
        )
        rows, inner, width = args[4:]
        index = rows.type
        vector = ir.VectorType(ir.FloatType(), LANES)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        undefined = ir.Constant(vector, ir.Undefined)

        def number(value):
            return ir.Constant(index, value)

        def at(array, offset):
            return builder.bitcast(builder.gep(array, [offset]), vector.as_pointer())

        def splat(value):
            one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, undefined, zeros)

        each_row = cgutils.for_range_slice(builder, number(0), rows, number(ROWS), index)
        with each_row as (row, _):
            each_column = cgutils.for_range_slice(builder, number(0), width, number(LANES), index)
            with each_column as (column, _):
                start = builder.load(at(bias, column), align=4)
                sums = [cgutils.alloca_once_value(builder, start) for _ in range(ROWS)]
                heads = [builder.mul(builder.add(row, number(k)), inner) for k in range(ROWS)]
                with cgutils.for_range(builder, inner, intp=index) as loop:
                    w = builder.load(at(weight, builder.add(builder.mul(loop.index, width), column)), align=4)
                    for head, total in zip(heads, sums, strict=True):
                        value = builder.load(builder.gep(x, [builder.add(head, loop.index)]))
                        product = builder.fmul(splat(value), w, flags=("contract",))
                        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
                for k, total in enumerate(sums):
                    offset = builder.add(builder.mul(builder.add(row, number(k)), width), column)
                    builder.store(builder.load(total), at(out, offset), align=4)
        return context.get_dummy_value()

    return types.void(x, weight, bias, out, rows, inner, width), codegen


@njit(fastmath=FAST)
def linear(x, weight, bias, out):
    """out = x W + b.

    Args:
        x: (rows, in).   weight: (in, out).   bias: (out,).   out: (rows, out), written. All float32, C-contiguous.
    """
    rows, inner = x.shape
    width = weight.shape[1]
    if rows % ROWS == 0 and width % LANES == 0:
        _tiles(x, weight, bias, out, rows, inner, width)
        return
    for r in range(rows):
        row = out[r]
        row[:] = bias
        for i in range(inner):
            scale, w = x[r, i], weight[i]
            for j in range(width):
                row[j] += scale * w[j]


_NO_BIAS = np.zeros(4096, np.float32)


@njit(fastmath=FAST)
def multiply(a, b, out):
    """out = a b: (rows, k) times (k, width), width at most 4096."""
    linear(a, b, _NO_BIAS[: b.shape[1]], out)
