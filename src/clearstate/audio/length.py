"""Find the true length of an audio file, because sizes in headers can be wrong.

A crashed recorder writes the size 0, a stream 0xFFFFFFFF. Joined files (`cat a.flac b.flac`) start with the header of
the first file only.

    extent = inspect(path)
    extent.parts       position of each joined recording, and corrections of header bytes
    extent.share       less than 1 if the file is shorter than its header says
    extent.doubtful    whether only decoding the whole file gives the length

Formats: Microsoft and IBM, RIFF (1991); EBU Tech 3306 (RF64); Apple, AIFF (1989) and CAF 1.0; Sonic Foundry, Wave64;
RFC 9639 (FLAC); RFC 3533 (Ogg); ISO 11172-3 (MPEG audio) with the Xing header; ISO 14496-12 (MP4); RFC 8794 (EBML).
"""

import io
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clearstate.audio.remote import BLOCK, open_file

Bytes = bytes | mmap.mmap

W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)
ENDLESS = 0x7FFF0000  # 32-bit sizes from here on mean "unknown" (sox writes 0x7FFFF000 and more)


@dataclass(frozen=True)
class Part:
    """One recording in a file: bytes [start, end), with corrected header bytes."""

    start: int
    end: int
    patches: dict[int, bytes] = field(default_factory=dict)  # position in the file -> bytes


@dataclass(frozen=True)
class Extent:
    """The length of a file according to its bytes."""

    parts: tuple[Part, ...]
    share: float = 1.0  # available part of the declared data; 0 if truncated and the full length is unknown
    doubtful: bool = False  # the header has no length, or a wrong one
    samples: int = 0  # per channel, counted from the frames of MPEG audio
    joined: bool = False  # MPEG audio with another file appended

    @property
    def plain(self) -> bool:
        """Whether libsndfile reads the file correctly without help."""
        return len(self.parts) == 1 and not self.parts[0].patches and not self.doubtful


class Form(NamedTuple):
    """The layout of a chunk-based format."""

    size: str  # struct format of a chunk's size
    data: bytes  # name of the chunk with the sound
    first: int = 12  # where the first chunk begins
    align: int = 2
    name: int = 4  # bytes of a chunk's name
    inclusive: bool = False  # whether the size includes name and size fields


RIFF = Form("<I", b"data")
FORMS = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"RIFX": Form(">I", b"data"),
    b"FORM": Form(">I", b"SSND"),
    b"caff": Form(">q", b"data", first=8, align=1),
    W64_RIFF: Form("<q", b"data" + W64_TAIL, first=40, align=8, name=16, inclusive=True),
}
KINDS = (b"WAVE", b"AIFF", b"AIFC")  # after the size of a RIFF or FORM


def inspect(path: str | os.PathLike[str]) -> Extent:
    """Find the length of a file from its bytes; unknown formats are one plain part."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return Extent((Part(0, 0),))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return inspect_bytes(data)


def inspect_bytes(data: Bytes) -> Extent:
    """`inspect` for a file in memory."""
    magic = data[:16] if data[:16] == W64_RIFF else data[:4]
    if magic in FORMS and (magic in (b"caff", W64_RIFF) or data[8:12] in KINDS):
        return _chunked(data, magic)
    if magic in (b".snd", b"dns."):
        return _au(data, ">" if magic == b".snd" else "<")
    if magic == b"OggS":
        return _ogg(data)
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return _mp4(data)
    if magic == b"\x1a\x45\xdf\xa3":
        return _matroska(data)
    if magic == b"RIFF" and data[8:12] == b"AVI ":
        return _whole(data, struct.unpack("<I", data[4:8])[0] + 8)
    begin = after_id3(data)
    if data[begin : begin + 4] == b"fLaC":
        return _flac(data, begin)
    return _mpeg(data, begin) or _whole(data)


class Window:
    """The bytes of an open file, read where they are asked for."""

    def __init__(self, file: Any) -> None:
        self._file, self._size = file, file.seek(0, io.SEEK_END)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        self._file.seek(start)
        return bytes(self._file.read(max(0, stop - start)))


def inspect_url(url: str) -> Extent | None:
    """The extent of a complete file of a chunk-based format at a URL; None for any other file.

    Only headers are fetched. The length of other formats is known after a look at all bytes.
    """
    with open_file(url) as file:
        if not file.seekable():
            return None
        data = Window(file)
        magic = data[:16] if data[:16] == W64_RIFF else data[:4]
        if magic not in FORMS or not (magic in (b"caff", W64_RIFF) or data[8:12] in KINDS):
            return None
        extent = _chunked(data, magic)
        return extent if extent.plain and extent.share == 1 else None


class View(io.RawIOBase):
    """One part of a file as a file object, with a corrected header.

    Attributes:
        error: why the storage could not be read; C code that reads from here sees the end of the file.
    """

    def __init__(self, path: str, part: Part) -> None:
        self._file = open_file(path, BLOCK)
        self._part, self._at = part, 0
        self.error: Exception | None = None

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the part."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._part.end - self._part.start}[whence]
        self._at = max(0, start + position)
        return self._at

    def tell(self) -> int:
        """Position in the part."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, up to the end of the part."""
        place = self._part.start + self._at
        room = max(0, min(len(buffer), self._part.end - place))
        try:
            self._file.seek(place)
            data = bytearray(self._file.read(room))
        except Exception as error:
            self.error = error
            return 0
        for position, fixed in self._part.patches.items():
            for offset, byte in enumerate(fixed, start=position - place):
                if 0 <= offset < len(data):
                    data[offset] = byte
        buffer[: len(data)] = bytes(data)
        self._at += len(data)
        return len(data)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _whole(data: Bytes, promised: int = 0) -> Extent:
    """One plain part, truncated if it has fewer bytes than declared."""
    return Extent((Part(0, len(data)),), share=min(1.0, len(data) / promised) if promised else 1.0)


# --- uncompressed sound: WAV and similar formats ---------------------------------------------------------------------


def _chunked(data: Bytes | Window, magic: bytes) -> Extent:
    parts: list[Part] = []
    start: int | None = 0
    while start is not None:
        part, share, start = _chunked_part(data, magic, start)
        parts.append(part)
    return Extent(tuple(parts), share)


def _chunked_part(data: Bytes | Window, magic: bytes, start: int) -> tuple[Part, float, int | None]:
    """One recording, the available share of its sound, and the start of the next recording in a joined file."""
    form = FORMS[magic]
    long_size: int | None = None  # position of RF64's 64-bit size of the sound
    for name, at, body, size in _chunks(data, form, start + form.first):
        if name == b"ds64":
            long_size = body + 8
        if name != form.data:
            continue
        at, pack = at + form.name, form.size
        if size == 0xFFFFFFFF and long_size:
            at, pack = long_size, "<Q"
            size = struct.unpack(pack, data[at : at + 8])[0]
        room = len(data) - body
        unknown = size <= 0 or size >= 2**62 or (ENDLESS <= size < 2**32 and size > room)
        if size > room or (unknown and room > 0 and not _ends_in_chunks(data, form, body)):
            fixed = room + (form.name + 8 if form.inclusive else 0)
            share = 1.0 if unknown else room / size
            if pack.endswith("I") and fixed >= 2**32:
                return Part(start, len(data)), share, None
            return Part(start, len(data), {at: struct.pack(pack, fixed)}), share, None
        end = body + size + -(body + size) % form.align
        following = next((at for name, at, *_ in _chunks(data, form, end) if name == magic), None)
        return Part(start, following or len(data)), 1.0, following
    return Part(start, len(data)), 1.0, None


def _chunks(data: Bytes | Window, form: Form, at: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield name, position, content position and content size of each chunk."""
    width = struct.calcsize(form.size)
    head = form.name + width
    while at + head <= len(data):
        name = data[at : at + form.name]
        size = struct.unpack(form.size, data[at + form.name : at + head])[0] - (head if form.inclusive else 0)
        yield name, at, at + head, size
        if size < 0:
            return
        at += head + size
        at += -at % form.align


def _ends_in_chunks(data: Bytes | Window, form: Form, at: int) -> bool:
    """Whether only complete chunks follow; then a size of 0 before them is correct."""
    end = at
    for name, _, body, size in _chunks(data, form, at):
        if size < 0 or not (name[:4].isascii() and name[:4].decode("ascii").isprintable()):
            return False
        end = body + size
    return at < end <= len(data) <= end + form.align


def _au(data: Bytes, order: str) -> Extent:
    offset, size = struct.unpack(order + "II", data[4:12].ljust(8, b"\0"))
    room = len(data) - offset
    unknown = size == 0 or size == 0xFFFFFFFF
    if room <= 0 or (size <= room and not unknown):
        return _whole(data)
    fixed = {8: struct.pack(order + "I", min(room, 0xFFFFFFFF))}
    return Extent((Part(0, len(data), fixed),), 1.0 if unknown else room / size)


# --- compressed sound ------------------------------------------------------------------------------------------------


def after_id3(data: Bytes, at: int = 0) -> int:
    """The position of the sound after any ID3v2 tags."""
    while data[at : at + 3] == b"ID3" and len(head := data[at : at + 10]) == 10 and max(head[6:]) < 128:
        size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        at += 10 + size + (10 if head[5] & 0x10 else 0)
    return at


def _flac(data: Bytes, begin: int) -> Extent:
    starts = [begin, *(found.start() for found in FLAC_START.finditer(data, begin + 4))]
    parts = tuple(Part(a, b) for a, b in zip([0, *starts[1:]], [*starts[1:], len(data)], strict=True))
    unknown = (data[at + 21 : at + 26] and not data[at + 21] & 15 and not any(data[at + 22 : at + 26]) for at in starts)
    return Extent(parts, doubtful=any(unknown))


def _ogg(data: Bytes) -> Extent:
    """Walk through the Ogg pages. A first page of a stream after other pages starts a new link of a chain."""
    starts, at, begun, share = [0], 0, True, 1.0
    while at < len(data):
        if data[at : at + 4] != b"OggS":  # damage, or a tag after the sound
            at = data.find(b"OggS", at + 1)
            if at < 0:
                break
        head = data[at : at + 27]
        table = data[at + 27 : at + 27 + head[26]] if len(head) == 27 else b""
        end = at + 27 + len(table) + sum(table)
        if len(head) < 27 or len(table) < head[26] or end > len(data):
            share = 0.0  # inside a page
            break
        begins = bool(head[5] & 2)
        if begins and not begun:
            starts.append(at)
        begun, at = begins, end
    parts = tuple(Part(a, b) for a, b in zip(starts, [*starts[1:], len(data)], strict=True))
    return Extent(parts, share)


KBITS = {  # MPEG bit rates by (version 1, layer), index 1 to 14
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
XING = (b"Xing", b"Info")
AFTER_MPEG = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # tags that may follow the sound


class Frame(NamedTuple):
    """A frame of MPEG audio."""

    size: int  # bytes
    samples: int  # per channel
    side: int  # bytes of header and side information before a Xing header
    kind: tuple[int, ...]  # constant within a stream: version, layer, rate


def mpeg_frame(head: bytes) -> Frame | None:
    """Parse the four bytes of an MPEG audio header; None if they are invalid, or in free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    kbits, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or kbits in (0, 15) or rate == 3:
        return None
    first = version == 3
    hertz = (44_100, 48_000, 32_000)[rate] >> (0 if first else 1 if version == 2 else 2)
    samples = 384 if layer == 1 else 576 if layer == 3 and not first else 1152
    unit = 4 if layer == 1 else 1  # bytes in a slot
    size = (samples // 8 * KBITS[first, layer][kbits - 1] * 1000 // hertz // unit + (head[2] >> 1 & 1)) * unit
    mono = head[3] >> 6 == 3
    return Frame(size, samples, 4 + ((17 if mono else 32) if first else (9 if mono else 17)), (version, layer, hertz))


def _mpeg(data: Bytes, begin: int) -> Extent | None:
    """Count the MPEG frames, because mpg123 trusts the Xing header or guesses from the first frame."""
    known: dict[bytes, Frame | None] = {}
    at, count, promised_frames, promised_bytes, kind, samples = begin, 0, None, None, None, 0
    while at < len(data):
        head = data[at : at + 4]
        if head not in known:
            known[head] = mpeg_frame(head)
        frame = known[head]
        if frame is None or (kind and frame.kind != kind) or at + frame.size > len(data):
            break
        if kind is None:
            kind, samples = frame.kind, frame.samples
            promised_frames, promised_bytes = _xing(data[at + frame.side : at + frame.size])
            count = -1 if data[at + frame.side : at + frame.side + 4] in XING else 0
        elif data[at + frame.side : at + frame.side + 4] in XING:
            break
        count, at = count + 1, at + frame.size
    if count < 2:
        return None
    rest = data[at : at + 16]
    joined = len(data) - at > 4_000 and (rest.startswith(b"ID3") or mpeg_frame(rest[:4]) is not None)
    # The last frame may be truncated, and padding may follow.
    short = len(data) - at < 2_000 and mpeg_frame(rest[:4]) is not None
    ends = not joined and (short or rest.startswith(AFTER_MPEG) or not any(data[at : at + 4096]))
    share = min(1.0, (len(data) - begin) / promised_bytes) if promised_bytes and ends else 1.0
    return Extent(
        parts=(Part(0, len(data)),),
        share=share if share < 0.999 else 1.0,
        doubtful=not ends or promised_frames != count,
        samples=count * samples,
        joined=joined,
    )


def _xing(body: bytes) -> tuple[int | None, int | None]:
    """The number of frames and bytes in a Xing header."""
    if body[:4] not in XING or len(body) < 16:
        return None, None
    flags, first, second = struct.unpack(">III", body[4:16])
    return (first if flags & 1 else None), (second if flags & 2 and flags & 1 else None)


def _mp4(data: Bytes) -> Extent:
    at = 0
    while at + 8 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        if size == 1:
            size = struct.unpack(">Q", data[at + 8 : at + 16].ljust(8, b"\0"))[0]
        if size < 8:  # 0: to the end of the file
            break
        at += size
    return _whole(data, at if at > len(data) else 0)


def _matroska(data: Bytes) -> Extent:
    at = 0
    for _ in range(2):  # the EBML header, then the segment, which is the rest
        name = _vint(data, at, keep=True)
        size = _vint(data, at + name[1])
        at += name[1] + size[1]
        if not name[1] or not size[1] or size[0] == 2 ** (7 * size[1]) - 1:  # all ones: unknown
            break
        at += size[0]
    return _whole(data, at if at > len(data) else 0)


def _vint(data: Bytes, at: int, keep: bool = False) -> tuple[int, int]:
    """Read an EBML number and its length in bytes (0 if invalid); `keep` keeps the length marker bit."""
    first = data[at] if at < len(data) else 0
    if not first:
        return 0, 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + width], "big")
    return (value if keep else value & (1 << 7 * width) - 1), width
