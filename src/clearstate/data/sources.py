"""Where training audio comes from: pools of speech and noise clips, and room responses, opened from one short spec.

sources = open_sources("../shared/data")                       # a folder of tar shards: speech*, noise*, rir*
sources = open_sources({"speech": ["/corpora/LibriSpeech"], "noise": ["/corpora/DEMAND"], "sample_rate": 16000})
print(sources.report)
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clearstate.data.shards import Clip, Progress, open_shards, read_index, read_tar_audio

# Of VoiceBank: its published test set, and the two training speakers kept for validation. Both also appear in other
# corpora made from VCTK.
TEST_SPEAKERS = ("p232", "p257")
VALID_SPEAKERS = ("p226", "p287")


class ClipSet(Protocol):
    """A corpus ready to be read at one rate."""

    name: str
    rate: int  # Hz
    clips: Sequence[Clip]

    def read(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Samples [start, start + length) of a clip as float32 (m,), shorter where the clip ends."""
        ...


@dataclass(frozen=True)
class SourceSpec:
    """Which audio to train on.

    Each path is a shard index (`.jsonl`), a folder of shards, a known corpus or any folder of audio files.
    """

    speech: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    sample_rate: int = 16_000  # Hz
    split: str = (
        "train"  # "train" | "valid" | "all": by speaker and noise group; a hash decides where a corpus has none
    )
    valid_share: float = 0.0  # of the voices and noise groups that no corpus splits; 0 = all of them train
    noncommercial: bool = False  # also use what is licensed for non-commercial use only
    cache: str | None = None  # folder for decoded audio; None = $CLEARSTATE_CACHE or ~/.cache/clearstate


class Pool:
    """Clips of several sets, drawn by voice (speech) or group (noise) with a weight of the root of its duration.

    The root is a compromise: with the duration itself an unlabelled corpus drowns the rest, with none a voice of two
    sentences is heard as often as one of an hour. Recordings of an unlabelled corpus count as one owner together.
    """

    def __init__(self, sets: Sequence[ClipSet], keep: Sequence[Sequence[int]] | None = None):
        self.sets = list(sets)
        kept = keep if keep is not None else [range(len(s.clips)) for s in sets]
        self.where = [(s, int(i)) for s, chosen in enumerate(kept) for i in chosen if sets[s].clips[int(i)].samples > 0]
        self.clips = [self.sets[s].clips[i] for s, i in self.where]
        self.samples = np.array([clip.samples for clip in self.clips], np.int64)
        self.by_voice: dict[str, np.ndarray] = _grouped([clip.voice for clip in self.clips])
        owners = _grouped([clip.owner if clip.labelled else clip.source for clip in self.clips])
        weight = np.zeros(len(self.clips))
        for members in owners.values():
            total = self.samples[members].sum()
            weight[members] = self.samples[members] / np.sqrt(total)
        self._cumulative = np.cumsum(weight)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def seconds(self) -> float:
        return float(self.samples.sum()) / self.sets[0].rate if self.sets else 0.0

    def draw(self, rng: np.random.Generator) -> int:
        """A clip's number, voices being likely by the root of their duration and their clips by duration."""
        return int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))

    def read(self, number: int, start: int = 0, length: int | None = None) -> np.ndarray:
        s, i = self.where[number]
        return self.sets[s].read(i, start, length)


@dataclass
class Sources:
    """What the mixtures are made of."""

    speech: Pool
    noise: Pool
    rooms: list[tuple[str, np.ndarray]] = field(default_factory=list)  # (name, response at `rate`)
    rate: int = 16_000  # Hz
    report: str = ""


def open_sources(spec: str | Path | Mapping[str, Any] | SourceSpec, progress: Progress | None = None) -> Sources:
    """Open everything a spec names, decoding shard sets into the cache on first use.

    Args:
        spec: a SourceSpec, a mapping of its fields, or one folder of shards that serves as speech, noise and rooms.
            `~` and `$VARIABLES` in paths are expanded.
        progress: called with (set name, clips done, clips in all) while something is decoded or scanned.
    Raises:
        FileNotFoundError: if a path is missing or holds no audio of the asked kind.
        ValueError: if a field is unknown or the spec has no speech.
    """
    spec = as_spec(spec)
    lines: list[str] = []
    pools = {}
    for role, paths in (("speech", spec.speech), ("noise", spec.noise)):
        sets = [opened for path in paths for opened in _open_sets(path, role, spec, progress)]
        keep = [[i for i, clip in enumerate(s.clips) if wanted(clip, spec)] for s in sets]
        pools[role] = Pool(sets, keep)
        lines += [_describe(role, s, kept) for s, kept in zip(sets, keep, strict=True)]
    rooms = [room for path in spec.rooms for room in _open_rooms(path, spec)]
    lines.append(f"rooms   {len(rooms)} responses")
    if not len(pools["speech"]):
        raise ValueError(f"no speech for split {spec.split!r} in {list(spec.speech)}: name a folder or shard set")
    return Sources(pools["speech"], pools["noise"], rooms, spec.sample_rate, "\n".join(lines))


def as_spec(spec: str | Path | Mapping[str, Any] | SourceSpec) -> SourceSpec:
    """A SourceSpec from any of the forms `open_sources` takes."""
    if isinstance(spec, SourceSpec):
        return spec
    if isinstance(spec, (str, Path)):
        return SourceSpec(speech=(str(spec),), noise=(str(spec),), rooms=(str(spec),))
    known = [f.name for f in fields(SourceSpec)]
    for name in spec:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ValueError(
                f"sources have no field {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}")
            )
    values: dict[str, Any] = dict(spec)
    for role in ("speech", "noise", "rooms"):
        paths = values.get(role, ())
        values[role] = (str(paths),) if isinstance(paths, (str, Path)) else tuple(map(str, paths))
    return SourceSpec(**values)


def wanted(clip: Clip, spec: SourceSpec) -> bool:
    """Whether a clip belongs to the split of the spec and its licence is allowed; speakers of test sets never do."""
    if not spec.noncommercial and "NC" in re.split(r"[\s-]", clip.licence):
        return False
    speaker = vctk_speaker(clip.owner)
    if speaker in TEST_SPEAKERS:
        return False
    owner = clip.voice if clip.labelled else clip.source
    held_out = speaker in VALID_SPEAKERS or in_validation(owner, spec.valid_share)
    return spec.split == "all" or held_out == (spec.split == "valid")


def vctk_speaker(owner: str) -> str:
    """ "p226" of "vctk_p226" or "p226"; "" for other speakers."""
    found = re.search(r"(?:^|[_/])(p\d{3})$", owner)
    return found.group(1) if found else ""


def in_validation(owner: str, share: float) -> bool:
    """Whether a speaker or noise group falls into the validation `share`: by a hash of its name, alike everywhere."""
    return int.from_bytes(hashlib.sha256(owner.encode()).digest()[:4], "big") < share * 2**32


def expand(path: str | Path) -> Path:
    return Path(os.path.expandvars(str(path))).expanduser()


def _open_sets(path: str, role: str, spec: SourceSpec, progress: Progress | None) -> list[ClipSet]:
    where = expand(path)
    if where.suffix == ".jsonl":
        return [open_shards(where, spec.sample_rate, spec.cache, progress)]
    if not where.is_dir():
        raise FileNotFoundError(
            f"{role}: {where} is not there; expected a folder of audio or shards, or a shard index (.jsonl)"
        )
    if indexes := shard_indexes(where, role, spec.sample_rate):
        return [open_shards(index, spec.sample_rate, spec.cache, progress) for index in indexes]
    raise FileNotFoundError(f"{role}: {where} holds no {role} shards ({role}*.jsonl)")


def shard_indexes(folder: Path, role: str, rate: int) -> list[Path]:
    """The shard indexes of a role in a folder; of `speech16k` and `speech48k` the lowest rate that is enough."""
    found = sorted(folder.glob(f"{'rir' if role == 'rooms' else role}*.jsonl"))
    rates = {path: int(m.group(1)) * 1000 if (m := re.search(r"(\d+)k$", path.stem)) else rate for path in found}
    enough = [r for r in rates.values() if r >= rate]
    chosen = min(enough) if enough else max(rates.values(), default=0)
    return [path for path in found if rates[path] == chosen]


def _open_rooms(path: str, spec: SourceSpec) -> list[tuple[str, np.ndarray]]:
    """Room responses of the spec's split: few and short, so they are kept in memory."""
    where = expand(path)
    indexes = [where] if where.suffix == ".jsonl" else shard_indexes(where, "rooms", spec.sample_rate)
    rooms = []
    for index in indexes:
        rows = [row for row in read_index(index) if spec.split == "all" or row.get("split", "train") == spec.split]
        for row, audio in read_tar_audio(index.parent, rows, spec.sample_rate):
            if not isinstance(audio, Exception):
                rooms.append((row["file"], audio))
    return rooms


def _grouped(names: Sequence[str]) -> dict[str, np.ndarray]:
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name, []).append(i)
    return {name: np.array(members) for name, members in groups.items()}


def _describe(role: str, clips: ClipSet, kept: Sequence[int]) -> str:
    hours = sum(clips.clips[i].samples for i in kept) / clips.rate / 3600
    owners = len({clips.clips[i].owner for i in kept if clips.clips[i].labelled})
    dropped = len(clips.clips) - len(kept)
    left_out = f", {dropped} clips left out (split or licence)" if dropped else ""
    who = "speakers" if role == "speech" else "groups"
    return f"{role:7} {clips.name}: {len(kept)} clips, {hours:.2f} h, {owners} {who}{left_out}"
