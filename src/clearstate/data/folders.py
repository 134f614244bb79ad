"""Use folders of audio files as training clips: scan the headers once, then decode only the needed crops."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from clearstate.audio.formats import READABLE
from clearstate.audio.info import UNKNOWN_FRAMES
from clearstate.audio.io import AudioError, open_reader, until_broken
from clearstate.audio.mono import to_mono
from clearstate.audio.paths import Found, native_name, walk
from clearstate.audio.quiet import quiet
from clearstate.audio.rates import whole_rate
from clearstate.data.shards import BrokenClipError, Clip, Progress, default_cache

logger = logging.getLogger(__name__)

MARGIN = 0.02  # s read before and after a resampled crop, so that the filter has settled

# MP3 frames depend on up to nine earlier frames (the bit reservoir), which a seek does not decode. Without them the
# first samples are silent. With ten frames of 1152 samples, a crop equals the crop of the fully decoded file.
MP3_PREROLL = 11_520


class AudioFile(NamedTuple):
    """One file of a corpus, with its labels."""

    path: Path
    owner: str = ""  # speaker or noise group, "" if unknown
    split: str = ""  # "train" | "valid" | "test", "" if the corpus does not say
    licence: str = ""


class FileSet:
    """The audio files of one corpus, read at one rate.

    Opening scans the files in parallel and stores the result in the cache folder, so the next start is fast. Files
    without a readable header are skipped and listed in `broken`.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[AudioFile],
        rate: int,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ):
        self.name, self.rate = name, (rate := whole_rate(rate))
        headers = scan([file.path for file in files], name, cache, progress)
        self.clips: Sequence[Clip] = []
        self.broken: list[str] = []
        self._files: list[tuple[Path, int]] = []  # path, native rate
        clips = []
        for file, (frames, native) in zip(files, headers, strict=True):
            if frames <= 0:
                self.broken.append(str(file.path))
                continue
            samples = frames * rate // native
            clips.append(Clip(str(file.path), file.owner, name, samples, licence=file.licence, split=file.split))
            self._files.append((file.path, native))
        self.clips = clips
        self.narrow = sum(native < rate for _, native in self._files)  # files with nothing above half their own rate

    def read(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Samples [start, start + length) of clip `index` as mono float32, shorter where the clip ends.

        Raises:
            BrokenClipError: if the file cannot be decoded there, or contains NaN or infinity.
        """
        path, native = self._files[index]
        samples = self.clips[index].samples
        stop = samples if length is None else min(samples, start + length)
        return read_crop(path, native, self.rate, start, max(0, stop - start))


def read_crop(path: Path, native: int, rate: int, start: int, length: int) -> np.ndarray:
    """`read_channels` as one channel (length,), see `audio/mono.py`."""
    return to_mono(read_channels(path, native, rate, start, length))


def read_channels(path: Path, native: int, rate: int, start: int, length: int) -> np.ndarray:
    """(channels, length) at `rate` Hz from sample `start` (at `rate`) of a file of `native` Hz.

    If the rates differ, slightly more than the crop is decoded and resampled. The position is exact to one native
    sample. A file that ends slightly early is padded with zeros, because MP3 headers may declare too many samples.
    """
    margin = int(MARGIN * native) if native != rate else 0
    mp3 = Path(path).suffix.lower() == ".mp3"
    first = max(0, start * native // rate - (max(margin, MP3_PREROLL) if mp3 else margin))
    stop = (start + length) * native // rate
    try:
        with quiet() if mp3 else nullcontext(), soundfile.SoundFile(native_name(path)) as file:
            audio = None
            if file.samplerate == native and stop <= file.frames < UNKNOWN_FRAMES:
                file.seek(first)
                audio = file.read(stop + margin + 1 - first, dtype="float32", always_2d=True)  # (n, channels)
    except soundfile.LibsndfileError:
        audio = None
    except (RuntimeError, OSError) as error:
        raise BrokenClipError(f"{path}: {error}") from error
    if audio is None:
        audio = _decoded(path, first, stop + margin + 1)
    if not np.isfinite(audio).all():
        raise BrokenClipError(f"{path}: not finite near {start / rate:.1f} s")
    if native != rate:
        audio = soxr.resample(audio, native, rate)
    begin = round(start - first * rate / native)
    crop = audio[begin : begin + length].astype(np.float32, copy=False)
    if len(crop) < 0.9 * length - rate // 10:
        raise BrokenClipError(f"{path}: ends at {(start + len(crop)) / rate:.1f} s, before its header says")
    return np.pad(crop, ((0, length - len(crop)), (0, 0))).T


def _decoded(path: Path, first: int, stop: int) -> np.ndarray:
    """Decode samples [first, stop) from the start of a file whose header has no length."""
    parts: list[np.ndarray] = []
    done = 0
    try:
        with open_reader(path) as source:
            for block in source.blocks():
                parts.append(block[:, max(0, first - done) : max(0, stop - done)].T.astype(np.float32))
                done += block.shape[1]
                if done >= stop:
                    break
    except (AudioError, OSError) as error:
        raise BrokenClipError(f"{error}") from error
    return np.concatenate(parts)


def audio_files(folder: str | Path) -> list[Path]:
    """Audio files under a folder, see `search`."""
    return search(folder).files


def search(folder: str | Path) -> Found:
    """Find audio files under a folder with `clearstate.audio.paths.walk`; warn about unusable entries.

    Raises:
        FileNotFoundError: if the folder is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = walk(folder, READABLE)
    if found.unusable:
        first = "; ".join(f"{path} {reason}" for path, reason in found.unusable[:3])
        warnings.warn(f"{folder}: {len(found.unusable)} unusable entries are skipped: {first}")
    return found


def speaker_of(relative: Path) -> str:
    """The speaker of a file, from the naming schemes of public corpora or its top folder; "" if unknown.

    >>> [speaker_of(Path(p)) for p in ("p225_001_mic1.flac", "103-1240-0000.flac", "anna/one.wav", "one.wav")]
    ['p225', '103', 'anna', '']
    """
    stem = relative.stem
    for pattern in (r"(p\d{3}|s5)_\d{3}", r"(\d+)-\d+-\d{4}", r".*_(reader_\d+)_"):
        if found := re.match(pattern, stem):
            return found.group(1)
    return relative.parts[0] if len(relative.parts) > 1 else ""


def group_of(relative: Path) -> str:
    """The group of a noise file: its folder, or its name without a trailing number."""
    return relative.parent.as_posix() if len(relative.parts) > 1 else re.sub(r"[-_.]\d{1,3}$", "", relative.stem)


def plain_files(folder: Path, role: str) -> list[AudioFile]:
    """All audio files under a folder without a known layout."""
    owner = speaker_of if role == "speech" else group_of
    return [AudioFile(path, owner(path.relative_to(folder))) for path in audio_files(folder)]


def scan(
    paths: Sequence[Path], name: str, cache: str | Path | None = None, progress: Progress | None = None
) -> list[tuple[int, int]]:
    """(frames, rate) of each file, (0, 1) if unreadable; stored in the cache folder.

    FLAC, Ogg and MP3 files are scanned to the end, because their headers do not include appended recordings.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            state = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:  # deleted; skipped below
            state = "gone"
        digest.update(os.fsencode(path) + f"\0{state}\n".encode())
    folder = Path(cache).expanduser() if cache is not None else default_cache()
    kept = folder / f"scan-{digest.hexdigest()[:16]}.json"
    if (known := _recall(kept, len(paths))) is not None:
        return known

    def header(path: Path) -> tuple[int, int]:
        try:
            with open_reader(path) as source:
                frames, rate = source.info.frames, source.info.sample_rate
                if frames is None:  # only decoding tells
                    frames = sum(block.shape[1] for block in until_broken(source.blocks(), []))
        except (AudioError, OSError):
            return 0, 1
        return frames, rate

    headers: list[tuple[int, int]] = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        for done, found in enumerate(pool.map(header, paths), start=1):
            headers.append(found)
            if progress is not None and (done % 256 == 0 or done == len(paths)):
                progress(name, done, len(paths))
    try:
        _keep(kept, headers)
    except OSError as error:
        logger.warning(f"{kept} cannot be written ({error.strerror or error}): the next start reads the headers again")
    return headers


def _recall(kept: Path, count: int) -> list[tuple[int, int]] | None:
    """The headers that an earlier scan of `count` files kept; None if there are none, or not what it wrote."""
    try:
        headers = [(frames, rate) for frames, rate in json.loads(kept.read_text(encoding="utf-8"))]
        if len(headers) != count or not all(type(f) is type(r) is int and f >= 0 and r > 0 for f, r in headers):
            raise ValueError("not what was written")
        return headers
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning(f"{kept} is not used ({error}): the headers are read again")
        return None


def _keep(kept: Path, headers: list[tuple[int, int]]) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=kept.parent, prefix=".scan-", delete=False, encoding="utf-8") as file:
        partial = Path(file.name)
        try:
            json.dump(headers, file)
            file.flush()
            partial.replace(kept)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
