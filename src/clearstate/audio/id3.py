"""Read and write ID3 tags: at the start of MP3 files, and in a chunk of WAV and AIFF files.

Formats: id3.org, "ID3 tag version 2.3.0", "ID3 tag version 2.4.0", "ID3v1".
"""

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from clearstate.audio.vorbis import Comment, Picture

FRAMES = {  # Vorbis comment: frame
    "TITLE": "TIT2",
    "ARTIST": "TPE1",
    "ALBUM": "TALB",
    "DATE": "TYER",
    "GENRE": "TCON",
    "TRACKNUMBER": "TRCK",
    "COPYRIGHT": "TCOP",
    "COMMENT": "COMM",
    "LYRICS": "USLT",
    "ALBUMARTIST": "TPE2",
    "COMPOSER": "TCOM",
    "CONDUCTOR": "TPE3",
    "LYRICIST": "TEXT",
    "DISCNUMBER": "TPOS",
    "ORGANIZATION": "TPUB",
    "ISRC": "TSRC",
    "BPM": "TBPM",
    "LANGUAGE": "TLAN",
    "SUBTITLE": "TIT3",
}
KEYS = {frame: key for key, frame in FRAMES.items()} | {"TDRC": "DATE", "ULT": "LYRICS", "COM": "COMMENT"}
KEYS |= {"TT2": "TITLE", "TP1": "ARTIST", "TAL": "ALBUM", "TYE": "DATE", "TCO": "GENRE", "TRK": "TRACKNUMBER"}
KEYS |= {"TP2": "ALBUMARTIST", "TCM": "COMPOSER", "TCR": "COPYRIGHT", "TPA": "DISCNUMBER"}
ABOUT_THE_CODING = ("TSSE", "TENC", "TLEN", "TSS", "TEN", "TLE", "MLLT", "ASPI", "SEEK", "MLL")  # of old samples
ENCODINGS = ("latin-1", "utf-16", "utf-16-be", "utf-8")


def tag_of(file: BinaryIO) -> bytes:
    """Read an ID3v2 tag at the file position and move behind it; b"" without a move if there is none."""
    start = file.tell()
    head = file.read(10)
    if len(head) == 10 and head[:3] == b"ID3" and max(head[6:10]) < 128:
        size = _synchsafe(head[6:10]) + (10 if head[5] & 0x10 else 0)  # with a footer
        body = file.read(size)
        if len(body) == size:
            return head + body
    file.seek(start)
    return b""


def old_tag_of(file: BinaryIO) -> list[Comment]:
    """The comments of an ID3v1 tag: the last 128 bytes of a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 128))
    tag = file.read()
    if len(tag) < 128 or tag[:3] != b"TAG":
        return []
    places = (("TITLE", 3, 33), ("ARTIST", 33, 63), ("ALBUM", 63, 93), ("DATE", 93, 97), ("COMMENT", 97, 125))
    texts = [(key, tag[start:end].split(b"\0")[0].decode("latin-1").strip()) for key, start, end in places]
    if tag[125] == 0 and tag[126]:
        texts.append(("TRACKNUMBER", str(tag[126])))
    return [(key, text) for key, text in texts if text]


def unpack(tag: bytes) -> tuple[list[Comment], list[Picture], list[str]]:
    """Comments, pictures, and the names of all other frames of a tag."""
    comments: list[Comment] = []
    pictures: list[Picture] = []
    others: list[str] = []
    for name, body in _frames(tag):
        if not body or name in ABOUT_THE_CODING:
            continue
        if name in ("APIC", "PIC"):
            if picture := _picture(name, body):
                pictures.append(picture)
        elif name in ("COMM", "COM", "USLT", "ULT"):
            description, text = _halves(body[0], body[4:])
            if not description.startswith("iTun") and text:  # iTunes describes the old samples there
                comments.append((KEYS[name], text))
        elif name in ("TXXX", "TXX"):
            key, text = _halves(body[0], body[1:])
            comments += [(key.replace("=", "_") or "COMMENT", one) for one in text.split("\0")]
        elif name.startswith("T"):
            comments += [(KEYS.get(name, name), one) for one in _text(body[0], body[1:]).split("\0") if one]
        else:
            others.append(name)
    return comments, pictures, others


def pack(comments: list[Comment], pictures: list[Picture]) -> bytes:
    """Encode an ID3v2.3 tag with UTF-16 text; b"" if there is no content."""
    frames = b""
    texts: dict[str, list[str]] = {}
    for key, text in comments:
        texts.setdefault(key.upper(), []).append(text)
    for key, values in texts.items():
        name, packed = FRAMES.get(key, "TXXX"), _utf16("/".join(values))
        if name in ("COMM", "USLT"):
            body = b"\x01und" + _utf16("") + b"\0\0" + packed  # unknown language, no description
        elif name == "TXXX":
            body = b"\x01" + _utf16(key) + b"\0\0" + packed
        else:
            body = b"\x01" + packed
        frames += _frame(name, body)
    for picture in pictures:
        mime = picture.mime.encode("latin-1", "replace")
        described = _utf16(picture.description) + b"\0\0"
        frames += _frame("APIC", b"\x01" + mime + b"\0" + bytes([picture.kind & 255]) + described + picture.data)
    if not frames:
        return b""
    return b"ID3\x03\0\0" + bytes(len(frames) >> shift & 127 for shift in (21, 14, 7, 0)) + frames


def with_comment(tag: bytes, description: str, text: str) -> bytes:
    """The tag with one more comment, and everything else unchanged; b"" if its version or flags do not allow that."""
    if len(tag) < 10 or tag[3] not in (3, 4) or tag[5]:
        return b""
    data = tag[10:]
    end = 0
    while len(data) > end + 10 and re.fullmatch(rb"[A-Z0-9]{4}", data[end : end + 4]):
        size = data[end + 4 : end + 8]
        end += 10 + (_synchsafe(size) if tag[3] == 4 else int.from_bytes(size, "big"))
    if end > len(data):
        return b""
    body = b"\x01und" + _utf16(description) + b"\0\0" + _utf16(text)
    size = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0)) if tag[3] == 4 else struct.pack(">I", len(body))
    frames = data[:end] + b"COMM" + size + b"\0\0" + body
    return tag[:6] + bytes(len(frames) >> shift & 127 for shift in (21, 14, 7, 0)) + frames


def _frame(name: str, body: bytes) -> bytes:
    return name.encode() + struct.pack(">IH", len(body), 0) + body


def _frames(tag: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and body of each frame of a tag of version 2.2, 2.3 or 2.4."""
    version, flags, data = tag[3], tag[5], tag[10:]
    if version not in (2, 3, 4):
        return
    if flags & 0x80 and version < 4:
        data = _unescaped(data)
    if flags & 0x40 and version > 2:  # an extended header; version 2.3 does not count its own size
        data = data[4 + struct.unpack(">I", data[:4])[0] :] if version == 3 else data[_synchsafe(data[:4]) :]
    width = 3 if version == 2 else 4
    head = 6 if version == 2 else 10
    while len(data) > head and re.fullmatch(rb"[A-Z0-9]+", data[:width]):
        size = _synchsafe(data[4:8]) if version == 4 else int.from_bytes(data[width : 2 * width], "big")
        body, coded = data[head : head + size], data[9] if version == 4 else 0
        if coded & 1 and version == 4:
            body = body[4:]  # the decoded length
        if coded & 2:
            body = _unescaped(body)
        if not coded & 0x0C and not (version == 3 and data[9] & 0xC0):  # neither compressed nor encrypted
            yield data[:width].decode(), body
        data = data[head + size :]


def _picture(name: str, body: bytes) -> Picture | None:
    if name == "PIC":
        mime, rest = "image/" + {b"JPG": "jpeg"}.get(body[1:4], body[1:4].decode("latin-1").lower()), body[4:]
    else:
        kind, _, rest = body[1:].partition(b"\0")
        mime = kind.decode("latin-1")
    if not rest:
        return None
    end = _end(body[0], rest[1:])
    return Picture(mime, rest[0], _text(body[0], rest[1 : 1 + end[0]]), rest[1 + end[1] :])


def _end(encoding: int, data: bytes) -> tuple[int, int]:
    """End of the text at the start of `data`, and start of the next field."""
    wide = encoding in (1, 2)
    if not wide:
        at = data.find(b"\0")
        return (at, at + 1) if at >= 0 else (len(data), len(data))
    for at in range(0, len(data) - 1, 2):
        if data[at : at + 2] == b"\0\0":
            return at, at + 2
    return len(data), len(data)


def _halves(encoding: int, data: bytes) -> tuple[str, str]:
    """A description and the text after it."""
    end, start = _end(encoding, data)
    return _text(encoding, data[:end]), _text(encoding, data[start:])


def _text(encoding: int, data: bytes) -> str:
    name = ENCODINGS[encoding] if encoding < len(ENCODINGS) else "latin-1"
    if name == "latin-1":
        with_utf8 = data.rstrip(b"\0")
        try:
            return with_utf8.decode("utf-8")  # many writers declare UTF-8 to be Latin-1
        except UnicodeDecodeError:
            return with_utf8.decode("latin-1")
    return data.decode(name, "replace").replace("\ufeff", "").rstrip("\0")


def _utf16(text: str) -> bytes:
    return b"\xff\xfe" + text.encode("utf-16-le", "replace")


def _unescaped(data: bytes) -> bytes:
    return data.replace(b"\xff\0", b"\xff")


def _synchsafe(four: bytes) -> int:
    return sum((byte & 127) << shift for byte, shift in zip(four, (21, 14, 7, 0), strict=True))
