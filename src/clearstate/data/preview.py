"""Write training items as audio files, to listen to."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from clearstate.audio.paths import native_name


class Items(Protocol):
    """A dataset whose items are dicts of signals, all at one rate."""

    rate: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def preview(dataset: Items, n: int, folder: str | Path, start: int = 0) -> list[Path]:
    """Write items [start, start + n) of a dataset: a WAV file for each of their signals, and one JSON line an item.

    `0003-noisy.wav`, `0003-clean.wav` (or -mixture, -s1, -s2; -narrow, -wide), float32 at `dataset.rate`, and
    `preview.jsonl` with the names and what was drawn. Each file appears complete or not at all.

    Returns:
        the WAV files.
    Raises:
        FileExistsError: if the folder holds an earlier preview.
    """
    folder = Path(folder)
    listing = folder / "preview.jsonl"
    if listing.exists():
        raise FileExistsError(f"{listing} already exists; choose another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".preview-", dir=folder) as making:
        for i in range(start, start + n):
            item = dataset[i]
            names: dict[str, str] = {}
            for key, signal in _signals(item).items():
                names[key] = f"{i:04d}-{key}.wav"
                soundfile.write(native_name(Path(making, names[key])), signal, dataset.rate, subtype="FLOAT")
                written.append(Path(making, names[key]).replace(folder / names[key]))
            lines.append(json.dumps({"files": names, "info": item["info"]}))
        Path(making, "preview.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        Path(making, "preview.jsonl").replace(listing)
    return written


def _signals(item: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of an item by name, rows of a stack as s1, s2, ..."""
    signals: dict[str, np.ndarray] = {}
    for key, value in item.items():
        if isinstance(value, np.ndarray):
            signals |= {key: value} if value.ndim == 1 else {f"s{row + 1}": value[row] for row in range(len(value))}
    return signals
