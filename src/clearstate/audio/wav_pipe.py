"""WAV through pipes: `ffmpeg -i talk.mkv -f wav - | clearstate enhance - > clean.wav`.

A pipe cannot be wound back, so whoever writes it does not know the length when the header goes out: ffmpeg leaves the
sizes at 0xFFFFFFFF, others at 0 or near 2^31. Reading goes to the end of the data declared or of the stream, whichever
comes first; writing leaves 0xFFFFFFFF unless the length is known.

Format: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (1991), and the
WAVE_FORMAT_EXTENSIBLE addition; RF64 as in EBU Tech 3306.
"""

import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from clearstate.audio.io import BLOCK_SECONDS, BYTES, STDIO, AudioError, AudioInfo, Block, checked

PCM, IEEE_FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNKNOWN = 0xFFFFFFFF
ENDLESS = 0x7FFF0000  # sizes from here on are a placeholder for "not known" (sox writes 0x7FFFF000 and more)
RECIPE = "`ffmpeg -i INPUT -f wav -` makes one"
SUBTYPES = {(PCM, 8): "PCM_U8", (PCM, 16): "PCM_16", (PCM, 24): "PCM_24", (PCM, 32): "PCM_32"}
SUBTYPES |= {(IEEE_FLOAT, 32): "FLOAT", (IEEE_FLOAT, 64): "DOUBLE"}
CODES = {subtype: code for code, subtype in SUBTYPES.items()}


class PipeReader:
    """A WAV stream from stdin ("-") or a named pipe."""

    def __init__(self, name: str) -> None:
        label = "stdin" if name == STDIO else name
        self._stream: BinaryIO = sys.stdin.buffer if name == STDIO else open(name, "rb")  # noqa: SIM115 - closed on exit
        self._close = name != STDIO
        rate, channels, code, bits, size = self._header(label)
        if (code, bits) not in SUBTYPES:
            raise AudioError(f"{label}: WAV of kind {code} with {bits} bits; expected PCM or float: {RECIPE}")
        if not channels or not rate:
            raise AudioError(
                f"{label}: a WAV header with {channels} channels at {rate} Hz; expected at least 1 of each"
            )
        self._frame = channels * bits // 8  # bytes
        known = None if size == 0 or size >= ENDLESS else size // self._frame
        self._left = known
        self.info = AudioInfo(
            name=label,
            sample_rate=rate,
            channels=channels,
            frames=known,
            seconds=None if known is None else known / rate,
            subtype=SUBTYPES[code, bits],
        )

    def _header(self, label: str) -> tuple[int, int, int, int, int]:
        """Up to the first sample: rate, channels, code, bits, bytes of data."""
        start = self._stream.read(12)
        if not start:
            raise AudioError(f"{label}: is empty; expected a WAV stream: {RECIPE}")
        if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
            raise AudioError(f"{label}: begins with {start[:12]!r}; expected a WAV stream: {RECIPE}")
        layout: tuple[int, int, int, int] | None = None
        while len(head := self._stream.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data" and layout:
                return (*layout, size)
            body = self._stream.read(size + size % 2)
            if name == b"fmt " and len(body) >= 16:
                code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
                if code == EXTENSIBLE and len(body) >= 26:
                    code = struct.unpack("<H", body[24:26])[0]  # the first two bytes of the GUID
                layout = (rate, channels, code, bits)
        raise AudioError(f"{label}: the WAV stream ends before its samples; expected a complete header")

    def blocks(self) -> Iterator[Block]:
        """Blocks of at most BLOCK_SECONDS, as they arrive: (channels, n) float64."""
        most, done, rest = max(1, int(BLOCK_SECONDS * self.info.sample_rate)), 0, b""
        while self._left is None or done < self._left:
            count = most if self._left is None else min(most, self._left - done)
            data = rest + self._stream.read(count * self._frame - len(rest))
            frames = len(data) // self._frame
            if not frames:
                break  # an odd byte at the end of a stream that was cut is no sample
            samples, rest = data[: frames * self._frame], data[frames * self._frame :]
            block = decode(samples, self.info.subtype).reshape(frames, self.info.channels).T
            yield checked(block, self.info, done)
            done += frames
        if not done:
            raise AudioError(f"{self.info.name}: holds no samples; expected at least one")

    def __enter__(self) -> "PipeReader":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._close:
            self._stream.close()


class PipeWriter:
    """A WAV stream to stdout, of the subtype that came in (16 bits for what WAV has no name for)."""

    def __init__(self, like: AudioInfo) -> None:
        self._stream = sys.stdout.buffer
        self._subtype = like.subtype if like.subtype in CODES else "PCM_16"
        code, bits = CODES[self._subtype]
        frame = like.channels * BYTES[self._subtype]
        size = UNKNOWN if like.frames is None or like.frames * frame > UNKNOWN - 64 else like.frames * frame
        riff = UNKNOWN if size == UNKNOWN else size + size % 2 + 36
        layout = struct.pack("<HHIIHH", code, like.channels, like.sample_rate, like.sample_rate * frame, frame, bits)
        self._odd = size % 2 if size != UNKNOWN else 0
        self._put(b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", 16) + layout)
        self._put(b"data" + struct.pack("<I", size))

    def write(self, block: Block) -> None:
        """Append (channels, n) samples; beyond full scale, integer formats clip."""
        self._put(encode(block.T, self._subtype))

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()  # whoever reads the pipe is not kept waiting

    def __enter__(self) -> "PipeWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None and self._odd:
            self._put(b"\0")  # chunks have an even length


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
