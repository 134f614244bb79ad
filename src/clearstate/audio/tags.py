"""What libsndfile leaves behind when a file is written anew: the whole ID3 tag of an MP3, a WAV's other chunks.

* MP3: the ID3v2 tag of the source goes before the sound as it is, with cover and chapters; from another format one is
  made from its text tags. (libsndfile's own writer drops short tags and declares UTF-8 to be Latin-1.)
* WAV: broadcast data (`bext`, with the start time), cue points and their names, `iXML`, loops and the like are appended
  as they are. They count samples, and neither rate nor length changes here.

Formats: id3.org, "ID3 tag version 2.3.0"; Microsoft and IBM, RIFF (1991); EBU Tech 3285 and 3306.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

ID3_FRAMES = {
    "title": b"TIT2",
    "artist": b"TPE1",
    "album": b"TALB",
    "date": b"TYER",
    "genre": b"TCON",
    "tracknumber": b"TRCK",
    "copyright": b"TCOP",
    "comment": b"COMM",
}
RIFF = (b"RIFF", b"RF64")
NOT_COPIED = (b"fmt ", b"data", b"fact", b"PEAK", b"JUNK", b"junk", b"PAD ", b"FLLR", b"ds64", b"LIST/INFO")
MOST_BYTES = 2**26  # of a chunk: nothing but sound is that long


def id3_of(path: str) -> bytes:
    """The ID3v2 tag at the beginning of a file, b"" if there is none."""
    with open(path, "rb") as file:
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
            return b""
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        size += 10 if head[5] & 0x10 else 0  # a footer
        body = file.read(size)
    return head + body if len(body) == size else b""


def id3_from(tags: dict[str, str]) -> bytes:
    """An ID3v2.3 tag of text frames in UTF-16, b"" without any text."""
    frames = b""
    for key, name in ID3_FRAMES.items():
        if text := tags.get(key):
            # A comment has a language and an empty description before its text.
            body = b"\x01" + (b"und\xff\xfe\0\0" if name == b"COMM" else b"") + b"\xff\xfe" + text.encode("utf-16-le")
            frames += name + struct.pack(">IH", len(body), 0) + body
    if not frames:
        return b""
    size = bytes(len(frames) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frames


class Behind(io.RawIOBase):
    """A file from some offset on, as if it began there: what libsndfile writes stays behind the tag."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._offset = file, file.tell()

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(position + (self._offset if whence == io.SEEK_SET else 0), whence) - self._offset

    def tell(self) -> int:
        return self._file.tell() - self._offset

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined]  # a buffered file has it

    def write(self, data: Any) -> int:
        return self._file.write(data)


def chunks_of(path: str) -> list[tuple[bytes, bytes]]:
    """Name and content of a WAV's chunks that are neither its sound nor what libsndfile writes by itself.

    Of a file that is no WAV: none.
    """
    with open(path, "rb") as file:
        return [
            (name, file.read(size)) for name, kind, size in _walk(file) if kind not in NOT_COPIED and size <= MOST_BYTES
        ]


def append_chunks(path: str, chunks: list[tuple[bytes, bytes]]) -> None:
    """Append chunks to a finished WAV or RF64 file and correct the length in its header."""
    if not chunks:
        return
    with open(path, "r+b") as file:
        form = file.read(4)
        end = file.seek(0, io.SEEK_END)
        file.write(b"\0" * (end % 2))
        for name, body in chunks:
            file.write(name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
        length = file.tell() - 8
        if form == b"RF64":
            file.seek(20)  # RF64 size WAVE "ds64" size, then the length in 64 bits
            file.write(struct.pack("<Q", length))
        elif length < 2**32:
            file.seek(4)
            file.write(struct.pack("<I", length))
        else:
            file.truncate(end)  # no room left in the header: the sound matters more


def _walk(file: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Name, kind ("LIST/adtl" for a list) and size of each chunk of a RIFF file; the content is next in the file."""
    head = file.read(12)
    if head[:4] not in RIFF or head[8:] != b"WAVE":
        return
    data_size = None
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        start = file.tell()
        if name == b"ds64":
            data_size = struct.unpack("<Q", file.read(16)[8:])[0]
        elif name == b"data" and size == 0xFFFFFFFF:
            if data_size is None:
                return  # a stream that was stored: nobody knows where the sound ends
            size = data_size
        kind = name
        if name == b"LIST":
            kind = b"LIST/" + file.read(4)
        file.seek(start)
        yield name, kind, size
        file.seek(start + size + size % 2)
