"""Audio files of any length, read and written block by block.

    with open_reader(path) as source, open_writer(target, source.info) as sink:
        for block in source.blocks():          # (channels, n) float64, full scale = 1
            sink.write(block)

soundfile (libsndfile) reads and writes WAV, FLAC, OGG Vorbis, Opus, MP3, AIFF, CAF and more; PyAV, an extra, reads the
rest (m4a, video). "-" and named pipes are WAV streams (`wav_pipe.py`). Blocks are float64, so every integer
format up to 32 bits comes back bit for bit when nothing was changed.

A file is written under a temporary name in its folder and takes its own name when it is complete: after an error, a
full disk or Ctrl-C, nothing half-written is left, and an existing file is as it was.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from clearstate.audio import tags
from clearstate.audio.length import Extent, Part, View, inspect
from clearstate.audio.paths import native_name
from clearstate.audio.quiet import quiet, tell

Block = NDArray[np.float64]  # (channels, n)

STDIO = "-"
BLOCK_SECONDS = 2.0
MOST_SAMPLES = 2**23  # of all channels in a block: 64 MB
LEAST_HERTZ, MOST_HERTZ = 1_000, 1_000_000  # a header that says anything else is damaged
UNKNOWN_FRAMES = 2**40  # libsndfile has the largest number there is for "not known"
MOST_SECONDS = UNKNOWN_FRAMES / MOST_HERTZ
WAV_LIMIT = 2**32 - 2**20  # bytes: sizes in a WAV header have 32 bits
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
CONTAINERS = {  # by extension, where the extension is not the name of the container itself
    ".aif": "AIFF",
    ".aifc": "AIFF",
    ".oga": "OGG",
    ".opus": "OGG",
    ".snd": "AU",
    ".wave": "WAV",
}
WAVS = ("WAV", "WAVEX", "RF64")
SMALL = ("WAV", "WAVEX", "AIFF", "AU")  # with lengths of 32 bits
BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}
LIBSNDFILE_MARK = " (libsndfile-"  # what it appends to the name of the software in the tags


class AudioError(ValueError):
    """A file that is not what it should be; the message names it, what was expected and the remedy."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file says about itself."""

    name: str
    sample_rate: int  # Hz
    channels: int
    frames: int | None  # samples per channel; None where only reading to the end will tell
    seconds: float | None  # the length, at least roughly; None where nothing is known
    container: str = "WAV"  # as libsndfile names it
    subtype: str = "PCM_16"
    endian: str = "FILE"
    tags: dict[str, str] = field(default_factory=dict)


class Reader(Protocol):
    info: AudioInfo

    def blocks(self) -> Iterator[Block]: ...
    def __enter__(self) -> "Reader": ...
    def __exit__(self, *error: Any) -> None: ...


class Writer(Protocol):
    def write(self, block: Block) -> None: ...
    def __enter__(self) -> "Writer": ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None: ...


@dataclass(frozen=True)
class Shortfall:
    """Where the sound of a damaged file ends."""

    done: float  # seconds that could be read
    of: float | None  # seconds that the file promises, None where it does not say
    reason: str


class BrokenOffError(AudioError):
    """A file that ends early or is damaged: raised behind the last block that could be read."""

    def __init__(self, name: str, lost: Shortfall, saved: str = "") -> None:
        self.name, self.lost = name, lost
        of = f" of {lost.of:.3f} s" if lost.of else ""
        kept = f"what could be read is in {saved}; fetch it again for the rest" if saved else "fetch it again"
        super().__init__(f"{name}: broken after {lost.done:.3f} s{of} ({lost.reason}); {kept}")

    def saved(self, target: str | os.PathLike[str]) -> "BrokenOffError":
        """The same, saying where the part that could be read was written to."""
        return BrokenOffError(self.name, self.lost, "stdout" if target == STDIO else os.fspath(target))


def until_broken(blocks: Iterator[Block], broken: list[BrokenOffError]) -> Iterator[Block]:
    """The blocks of a reader; where the file is broken they end, and the error is put into `broken`.

    A file of which nothing could be read raises it.
    """
    some = False
    try:
        for block in blocks:
            some = True
            yield block
    except BrokenOffError as error:
        if not some:
            raise
        broken.append(error)


def open_reader(path: str | os.PathLike[str], track: int | None = None) -> Reader:
    """Open any audio file, a WAV pipe, or "-" (stdin).

    Args:
        track: of a video with several sound tracks, counted from 1; None takes the container's default.
    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: from the file system, with the path.
        AudioError: for what is not audio, is empty or broken, or needs the PyAV extra.
    """
    name = os.fspath(path)
    if name == STDIO or (os.path.exists(name) and stat.S_ISFIFO(os.stat(name).st_mode)):
        from clearstate.audio.wav_pipe import PipeReader

        return PipeReader(name)
    if not os.path.exists(name):
        raise FileNotFoundError(f"{name}: no such file (looked in {Path(name).absolute().parent})")
    if os.path.isdir(name):
        raise IsADirectoryError(f"{name}: is a folder; name an audio file in it")
    if not os.access(name, os.R_OK):
        raise PermissionError(f"{name}: may not be read; check its permissions")
    if os.path.getsize(name) == 0:
        raise AudioError(f"{name}: is empty (0 bytes); expected an audio file")
    from clearstate.audio import av

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
    """What libsndfile opened cannot be right."""


class FileReader:
    """A file that libsndfile knows, or several that were joined to one."""

    def __init__(self, name: str, extent: Extent | None = None) -> None:
        self._extent = extent or inspect(name)
        self._files: list[soundfile.SoundFile] = []
        try:
            for part in self._extent.parts:
                self._files.append(self._open(name, part))
            self.info = self._describe(name)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, part: Part) -> soundfile.SoundFile:
        whole = not part.patches and part.start == 0 and len(self._extent.parts) == 1
        with quiet():
            file = soundfile.SoundFile(native_name(name) if whole else View(name, part))
        if not LEAST_HERTZ <= file.samplerate <= MOST_HERTZ:
            rate = file.samplerate
            file.close()
            raise Unusable(f"the header says {rate} Hz, expected {LEAST_HERTZ} to {MOST_HERTZ}")
        return file

    def _describe(self, name: str) -> AudioInfo:
        file = self._files[0]
        if len({(one.samplerate, one.channels) for one in self._files}) > 1:
            tell(
                f"{name}: joined from recordings of different rate or channels; all of it is read as "
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
        """Without PyAV: refuse what libsndfile would cut short."""
        if self._extent.joined or self._extent.samples - self._files[0].frames > 4 * 1152:
            raise AudioError(
                f"{self.info.name}: is longer than its header says, or joined from several files; "
                "reading all of it needs PyAV: pip install 'clearstate[av]'"
            )

    def blocks(self) -> Iterator[Block]:
        """Blocks of at most BLOCK_SECONDS, (channels, n) float64, to the end.

        Raises:
            BrokenOffError: behind the last block, when the data ends before the length in the header.
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
        """The next samples, and what went wrong behind them."""
        # soundfile does not say how many samples came before an error, but it leaves them in the array.
        out = np.full((size, file.channels), np.nan)
        try:
            with quiet() if file.format == "MP3" else nullcontext():
                return file.read(out=out).T, ""
        except soundfile.LibsndfileError as error:
            came = np.flatnonzero(~np.isnan(out).all(axis=1))
            return out[: came[-1] + 1 if len(came) else 0].T, error.error_string.rstrip(".") or "the data ends there"

    def _after(self, file: soundfile.SoundFile, done: int, reason: str) -> Iterator[Block]:
        """What PyAV makes of the rest where libsndfile fails."""
        from clearstate.audio import av

        if self._extent.doubtful and reason:  # nobody had said how long it is
            return
        rest = 0
        if len(self._files) == 1:
            for block in av.rest_of(self.info, done):
                yield block
                rest += block.shape[1]
        at, of = done / file.samplerate, file.frames / file.samplerate if file.frames < UNKNOWN_FRAMES else None
        if rest:
            reason = f"{reason} there, {rest / file.samplerate:.3f} s more were read behind it"
        raise BrokenOffError(self.info.name, Shortfall(at, of, reason))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def block_size(rate: int, channels: int) -> int:
    """Samples per channel in a block of BLOCK_SECONDS, fewer where a header claims a great many channels."""
    return max(1, min(int(BLOCK_SECONDS * rate), MOST_SAMPLES // channels))


def converted(blocks: Iterator[Block], rate: int, to: int, channels: int) -> Iterator[Block]:
    """Blocks at another rate, with another number of channels."""
    stream = soxr.ResampleStream(rate, to, channels, dtype="float64", quality="VHQ") if rate != to else None
    for block in blocks:
        x = with_channels(block, channels)
        yield x if stream is None else stream.resample_chunk(np.ascontiguousarray(x.T)).T
    if stream is not None:
        yield stream.resample_chunk(np.zeros((0, channels)), last=True).T


def with_channels(x: Block, channels: int) -> Block:
    """One channel goes to all, all are averaged to one; otherwise the first ones are taken, and silence added."""
    if len(x) == channels:
        return x
    if channels == 1:
        return x.mean(axis=0, keepdims=True)
    if len(x) == 1:
        return np.repeat(x, channels, axis=0)
    return np.concatenate([x[:channels], np.zeros((max(0, channels - len(x)), x.shape[1]))])


def read_audio(path: str | os.PathLike[str], track: int | None = None) -> tuple[Block, int]:
    """A whole file as (channels, n) float64, and its rate; see `open_reader`."""
    with open_reader(path, track) as source:
        return np.concatenate(list(source.blocks()), axis=1), source.info.sample_rate


def open_writer(path: str | os.PathLike[str], like: AudioInfo, *, overwrite: bool = False) -> Writer:
    """Open a file to write what `like` describes: its rate, channels, tags, and bit depth where the format can hold it.

    The extension of `path` chooses the format; "-" is a WAV stream on stdout.

    Raises:
        FileExistsError: without `overwrite`; and in any case if it is the file that `like` came from.
        FileNotFoundError, NotADirectoryError, PermissionError: for a folder that is not there or not writable.
        AudioError: for an extension that is no audio format, or a rate or channel count that the format cannot hold.
    """
    name = os.fspath(path)
    if name == STDIO:
        from clearstate.audio.wav_pipe import PipeWriter

        return PipeWriter(like)
    return FileWriter(name, like, overwrite)


INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24}


def rounded(block: Block, subtype: str) -> Block:
    """Samples at the nearest step of an integer subtype: libsndfile, when it also clips, takes the step below."""
    if subtype not in INTEGER_BITS:
        return block
    steps = 2.0 ** (INTEGER_BITS[subtype] - 1)
    return np.rint(block * steps) / steps


class FileWriter:
    """Writes under a temporary name beside `name`; leaving the `with` block without an error gives it its own."""

    def __init__(self, name: str, like: AudioInfo, overwrite: bool) -> None:
        self.name, self._like, self._overwrite = name, like, overwrite
        self._size = 0  # bytes of sound so far
        folder = Path(name).absolute().parent
        check_target(name, like.name, overwrite)
        container, subtype = choose_format(name, like)
        try:
            handle, self._temporary = tempfile.mkstemp(prefix=f".{Path(name).name}.", suffix=".part", dir=folder)
        except PermissionError:
            raise PermissionError(f"{name}: cannot write into {folder}; choose another place") from None
        try:
            self._raw = os.fdopen(handle, "w+b")
            try:
                self._file = self._open(container, subtype)
            except (soundfile.LibsndfileError, ValueError) as error:
                reason = getattr(error, "error_string", str(error)).rstrip(".")
                raise AudioError(
                    f"{name}: {container} ({subtype}) cannot hold {like.sample_rate} Hz with {like.channels} channels "
                    f"({reason}); write to .wav or .flac"
                ) from None
        except BaseException:
            self._remove()
            raise

    def _open(self, container: str, subtype: str) -> soundfile.SoundFile:
        like = self._like
        if container == "MP3":
            tag = tags.id3_of(like.name) if like.container == "MP3" and os.path.isfile(like.name) else b""
            self._raw.write(tag or tags.id3_from(like.tags))
            # LAME's V2, some 190 kbit/s in stereo, loses nothing audible a second time; libsndfile's default is lower.
            return soundfile.SoundFile(
                tags.Behind(self._raw),
                "w",
                like.sample_rate,
                like.channels,
                subtype,
                None,
                "MP3",
                compression_level=0.2,
            )
        endian = like.endian if container == like.container else "FILE"
        name = native_name(self._temporary)
        file = soundfile.SoundFile(name, "w", like.sample_rate, like.channels, subtype, endian, container)
        for key, text in like.tags.items():
            with suppress(soundfile.LibsndfileError):  # a format without tags, or without this one
                setattr(file, key, text)
        return file

    def write(self, block: Block) -> None:
        """Append (channels, n) samples; beyond full scale, integer formats clip."""
        self._size += block.size * BYTES.get(self._file.subtype, 0)
        if self._file.format in SMALL and self._size > WAV_LIMIT:  # of a source that did not say how long it is
            raise AudioError(f"{self.name}: {self._file.format} cannot hold more than 4 GB; write to .flac or .w64")
        try:
            self._file.write(rounded(block, self._file.subtype).T)
        except (soundfile.LibsndfileError, AssertionError, OSError):
            # soundfile asserts that all frames were written; libsndfile says no more than "System error".
            raise OSError(f"{self.name}: could not be written on (is the disk full?); free some space") from None

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            try:
                self._file.close()
                self._raw.close()
                if kind is None and self._file.format in WAVS and os.path.isfile(self._like.name):  # not a pipe
                    tags.append_chunks(self._temporary, tags.chunks_of(self._like.name))
            except (soundfile.LibsndfileError, OSError):
                raise OSError(f"{self.name}: could not be finished (is the disk full?); free some space") from None
            if kind is None:
                check_target(self.name, self._like.name, self._overwrite)  # it may have appeared meanwhile
                os.chmod(self._temporary, 0o666 & ~_umask())  # mkstemp's files are for the owner alone
                os.replace(self._temporary, self.name)
        finally:
            self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            self._raw.close()
        with suppress(FileNotFoundError):
            os.unlink(self._temporary)


def check_target(name: str, source: str, overwrite: bool) -> None:
    """Refuse a place that cannot or must not be written to."""
    folder = Path(name).absolute().parent
    if not folder.exists():
        raise FileNotFoundError(f"{name}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"{name}: {folder} is not a folder; choose another place")
    if not os.path.exists(name):
        return
    if source != STDIO and os.path.exists(source) and os.path.samefile(source, name):
        raise FileExistsError(f"{name}: is the input itself, which is never overwritten; choose another name")
    if not os.path.isfile(name):
        raise FileExistsError(f"{name}: exists and is not a regular file; choose another name")
    if not overwrite:
        raise FileExistsError(f"{name}: exists already; choose another name, or allow it to be overwritten")


def choose_format(name: str, like: AudioInfo) -> tuple[str, str]:
    """Container by the extension; the subtype of the source, or the nearest the container can hold."""
    suffix = Path(name).suffix.lower()
    container = CONTAINERS.get(suffix, suffix[1:].upper())
    if suffix and suffix == Path(like.name).suffix.lower() and like.container in soundfile.available_formats():
        container = like.container  # a .wav may be WAVEX, RF64 or Sphere inside
    if container not in soundfile.available_formats() or container == "RAW":
        ending = f"ends in {suffix!r}" if suffix else "has no extension"
        raise AudioError(f"{name}: {ending}; expected one that can be written: .wav .flac .ogg .opus .mp3 .aiff .caf")
    if suffix == ".opus" or (container == "OGG" and like.subtype == "OPUS"):
        if like.sample_rate not in OPUS_RATES:
            rates = ", ".join(map(str, OPUS_RATES))
            raise AudioError(f"{name}: Opus cannot hold {like.sample_rate} Hz, only {rates}; write to .flac")
        return "OGG", "OPUS"
    subtypes = soundfile.available_subtypes(container)
    if like.subtype in subtypes and (like.subtype in BYTES or container == like.container):  # MP3 fits into WAV, too
        subtype = like.subtype
    elif like.subtype in ("FLOAT", "DOUBLE", "PCM_32", "ALAC_24", "ALAC_32", "ALAC_20") and "PCM_24" in subtypes:
        subtype = "PCM_24"
    else:
        subtype = "PCM_16" if "PCM_16" in subtypes else soundfile.default_subtype(container)
    size = (like.frames or 0) * like.channels * BYTES.get(subtype, 2)
    if container in SMALL and size > WAV_LIMIT:
        if container not in WAVS:
            raise AudioError(f"{name}: {container} cannot hold {size / 1e9:.1f} GB; write to .flac or .w64")
        container = "RF64"
    return container, subtype


def checked(block: Block, info: AudioInfo, start: int) -> Block:
    """The block, or an error that says where its first NaN or infinite sample is."""
    finite = np.isfinite(block)
    if finite.all():
        return block
    sample = int(np.argmin(finite.all(axis=0)))
    channel = int(np.argmin(finite[:, sample]))
    at = start + sample
    raise AudioError(
        f"{info.name}: sample {at} of channel {channel} ({at / info.sample_rate:.3f} s) is {block[channel, sample]}, "
        "expected a number; export the file again, as 24-bit integers if need be"
    )


def clean_tag(text: str) -> str:
    """A tag as it was meant: libsndfile marks the software it writes, and believes UTF-8 that calls itself Latin-1."""
    text = text.split(LIBSNDFILE_MARK)[0]
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _umask() -> int:
    mask = os.umask(0o077)  # there is no way to read it without setting it
    os.umask(mask)
    return mask
