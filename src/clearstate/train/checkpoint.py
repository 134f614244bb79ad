"""Read and write checkpoints: the complete state of a run, written atomically."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from clearstate.audio.atomic import replacing

NAME = "checkpoint.pt"


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write(file)` on a temporary file, flush it to disk and rename it to `path`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) as the folder's checkpoint."""
    write_atomically(folder / NAME, lambda file: torch.save(state, file))


def load(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, None if there is none.

    Raises:
        ValueError: if the file is not a checkpoint.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({_first_line(error)}): restore it from a copy, or remove it to start again"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def random_state() -> dict[str, Any]:
    """The state of this process's random generators: torch (CPU and GPU) and Python."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
