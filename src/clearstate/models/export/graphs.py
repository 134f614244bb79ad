"""Graphs of an export, put together: two graphs behind one If, weights as float16, names and metadata."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from clearstate.models.export.operators import OPSET

LEAST_SHARED = 1 << 16  # bytes of an initializer that two branches share
LEAST_HALF = 1024  # numbers of an initializer that is stored as float16


def joined(hop_program: Any, frames_program: Any, hop: int) -> ir.Model:
    """One model: the first graph where there is one hop of one signal, the second otherwise.

    Both have the same inputs and outputs, by name. What both hold is stored once.
    """
    then, otherwise = hoisted(hop_program).graph, hoisted(frames_program).graph
    inputs = [ir.Value(name=x.name, shape=x.shape, type=x.type) for x in otherwise.inputs]
    outputs = [ir.Value(name=x.name, shape=x.shape, type=x.type) for x in otherwise.outputs]
    main = ir.Graph(inputs, outputs, nodes=[], name="clearstate", opset_imports={"": OPSET})
    for graph, prefix in ((then, "hop"), (otherwise, "frames")):
        for own, shared in zip(graph.inputs, inputs, strict=True):
            ir.convenience.replace_all_uses_with(own, shared)
        graph.inputs.clear()
        _rename(graph, prefix)
    _share(main, then, otherwise)
    samples = inputs[0]
    size = ir.Node("", "Size", [samples])
    one = _constant(main, "one_hop", np.array(hop, np.int64))
    equal = ir.Node("", "Equal", [size.outputs[0], one])
    branch = ir.Node(
        "", "If", [equal.outputs[0]],
        ir.convenience.convert_attributes({"then_branch": then, "else_branch": otherwise}), outputs=outputs,
    )  # fmt: skip
    size.outputs[0].name, equal.outputs[0].name = "size", "is_one_hop"
    main.extend([size, equal, branch])
    return ir.Model(main, ir_version=10)


def hoisted(program: Any) -> ir.Model:
    """The model of an exported program: functions inlined, constants as initializers, without a trace of the source."""
    model: ir.Model = program.model
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ClearMetadataAndDocStringPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


def halved(model: ir.Model, rounded: bool) -> ir.Model:
    """Large initializers as float16, cast back when the file is loaded.

    Args:
        rounded: all of them; False: only those that are the same in float16, as weights are that were stored in it.
    """
    branches = [
        attribute.as_graph() for node in model.graph if node.op_type == "If" for attribute in node.attributes.values()
    ]
    for graph in (model.graph, *branches):
        for name, value in list(graph.initializers.items()):
            array = value.const_value.numpy()
            if array.dtype != np.float32 or array.size < LEAST_HALF:
                continue
            with np.errstate(over="ignore"):  # infinity is not the same
                half = array.astype(np.float16)
            if not rounded and not np.array_equal(half, array):
                continue
            small = _constant(graph, f"{name}_half", half)
            cast = ir.Node("", "Cast", [small], ir.convenience.convert_attributes({"to": ir.DataType.FLOAT}))
            cast.outputs[0].name = f"{name}_wide"
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            del graph.initializers[name]
            graph.insert_before(graph[0], cast)
    return model


def finished(model: ir.Model, metadata: dict[str, str]) -> bytes:
    """The bytes of the file, checked."""
    import onnx

    model.producer_name, model.producer_version = "clearstate", metadata["version"]
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers[name] = value
    return value


def _share(main: ir.Graph, *branches: ir.Graph) -> None:
    """Move large initializers that all branches hold to the graph around them.

    Only large ones: ONNX Runtime hands them to the branch one by one each time it runs, about 0.5 us each.
    """
    contents = [
        {(x.const_value.dtype, tuple(x.shape), x.const_value.tobytes()): x for x in branch.initializers.values()}
        for branch in branches
    ]
    for content in contents[0]:
        if all(content in other for other in contents) and len(content[2]) >= LEAST_SHARED:
            first = contents[0][content]
            shared = _constant(main, f"shared_{len(main.initializers)}", first.const_value.numpy())
            for branch, known in zip(branches, contents, strict=True):
                ir.convenience.replace_all_uses_with(known[content], shared)
                del branch.initializers[known[content].name]


def _rename(graph: ir.Graph, prefix: str) -> None:
    """Names of a branch may not be those of the other one or of the graph around both."""
    graph.name = prefix
    values = list(graph.initializers.values())
    graph.initializers.clear()
    for k, value in enumerate(values):
        value.name = f"{prefix}_weight_{k}"
        graph.initializers[value.name] = value
    for number, node in enumerate(graph.all_nodes()):
        node.name = f"{prefix}_{number}"
        for k, value in enumerate(node.outputs):
            value.name = f"{prefix}_{number}_{k}"
