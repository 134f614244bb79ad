"""What runs a trained model. `open_model` finds one by name or folder and gives what the tasks work with."""

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
    """A model that the functions of a task can run.

    Args:
        model: a name (see `clearstate models`), the folder of its weights, a PyTorch network, or an object that fulfils
            the task's Protocol in `runtime/contract.py`, which is returned as it is.
        sampling: steps and seed of a diffusion model.
    Raises:
        ValueError: for a name that is not known, a model of another task, or one without weights.
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
