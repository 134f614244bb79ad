"""exp, sigmoid, SiLU and softplus for float32 loops that LLVM vectorises by itself.

For compiled code that handles one frame at a time, where `vector_cpu.py`'s long rows do not fit. The polynomial is
the same: PyPI's llvmlite has no vector math library, and `math.exp` is a scalar call about twenty times slower.
A NaN stays a NaN.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .vector_cpu import EXP2, LOG2E

# Sums may be reordered, which is what makes a reduction a vector loop; nothing assumes the absence of NaN.
FAST = {"contract", "nsz", "arcp", "afn", "reassoc"}

_P1, _P2, _P3, _P4, _P5 = (np.float32(p) for p in EXP2)
_LOG2E, _LN2 = np.float32(LOG2E), np.float32(1 / LOG2E)
_LOW, _HIGH, _ZERO, _HALF, _ONE, _TWO = (np.float32(v) for v in (-87.0, 88.0, 0.0, 0.5, 1.0, 2.0))
_L3, _L5, _L7, _L9, _L11, _L13 = (np.float32(1.0 / k) for k in (3, 5, 7, 9, 11, 13))


@intrinsic
def _round(typingctx, x):
    """The nearest integer as a float32: one instruction, and safe under reordering."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
        name = "llvm.nearbyint.f32"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, args)

    return types.float32(types.float32), codegen


@intrinsic
def _scale(typingctx, p, k):
    """p * 2**k for float32 p and an integer k held in a float32."""

    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        shifted = builder.shl(builder.fptosi(args[1], i32), ir.Constant(i32, 23))
        return builder.bitcast(builder.add(builder.bitcast(args[0], i32), shifted), ir.FloatType())

    return types.float32(types.float32, types.float32), codegen


@njit(fastmath=FAST, inline="always")
def exp(x):
    """e**x, cut to what a normal float32 holds."""
    x = _LOW if x < _LOW else x
    x = _HIGH if x > _HIGH else x
    x = x * _LOG2E
    k: Any = _round(x)
    r = x - k
    return _scale(_ONE + r * (_P1 + r * (_P2 + r * (_P3 + r * (_P4 + r * _P5)))), k)


@njit(fastmath=FAST, inline="always")
def silu(x):
    """x / (1 + exp(-x))."""
    return x / (_ONE + exp(-x))


@njit(fastmath=FAST, inline="always")
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), with log1p(v) = 2 artanh(v / (2 + v)) as an odd series."""
    v = exp(-abs(x))
    s = v / (_TWO + v)
    q = s * s
    log1p = _TWO * s * (_ONE + q * (_L3 + q * (_L5 + q * (_L7 + q * (_L9 + q * (_L11 + q * _L13))))))
    return (_ZERO if x < _ZERO else x) + log1p
