"""Run trained models. `open_model` opens one by name or folder; `contract.py` defines what the tasks can call."""

import os
import sys
from typing import Any, Literal, overload

from clearstate.runtime.contract import EnhancementModel, ExtensionModel, SeparationModel, wrong_task

Task = Literal["enhance", "separate", "extend"]
Source = str | os.PathLike[str]


@overload
def open_model(model: Any, task: Literal["enhance"]) -> EnhancementModel: ...
@overload
def open_model(model: Any, task: Literal["separate"]) -> SeparationModel: ...
@overload
def open_model(
    model: Any, task: Literal["extend"], *, steps: int | None = None, seed: int | None = None
) -> ExtensionModel: ...
def open_model(model: Any, task: Task, **sampling: int | None) -> Any:
    """Open a model for a task.

    Args:
        model: a name (see `clearstate models`), a folder with weights, or a PyTorch network. Any other object must
            implement the task's Protocol in `runtime/contract.py` and is returned unchanged.
        sampling: steps and seed of a diffusion model.
    Raises:
        ValueError: for an unknown name, a model of another task, or a model without weights.
    """
    if isinstance(model, (str, os.PathLike)):
        from clearstate.models import PRESETS, load_model

        name = os.fspath(model)
        if name in PRESETS and PRESETS[name].task != task:
            raise ValueError(wrong_task(name, PRESETS[name].task, task))
        model = load_model(name)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from clearstate.runtime.torch import TorchEnhancer, TorchExtender, TorchSeparator

        wrappers = {"enhance": TorchEnhancer, "separate": TorchSeparator, "extend": TorchExtender}
        return wrappers[task](model, **sampling)
    return model
