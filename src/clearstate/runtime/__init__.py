"""Run trained models. `open_model` opens one by name, folder or file; `contract.py` defines what the tasks can call.

A model runs with ONNX Runtime (`onnx.py`, an exported file) or with PyTorch and the compiled kernels (`torch.py`).
`choose` decides between the two.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

from clearstate.installed import has_torch, need_torch
from clearstate.runtime.contract import EnhancementModel, ExtensionModel, SeparationModel, wrong_task

Task = Literal["enhance", "separate", "extend"]

BACKENDS = ("auto", "onnx", "torch")
BREAK_EVEN_SECONDS = 180.0  # of audio: the compiled kernels save as much time as loading PyTorch takes; docs/LOG.md


@overload
def open_model(model: Any, task: Literal["enhance"], *, backend: str = "auto") -> EnhancementModel: ...
@overload
def open_model(model: Any, task: Literal["separate"], *, backend: str = "auto") -> SeparationModel: ...
@overload
def open_model(
    model: Any, task: Literal["extend"], *, backend: str = "auto", steps: int | None = None, seed: int | None = None
) -> ExtensionModel: ...
def open_model(model: Any, task: Task, *, backend: str = "auto", **sampling: int | None) -> Any:
    """Open a model for a task.

    Args:
        model: a name (see `clearstate models`), a folder with weights, an .onnx file that `clearstate export` wrote, or
            a PyTorch network. Any other object must implement the task's Protocol in `runtime/contract.py` and is
            returned unchanged.
        backend: "onnx", "torch" or "auto"; see `choose`.
        sampling: steps and seed of a diffusion model.
    Raises:
        ValueError: for an unknown name or backend, a model of another task, or a model without weights.
        ImportError: if PyTorch is needed and not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: expected {', '.join(map(repr, BACKENDS))}")
    again = None
    if isinstance(model, (str, os.PathLike)):
        name = os.fspath(model)
        _check(name, task)
        exported = exported_file(name)
        runtime = choose(name, exported, backend)
        again = opened_once, (name, task, runtime, *sampling.items())
        if runtime == "onnx":
            from clearstate.models.weights import tell_licence
            from clearstate.runtime.onnx import OnnxEnhancer, OnnxExtender, OnnxSeparator

            tell_licence(name)
            runners = {"enhance": OnnxEnhancer, "separate": OnnxSeparator, "extend": OnnxExtender}
            runner: Any = runners[task](str(exported), **sampling)
            runner.again = again
            return runner
        from clearstate.models import load_model

        model = load_model(name)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from clearstate.runtime.torch import TorchEnhancer, TorchExtender, TorchSeparator

        wrappers = {"enhance": TorchEnhancer, "separate": TorchSeparator, "extend": TorchExtender}
        wrapper: Any = wrappers[task](model, **sampling)
        wrapper.again = again
        return wrapper
    return model


@lru_cache(maxsize=4)
def opened_once(name: str, task: Task, backend: str, *sampling: tuple[str, int | None]) -> Any:
    """The model that these arguments of `open_model` open; the same object for each call in a process."""
    return open_model(name, task, backend=backend, **dict(sampling))


def choose(name: str, exported: Path | None, backend: str = "auto") -> str:
    """Which backend runs a model: "onnx" or "torch".

    "auto" takes PyTorch with the compiled kernels where both are installed, for it is two to four times as fast once it
    is loaded; otherwise ONNX Runtime. A model without an exported file needs PyTorch.

    Raises:
        ValueError: if there is no file for ONNX Runtime.
        ImportError: if PyTorch is needed and not installed.
    """
    if name.endswith(".onnx"):
        if backend == "torch":
            raise ValueError(f"{name} runs with ONNX Runtime; for backend 'torch', give the model's name or folder")
        return "onnx"
    if backend == "onnx" and exported is None:
        raise ValueError(f"{name} has no .onnx file; make one with: clearstate export {name}")
    if backend == "onnx" or (backend == "auto" and exported and not has_torch()):
        return "onnx"
    need_torch(name)
    return "torch"


def choose_for(name: str, backend: str, seconds: float | None) -> str:
    """The backend for a process that does one job and ends.

    "auto" takes ONNX Runtime for less than BREAK_EVEN_SECONDS of audio: PyTorch takes longer to load than it saves.

    Args:
        seconds: of audio in all; None if not known.
    """
    if backend == "auto" and seconds is not None and seconds < BREAK_EVEN_SECONDS and "torch" not in sys.modules:
        return "onnx" if exported_file(name) else "auto"
    return backend


def exported_file(name: str) -> Path | None:
    """The .onnx file of a model: itself, the one in its folder, or the shipped one."""
    from clearstate.models import PRESETS

    if name.endswith(".onnx"):
        return Path(name)
    folder = PRESETS[name].weights if name in PRESETS else Path(name)
    file = folder / "model.onnx" if folder else None
    return file if file and file.is_file() else None


def _check(name: str, task: str) -> None:
    from clearstate.models import PRESETS, find

    if name in PRESETS:
        if PRESETS[name].task != task:
            raise ValueError(wrong_task(name, PRESETS[name].task, task))
    elif not name.endswith(".onnx") and not Path(name).is_dir():
        find(name)
