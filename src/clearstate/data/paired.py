"""Noisy and clean recordings as pairs: files of the same name in two folders."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from clearstate.audio.io import read_audio
from clearstate.audio.level import rms
from clearstate.audio.mono import find_mix, to_mono
from clearstate.audio.rates import whole_rate
from clearstate.data.corpora import VALID_SPEAKERS, is_test_set, match, recognise, refuse_test_set
from clearstate.data.folders import read_channels, scan, speaker_of
from clearstate.data.mixing import redrawn


class PairedFolder:
    """Full-length pairs, sorted by name: `len`, `[i]` and iteration return dicts.

    Each holds noisy and clean, float32 (samples,), the pair's name, and info.

    Args:
        noisy_dir, clean_dir: folders, searched recursively; files are matched by their path without suffix, or by the
            `fileid_N` at the end of DNS-Challenge's names.
        sample_rate: Hz; files of another rate are resampled. None takes each as it is.
        meta: JSON file with a list of rows, each with `file` the name of a pair (and `task`, of which `task` is
            wanted): what becomes `info`.
        split: "train" excludes VoiceBank's p226 and p287, "valid" uses only these, "all" uses every pair.
        validate_on_test_set: allow a published test set.
    Raises:
        FileNotFoundError: if there is no pair.
        ValueError: if a noisy file has no clean one, or the folder is a test set.
    """

    def __init__(
        self,
        noisy_dir: str | Path,
        clean_dir: str | Path,
        sample_rate: int | None = 16_000,
        meta: str | Path | None = None,
        task: str = "denoise",
        split: str = "all",
        validate_on_test_set: bool = False,
    ):
        self.rate = None if sample_rate is None else whole_rate(sample_rate)
        noisy_dir, clean_dir = Path(noisy_dir), Path(clean_dir)
        if not validate_on_test_set:
            refuse_test_set(is_test_set(noisy_dir), str(noisy_dir), allowed=False)
        if split not in ("train", "valid", "all"):
            raise ValueError(f"split {split!r}: expected 'train', 'valid' or 'all'")
        pairs = {
            pair[0].relative_to(noisy_dir).with_suffix("").as_posix(): pair for pair in match(noisy_dir, clean_dir)
        }
        if split != "all":
            held_out = {name for name in pairs if speaker_of(Path(Path(name).name)) in VALID_SPEAKERS}
            pairs = {name: pair for name, pair in pairs.items() if (name in held_out) == (split == "valid")}
        if not pairs:
            raise FileNotFoundError(f"no audio in {noisy_dir}" + (f" for split {split!r}" if split != "all" else ""))
        self.names = sorted(pairs)
        self.paths = [pairs[name] for name in self.names]
        rows = json.loads(Path(meta).read_text(encoding="utf-8")) if meta is not None else []
        self._info: dict[str, dict[str, Any]] = {row["file"]: row for row in rows if row.get("task", task) == task}

    @classmethod
    def of_corpus(
        cls, root: str | Path, split: str, sample_rate: int | None = 16_000, validate_on_test_set: bool = False
    ) -> PairedFolder:
        """The "train" or "valid" pairs of a known corpus, found by its structure, or "test" with the flag."""
        corpus = recognise(root)
        if corpus is None:
            raise FileNotFoundError(f"{root} contains no paired corpus; expected folders as in VoiceBank+DEMAND")
        pairs = corpus.pairs(split, validate_on_test_set)
        folder = cls.__new__(cls)
        folder.rate, folder._info = None if sample_rate is None else whole_rate(sample_rate), {}
        folder.names = [noisy.stem for noisy, _ in pairs]
        folder.paths = pairs
        return folder

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noisy, clean = as_mono(*(read_file(path, self.rate) for path in self.paths[index]))
        if len(noisy) != len(clean):
            raise ValueError(
                f"{self.paths[index][0]} has {len(noisy)} samples and its clean partner {len(clean)}: "
                "a pair must be aligned"
            )
        name = self.names[index]
        return {"noisy": noisy, "clean": clean, "name": name, "info": self._info.get(name, {})}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class PairedCrops:
    """Random crops of a PairedFolder for training: item i of epoch e is `crops[e * len(crops) + i]`.

    One crop of every pair an epoch, in the order of the names; shorter pairs are padded with silence at the end.
    Only the crop is decoded. Items are dicts of noisy, clean float32 (samples,) and info, see `MixtureDataset`.

    Args:
        levels: add `gain`, 1 / RMS of the whole noisy recording; it is read once for that.
    """

    def __init__(self, pairs: PairedFolder, seconds: float = 3.0, seed: int = 0, levels: bool = False):
        if pairs.rate is None:
            raise ValueError("crops need one rate: give PairedFolder a sample_rate")
        self.pairs, self.rate, self.seed = pairs, pairs.rate, seed
        self.samples = round(seconds * self.rate)
        self.levels = levels
        self._gains: dict[int, float] = {}  # by number of a pair
        headers = scan([path for pair in pairs.paths for path in pair], "pairs")
        self._kept: list[tuple[int, int, int]] = []  # number of a pair, its samples and its rate
        bad = []
        for i, ((noisy, clean), a, b) in enumerate(zip(pairs.paths, headers[::2], headers[1::2], strict=True)):
            if a == b and a[0] > 0:
                self._kept.append((i, *a))
            else:
                bad.append(f"{noisy} has {a[0]} samples at {a[1]} Hz, {clean} {b[0]} at {b[1]}: not a pair")
        if not self._kept:
            raise ValueError(bad[0])
        if bad:
            warnings.warn(f"{len(bad)} of {len(pairs)} pairs are skipped: {'; '.join(bad[:3])}")

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, item = divmod(index, len(self))
        turns = iter(range(item, item + 10))  # the next pair replaces an unreadable one

        def draw(rng: np.random.Generator) -> dict[str, Any]:
            number, frames, native = self._kept[next(turns) % len(self)]
            length = frames * self.rate // native
            start = int(rng.integers(max(0, length - self.samples) + 1))
            take = min(self.samples, length)
            noisy, clean = as_mono(
                *(read_channels(path, native, self.rate, start, take) for path in self.pairs.paths[number])
            )
            fill = (0, self.samples - take)
            info = {"name": self.pairs.names[number], "start": start}
            gain = {"gain": np.array([self.gain(number)], np.float32)} if self.levels else {}
            return {"noisy": np.pad(noisy, fill), "clean": np.pad(clean, fill), "info": info, **gain}

        return redrawn(draw, self.seed, epoch, item)

    def gain(self, number: int) -> float:
        """1 / RMS of the whole noisy recording of a pair; 1 for digital silence."""
        if number not in self._gains:
            noisy, _ = as_mono(*(read_file(path, self.rate) for path in self.pairs.paths[number]))
            level = float(rms(noisy).item())
            self._gains[number] = 1 / level if level > 1e-6 else 1.0
        return self._gains[number]


def as_mono(noisy: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pair (channels, n) with both mixed in the way that suits the clean one, so that they still belong together."""
    mix = find_mix(clean)
    return mix(noisy) if len(noisy) == len(clean) else to_mono(noisy), mix(clean)


def read_file(path: str | Path, rate: int | None) -> np.ndarray:
    """A whole file at `rate` Hz: float32 (channels, samples)."""
    audio, native = read_audio(path)
    audio = audio.astype(np.float32)
    return audio if rate in (None, native) else soxr.resample(audio.T, native, rate).T
