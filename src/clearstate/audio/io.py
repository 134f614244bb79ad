"""Read and write audio files of any length, block by block.

    with open_reader(path) as source, open_writer(target, source.info) as sink:
        for block in source.blocks():          # (channels, n) float64, full scale = 1
            sink.write(block)

soundfile (libsndfile) reads and writes WAV, FLAC, OGG Vorbis, Opus, MP3, AIFF, CAF and more; PyAV, an extra, reads the
rest (m4a, video) and what libsndfile would cut short (`length.py`). "-" and pipes are streams (`wav_pipe.py`). Blocks
are float64, so unchanged samples of every integer format up to 32 bits are written back bit for bit.

A file is written under a temporary name in its folder and renamed when it is complete. After an error, a full disk or
Ctrl-C, no partial file remains, and an existing file is unchanged.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from clearstate.audio import av, tags
from clearstate.audio.atomic import Replacement, check_name, explained
from clearstate.audio.chunks import append_chunks, set_channel_mask
from clearstate.audio.formats import CONTAINERS
from clearstate.audio.info import (
    BYTES,
    LEAST_HERTZ,
    MOST_HERTZ,
    MOST_SECONDS,
    UNKNOWN_FRAMES,
    AudioError,
    AudioInfo,
    Block,
    BrokenOffError,
    Reader,
    Shortfall,
    Writer,
    block_size,
    checked,
    converted,
    in_words,
    until_broken,
)
from clearstate.audio.length import Extent, Part, View, inspect, inspect_url
from clearstate.audio.paths import native_name
from clearstate.audio.quiet import quiet, tell
from clearstate.audio.remote import is_remote, without_secrets
from clearstate.audio.streams import STDIO, close_stream, is_stream, open_stream
from clearstate.audio.vorbis import OggCommenter
from clearstate.audio.wav_pipe import PipeWriter, open_pipe

__all__ = [
    "AudioError", "AudioInfo", "Block", "BrokenOffError", "Reader", "Writer", "check_target", "choose_format",
    "open_reader", "open_writer", "read_audio", "stored", "until_broken",
]  # fmt: skip

WAV_LIMIT = 2**32 - 2**20  # bytes: sizes in a WAV header have 32 bits
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
WAVS = ("WAV", "WAVEX", "RF64")
SMALL = ("WAV", "WAVEX", "AIFF", "AU")  # containers with 32-bit lengths
# Codings that keep quality and length when written again: lossless, or each sample coded separately.
KEPT = {*BYTES, "ALAC_16", "ALAC_20", "ALAC_24", "ALAC_32", "DPCM_8", "DPCM_16"}
FINE = ("FLOAT", "DOUBLE", "PCM_32", "ALAC_24", "ALAC_32", "ALAC_20", "DWVW_24")  # more than 16 bits
CODECS = ("MP3", "OGG")  # containers for one lossy coding
LIBSNDFILE_MARK = " (libsndfile-"  # libsndfile appends it to the software name in the tags


def open_reader(path: str | os.PathLike[str], track: int | None = None) -> Reader:
    """Open any audio file, a WAV pipe, "-" (stdin), or a URL of a WAV, AIFF or CAF file (`audio/remote.py`).

    Args:
        track: sound track of a video, counted from 1; None selects the container's default.
    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: with the path.
        AudioError: if the file is not audio, is empty or damaged, or needs the PyAV extra.
    """
    name = os.fspath(path)
    if is_remote(name):
        if (extent := inspect_url(name)) is None:
            raise AudioError(f"{without_secrets(name)}: is no complete WAV, AIFF or CAF file; copy it here first")
        return FileReader(name, extent)
    if is_stream(name):
        return open_pipe(name, open_reader)
    if not os.path.exists(name):
        raise FileNotFoundError(f"{name}: no such file (looked in {Path(name).absolute().parent})")
    if os.path.isdir(name):
        raise IsADirectoryError(f"{name}: is a folder; expected an audio file")
    if not os.access(name, os.R_OK):
        raise PermissionError(f"{name}: may not be read; check its permissions")
    if os.path.getsize(name) == 0:
        raise AudioError(f"{name}: is empty (0 bytes); expected an audio file")
    extent = inspect(name)
    try:
        reader = FileReader(name, extent)
    except (soundfile.LibsndfileError, Unusable) as error:
        return av.open_with_av(name, track, extent, reason=getattr(error, "error_string", str(error)).rstrip("."))
    if track not in (None, 1):
        reader.close()
        return av.open_with_av(name, track, extent)
    if not extent.doubtful:
        return reader
    if av.installed():
        with suppress(AudioError):
            better = av.open_with_av(name, track, extent, like=reader.info)
            reader.close()
            return better
    reader.check_rest()
    return reader


class Unusable(ValueError):  # noqa: N818 - never seen outside
    """libsndfile opened the file, but its properties are invalid."""


class FileReader:
    """Reads a file with libsndfile, also if it consists of several joined recordings."""

    def __init__(self, name: str, extent: Extent | None = None) -> None:
        self._extent = extent or inspect(name)
        self._files: list[soundfile.SoundFile] = []
        self._views: list[View] = []
        try:
            for part in self._extent.parts:
                self._files.append(self._open(name, part))
            self.info = self._describe(name)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, part: Part) -> soundfile.SoundFile:
        whole = not part.patches and part.start == 0 and len(self._extent.parts) == 1 and not is_remote(name)
        if not whole:
            self._views.append(View(name, part))
        with quiet():
            file = soundfile.SoundFile(native_name(name) if whole else self._views[-1])
        if not LEAST_HERTZ <= file.samplerate <= MOST_HERTZ:
            rate = file.samplerate
            file.close()
            raise Unusable(f"the header says {rate} Hz, expected {LEAST_HERTZ} to {MOST_HERTZ}")
        return file

    def _describe(self, name: str) -> AudioInfo:
        file = self._files[0]
        if len({(one.samplerate, one.channels) for one in self._files}) > 1:
            tell(
                f"{name}: contains joined recordings of different rates or channels; all are converted to "
                f"{file.samplerate} Hz with {file.channels} channels"
            )
            frames = None
        else:
            frames = sum(one.frames for one in self._files)
        if frames == 0:
            raise AudioError(f"{name}: holds no samples (empty or cut off); expected at least one")
        known = frames is not None and frames < UNKNOWN_FRAMES and not self._extent.doubtful
        seconds = sum(one.frames / one.samplerate for one in self._files)
        return AudioInfo(
            name=name,
            sample_rate=file.samplerate,
            channels=file.channels,
            frames=frames if known else None,
            seconds=seconds if seconds < MOST_SECONDS else None,
            container=file.format,
            subtype=file.subtype,
            endian=file.endian,
            tags={key: clean_tag(text) for key, text in file.copy_metadata().items()},
        )

    def check_rest(self) -> None:
        """Without PyAV, refuse a file that libsndfile would truncate."""
        if self._extent.joined or self._extent.samples - self._files[0].frames > 4 * 1152:
            raise AudioError(
                f"{self.info.name}: is longer than its header says, or joined from several files; "
                "reading all of it needs PyAV: pip install 'clearstate[av]'"
            )

    def blocks(self) -> Iterator[Block]:
        """Blocks of at most BLOCK_SECONDS, (channels, n) float64, to the end.

        Raises:
            BrokenOffError: after the last block, if the data is shorter than the header says.
            AudioError: at a NaN or infinite sample.
        """
        done = 0
        for file in self._files:
            pieces: Iterator[Block] = self._part(file)
            if (file.samplerate, file.channels) != (self.info.sample_rate, self.info.channels):
                pieces = converted(pieces, file.samplerate, self.info.sample_rate, self.info.channels)
            for block in pieces:
                yield checked(block, self.info, done)
                done += block.shape[1]
        if self._extent.share < 1:
            seconds = done / self.info.sample_rate
            of = seconds / self._extent.share if self._extent.share else None
            raise BrokenOffError(self.info.name, Shortfall(seconds, of, "the data ends there"))
        if not done:
            raise AudioError(f"{self.info.name}: holds no samples; expected at least one")

    def _part(self, file: soundfile.SoundFile) -> Iterator[Block]:
        done, size = 0, block_size(file.samplerate, file.channels)
        while done < file.frames:
            block, reason = self._read(file, size)
            if block.shape[1]:
                yield block
                done += block.shape[1]
            if reason or not block.shape[1]:
                yield from self._after(file, done, reason or "the data ends there")
                return

    def _read(self, file: soundfile.SoundFile, size: int) -> tuple[Block, str]:
        """Read the next samples; return them and the error after them, if any."""
        # soundfile does not tell how many samples precede an error, but it writes them into the array.
        out = np.full((size, file.channels), np.nan)
        try:
            with quiet() if file.format == "MP3" else nullcontext():
                block = file.read(out=out).T
            for view in self._views:
                if view.error:
                    raise view.error
            return block, ""
        except soundfile.LibsndfileError as error:
            came = np.flatnonzero(~np.isnan(out).all(axis=1))
            return out[: came[-1] + 1 if len(came) else 0].T, error.error_string.rstrip(".") or "the data ends there"

    def _after(self, file: soundfile.SoundFile, done: int, reason: str) -> Iterator[Block]:
        """Read the rest with PyAV where libsndfile fails."""
        if self._extent.doubtful and reason:  # the length was unknown anyway
            return
        rest = 0
        if len(self._files) == 1:
            for block in av.rest_of(self.info, done):
                yield block
                rest += block.shape[1]
        at, of = done / file.samplerate, file.frames / file.samplerate if file.frames < UNKNOWN_FRAMES else None
        if rest:
            reason = f"{reason} there, {rest / file.samplerate:.3f} s more were read after it"
        raise BrokenOffError(self.info.name, Shortfall(at, of, reason))

    def close(self) -> None:
        """Close all parts."""
        for file in (*self._files, *self._views):
            file.close()

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def read_audio(path: str | os.PathLike[str], track: int | None = None) -> tuple[Block, int]:
    """Read a whole file: (channels, n) float64 and its sample rate; see `open_reader`."""
    with open_reader(path, track) as source:
        return np.concatenate(list(source.blocks()), axis=1), source.info.sample_rate


def open_writer(path: str | os.PathLike[str], like: AudioInfo, *, overwrite: bool = False) -> Writer:
    """Open a file for writing with the rate, channels, tags and (if the format allows) bit depth of `like`.

    The extension of `path` selects the format. "-" (stdout) and pipes receive a WAV stream.

    Raises:
        FileExistsError: without `overwrite`, and always if it is the file of `like`.
        FileNotFoundError, NotADirectoryError, PermissionError: if the folder does not exist or is not writable.
        AudioError: for an unknown extension, or a rate or channel count that the format does not support.
    """
    name = os.fspath(path)
    if is_stream(name):
        return PipeWriter(name, like)
    return FileWriter(name, like, overwrite)


INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24}


def rounded(block: Block, subtype: str) -> Block:
    """Round samples to the nearest step of an integer subtype; libsndfile with clipping would round down."""
    if subtype not in INTEGER_BITS:
        return block
    steps = 2.0 ** (INTEGER_BITS[subtype] - 1)
    return np.rint(block * steps) / steps


class FileWriter:
    """Writes to a temporary file next to `name` and renames it when the `with` block ends without an error."""

    def __init__(self, name: str, like: AudioInfo, overwrite: bool) -> None:
        self.name, self._like, self._overwrite = name, like, overwrite
        self._size = 0  # bytes written so far
        check_target(name, like.name, overwrite)
        container, subtype = choose_format(name, like)
        endian = like.endian if container == like.container else "FILE"
        self._metadata = tags.of(like)
        if container == "WAV" and self._metadata.mask and subtype in soundfile.available_subtypes("WAVEX"):
            container = "WAVEX"  # only an extensible WAV has a channel mask
        if container in ("WAV", "WAVEX") and self._metadata.family == "RIFX":
            endian = "BIG"  # libsndfile does not report it for every such file
        self._form = (container, subtype, endian)
        self._known = len(self._metadata.chunks)
        self._fitted = tags.fit(self._metadata, *self._form)
        self._target = Replacement(name)
        try:
            self._raw = open(self._target.path, "w+b", buffering=0)  # noqa: SIM115 - closed on exit
            self._sink = tags.Sink(self._raw, self._fitted.front, self._fitted.at)
            try:
                self._file = self._open(*self._form)
            except (soundfile.LibsndfileError, ValueError) as error:
                self._check_disk()
                reason = getattr(error, "error_string", str(error)).rstrip(".")
                raise AudioError(
                    f"{name}: {container} ({subtype}) cannot hold {like.sample_rate} Hz with {like.channels} channels "
                    f"({reason}); write to .wav or .flac"
                ) from None
        except BaseException:
            self._remove()
            raise
        if (
            subtype != like.subtype
            and like.subtype not in KEPT
            and container == like.container
            and container not in CODECS
        ):
            tell(f"{name}: written as {in_words(subtype)}; the input's {like.subtype} would lose quality and length")

    def _open(self, container: str, subtype: str, endian: str) -> soundfile.SoundFile:
        # Write through a file object, which reports system errors and accepts paths in any encoding.
        sink = self._sink if self._fitted.comments is None else OggCommenter(self._sink, self._fitted.comments)
        # LAME's V2, about 190 kbit/s in stereo, has no audible loss; libsndfile's default is lower.
        level = {"compression_level": 0.2} if container == "MP3" else {}
        return soundfile.SoundFile(
            sink, "w", self._like.sample_rate, self._like.channels, subtype, endian, container, **level
        )

    def write(self, block: Block) -> None:
        """Append samples (channels, n). Integer formats clip at full scale."""
        self._size += block.size * BYTES.get(self._file.subtype, 0)
        if self._file.format in SMALL and self._size > WAV_LIMIT:  # the length of the source was unknown
            raise AudioError(f"{self.name}: {self._file.format} is limited to 4 GB; write to .flac or .w64")
        try:
            self._file.write(rounded(block, self._file.subtype).T)
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all frames were written
            self._check_disk()
            raise OSError(f"{self.name}: writing failed ({error}); try another place or format") from None
        self._check_disk()

    def _check_disk(self) -> None:
        if self._sink.error:
            raise explained(self._sink.error, self.name) from None

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            self._file.close()
            self._raw.close()
            if kind is None:
                self._finish()
        finally:
            self._remove()

    def _finish(self) -> None:
        self._check_disk()
        try:
            self._add_metadata()
        except OSError as error:
            raise explained(error, self.name) from error
        check_target(self.name, self._like.name, self._overwrite)  # it may exist now
        self._target.commit()
        if self._fitted.left_out:
            tell(f"{self.name}: dropped, because the format does not support it: {', '.join(self._fitted.left_out)}")

    def _add_metadata(self) -> None:
        path, fitted = self._target.path, self._fitted
        if fitted.at and fitted.front:
            tags.blank_comments(path, fitted.at + len(fitted.front))
        if late := tags.late(self._metadata, self._known):  # after the sound of a stream
            fitted.left_out += late
        if self._metadata.family == fitted.family and fitted.family:
            fitted = self._fitted = tags.fit(self._metadata, *self._form)
        if not append_chunks(path, fitted.chunks):
            fitted.left_out += ["metadata chunks"]
        if self._metadata.mask is not None and self._file.format in WAVS:
            set_channel_mask(path, self._metadata.mask)

    def _remove(self) -> None:
        with suppress(AttributeError, OSError):
            self._raw.close()
        self._target.discard()


def check_target(name: str, source: str, overwrite: bool) -> None:
    """Raise an OSError if the target cannot or must not be written."""
    if is_stream(name):
        return
    folder = Path(name).absolute().parent
    if not folder.exists():
        raise FileNotFoundError(f"{name}: the folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"{name}: {folder} is not a folder; choose another place")
    check_name(name)
    if not os.path.exists(name):
        return
    if source != STDIO and os.path.exists(source) and os.path.samefile(source, name):
        raise FileExistsError(f"{name}: is the input itself, which is never overwritten; choose another name")
    if not os.path.isfile(name):
        raise FileExistsError(f"{name}: exists and is not a regular file; choose another name")
    if not overwrite:
        raise FileExistsError(f"{name}: already exists; choose another name, or allow overwriting")


def choose_format(name: str, like: AudioInfo) -> tuple[str, str]:
    """Select the container by the extension, and the subtype of the source or the closest supported one."""
    suffix = Path(name).suffix.lower()
    container = CONTAINERS.get(suffix, suffix[1:].upper())
    if suffix and suffix == Path(like.name).suffix.lower() and like.container in soundfile.available_formats():
        container = like.container  # a .wav may be WAVEX, RF64 or Sphere inside
    if container not in soundfile.available_formats() or container == "RAW":
        ending = f"ends in {suffix!r}" if suffix else "has no extension"
        raise AudioError(f"{name}: {ending}; expected .wav .flac .ogg .opus .mp3 .aiff or .caf")
    if suffix == ".opus" or (container == "OGG" and like.subtype == "OPUS"):
        if like.sample_rate not in OPUS_RATES:
            rates = ", ".join(map(str, OPUS_RATES))
            raise AudioError(f"{name}: Opus does not support {like.sample_rate} Hz, only {rates}; write to .flac")
        return "OGG", "OPUS"
    subtypes = soundfile.available_subtypes(container)
    if like.subtype in subtypes and like.subtype in KEPT:
        subtype = like.subtype
    elif container in CODECS:
        subtype = soundfile.default_subtype(container)
    elif like.subtype in FINE and "PCM_24" in subtypes:
        subtype = "PCM_24"
    else:
        subtype = "PCM_16" if "PCM_16" in subtypes else soundfile.default_subtype(container)
    size = (like.frames or 0) * like.channels * BYTES.get(subtype, 2)
    if container in SMALL and size > WAV_LIMIT:
        if container not in WAVS:
            raise AudioError(
                f"{name}: {container} is limited to 4 GB, and this needs {size / 1e9:.1f} GB; write to .flac or .w64"
            )
        container = "RF64"
    return container, subtype


def clean_tag(text: str) -> str:
    """Clean a tag: remove the mark of libsndfile, and decode UTF-8 that is declared as Latin-1."""
    text = text.split(LIBSNDFILE_MARK)[0]
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


@contextmanager
def stored(stream: str | os.PathLike[str]) -> Iterator[str]:
    """Store a stream in a temporary file, because it is read twice."""
    opened = open_stream(stream, "rb")
    with tempfile.TemporaryDirectory(prefix="clearstate-") as folder:
        begun = opened.read(4)
        wav = begun in (b"RIFF", b"RF64", b"RIFX", b"BW64")
        path = os.path.join(folder, "stream.wav" if wav else "stream")
        try:
            with open(path, "wb") as file:
                file.write(begun)
                shutil.copyfileobj(opened, file)
        except OSError as error:
            raise explained(error, path) from error
        finally:
            close_stream(opened)
        yield path
