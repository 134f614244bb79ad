"""Run exported models with ONNX Runtime: the tasks' contract without PyTorch. `models/export` says what a file holds.

One thread: the models are small, and files and streams run side by side in processes and threads of their own.
"""

import json
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from clearstate.runtime.contract import Advance, Array, Portable, given_sampling, no_sampling, wrong_task

HOPS_AT_ONCE = 64  # of a stream: a fifth faster than 250, whose intermediate results leave the cache


class OnnxModel(Portable):
    """The part of the wrapper that all tasks share.

    Args:
        path: of an .onnx file that `clearstate export` wrote.

    Raises:
        ValueError: for a file that ONNX Runtime cannot load, that is none of ours, or whose model has another task.
        FileNotFoundError: if there is no such file.
    """

    task = ""
    wants_overview = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            changed = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path} does not exist; make it with: clearstate export MODEL") from None
        self.session, self.metadata = open_session(self.path, changed)
        self.name = self.metadata["name"]
        if self.metadata["task"] != self.task:
            raise ValueError(wrong_task(self.name, self.metadata["task"], self.task))
        self.sample_rate, self.hop = int(self.metadata["sample_rate"]), int(self.metadata["hop"])
        self.latency, self.causal = int(self.metadata["latency"]), self.metadata["causal"] == "1"
        self.speakers = int(self.metadata.get("speakers", 1))
        self.states = {name: tuple(shape) for name, shape in json.loads(self.metadata["states"]).items()}

    def stream_of(self, rows: int) -> Advance:
        """A function that runs the next samples (rows, m hop) and keeps the state.

        The states stay in arrays of the stream, of which a run reads one set and writes the other.
        """
        from onnxruntime import OrtValue

        def zeros(*shape: int) -> Any:
            return OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))

        states = [{name: zeros(rows, *shape) for name, shape in self.states.items()} for _ in range(2)]
        voices = (self.speakers,) if self.task == "separate" else ()

        def bound(hops: int, turn: int) -> tuple[Any, Any, Any]:
            samples, output = zeros(rows, hops * self.hop), zeros(rows, *voices, hops * self.hop)
            binding = self.session.io_binding()
            binding.bind_ortvalue_input("samples", samples)
            binding.bind_ortvalue_output("output", output)
            for name in self.states:
                binding.bind_ortvalue_input(name, states[turn][name])
                binding.bind_ortvalue_output(name.replace("state_", "next_", 1), states[1 - turn][name])
            return samples, binding, output

        one_hop, turn = (bound(1, 0), bound(1, 1)), 0

        def advance(x: Array) -> Array:
            nonlocal turn
            if x.ndim != 2 or len(x) != rows or x.shape[1] % self.hop:
                raise ValueError(f"samples of shape {x.shape}: expected ({rows}, m {self.hop})")
            pieces = []
            for start in range(0, x.shape[1], HOPS_AT_ONCE * self.hop):
                piece = np.ascontiguousarray(x[:, start : start + HOPS_AT_ONCE * self.hop], np.float32)
                hops = piece.shape[1] // self.hop
                samples, binding, output = one_hop[turn] if hops == 1 else bound(hops, turn)
                samples.update_inplace(piece)
                self.session.run_with_iobinding(binding)
                turn = 1 - turn
                pieces.append(output.numpy().copy())  # a view of what the next run overwrites
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)

        return advance

    def whole(self, samples: Array, **more: Array) -> Array:
        """One block (n,) through a model without a state."""
        output: Array = self.session.run(["output"], {"samples": np.ascontiguousarray(samples[None]), **more})[0][0]
        return output


class OnnxEnhancer(OnnxModel):
    """An enhancement model; see `contract.EnhancementModel`."""

    task = "enhance"

    def open_stream(self, rows: int, live: bool = False) -> Advance:
        return self.stream_of(rows)

    def overview(self, pieces: Array, gain: Array) -> Any:
        raise NotImplementedError(f"{self.name} has no overview")

    def run(self, noisy: Array, overview: Any = None) -> Array:
        return self.whole(noisy)


class OnnxSeparator(OnnxModel):
    """A separation model; see `contract.SeparationModel`."""

    task = "separate"

    def open_stream(self) -> Advance:
        advance = self.stream_of(1)
        return lambda mixture: advance(mixture)[0]

    def run(self, mixture: Array) -> Array:
        return self.whole(mixture)


class OnnxExtender(OnnxModel):
    """An extension model; see `contract.ExtensionModel`."""

    task = "extend"

    def __init__(self, path: str | os.PathLike[str], *, steps: int | None = None, seed: int | None = None) -> None:
        super().__init__(path)
        if given := given_sampling(steps, seed):
            raise ValueError(no_sampling(self.name, given))

    def run(self, narrow: Array, bandwidth_hz: float, position: int, progress: Callable[[int, int], None]) -> Array:
        return self.whole(narrow, bandwidth_hz=np.array([bandwidth_hz], np.float32))


@lru_cache(maxsize=4)
def open_session(path: str, changed: int) -> tuple[Any, dict[str, str]]:
    """An ONNX Runtime session on a file, and the file's metadata.

    Args:
        changed: time stamp of the file, so that a new version is loaded again.
    Raises:
        ValueError: see `OnnxModel`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_reuse = False  # memory that was planned for reuse: three times as much, and slower
    options.log_severity_level = 3  # errors; they arrive as exceptions, too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(_refusal(path, str(error), onnxruntime.__version__)) from error
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    if not {"name", "task", "parameters", "sample_rate", "hop", "latency", "causal", "states"} <= metadata.keys():
        raise ValueError(f"{path} is an ONNX file, but none of clearstate's; make one with: clearstate export MODEL")
    inputs = {x.name for x in session.get_inputs()}
    expected = {"samples", *json.loads(metadata["states"])} | (
        {"bandwidth_hz"} if metadata["task"] == "extend" else set()
    )
    if inputs != expected:
        different = ", ".join(sorted(inputs ^ expected))
        raise ValueError(
            f"{path} does not have the inputs that its metadata name ({different}); export the model again"
        )
    return session, metadata


def _refusal(path: str, error: str, version: str) -> str:
    """Why ONNX Runtime did not load a file, in one line."""
    if "IR version" in error or "opset" in error.lower():
        return f"onnxruntime {version} is too old for {path}: pip install --upgrade onnxruntime"
    return f"{path} is damaged, or no ONNX file ({error.splitlines()[0][:200]}); make it again with: clearstate export"
