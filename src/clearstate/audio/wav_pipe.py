"""Read and write WAV through pipes: `ffmpeg -i talk.mkv -f wav - | clearstate enhance - > clean.wav`.

"-" is stdin or stdout. Named pipes, `<(command)`, /dev/stdin, sockets and character devices are streams, too. A stream
cannot be rewound, so its writer does not know the length when it writes the header: ffmpeg writes 0xFFFFFFFF, others 0
or about 2^31. Sound is read to the end of the declared data (in 32 or 64 bits) or of the stream, whichever comes first.
The rest of the stream is read, too, so that its writer can finish. A stream that is not WAV, or neither PCM nor float,
is first stored in a temporary file.

Format: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (1991), and the
WAVE_FORMAT_EXTENSIBLE addition; RF64 as in EBU Tech 3306.
"""

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from clearstate.audio import chunks, tags
from clearstate.audio.atomic import explained
from clearstate.audio.info import BLOCK_SECONDS, BYTES, AudioError, AudioInfo, Block, Reader, checked, in_words
from clearstate.audio.quiet import tell
from clearstate.audio.streams import STDIO, close_stream, open_stream

PCM, IEEE_FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNKNOWN = 0xFFFFFFFF
PLACEHOLDERS = (
    (0, 0),
    (0x7FFF0000, 0x8000FFFF),
    (0xFFFF0000, UNKNOWN),
)  # sizes that mean "unknown": sox, arecord ...
RECIPE = "`ffmpeg -i INPUT -f wav -` makes one"
SUBTYPES = {(PCM, 8): "PCM_U8", (PCM, 16): "PCM_16", (PCM, 24): "PCM_24", (PCM, 32): "PCM_32"}
SUBTYPES |= {(IEEE_FLOAT, 32): "FLOAT", (IEEE_FLOAT, 64): "DOUBLE"}
CODES = {subtype: code for code, subtype in SUBTYPES.items()}
GUID_TAIL = b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"  # of an extensible format, after its code


def open_pipe(name: str, open_file: Callable[[str], Reader]) -> Reader:
    """Open a stream for reading: WAV directly, other formats with `open_file` from a temporary file.

    Raises:
        AudioError: if the stream is closed, empty, or not audio.
    """
    stream = open_stream(name, "rb")
    label = "stdin" if name == STDIO else name
    try:
        return PipeReader(stream, label)
    except OtherCodingError as error:
        return StoredReader(stream, label, error.begun, str(error), open_file)
    except BaseException:
        close_stream(stream)
        raise


class OtherCodingError(AudioError):
    """The stream is not a WAV in PCM or float; `begun` is the part already read."""

    def __init__(self, message: str, begun: bytes) -> None:
        super().__init__(message)
        self.begun = begun


class PipeReader:
    """A WAV stream in PCM or float."""

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self._stream, self._label = stream, label
        self._begun = bytearray()  # all bytes read so far, for a reader of other formats
        self._metadata = tags.Metadata(family="RIFF")
        rate, channels, code, bits, size, extensible = self._header()
        if (code, bits) not in SUBTYPES:
            raise OtherCodingError(
                f"{label}: WAV of kind {code} with {bits} bits; expected PCM or float: {RECIPE}", bytes(self._begun)
            )
        if not channels or not rate:
            raise AudioError(
                f"{label}: a WAV header with {channels} channels at {rate} Hz; expected at least 1 of each"
            )
        self._begun.clear()
        self._frame = channels * bits // 8  # bytes
        self._size = size
        known = None if size is None else size // self._frame
        self.info = AudioInfo(
            name=label,
            sample_rate=rate,
            channels=channels,
            frames=known,
            seconds=None if known is None else known / rate,
            container="WAVEX" if extensible else "WAV",
            subtype=SUBTYPES[code, bits],
            metadata=self._metadata,
        )

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._begun += data
        return data

    def _header(self) -> tuple[int, int, int, int, int | None, bool]:
        """Read up to the first sample: rate, channels, code, bits, bytes of data (None: unknown), extensible."""
        start = self._read(12)
        if not start:
            raise AudioError(f"{self._label}: is empty; expected a WAV stream: {RECIPE}")
        if start[:4] not in (b"RIFF", b"RF64", b"BW64") or start[8:] != b"WAVE":
            message = f"{self._label}: begins with {start!r}; expected a WAV stream: {RECIPE}"
            raise OtherCodingError(message, bytes(self._begun))
        layout: tuple[int, int, int, int] | None = None
        wide, extensible = None, False
        while len(head := self._read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data" and layout:
                if size == UNKNOWN and wide:
                    return (*layout, wide if wide < 2**62 else None, extensible)
                unknown = any(low <= size <= high for low, high in PLACEHOLDERS)
                return (*layout, None if unknown else size, extensible)
            body = self._chunk(name, size)
            if name == b"fmt " and len(body) >= 16:
                code, channels, rate, _, align, bits = struct.unpack("<HHIIHH", body[:16])
                if code == EXTENSIBLE and len(body) >= 40 and body[26:40] == GUID_TAIL:
                    extensible = True
                    self._metadata.mask, code = struct.unpack("<IH", body[20:26])
                if channels and bits % 8 and align % channels == 0:
                    bits = 8 * align // channels  # 12 bits are stored in 16, 20 in 24
                layout = (rate, channels, code, bits)
            elif name == b"ds64" and len(body) >= 16:
                wide = struct.unpack("<Q", body[8:16])[0]
        raise AudioError(f"{self._label}: the WAV stream ends before its samples; expected a complete header")

    def _chunk(self, name: bytes, size: int) -> bytes:
        """Read the next chunk. Of a chunk that is too long for metadata, return only the start."""
        body = self._read(min(size, chunks.MOST_BYTES))
        self._skip(size - len(body) + size % 2)
        if name not in chunks.RIFF_OWN and len(body) == size:
            self._metadata.chunks.append((name, body))
            tags.add_chunk_comments(self._metadata, name, body)
        return body

    def _skip(self, size: int) -> None:
        while size > 0 and (data := self._read(min(size, 1 << 20))):
            size -= len(data)

    def blocks(self) -> Iterator[Block]:
        """Blocks of at most BLOCK_SECONDS, as they arrive: (channels, n) float64."""
        most, done, rest, left = max(1, int(BLOCK_SECONDS * self.info.sample_rate)), 0, b"", self._size
        while left is None or left > 0:
            count = most * self._frame - len(rest)
            data = self._stream.read(count if left is None else min(count, left))
            if not data:
                break
            left = None if left is None else left - len(data)
            data = rest + data
            frames = len(data) // self._frame
            samples, rest = data[: frames * self._frame], data[frames * self._frame :]
            if frames:
                block = decode(samples, self.info.subtype).reshape(frames, self.info.channels).T
                yield checked(block, self.info, done)
                done += frames
        if not done:
            raise AudioError(f"{self._label}: holds no samples; expected at least one")
        if left:
            of = (self.info.frames or 0) / self.info.sample_rate
            tell(f"{self._label}: ended after {done / self.info.sample_rate:.3f} s of {of:.3f} s; this part was read")
        self._drain()

    def _drain(self) -> None:
        """Read the rest of the stream and keep its chunks, so that the writer can finish."""
        if self._size is not None:
            self._skip(self._size % 2)
            while len(head := self._read(8)) == 8:
                self._chunk(*struct.unpack("<4sI", head))
                self._begun.clear()
        self._skip(1 << 62)

    def __enter__(self) -> "PipeReader":
        return self

    def __exit__(self, *error: Any) -> None:
        close_stream(self._stream)


class StoredReader:
    """A stream of another format, stored in a temporary file and read from there."""

    def __init__(
        self, stream: BinaryIO, label: str, begun: bytes, reason: str, open_file: Callable[[str], Reader]
    ) -> None:
        with tempfile.NamedTemporaryFile(prefix="clearstate-", delete=False) as file:
            self._path = file.name
            try:
                file.write(begun)
                shutil.copyfileobj(stream, file)
                size = file.tell()
                file.flush()
                self._reader = open_file(self._path)
            except BaseException as error:
                os.unlink(self._path)
                if isinstance(error, OSError):
                    raise explained(error, self._path) from error
                if isinstance(error, AudioError):
                    raise AudioError(reason) from None
                raise
            finally:
                close_stream(stream)
        tell(f"{label}: not WAV in PCM or float, so it was stored first: {size / 1e6:.1f} MB in {self._path}")
        metadata = tags.of(self._reader.info)
        self.info = self._reader.info = replace(self._reader.info, name=label, metadata=metadata)

    def blocks(self) -> Iterator[Block]:
        """The samples, block by block, to the end."""
        return self._reader.blocks()

    def __enter__(self) -> "StoredReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self._reader.__exit__(*error)
        os.unlink(self._path)


class PipeWriter:
    """Writes a WAV stream with the subtype of the input, or 16 bits if WAV does not support it."""

    def __init__(self, name: str, like: AudioInfo) -> None:
        self._label = "stdout" if name == STDIO else name
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in ("", ".wav", ".wave"):
            raise AudioError(f"{name}: is a pipe, which receives WAV, not {suffix}; name it .wav, or write to a file")
        self._subtype = like.subtype if like.subtype in CODES else "PCM_16"
        metadata = tags.of(like)
        fitted = tags.fit(metadata, "WAV", self._subtype)
        self._metadata, self._known = metadata, len(metadata.chunks)
        mask = metadata.mask
        code, bits = CODES[self._subtype]
        frame = like.channels * BYTES[self._subtype]
        layout = struct.pack(
            "<HHIIHH", code if mask is None else EXTENSIBLE, like.channels, like.sample_rate,
            like.sample_rate * frame, frame, bits,
        )  # fmt: skip
        if mask is not None:
            layout += struct.pack("<HHIH", 22, bits, mask, code) + GUID_TAIL
        front = b"WAVE" + chunks.packed("RIFF", [(b"fmt ", layout), *fitted.chunks])
        size = UNKNOWN if like.frames is None else like.frames * frame
        riff = len(front) + 8 + size + size % 2
        if riff > UNKNOWN:
            size = riff = UNKNOWN
        self._odd = size % 2 if size != UNKNOWN else 0
        self._stream = open_stream(name, "wb")
        if like.subtype not in CODES and like.container not in ("MP3", "OGG", "FLAC", "AV"):
            tell(f"{self._label}: written as {in_words(self._subtype)}, because WAV does not support {like.subtype}")
        if fitted.left_out:
            tell(f"{self._label}: dropped, because the format does not support it: {', '.join(fitted.left_out)}")
        self._put(b"RIFF" + struct.pack("<I", riff) + front + b"data" + struct.pack("<I", size))

    def write(self, block: Block) -> None:
        """Append samples (channels, n). Integer formats clip at full scale."""
        self._put(encode(block.T, self._subtype))

    def _put(self, data: bytes) -> None:
        try:
            self._stream.write(data)
            self._stream.flush()  # the reader of the pipe gets each block at once
        except BrokenPipeError:
            raise
        except OSError as error:
            raise explained(error, self._label) from error

    def __enter__(self) -> "PipeWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None and self._odd:
                self._put(b"\0")  # chunks have an even length
            if kind is None and (late := tags.late(self._metadata, self._known)):
                tell(f"{self._label}: dropped, because it came after the sound: {', '.join(late)}")
        finally:
            close_stream(self._stream)


def decode(data: bytes, subtype: str) -> Block:
    """Little-endian samples to float64, full scale = 1."""
    if subtype == "FLOAT":
        return np.frombuffer(data, "<f4").astype(np.float64)
    if subtype == "DOUBLE":
        return np.frombuffer(data, "<f8").astype(np.float64)
    if subtype == "PCM_U8":
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if subtype == "PCM_24":
        wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)  # a zero byte below makes it 32 bits
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    size = BYTES[subtype]
    return np.frombuffer(data, f"<i{size}") / 2.0 ** (8 * size - 1)


def encode(samples: Block, subtype: str) -> bytes:
    """The inverse of `decode`, rounding to nearest and clipping at full scale."""
    if subtype in ("FLOAT", "DOUBLE"):
        return samples.astype("<f4" if subtype == "FLOAT" else "<f8").tobytes()
    bits = 8 * BYTES[subtype]
    full = 2.0 ** (bits - 1)
    whole = np.clip(np.rint(samples * full), -full, full - 1)
    if subtype == "PCM_U8":
        return (whole + 128).astype(np.uint8).tobytes()
    if subtype == "PCM_24":
        return np.ascontiguousarray(whole.astype("<i4"))[..., None].view(np.uint8)[..., :3].tobytes()
    return whole.astype(f"<i{bits // 8}").tobytes()
