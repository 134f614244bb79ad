"""Read tar shards of compressed audio through a cache of decoded audio.

A shard set is `<name>.jsonl` next to `<name>-00.tar`, `<name>-01.tar`, ... Each JSON line describes one file: `shard`,
`file`, `seconds` and optional labels (`speaker` for speech, `group` for noise, `source`, `split`, `licence`, and
`reach_khz`, above which the file has no content). Decoding Opus takes about 3 ms per second of audio, too long for
every crop, so a set is decoded once, in parallel, into a cache folder:

    <cache>/<name>-<rate>-<digest>/audio.i16     all clips, int16, each scaled to its peak
    <cache>/<name>-<rate>-<digest>/index.json    start, scale, levels and labels of each clip

Crops are then slices of a memory map, shared by all workers. The folder receives its name when it is complete. A
damaged folder is decoded again. If the cache is not writable, the set is decoded into a temporary folder, which is
removed when the process ends.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from clearstate.audio.io import read_audio
from clearstate.audio.length import inspect_bytes
from clearstate.audio.level import active_level, frame_power
from clearstate.audio.mono import to_mono
from clearstate.audio.quiet import quiet
from clearstate.audio.rates import whole_rate

logger = logging.getLogger(__name__)

FORMAT = 2  # version of the cache; a higher number invalidates old folders
Progress = Callable[[str, int, int], None]  # (set name, clips done, total clips)


class BrokenClipError(Exception):
    """A file whose audio cannot be decoded. Training skips it."""


@dataclass(frozen=True)
class Clip:
    """The labels of one clip. `owner` is a speaker for speech and a recording group for noise."""

    key: str  # the file inside its corpus
    owner: str  # "" if the corpus has no labels
    source: str  # name of its corpus
    samples: int  # at the rate of its set
    level_db: float | None = None  # RMS of the active parts in dBFS; None before decoding
    floor_db: float | None = None  # RMS of the quietest tenth in dBFS
    licence: str = ""
    split: str = ""  # "train", "valid" or "test" where the corpus says so
    reach_hz: float | None = None  # where its content ends, where the corpus says so

    @property
    def labelled(self) -> bool:
        """Whether `owner` identifies the voice."""
        return bool(self.owner) and "unknown" not in self.owner.lower()

    @property
    def voice(self) -> str:
        """The label of one voice: the owner or, without labels, the recording that contains the clip."""
        return self.owner if self.labelled else f"{self.source}/{re.sub(r'-[0-9]+$', '', Path(self.key).stem)}"


class ShardSet:
    """A decoded shard set: `clips`, and `read` for any part of one of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.name: str = index["name"]
        self.rate: int = index["rate"]  # Hz
        self.clips: Sequence[Clip] = [Clip(**row) for row in index["clips"]]
        self.broken: list[str] = index["broken"]
        self._starts = np.array(index["starts"], np.int64)
        self._scales = np.array(index["scales"], np.float32)
        self._audio: np.ndarray | None = None
        self._check()

    def _check(self) -> None:
        """Raise ValueError if the index contradicts itself or its audio file."""
        samples = np.array([clip.samples for clip in self.clips], np.int64)
        ends = samples.cumsum()
        size = (self.folder / "audio.i16").stat().st_size
        if len(self._scales) != len(samples) or not np.array_equal(self._starts, ends - samples):
            raise ValueError("index.json contradicts itself")
        if not len(samples) or samples.min() < 1 or not (np.isfinite(self._scales) & (self._scales > 0)).all():
            raise ValueError("index.json lists clips without audio")
        if size != 2 * ends[-1]:
            raise ValueError(f"audio.i16 holds {size} bytes, index.json says {2 * ends[-1]}")

    def read(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Samples [start, start + length) of clip `index` as float32, shorter where the clip ends."""
        if self._audio is None:
            self._audio = np.memmap(self.folder / "audio.i16", np.int16, "r")
        samples = self.clips[index].samples
        stop = samples if length is None else min(samples, start + length)
        first = int(self._starts[index])
        return self._audio[first + start : first + stop] * self._scales[index]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_audio": None}  # a spawned worker maps the file itself


def default_cache() -> Path:
    """$CLEARSTATE_CACHE, or ~/.cache/clearstate, or (without a home folder) a folder for temporary files."""
    try:
        return Path(os.environ.get("CLEARSTATE_CACHE") or "~/.cache/clearstate").expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir(), "clearstate-cache")


def open_shards(
    index: str | Path, rate: int, cache: str | Path | None = None, progress: Progress | None = None
) -> ShardSet:
    """Open the shard set of `index` (`<name>.jsonl`) at `rate` Hz. The first time, decode it into the cache.

    Args:
        index: the JSON-lines file, next to its tar shards.
        rate: Hz; clips of other rates are resampled.
        cache: folder for decoded audio (115 MB per hour at 16 kHz); None is `default_cache()`.
        progress: called with (set name, clips done, total clips).
    Raises:
        FileNotFoundError: if the index or one of its shards is missing.
        ValueError: if nothing in the set could be decoded.
    """
    index, rate = Path(index), whole_rate(rate)
    rows = read_index(index)
    name = index.stem
    cache = Path(cache).expanduser() if cache is not None else default_cache()
    folder = cache / f"{name}-{rate}-{_digest(index, rows, rate)}"
    opened = _open_decoded(folder)
    if opened is None:
        decode = partial(_decode_all, name, index.parent, rows, rate, progress=progress)
        try:
            opened = ShardSet(_decode_into(folder, decode))
        except OSError as error:  # read-only, full, or a file instead of a folder
            why = error.strerror or error
            logger.warning(f"decoded audio cannot be kept in {cache} ({why}): it is decoded for this run only")
            temporary = Path(tempfile.mkdtemp(prefix=f"clearstate-{name}-"))
            atexit.register(_remove_own, temporary, os.getpid())
            decode(temporary)
            opened = ShardSet(temporary)
    if opened.broken:
        shown = ", ".join(opened.broken[:3]) + (", ..." if len(opened.broken) > 3 else "")
        warnings.warn(
            f"{name}: {len(opened.broken)} of {len(rows)} files could not be decoded and are left out: {shown}"
        )
    return opened


def _open_decoded(folder: Path) -> ShardSet | None:
    """The decoded set in a folder of the cache; None if it is missing or damaged."""
    try:
        return ShardSet(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # errors of a damaged index
        logger.warning(f"{folder} is damaged ({type(error).__name__}: {error}); it is decoded again")
        return None


def _decode_into(folder: Path, decode: Callable[[Path], None]) -> Path:
    """Decode into a temporary folder next to `folder`, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        decode(making)
        making.chmod(0o755)
        try:
            making.rename(folder)
        except OSError:  # another process was faster, or the existing folder is damaged
            if _open_decoded(folder) is None:
                if folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder)
                else:
                    folder.unlink(missing_ok=True)
                making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a copy of the process made by fork
        shutil.rmtree(folder, ignore_errors=True)


def read_index(index: Path) -> list[dict[str, Any]]:
    """The rows of a shard index.

    Raises:
        FileNotFoundError: if the index or one of its shards is missing.   ValueError: for an invalid line.
    """
    if not index.is_file():
        raise FileNotFoundError(f"{index} is not there: a shard set is <name>.jsonl with <name>-00.tar, ... beside it")
    rows = [
        _row(index, number, line)
        for number, line in enumerate(index.read_bytes().splitlines(), start=1)
        if line.strip()
    ]
    missing = sorted({row["shard"] for row in rows if not (index.parent / row["shard"]).is_file()})
    if missing:
        raise FileNotFoundError(f"{index} names {', '.join(missing)}, not found in {index.parent}: put them beside it")
    return rows


def _row(index: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{index}, line {number} is not JSON ({error}): fetch the index again") from None
    if not isinstance(row, dict) or not {"shard", "file"} <= set(row):
        raise ValueError(f"{index}, line {number}: expected an object with 'shard' and 'file', got {row!r:.100}")
    return row


def read_tar_audio(
    folder: Path, rows: list[dict[str, Any]], rate: int
) -> Iterator[tuple[dict[str, Any], np.ndarray | Exception]]:
    """Decode the files of `rows` in parallel; yield in order (row, mono float32 at `rate`) or (row, error)."""
    members = {shard: _members(folder / shard) for shard in {row["shard"] for row in rows}}

    def decode(row: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | Exception]:
        try:
            offset, size = members[row["shard"]][row["file"]]
            with (folder / row["shard"]).open("rb") as tar:
                tar.seek(offset)
                audio, native = _decoded(tar.read(size))
            mono = to_mono(audio.T)
            if not len(mono) or not np.isfinite(mono).all():
                raise ValueError("empty, or not finite")
            return row, mono if native == rate else soxr.resample(mono, native, rate)
        except Exception as error:
            return row, error

    pending = iter(rows)
    with ThreadPoolExecutor(
        max_workers=max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    ) as pool:
        while block := list(islice(pending, 64)):  # in blocks, to limit the memory
            yield from pool.map(decode, block)


def _decoded(data: bytes) -> tuple[np.ndarray, int]:
    """Decode an audio file in memory: (samples, channels) float32, and its rate."""
    if inspect_bytes(data).plain:
        with quiet():
            return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    with tempfile.NamedTemporaryFile() as file:  # joined files, or a wrong length in the header
        file.write(data)
        file.flush()
        audio, rate = read_audio(file.name)
    return audio.T.astype(np.float32), rate


def _decode_all(
    name: str, source: Path, rows: list[dict[str, Any]], rate: int, folder: Path, progress: Progress | None
) -> None:
    clips: list[dict[str, Any]] = []
    starts: list[int] = []
    scales: list[float] = []
    broken: list[str] = []
    position = 0
    with (folder / "audio.i16").open("wb") as out:
        for done, (row, audio) in enumerate(read_tar_audio(source, rows, rate), start=1):
            if isinstance(audio, Exception):
                broken.append(f"{row['file']} ({audio})")
            else:
                scale = max(float(np.abs(audio).max()), 1e-9) / 32767
                np.round(audio / scale).astype(np.int16).tofile(out)
                clips.append(asdict(describe(row, audio, rate)))
                starts.append(position)
                scales.append(scale)
                position += len(audio)
            if progress is not None:
                progress(name, done, len(rows))
    if not clips:
        raise ValueError(f"{name}: none of its {len(rows)} files could be decoded; the first: {broken[:1]}")
    index = {"name": name, "rate": rate, "clips": clips, "starts": starts, "scales": scales, "broken": broken}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def describe(row: dict[str, Any], audio: np.ndarray, rate: int) -> Clip:
    """The Clip of an index row, with measured levels."""
    power = np.sort(frame_power(audio, rate))
    floor = float(power[: max(1, len(power) // 10)].mean())
    return Clip(
        key=row["file"],
        owner=row.get("speaker") or row.get("group") or "",
        source=row.get("source", ""),
        samples=len(audio),
        level_db=max(active_level(audio, rate), -120.0),
        floor_db=10 * float(np.log10(floor + 1e-12)),
        licence=row.get("licence", ""),
        split=row.get("split", ""),
        reach_hz=1000.0 * row["reach_khz"] if "reach_khz" in row else None,
    )


def _members(shard: Path) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of every file of an uncompressed tar; ValueError for other files."""
    import tarfile

    try:
        with tarfile.open(shard, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a complete uncompressed tar ({error}): fetch it again") from error


def _digest(index: Path, rows: list[dict[str, Any]], rate: int) -> str:
    """A digest of the index, the sizes of the shards, the rate and the cache format."""
    shards = sorted({row["shard"] for row in rows})
    sizes = [(shard, (index.parent / shard).stat().st_size) for shard in shards]
    content = repr((FORMAT, rate, sizes)).encode() + index.read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]
