"""Trained weights: load a model by its name or from a folder, and save one.

A folder holds `model.safetensors`, `config.json` ({"preset": name, "config": {...}}) and, if shipped, a card.
"""

import json
import sys
from dataclasses import asdict
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from clearstate.installed import need_torch
from clearstate.models.presets import PRESETS, build, find

if TYPE_CHECKING:
    from torch import nn


def load_model(name_or_path: str = "live") -> "nn.Module":
    """A trained model in evaluation mode: a shipped one by name, or the one in a folder.

    A folder holds `model.safetensors` and `config.json` ({"preset": name, "config": {...}}), as `save_model` writes it.

    Raises:
        ValueError: for an unknown name, a preset without shipped weights, or weights that do not fit.
        FileNotFoundError: for a folder without weights.
        ImportError: without PyTorch.
    """
    folder = Path(name_or_path)
    if name_or_path in PRESETS or not folder.is_dir():
        shipped = find(name_or_path).weights
        if shipped is None:
            have = ", ".join(name for name, preset in PRESETS.items() if preset.weights)
            raise ValueError(
                f"no weights of {name_or_path!r} are shipped: train it (clearstate train), name a folder with its "
                f"weights, or take one of: {have or 'none yet'}"
            )
        folder = shipped
        tell_licence(name_or_path)
    need_torch(name_or_path)
    return _load_folder(folder)


@cache
def tell_licence(name: str) -> None:
    """Say on stderr, once in a process, that a model's shipped weights may not be put to every use, where that is so.

    Not in processes that another one of ours started: it has said so.
    """
    preset = PRESETS.get(name)
    if preset and preset.weights and "NC" in preset.licence and parent_process() is None:
        print(f"clearstate: the weights of {name} are {preset.licence}: not for commercial use", file=sys.stderr)


def _load_folder(folder: Path) -> "nn.Module":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: expected a folder with config.json and model.safetensors"
            )
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        preset, config = str(described["preset"]), dict(described["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is damaged ({type(error).__name__}: {error}); expected an object with preset "
            "and config: fetch the folder again, or export the model again"
        ) from error
    try:
        model = build(preset, **config)
    except (TypeError, ArithmeticError, RuntimeError) as error:  # values that no model can have
        raise ValueError(f"{folder / 'config.json'} describes no {preset} model: {error}") from error
    try:
        weights = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{folder / 'model.safetensors'} is damaged ({error}): fetch the folder again, or export the model again"
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit a {preset} model: {error}") from error
    return model.eval()


def save_model(model: "nn.Module", preset: str, folder: Path) -> None:
    """Write the weights and config of a model to a folder that `load_model` reads."""
    from safetensors.torch import save

    from clearstate.audio.atomic import replacing, write_text

    find(preset)
    folder.mkdir(parents=True, exist_ok=True)
    described = {"preset": preset, "config": asdict(model.config)}  # type: ignore[call-overload]  # a dataclass
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(folder / "model.safetensors") as temporary:
        Path(temporary).write_bytes(save(weights))
    write_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
