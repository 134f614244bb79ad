"""Open the training audio of a spec: pools of speech and noise clips, and room responses.

sources = open_sources("../shared/data")                       # a folder of tar shards: speech*, noise*, rir*
sources = open_sources({"speech": ["/corpora/LibriSpeech"], "noise": ["/corpora/DEMAND"], "sample_rate": 16000})
print(sources.report)
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from clearstate.audio.io import AudioError, read_audio
from clearstate.audio.level import active_level
from clearstate.audio.rates import whole_rate
from clearstate.data.corpora import TEST_SPEAKERS, VALID_SPEAKERS, expected_layouts, recognise
from clearstate.data.folders import AudioFile, FileSet, plain_files
from clearstate.data.shards import BrokenClipError, Clip, Progress, open_shards, read_index, read_tar_audio
from clearstate.nearest import nearest

MAX_ROOMS = 500  # responses of one folder that are kept in memory


class ClipSet(Protocol):
    """A corpus that is read at one rate."""

    name: str
    rate: int  # Hz
    clips: Sequence[Clip]

    def read(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Samples [start, start + length) of a clip as float32 (m,), shorter where the clip ends."""
        ...


@dataclass(frozen=True)
class SourceSpec:
    """The audio to train on.

    Each path is a shard index (`.jsonl`), a folder of shards, a known corpus or any folder of audio files.
    """

    speech: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    sample_rate: int = 16_000  # Hz
    split: str = "train"  # "train", "valid" or "all"; by speaker and noise group
    least_snr: float = 0.0  # dB; speech whose quiet tenth is less far below its level is left out
    valid_share: float = 0.0  # share of voices and noise groups without a split (by a hash); 0: all of them train
    noncommercial: bool = False  # also use audio with a non-commercial licence
    cache: str | None = None  # folder for decoded audio; None = $CLEARSTATE_CACHE or ~/.cache/clearstate

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_rate", whole_rate(self.sample_rate))


class Pool:
    """Clips of several sets, drawn by voice (speech) or group (noise), weighted by the root of its duration.

    The root is a compromise. Weighted by duration, one audio book would outweigh a hundred voices; without a weight, a
    voice of two sentences would be as frequent as one of an hour. In an unlabelled corpus every recording is a voice.
    """

    def __init__(self, sets: Sequence[ClipSet], keep: Sequence[Sequence[int]] | None = None):
        self.sets = list(sets)
        kept = keep if keep is not None else [range(len(s.clips)) for s in sets]
        self.where = [(s, int(i)) for s, chosen in enumerate(kept) for i in chosen if sets[s].clips[int(i)].samples > 0]
        self.clips = [self.sets[s].clips[i] for s, i in self.where]
        self.samples = np.array([clip.samples for clip in self.clips], np.int64)
        self.by_voice: dict[str, np.ndarray] = _grouped([clip.voice for clip in self.clips])
        weight = np.zeros(len(self.clips))
        for members in self.by_voice.values():
            total = self.samples[members].sum()
            weight[members] = self.samples[members] / np.sqrt(total)
        self._cumulative = np.cumsum(weight)
        self.broken: set[int] = set()  # unreadable clips found by this process

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def seconds(self) -> float:
        """Total duration of the clips."""
        return float(self.samples.sum()) / self.sets[0].rate if self.sets else 0.0

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a clip: voices by the root of their duration, and their clips by duration."""
        return int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))

    def read(self, number: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Part of a clip as float32, see `ClipSet.read`; each damaged file is reported once."""
        s, i = self.where[number]
        try:
            return self.sets[s].read(i, start, length)
        except BrokenClipError as error:
            if number not in self.broken:
                self.broken.add(number)
                warnings.warn(f"{error}; skipped from now on ({len(self.broken)} broken so far)")
            raise

    def level(self, number: int, audio: np.ndarray) -> float:
        """Active level of a clip in dBFS, measured on `audio` if unknown; at least -70."""
        known = self.clips[number].level_db
        return max(active_level(audio, self.sets[0].rate) if known is None else known, -70.0)


@dataclass
class Sources:
    """The material of the mixtures."""

    speech: Pool
    noise: Pool
    rooms: list[tuple[str, np.ndarray]] = field(default_factory=list)  # (name, response at `rate`)
    rate: int = 16_000  # Hz
    report: str = ""


def open_sources(spec: str | Path | Mapping[str, Any] | SourceSpec, progress: Progress | None = None) -> Sources:
    """Open all audio of a spec; decode shard sets into the cache on first use.

    Args:
        spec: a SourceSpec, a mapping of its fields, or one folder of shards with speech and optional
            noise and rooms. `~` and `$VARIABLES` in paths are expanded.
        progress: called with (set name, clips done, total clips) during decoding or scanning.
    Raises:
        FileNotFoundError: if a path is missing or contains no audio of its role.
        ValueError: if a field is unknown, or there is no speech.
    """
    spec = as_spec(spec)
    if spec.split not in ("train", "valid", "all"):
        raise ValueError(f"split {spec.split!r}: expected 'train', 'valid' or 'all'; test sets are for scoring only")
    lines: list[str] = []
    pools = {}
    for role, paths in (("speech", spec.speech), ("noise", spec.noise)):
        sets = [opened for path in paths for opened in _open_sets(path, role, spec, progress)]
        keep = [[i for i, clip in enumerate(s.clips) if wanted(clip, spec)] for s in sets]
        for opened, kept in zip(sets, keep, strict=True):
            if not kept:
                raise ValueError(_why_empty(role, opened, spec))
        if role == "speech" and spec.least_snr:
            keep = [[i for i in kept if clear(s.clips[i], spec)] for s, kept in zip(sets, keep, strict=True)]
        pools[role] = Pool(sets, keep)
        lines += [_describe(role, s, kept) for s, kept in zip(sets, keep, strict=True)]
    rooms = [room for path in spec.rooms for room in _open_rooms(path, spec)]
    lines.append(f"rooms   {len(rooms)} responses")
    if not len(pools["speech"]):
        raise ValueError(
            f"no speech for split {spec.split!r} in {list(spec.speech)}"
            + (f" is as clean as least_snr={spec.least_snr:g}: lower it" if spec.least_snr and spec.speech else "")
            + (": name a folder or shard set" if not spec.speech else "")
        )
    return Sources(pools["speech"], pools["noise"], rooms, spec.sample_rate, "\n".join(lines))


def as_spec(spec: str | Path | Mapping[str, Any] | SourceSpec) -> SourceSpec:
    """Convert any form that `open_sources` accepts to a SourceSpec."""
    if isinstance(spec, SourceSpec):
        return spec
    if isinstance(spec, (str, Path)):
        folder = expand(spec)
        holds = {role: bool(shard_indexes(folder, role, 16_000)) for role in ("noise", "rooms")}
        rest = {role: (str(spec),) if there else () for role, there in holds.items()}
        return SourceSpec(speech=(str(spec),), noise=rest["noise"], rooms=rest["rooms"])
    known = [f.name for f in fields(SourceSpec)]
    for name in spec:
        if name not in known:
            raise ValueError(f"sources have no field {name!r}: {nearest(name, known)}")
    values: dict[str, Any] = dict(spec)
    for role in ("speech", "noise", "rooms"):
        paths = values.get(role, ())
        values[role] = (str(paths),) if isinstance(paths, (str, Path)) else tuple(map(str, paths))
    return SourceSpec(**values)


def wanted(clip: Clip, spec: SourceSpec) -> bool:
    """Whether a clip belongs to the split of the spec and its licence is allowed; test sets never do."""
    if not spec.noncommercial and "NC" in re.split(r"[\s-]", clip.licence):
        return False
    return _in_split(clip.voice if clip.labelled else clip.source, clip.split, spec)


def clear(clip: Clip, spec: SourceSpec) -> bool:
    """Whether a clip of speech is as clean as the spec asks, where its levels are known."""
    return clip.level_db is None or clip.floor_db is None or clip.level_db - clip.floor_db >= spec.least_snr


def _in_split(owner: str, split: str, spec: SourceSpec) -> bool:
    speaker = vctk_speaker(owner)
    if split == "test" or speaker in TEST_SPEAKERS:
        return False
    held_out = speaker in VALID_SPEAKERS or (in_validation(owner, spec.valid_share) if not split else split == "valid")
    return spec.split == "all" or held_out == (spec.split == "valid")


def vctk_speaker(owner: str) -> str:
    """Return "p226" for "vctk_p226" or "p226", and "" for other speakers."""
    found = re.search(r"(?:^|[_/])(p\d{3})$", owner)
    return found.group(1) if found else ""


def in_validation(owner: str, share: float) -> bool:
    """Whether a speaker or noise group falls into the validation `share`: by a hash of its name, alike everywhere."""
    return int.from_bytes(hashlib.sha256(owner.encode(errors="surrogateescape")).digest()[:4], "big") < share * 2**32


def expand(path: str | Path) -> Path:
    """The path with `~` and environment variables filled in."""
    return Path(os.path.expandvars(str(path))).expanduser()


def _open_sets(path: str, role: str, spec: SourceSpec, progress: Progress | None) -> list[ClipSet]:
    where = expand(path)
    if where.suffix == ".jsonl":
        return [open_shards(where, spec.sample_rate, spec.cache, progress)]
    if not where.is_dir():
        raise FileNotFoundError(
            f"{role}: {where} does not exist; expected a folder of audio or shards, or a shard index (.jsonl)"
        )
    if indexes := shard_indexes(where, role, spec.sample_rate):
        return [open_shards(index, spec.sample_rate, spec.cache, progress) for index in indexes]
    files = _files(where, role)
    opened = FileSet(where.name, files, spec.sample_rate, spec.cache, progress)
    if opened.broken:
        warnings.warn(f"{where}: {len(opened.broken)} files are unreadable and skipped: {', '.join(opened.broken[:3])}")
    if not opened.clips:
        raise FileNotFoundError(f"{role}: none of the {len(files)} files of {where} can be read")
    return [opened]


def _files(where: Path, role: str) -> list[AudioFile]:
    """The files of a role in a folder, by the layout of its corpus if that is known."""
    corpus = recognise(where)
    files = corpus.files(role) if corpus else plain_files(where, role)
    if files:
        return files
    if corpus:
        raise FileNotFoundError(f"{role}: nothing of this kind in\n{corpus.report()}")
    raise FileNotFoundError(
        f"{role}: no audio and no {role} shards in {where}. Any folder of audio files works. Known "
        f"corpora:\n{expected_layouts()}"
    )


def shard_indexes(folder: Path, role: str, rate: int) -> list[Path]:
    """The shard indexes of a role in a folder: all whose rate is enough, or the best there are; lowest rate first."""
    found = sorted(folder.glob(f"{'rir' if role == 'rooms' else role}*.jsonl"))
    rates = {path: int(m.group(1)) * 1000 if (m := re.search(r"(\d+)k$", path.stem)) else rate for path in found}
    least = min(rate, max(rates.values(), default=0))
    return sorted((path for path in found if rates[path] >= least), key=lambda path: rates[path])


def _open_rooms(path: str, spec: SourceSpec) -> list[tuple[str, np.ndarray]]:
    """Room responses of the spec's split, kept in memory: at most MAX_ROOMS of a folder, evenly picked."""
    where = expand(path)
    indexes = [where] if where.suffix == ".jsonl" else shard_indexes(where, "rooms", spec.sample_rate)
    rooms = []
    for index in indexes:
        rows = [row for row in read_index(index) if spec.split == "all" or row.get("split", "train") == spec.split]
        for row, audio in read_tar_audio(index.parent, rows, spec.sample_rate):
            if isinstance(audio, Exception):
                warnings.warn(f"{row['file']}: {audio}; left out")
            else:
                rooms.append((row["file"], audio))
    if indexes:
        return rooms
    files = [file for file in _files(where, "rooms") if _in_split(file.owner, file.split, spec)]
    for file in files[:: -(-len(files) // MAX_ROOMS)]:
        try:
            # Channels of an array are not averaged, as `FileSet` would: their delays differ.
            audio, native = read_audio(file.path)
        except (AudioError, OSError) as error:
            warnings.warn(f"{file.path}: {error}; left out")
            continue
        if audio[0].any():
            rooms.append((file.path.name, soxr.resample(audio[0].astype(np.float32), native, spec.sample_rate)))
    return rooms


def _why_empty(role: str, clips: ClipSet, spec: SourceSpec) -> str:
    licences = {clip.licence for clip in clips.clips if clip.licence}
    if licences and not spec.noncommercial:
        return f"{role}: {clips.name} is licensed {', '.join(licences)}: set noncommercial: true to use it"
    return f"{role}: none of the {len(clips.clips)} clips of {clips.name} belongs to split {spec.split!r}"


def _grouped(names: Sequence[str]) -> dict[str, np.ndarray]:
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name, []).append(i)
    return {name: np.array(members) for name, members in groups.items()}


def _describe(role: str, clips: ClipSet, kept: Sequence[int]) -> str:
    hours = sum(clips.clips[i].samples for i in kept) / clips.rate / 3600
    owners = len({clips.clips[i].owner for i in kept if clips.clips[i].labelled})
    dropped = len(clips.clips) - len(kept)
    left_out = f", {dropped} clips left out (split, licence or noise)" if dropped else ""
    who = "speakers" if role == "speech" else "groups"
    narrow = getattr(clips, "narrow", 0)
    left_out += f", {narrow} files below {clips.rate} Hz: nothing above half their own rate" if narrow else ""
    return f"{role:7} {clips.name}: {len(kept)} clips, {hours:.2f} h, {owners} {who}{left_out}"
