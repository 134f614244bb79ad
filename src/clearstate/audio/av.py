"""Read files through PyAV (FFmpeg) that libsndfile cannot read, or not to the end: m4a, wma, video.

PyAV is an extra (`pip install 'clearstate[av]'`); its wheels include FFmpeg.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, groupby
from typing import Any

import numpy as np

from clearstate.audio.info import (
    BLOCK_SECONDS,
    LEAST_HERTZ,
    MOST_HERTZ,
    AudioError,
    AudioInfo,
    Block,
    BrokenOffError,
    Reader,
    Shortfall,
    checked,
    converted,
)
from clearstate.audio.length import Extent
from clearstate.audio.quiet import tell, verbose

SUBTYPES = {"s16": "PCM_16", "s32": "PCM_32", "flt": "FLOAT", "dbl": "DOUBLE", "u8": "PCM_U8"}
LOSSLESS = ("alac", "flac", "pcm_s16le", "pcm_s24le", "pcm_s32le", "wavpack", "ape")
TAGS = ("title", "artist", "album", "comment", "date", "genre", "copyright")

DEFAULT, COVER = 1, 0x400  # AV_DISPOSITION_DEFAULT, AV_DISPOSITION_ATTACHED_PIC
# Containers with stored time stamps. For raw streams, FFmpeg counts them.
TIMED = frozenset(["mov", "matroska", "flv", "mpegts", "mpeg", "asf", "ogg", "nut", "mxf", "wtv", "rm"])
MOST_DELAY = 0.15  # s between the time stamps of a track and of its first decoded frame
JITTER = 0.05  # s; larger errors of a time stamp move the sound
STEP = 0.01  # s; a larger gap between frames is a hole, a smaller one is rounding or clock drift
PIP = "pip install 'clearstate[av]'"
SILENT_BLOCK = 2**16  # samples
LONGEST_HOLE = 4 * 3600.0  # s; a larger step is a changed clock, not silence

BEGINNINGS = (  # other files that often have the name of a sound file, with the remedy
    (b"<!doctype", "is a web page", "download the sound itself"),
    (b"<html", "is a web page", "download the sound itself"),
    (b"<?xml", "is an XML document", "expected an audio file"),
    (b"PK\x03\x04", "is a ZIP archive", "unpack it first"),
    (b"Rar!", "is a RAR archive", "unpack it first"),
    (b"7z\xbc\xaf", "is a 7-Zip archive", "unpack it first"),
    (b"\x1f\x8b", "is compressed by gzip", "unpack it first"),
    (b"%PDF", "is a PDF document", "expected an audio file"),
    (b"\x89PNG", "is a picture", "expected an audio file"),
    (b"\xff\xd8\xff", "is a picture", "expected an audio file"),
    (b"version https://git-lfs", "is a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
    (b"#EXTM3U", "is a playlist", "name the files that it lists"),
)
VAGUE = ("not recognised", "unimplemented", "does not exist", "system error", "supported")  # messages of libsndfile


def installed() -> bool:
    """Whether PyAV can be imported."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def open_with_av(
    name: str, track: int | None, extent: Extent, *, reason: str = "", like: AudioInfo | None = None
) -> Reader:
    """Open one sound track of a file.

    Args:
        track: counted from 1; None selects the container's default track, or the first.
        extent: the result of `inspect`.
        reason: why libsndfile does not read it.
        like: properties from libsndfile; rate, channels and format are kept.
    Raises:
        AudioError: if PyAV is missing or finds no sound either.
    """
    if what := _odd_beginning(name):
        raise AudioError(f"{name}: {what}")
    if not installed():
        raise AudioError(_refusal(name, extent, reason, "", f"for m4a, video and the like: {PIP}"))
    import av

    # PyAV's logging calls Python from FFmpeg's threads, which can deadlock.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.INFO if verbose() else av.logging.PANIC)
    try:
        # "file:" stops FFmpeg from reading a colon as a protocol; the whitelist stops playlists from opening URLs.
        container = av.open(f"file:{name}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except _trouble() as error:
        raise AudioError(_refusal(name, extent, reason, f"{error}")) from None
    try:
        return AvReader(name, container, _chosen(name, container, track), extent, like)
    except BaseException as error:
        container.close()
        if not isinstance(error, _trouble()) or (isinstance(error, AudioError) and _vague(reason)):
            raise
        raise AudioError(_refusal(name, extent, reason, f"{error}")) from None


def _trouble() -> tuple[type[Exception], ...]:
    """The exceptions of PyAV for a damaged file."""
    import av

    return av.error.FFmpegError, OSError, ValueError, OverflowError, MemoryError, RuntimeError, EOFError, LookupError


def rest_of(info: AudioInfo, done: int) -> Iterator[Block]:
    """Read a file with PyAV after its first `done` samples; yield nothing if PyAV cannot read it."""
    with suppress(AudioError), open_with_av(info.name, None, Extent(()), like=info) as reader:
        for block in reader.blocks():
            skip = min(done, block.shape[1])
            done -= skip
            if skip < block.shape[1]:
                yield block[:, skip:]


def _chosen(name: str, container: Any, track: int | None) -> Any:
    """Select the stream to read; log the choice if there are several."""
    streams = list(container.streams.audio)
    if not streams:
        what = "is a video without sound" if container.streams.video else "holds no sound"
        raise AudioError(f"{name}: {what}; expected an audio file, or a video with sound")
    if track is not None and not 1 <= track <= len(streams):
        raise AudioError(
            f"{name}: has {len(streams)} sound track(s), no number {track}; choose from 1 to {len(streams)}"
        )
    default = next((i for i, one in enumerate(streams, 1) if _disposed(one) & DEFAULT), 1)
    number = track or default
    if track is None and len(streams) > 1:
        others = ", ".join(f"{i} ({_track(one)})" for i, one in enumerate(streams, 1) if i != number)
        taken = f"reading sound track {number} of {len(streams)} ({_track(streams[number - 1])})"
        tell(f"{name}: {taken}; --track N selects another: {others}")
    return streams[number - 1]


def _track(stream: Any) -> str:
    """Describe a sound track: codec, channels, language, title."""
    codec = stream.codec_context
    words = [codec.name, f"{codec.channels} channel{'s' * (codec.channels != 1)}"] if codec else ["unknown codec"]
    words += [stream.metadata.get("language", ""), stream.metadata.get("title", "")]
    return ", ".join(word for word in words if word and word != "und")


class Timeline:
    """Place the frames of a track by their time stamps.

    A hole between two frames, or a start after that of the picture, becomes silence. Frames are never dropped: if time
    goes back, the following frames are moved.

    >>> timeline = Timeline(origin=0.0)
    >>> [round(timeline.silence(at, 0.1), 3) for at in (0.5, 0.6, 0.702, 2.0)]
    [0.5, 0.0, 0.0, 1.2]
    """

    def __init__(self, origin: float) -> None:
        self.origin = origin  # time stamp of the first sample
        self.done = 0.0  # s so far, including silence
        self._end = origin  # time stamp of the end of the previous frame

    def silence(self, at: float | None, seconds: float) -> float:
        """Seconds of silence to insert before a frame with time stamp `at` and duration `seconds`."""
        filled = 0.0
        if at is not None:
            off = at - self.origin - self.done
            if abs(at - self._end) > STEP and abs(off) > JITTER:
                if 0 < off <= LONGEST_HOLE:
                    filled = off
                else:
                    self.origin += off
            self._end = at + seconds
        self.done += filled + seconds
        return filled


class AvReader:
    """One sound track of an open PyAV container."""

    def __init__(self, name: str, container: Any, stream: Any, extent: Extent, like: AudioInfo | None) -> None:
        self._container, self._stream, self._extent, self._undecoded = container, stream, extent, 0
        self._timed_container = not TIMED.isdisjoint(container.format.name.split(","))
        if stream.codec_context is None:
            raise AudioError(
                f"{name}: its audio codec is unknown; convert the file to WAV with the program that created it"
            )
        stream.thread_type = "NONE"  # threads do not speed up audio
        self._decoded = self._decode()
        first = self._first = next(self._decoded, None)
        if first is None:
            locked = stream.codec_context.codec_tag in ("drms", "enca") or "encrypt" in str(stream.metadata).lower()
            why = "is copy-protected" if locked else f"its sound ({stream.codec_context.name}) cannot be decoded"
            raise AudioError(f"{name}: {why}; expected a decodable audio file")
        if not (LEAST_HERTZ <= first.sample_rate <= MOST_HERTZ and first.layout.nb_channels > 0):
            raise AudioError(f"{name}: its header is broken ({first.sample_rate} Hz); export or convert the file again")
        # Some decoders drop their first frames, which is not a hole.
        begin = None if stream.start_time is None else float(stream.start_time * stream.time_base)
        swallowed = 0.0 if begin is None or first.time is None else first.time - begin
        self._delay = swallowed if 0 < swallowed < MOST_DELAY else 0.0
        seconds = stream.duration * stream.time_base if stream.duration else None
        if seconds is None and container.duration:
            seconds = container.duration / 1e6
        sample = first.format.name.removesuffix("p")
        if like:
            self.info = replace(like, frames=None, seconds=float(seconds) if seconds else None)
        else:
            self.info = AudioInfo(
                name=name,
                sample_rate=first.sample_rate,
                channels=first.layout.nb_channels,
                frames=None,
                seconds=float(seconds) if seconds else None,
                container="AV",
                subtype=SUBTYPES.get(sample, "PCM_16") if stream.codec_context.name in LOSSLESS else "PCM_16",
                tags={key: text for key, text in container.metadata.items() if key in TAGS},
                codec=stream.codec_context.name,
            )

    def _decode(self) -> Iterator[Any]:
        """Yield frames in order; count and skip packets that cannot be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except _trouble():  # the container itself is damaged
                self._undecoded += 1
                return
            try:
                frames = self._stream.decode(packet)
            except _trouble():
                self._undecoded += bytes(packet)[:3] not in (b"ID3", b"TAG", b"APE")  # tags between joined files
                continue
            yield from frames

    def _timed(self, frames: Iterable[Any], timeline: Timeline) -> Iterator[Block]:
        """Yield the samples of frames at one rate, with silence in the holes of the track."""
        for frame in frames:
            x = _samples(frame)
            at = None if frame.time is None or not self._timed_container else frame.time - self._delay
            hole = round(timeline.silence(at, x.shape[1] / frame.sample_rate) * frame.sample_rate)
            for start in range(0, hole, SILENT_BLOCK):
                yield np.zeros((len(x), min(SILENT_BLOCK, hole - start)))
            yield x

    def _pieces(self) -> Iterator[Block]:
        """Yield the track in small pieces, converted to the rate and channels of its first frame."""
        timeline = Timeline(_origin(self._container, self._stream))
        for (rate, _), frames in groupby(chain([self._first], self._decoded), key=_kind):
            yield from converted(self._timed(frames, timeline), rate, self.info.sample_rate, self.info.channels)

    def blocks(self) -> Iterator[Block]:
        """Blocks of about BLOCK_SECONDS: (channels, n) float64.

        Raises:
            BrokenOffError: after the last block, if the file is shorter than its header says.
            AudioError: at a NaN or infinite sample.
        """
        rate, name = self.info.sample_rate, self.info.name
        size, done = int(BLOCK_SECONDS * rate), 0
        held: list[Block] = []  # frames of about 20 ms, collected into blocks
        for piece in self._pieces():
            held.append(checked(piece, self.info, done))
            done += piece.shape[1]
            if sum(block.shape[1] for block in held) >= size:
                yield np.concatenate(held, axis=1)
                held = []
        if held:
            yield np.concatenate(held, axis=1)
        if self._undecoded and self._extent.share == 1 and self._extent.parts:  # otherwise it is already an error
            tell(f"{name}: damaged: {self._undecoded} packets could not be decoded; they are missing or silent")
        if self._extent.share < 1:
            of = done / rate / self._extent.share if self._extent.share else None
            raise BrokenOffError(name, Shortfall(done / rate, of, "the data ends there"))

    def __enter__(self) -> "AvReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self._container.close()


def _kind(frame: Any) -> tuple[int, int]:
    return frame.sample_rate, frame.layout.nb_channels


def _disposed(stream: Any) -> int:
    """The disposition flags of a stream."""
    return int(getattr(stream, "disposition", 0))  # not in PyAV before 13


def _origin(container: Any, stream: Any) -> float:
    """The start time of the recording: the earliest of its sound and video (without the cover)."""
    parts = [*container.streams.audio, *container.streams.video]
    starts = [
        float(one.start_time * one.time_base)
        for one in parts
        if one.start_time is not None and not _disposed(one) & COVER
    ]
    return min(starts, default=0.0)


def _samples(frame: Any) -> Block:
    raw = frame.to_ndarray()  # planar (channels, n); packed (1, n channels)
    x = raw if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels).T
    if x.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # a damaged float may be a signalling NaN; `checked` refuses it
            return x.astype(np.float64)
    if x.dtype == np.uint8:
        return (x.astype(np.float64) - 128) / 128
    return x / 2.0 ** (8 * x.dtype.itemsize - 1)


def _odd_beginning(name: str) -> str:
    """What the file is instead of audio, by its first bytes, with the remedy; "" if unknown."""
    with open(name, "rb") as file:
        begin = file.read(64)
    for magic, what, hint in BEGINNINGS:
        if begin.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(magic.lower()):
            return f"{what} (begins with {begin[:16]!r}); {hint}"
    return ""


def _vague(reason: str) -> bool:
    """Whether libsndfile did not recognise the format (instead of finding an error in it)."""
    return not reason or any(word in reason.lower() for word in VAGUE)


def _refusal(name: str, extent: Extent, libsndfile: str, ffmpeg: str, remedy: str = "") -> str:
    """The error message for an unreadable file."""
    with open(name, "rb") as file:
        begin = file.read(64)
    shown = f"begins with {begin[:16]!r}"
    if not any(begin):
        return f"{name}: starts with zeros, as after a crash or a failed download; fetch it again"
    if extent.share < 1:
        there = f" ({extent.share:.0%} is there)" if extent.share else ""
        return f"{name}: is truncated{there} and unreadable; fetch it again"
    if not _vague(libsndfile):
        return f"{name}: its header is broken ({libsndfile}); export or convert the file again"
    if remedy:
        return f"{name}: {shown}, which is not a known format; expected WAV, FLAC, OGG, Opus or MP3, or {remedy}"
    reason = f" ({ffmpeg.split(':')[0]})" if ffmpeg and "Invalid data" not in ffmpeg else ""
    return f"{name}: {shown}{reason}; expected an audio file, or a video with sound"
