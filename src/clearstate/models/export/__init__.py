"""Export a model to one ONNX file: samples in, samples out, opset 18, no custom operators.

A causal model has the inputs `samples` (batch, m hop) and one `state_...` (batch, ...) for each part of its state, and
the outputs `output` (batch, m hop) and `next_...` for the same parts; `batch` and m are free, and all states begin as
zeros. Inside, an If chooses between two graphs: one for a single hop of a single signal, in which every shape is known,
and one for everything else, in which the recurrences are `Scan` loops.

Other models have the input `samples` (batch, n) and the output `output`, (batch, n) or (batch, speakers, n). Extension
models also have the input `bandwidth_hz` (batch,).

The metadata of the file say what it is: name, task, parameters, sample_rate, hop, latency, causal, speakers, licence,
version, and states (JSON: shapes without the batch). `runtime/onnx.py` reads them.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from clearstate import __version__
from clearstate.audio.atomic import replacing
from clearstate.models.export.live_hop import LiveHop
from clearstate.models.live import Live
from clearstate.models.s4m import S4M


def export_onnx(model: nn.Module, path: Path, *, name: str, licence: str = "", half: bool = False) -> None:
    """Write a model to an ONNX file.

    Args:
        model: one that `clearstate.load_model` returns.
        name: for the metadata, as `licence` (of the weights) is.
        half: store all weights as float16, which halves the file. They are computed in float32 all the same. Weights
            that are the same in float16 are always stored so.
    Raises:
        ValueError: for a model that cannot be exported.
        ImportError: without the extra `export`.
    """
    from clearstate.models.export.graphs import finished, halved, hoisted, joined

    known: Any = model.eval()
    if getattr(known, "is_diffusion", False):
        raise ValueError(
            f"{name} makes its output in many steps from random noise: no single graph does that; "
            "export extend-fast, which takes one step"
        )
    if isinstance(known, S4M):
        raise ValueError(
            f"{name} has a recurrence with one step a sample, for which ONNX has no fast form; export separate-fast"
        )
    with _quiet(name), torch.no_grad():
        if known.causal:
            streamed = Streamed(known)
            program = joined(streamed.one_hop(), streamed.many_hops(), known.hop)
        else:
            program = hoisted(_whole(known))
    program = halved(program, rounded=half)
    states = {name: list(state.shape[1:]) for name, state in streamed.states.items()} if known.causal else {}
    metadata = {
        "name": name, "task": getattr(known, "task", "enhance"), "sample_rate": known.sample_rate,
        "parameters": sum(parameter.numel() for parameter in known.parameters()),
        "hop": known.hop if known.causal else 1, "latency": known.latency if known.causal else 0,
        "causal": int(known.causal), "speakers": getattr(known, "speakers", 1), "licence": licence,
        "version": __version__, "states": json.dumps(states),
    }  # fmt: skip
    with replacing(path) as temporary:
        Path(temporary).write_bytes(finished(program, {key: str(value) for key, value in metadata.items()}))


class Streamed:
    """The stream of a causal model as graphs whose states all have the batch as their first axis."""

    def __init__(self, model: Any) -> None:
        self.model = model
        one, two = (tree.tree_flatten_with_path(model.init_state(batch))[0] for batch in (1, 2))
        self.spec = tree.tree_structure(model.init_state(1))
        self.names = ["_".join(_part(key) for key in path) for path, _ in one]
        self.rows = []  # of one signal: some states have a row for each band
        for name, (_, single), (_, double) in zip(self.names, one, two, strict=True):
            if double.shape[0] != 2 * single.shape[0] or single.any():
                raise ValueError(f"the state {name} {tuple(single.shape)} of this model cannot be exported")
            self.rows.append(single.shape[0])
        self.fast = LiveHop(model) if isinstance(model, Live) else None
        states = self.packed(tree.tree_leaves(model.init_state(1)), 1)
        self.states = {f"state_{name}": state.contiguous() for name, state in zip(self.names, states, strict=True)}

    def packed(self, states: list[Tensor], batch: int) -> list[Tensor]:
        """States of the network to those of the file: the batch first."""
        split = [x.unflatten(0, (batch, rows)) if rows > 1 else x for x, rows in zip(states, self.rows, strict=True)]
        return self.fast.pack(split) if self.fast else split

    def unpacked(self, states: list[Tensor]) -> list[Tensor]:
        """The inverse of `packed`."""
        split = self.fast.unpack(states) if self.fast else states
        return [x.flatten(0, 1) if rows > 1 else x for x, rows in zip(split, self.rows, strict=True)]

    def one_hop(self) -> Any:
        """The graph for one hop of one signal."""
        example = torch.zeros(1, self.model.hop)
        return _program(self.fast or _Step(self), (example, list(self.states.values())), None, self.names)

    def many_hops(self) -> Any:
        """The graph for any number of hops and signals."""
        batch, hops = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("hops", min=1, max=1 << 20)
        states = [state.expand(2, *state.shape[1:]).contiguous() for state in self.states.values()]
        free: Any = ({0: batch, 1: self.model.hop * hops}, [{0: batch}] * len(states))
        return _program(_Step(self), (torch.zeros(2, 3 * self.model.hop), states), free, self.names)


class _Step(nn.Module):
    """`step` of a model on states that are a flat list."""

    def __init__(self, streamed: Streamed) -> None:
        super().__init__()
        self.model, self.streamed = streamed.model, streamed

    def forward(self, samples: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        streamed = self.streamed
        state = tree.tree_unflatten(streamed.unpacked(states), streamed.spec)
        output, state = self.model.step(samples, state)
        return output, streamed.packed(tree.tree_leaves(state), samples.shape[0])


class _Whole(nn.Module):
    """A model that has no state; extension models are told the bandwidth."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: Tensor, bandwidth_hz: Tensor | None = None) -> Tensor:
        return self.model(samples) if bandwidth_hz is None else self.model(samples, bandwidth_hz=bandwidth_hz)


def _whole(model: Any) -> Any:
    """The graph of a model for whole blocks."""
    batch, samples = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    example: tuple[Tensor, ...] = (0.1 * torch.randn(2, 20_000),)
    free: Any = ({0: batch, 1: samples},)
    if getattr(model, "task", "enhance") == "extend":
        example += (torch.tensor([4000.0, 8000.0]),)
        free += ({0: batch},)
    return _program(_Whole(model), example, free, None)


def _program(module: nn.Module, example: tuple[Any, ...], free: Any, states: list[str] | None) -> Any:
    """Trace a module with torch.export and translate it to an ONNX program."""
    from clearstate.models.export.operators import OPSET, TRANSLATIONS

    traced = torch.export.export(module.eval(), example, dynamic_shapes=free, strict=False)
    names: dict[str, Any] = {"input_names": ["samples", "bandwidth_hz"][: len(example)], "output_names": ["output"]}
    if states is not None:
        names["input_names"] = ["samples", *(f"state_{name}" for name in states)]
        names["output_names"] = ["output", *(f"next_{name}" for name in states)]
    program = torch.onnx.export(
        traced, dynamo=True, opset_version=OPSET, custom_translation_table=TRANSLATIONS, verbose=False,
        optimize=False, **names,
    )  # fmt: skip
    assert program is not None
    _protect_floors(program.model)
    program.optimize()
    return program


def _protect_floors(model: Any) -> None:
    """Give small constants one dimension.

    The optimizer removes `x + c` for a scalar c below 1e-8, as if it were 0. Such a floor keeps silence from a division
    by zero.
    """
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        value = node.attributes.get("value") if node.op_type == "Constant" else None
        if value is not None and value.value.dtype.is_floating_point() and value.value.shape.rank() == 0:
            number = value.value.numpy()
            if 0 < abs(number) < 1e-6:
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number[None]))


def _part(key: Any) -> str:
    return str(getattr(key, "name", None) or getattr(key, "idx", None) or getattr(key, "key", 0))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No warnings: of the exporter's own deprecated parts, and of a torchvision that it does not need.

    Raises:
        ValueError: in one line, where the exporter fails.
    """
    loggers = [logging.getLogger(part) for part in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError, RuntimeError) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0][:200]
        raise ValueError(f"{name} cannot be exported: no ONNX form for a part of it ({reason})") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
