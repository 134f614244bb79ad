"""The recurrences and a few functions as ONNX operators: what `torch.onnx.export` cannot translate, or not well.

Each function below gets the inputs of a PyTorch operator as values of the ONNX graph and adds nodes to that graph.
`torch.onnx` calls them through `TRANSLATIONS`.
"""

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch.onnx._internal.exporter import _core

OPSET = 18
Value = Any  # ir.Value


def selective_scan(
    u: Value, delta: Value, A: Value, B: Value, C: Value, D: Value, z: Value, bias: Value, state: Value,
    softplus: bool, reverse: bool, keep: bool,
) -> tuple[Value, Value, Value]:  # fmt: skip
    """`clearstate.ssm.selective_scan`. What does not depend on the state is computed for all frames at once."""
    if bias is not None:
        delta = op.Add(delta, bias)
    if softplus:
        delta = _softplus(delta)
    if u.shape[1] == 1 and state is not None:  # one frame
        y, last = _one_step(u, delta, A, B, C, state)
    else:
        y, last = _many_steps(u, delta, A, B, C, state, reverse)
    if D is not None:
        y = op.Add(y, op.Mul(D, u))
    if z is not None:
        y = op.Mul(y, op.Mul(z, op.Sigmoid(z)))
    return y, last, op.Identity(last)


def _one_step(u: Value, dt: Value, A: Value, B: Value, C: Value, state: Value) -> tuple[Value, Value]:
    column = op.Transpose(dt, perm=[0, 2, 1])  # (b, d, 1)
    h = op.Add(
        op.Mul(op.Exp(op.Mul(column, A)), state),
        op.MatMul(op.Transpose(op.Mul(dt, u), perm=[0, 2, 1]), B),
    )  # (b, d, n)
    return op.Transpose(op.MatMul(h, op.Transpose(C, perm=[0, 2, 1])), perm=[0, 2, 1]), h


def _many_steps(u: Value, dt: Value, A: Value, B: Value, C: Value, state: Value, reverse: bool) -> tuple[Value, Value]:
    """A `Scan` over time, which comes first; the state is (b, n, d), so that what is repeated are long rows.

    All that has the size of the state happens inside the loop, where it stays in the processor's cache.
    """
    if state is None:
        shape = op.Concat(op.Shape(u, start=0, end=1), op.Shape(A), axis=0)
        state = op.Expand(op.Constant(value=ir.tensor([0.0], dtype=ir.DataType.FLOAT)), shape)  # (b, d, n)
    u, dt, B, C = (op.Transpose(x, perm=[1, 0, 2]) for x in (u, dt, B, C))
    dt, drive = op.Unsqueeze(dt, [2]), op.Unsqueeze(op.Mul(dt, u), [2])  # (t, b, 1, d)
    B, C = op.Unsqueeze(B, [3]), op.Unsqueeze(C, [2])  # (t, b, n, 1), (t, b, 1, n)
    first, rate = op.Transpose(state, perm=[0, 2, 1]), op.Transpose(A, perm=[1, 0])
    if A.shape[1] == 1:  # a state as small as a frame: what can be done for all frames at once is
        last, states = _scan(first, None, [op.Exp(op.Mul(dt, rate)), op.Mul(drive, B)], reverse)
        y = op.MatMul(C, states)
    else:
        last, y = _scan(first, rate, [dt, drive, B, C], reverse)  # (b, n, d), (t, b, 1, d)
    return op.Transpose(op.Squeeze(y, [2]), perm=[1, 0, 2]), op.Transpose(last, perm=[0, 2, 1])


def _scan(first: Value, rate: Value | None, per_frame: list[Value], reverse: bool) -> Any:
    """The loop: the last state (b, n, d), and y (t, b, 1, d); without a rate, all states (t, b, n, d) in place of y."""
    inputs = [ir.Value(name=f"frame_{k}", type=ir.TensorType(ir.DataType.FLOAT)) for k in range(1 + len(per_frame))]
    nodes: list[ir.Node] = []

    def add(kind: str, *values: Value) -> Value:
        nodes.append(ir.Node("", kind, values, version=OPSET))
        nodes[-1].outputs[0].name = f"step_{len(nodes)}"
        return nodes[-1].outputs[0]

    if rate is None:
        h, decay, driven = inputs
        new = add("Add", add("Mul", decay, h), driven)
        y = add("Identity", new)
    else:
        h, dt, drive, B, C = inputs  # (b, n, d), (b, 1, d), (b, 1, d), (b, n, 1), (b, 1, n)
        decay = add("Exp", add("Mul", dt, rate))
        new = add("Add", add("Mul", decay, h), add("Mul", drive, B))
        y = add("MatMul", C, new)
    body = ir.Graph(inputs, [new, y], nodes=nodes, name="step", opset_imports={"": OPSET})
    attributes = {
        "body": body, "num_scan_inputs": len(per_frame), "scan_input_directions": len(per_frame) * [int(reverse)],
        "scan_output_directions": [int(reverse)],
    }  # fmt: skip
    node = ir.Node(
        "", "Scan", [first, *per_frame], ir.convenience.convert_attributes(attributes), num_outputs=2, version=OPSET
    )
    _core.current_tracer.nodes.append(node)  # `op.Scan` cannot say how many outputs it has
    return node.outputs


def causal_conv1d_silu(x: Value, weight: Value, bias: Value, state: Value, reverse: bool) -> tuple[Value, Value]:
    """`clearstate.ssm.causal_conv1d_silu`."""
    past = weight.shape[1] - 1
    if state is None:
        shape = op.Concat(
            op.Shape(x, start=0, end=1), op.Constant(value_ints=[past]), op.Shape(x, start=2, end=3), axis=0
        )
        state = op.Expand(op.Constant(value=ir.tensor([0.0], dtype=ir.DataType.FLOAT)), shape)
    if reverse:
        state = _flipped(state)
        padded = op.Concat(x, state, axis=1)
        taps = _flipped(weight)
    else:
        padded, taps = op.Concat(state, x, axis=1), weight
    if x.shape[1] == 1:
        y = op.ReduceSum(op.Mul(padded, op.Transpose(taps, perm=[1, 0])), [1], keepdims=1)
    else:  # sums of shifted copies: faster than Conv with its two transpositions
        columns = op.Split(op.Transpose(taps, perm=[1, 0]), num_outputs=past + 1, axis=0)
        ends = [-past + j if j < past else 1 << 62 for j in range(past + 1)]
        pieces = [
            op.Mul(op.Slice(padded, [j], [end], [1]), w) for j, (end, w) in enumerate(zip(ends, columns, strict=True))
        ]
        y = pieces[0]
        for piece in pieces[1:]:
            y = op.Add(y, piece)
    if bias is not None:
        y = op.Add(y, bias)
    last = _flipped(op.Slice(padded, [0], [past], [1])) if reverse else op.Slice(padded, [-past], [1 << 62], [1])
    return op.Mul(y, op.Sigmoid(y)), last


def _flipped(x: Value) -> Value:
    """Against the second axis."""
    return op.Slice(x, [-1], [-(1 << 62)], [1], [-1])


def _softplus(x: Value) -> Value:
    """log(1 + exp(x)). ONNX Runtime's Softplus takes one number at a time; these three operators take many.

    Where x is far below zero the sum loses digits: the result is off by 6e-8 at most. Where x is large, exp must not
    overflow.
    """
    return op.Log(op.Add(op.Exp(op.Min(x, 80.0)), 1.0))


def softplus(x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """`torch.nn.functional.softplus`."""
    if beta != 1.0:
        raise NotImplementedError(f"softplus with beta {beta} is not translated")
    return _softplus(x)


def atan2(y: Value, x: Value) -> Value:
    """`torch.atan2`: ONNX has only the arc tangent of a quotient."""
    half = op.Atan(op.Div(y, op.Add(x, op.Where(op.Equal(x, 0.0), 1e-38, 0.0))))
    turn = op.Where(op.Less(y, 0.0), -math.pi, math.pi)
    return op.Where(op.Less(x, 0.0), op.Add(half, turn), half)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.clearstate.selective_scan.default: selective_scan,
    torch.ops.clearstate.causal_conv1d_silu.default: causal_conv1d_silu,
    torch.ops.aten.softplus.default: softplus,
    torch.ops.aten.atan2.default: atan2,
}
