"""Pairs of files as they are: noisy and clean recordings of the same name in two folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"})


class PairedFolder:
    """Whole pairs in the order of their names: `len`, `[i]` and iteration give dicts of noisy, clean float32
    (samples,), name and info.

    Args:
        noisy_dir, clean_dir: folders, searched recursively; files are matched by their path without suffix.
        sample_rate: Hz; files of another rate are resampled. None takes each as it is.
        meta: JSON file with a list of rows, each with `file` the name of a pair (and `task`, of which `task` is
            wanted): what becomes `info`.
    Raises:
        FileNotFoundError: if there is no pair. ValueError: if a noisy file has no clean one.
    """

    def __init__(
        self,
        noisy_dir: str | Path,
        clean_dir: str | Path,
        sample_rate: int | None = 16_000,
        meta: str | Path | None = None,
        task: str = "denoise",
    ):
        self.rate = sample_rate
        noisy, clean = audio_files(noisy_dir), audio_files(clean_dir)
        if lonely := sorted(set(noisy) - set(clean)):
            raise ValueError(
                f"{len(lonely)} files of {noisy_dir} have no partner in {clean_dir}, the first {lonely[0]!r}: "
                "the names of a pair must match"
            )
        if not noisy:
            raise FileNotFoundError(f"no audio in {noisy_dir}")
        self.names = sorted(noisy)
        self._paths = [(noisy[name], clean[name]) for name in self.names]
        rows = json.loads(Path(meta).read_text(encoding="utf-8")) if meta is not None else []
        self._info: dict[str, dict[str, Any]] = {row["file"]: row for row in rows if row.get("task", task) == task}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noisy, clean = (read_mono(path, self.rate) for path in self._paths[index])
        if len(noisy) != len(clean):
            raise ValueError(
                f"{self._paths[index][0]} has {len(noisy)} samples and its clean partner {len(clean)}: "
                "a pair must be aligned"
            )
        return {
            "noisy": noisy,
            "clean": clean,
            "name": self.names[index],
            "info": self._info.get(self.names[index], {}),
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


def audio_files(folder: str | Path) -> dict[str, Path]:
    """Audio files under a folder by their relative path without suffix; FileNotFoundError if it is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = (
        path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
    )
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(found)}


def read_mono(path: str | Path, rate: int | None) -> np.ndarray:
    """A whole file, channels averaged, at `rate` Hz: float32 (samples,)."""
    audio, native = soundfile.read(path, dtype="float32", always_2d=True)
    mono = audio.mean(axis=1)
    return mono if rate in (None, native) else soxr.resample(mono, native, rate)
