"""Read, write and rescale the metadata chunks of WAV, AIFF and CAF files.

    chunks = read_chunks("in.wav")                            # [(b"bext", ...), (b"cue ", ...), ...]
    append_chunks("out.wav", chunks)                          # to a finished file of the same family

Some chunks contain positions and lengths in samples: the start time of a broadcast WAV, cue points, loops, play lists,
AIFF and CAF markers, iXML and ADM. After a change of the sample rate, `scaled` multiplies them by the ratio of the
rates. Unknown chunks might contain sample counts, too, so they are dropped and reported.

Formats: Microsoft and IBM, RIFF (1991); EBU Tech 3285 and 3306; AES46; gallery.co.uk, "iXML specification"; Apple,
"Audio Interchange File Format" (1989) and "Core Audio Format Specification".
"""

import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

from clearstate.audio.remote import open_file

Chunk = tuple[bytes, bytes]  # name, content

MOST_BYTES = 2**26  # of a chunk; only the sound itself is longer
UNKNOWN = 0xFFFFFFFF
FORBIDDEN_LENGTH = 2**32  # lengths from here on do not fit into 32 bits


class Family(NamedTuple):
    """The common layout of a family of formats."""

    order: str  # of bytes, as `struct` writes it
    size: str  # type of a chunk's size, as `struct` writes it
    padded: bool  # to an even length
    own: frozenset[bytes]  # chunks that the writer creates, or that describe the old samples


RIFF_OWN = frozenset(b"fmt ,data,fact,PEAK,JUNK,junk,PAD ,FLLR,ds64,levl".split(b","))
FAMILIES = {
    "RIFF": Family("<", "I", True, RIFF_OWN),
    "RIFX": Family(">", "I", True, RIFF_OWN),
    "AIFF": Family(">", "I", True, frozenset(b"COMM,SSND,FVER,PEAK,FLLR".split(b","))),
    "CAF": Family(">", "q", False, frozenset(b"desc,data,free,pakt,kuki,peak,ovvw".split(b","))),
}


def family_of(head: bytes) -> str | None:
    r"""The family of a file by its first 12 bytes; None for another kind of file.

    >>> family_of(b"RF64\xff\xff\xff\xffWAVE"), family_of(b"OggS and more")
    ('RIFF', None)
    """
    form, kind = head[:4], head[8:12]
    if form in (b"RIFF", b"RF64", b"BW64", b"RIFX") and kind == b"WAVE":
        return "RIFX" if form == b"RIFX" else "RIFF"
    if form == b"FORM" and kind in (b"AIFF", b"AIFC"):
        return "AIFF"
    return "CAF" if form == b"caff" else None


def read_chunks(path: str | os.PathLike[str]) -> list[Chunk]:
    """Read the chunks of a file, without the sound and the chunks that the writer creates."""
    with open_file(path) as file:
        family = family_of(file.read(12))
        file.seek(0)
        found = [
            (name, size, file.read(size))
            for name, size in walk(file)
            if family and name not in FAMILIES[family].own and size <= MOST_BYTES
        ]
        return [(name, body) for name, size, body in found if len(body) == size]  # the last one may be truncated


def append_chunks(path: str | os.PathLike[str], chunks: list[Chunk]) -> bool:
    """Append chunks to a finished file and update the length in its header; False if the length does not fit."""
    if not chunks:
        return True
    with open(path, "r+b") as file:
        head = file.read(12)
        name = family_of(head)
        assert name is not None
        family = FAMILIES[name]
        end = file.seek(0, io.SEEK_END)
        if name == "CAF":  # libsndfile pads the sound, but the format does not
            file.seek(0)
            for _, size in walk(file):
                end = file.tell() + size
            file.truncate(end)
            file.seek(end)
        file.write(b"\0" * (end % 2 if family.padded else 0) + packed(name, chunks))
        length = file.tell() - 8
        if head[:4] == b"RF64":
            file.seek(20)  # RF64 size WAVE "ds64" size, then the length in 64 bits
            file.write(struct.pack("<Q", length))
        elif name != "CAF" and length < FORBIDDEN_LENGTH:
            file.seek(4)
            file.write(struct.pack(family.order + "I", length))
        elif name != "CAF":
            file.truncate(end)
            return False
    return True


def packed(family: str, chunks: list[Chunk]) -> bytes:
    """Serialise chunks."""
    order, size, padded, _ = FAMILIES[family]
    return b"".join(
        name + struct.pack(order + size, len(body)) + body + b"\0" * (len(body) % 2 if padded else 0)
        for name, body in chunks
    )


def channel_mask(path: str | os.PathLike[str]) -> int | None:
    """The channel mask (loudspeaker positions) of an extensible WAV; None for other files."""
    with open_file(path) as file:
        place = _mask_place(file)
        if place is None:
            return None
        file.seek(place[0])
        mask = file.read(4)
        return struct.unpack(place[1] + "I", mask)[0] if len(mask) == 4 else None


def set_channel_mask(path: str | os.PathLike[str], mask: int) -> None:
    """Write the channel mask of an extensible WAV; other files stay unchanged."""
    with open(path, "r+b") as file:
        if place := _mask_place(file):
            file.seek(place[0])
            file.write(struct.pack(place[1] + "I", mask))


def _mask_place(file: BinaryIO) -> tuple[int, str] | None:
    """The position of the mask, and its byte order."""
    family = family_of(file.read(12))
    file.seek(0)
    if family not in ("RIFF", "RIFX"):
        return None
    order = FAMILIES[family].order
    for name, size in walk(file):
        if name == b"fmt ":
            start = file.tell()
            extensible = size >= 40 and file.read(2) == struct.pack(order + "H", 0xFFFE)
            return (start + 20, order) if extensible else None
    return None


def walk(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the name and size of each chunk. The file is then positioned at the chunk's content."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    name = family_of(head)
    if name is None:
        return
    order, sized, padded, _ = FAMILIES[name]
    if name == "CAF":
        file.seek(8)  # "caff", version and flags; no length of the whole
    data_size = None
    size_of_head = 4 + struct.calcsize(order + sized)
    while len(head := file.read(size_of_head)) == size_of_head:
        kind, size = struct.unpack(f"{order}4s{sized}", head)
        start = file.tell()
        if kind == b"ds64":
            data_size = struct.unpack("<Q", file.read(16)[8:].ljust(8, b"\0"))[0]
        elif kind == b"data" and (size == UNKNOWN or size < 0):
            if data_size is None:
                return  # a stored stream; the end of the sound is unknown
            size = data_size
        if size < 0:
            return
        file.seek(start)
        yield kind, size
        if start + size >= end:  # the last one, or truncated
            return
        file.seek(start + size + (size % 2 if padded else 0))


# ------------------------------------------------------------------------------------------------- samples counted


def scaled(family: str, chunk: Chunk, ratio: Fraction) -> Chunk | None:
    """Convert a chunk to another sample rate; None if it may contain sample counts in an unknown layout.

    Args:
        ratio: new rate / old rate.
    """
    name, body = chunk
    if ratio == 1 or name in NEUTRAL:
        return chunk
    try:
        if name in SCALERS:
            return name, SCALERS[name](body, FAMILIES[family].order, ratio)
    except (struct.error, ValueError, OverflowError):  # too short, not a number, or in UTF-16
        return None
    return None


# These chunks contain no sample counts.
NEUTRAL = frozenset(
    b"id3 ,ID3 ,DISP,inst,acid,afsp,chna,umid,_PMX,NAME,AUTH,(c) ,ANNO,COMT,INST,MIDI,AESD,APPL,CHAN,"
    b"chan,info,strg,uuid".split(b",")
)


def _times(value: int, ratio: Fraction, bits: int = 32) -> int:
    """Scale a sample count; the largest value means "none" and stays."""
    most = 2**bits - 1
    return value if value == most else min(most, int(value * ratio + Fraction(1, 2)))


def _each(body: bytes, order: str, ratio: Fraction, places: list[int], kind: str = "I") -> bytes:
    """Scale the numbers at `places`."""
    out = bytearray(body)
    for place in places:
        value = struct.unpack_from(order + kind, out, place)[0]
        new = float(Fraction(value) * ratio) if kind == "d" else _times(value, ratio, 8 * struct.calcsize(order + kind))
        struct.pack_into(order + kind, out, place, new)
    return bytes(out)


def _places(body: bytes, start: int, step: int, count: int, *offsets: int) -> list[int]:
    """The positions of the numbers in `count` entries of `step` bytes each."""
    if start + step * count > len(body):
        raise struct.error(f"{count} entries do not fit")
    return [start + step * i + offset for i in range(count) for offset in offsets]


def _bext(body: bytes, order: str, ratio: Fraction) -> bytes:
    return _each(body, order, ratio, [338], "Q")  # samples since midnight


def _cue(body: bytes, order: str, ratio: Fraction) -> bytes:
    count = struct.unpack_from(order + "I", body)[0]
    return _each(body, order, ratio, _places(body, 4, 24, count, 4, 20))


def _plst(body: bytes, order: str, ratio: Fraction) -> bytes:
    count = struct.unpack_from(order + "I", body)[0]
    return _each(body, order, ratio, _places(body, 4, 12, count, 4))


def _smpl(body: bytes, order: str, ratio: Fraction) -> bytes:
    count = struct.unpack_from(order + "I", body, 28)[0]
    body = _each(body, order, 1 / ratio, [8])  # nanoseconds per sample
    return _each(body, order, ratio, _places(body, 36, 24, count, 8, 12))


def _cart(body: bytes, order: str, ratio: Fraction) -> bytes:
    return _each(body, order, ratio, _places(body, 684, 8, 8, 4))  # post timers


def _list(body: bytes, order: str, ratio: Fraction) -> bytes:
    """Scale a list of labels and notes; only `ltxt` entries have a length in samples."""
    if body[:4] != b"adtl":
        return body
    places, at = [], 4
    while at + 8 <= len(body):
        size = struct.unpack_from(order + "I", body, at + 4)[0]
        if body[at : at + 4] == b"ltxt":
            places.append(at + 12)
        at += 8 + size + size % 2
    return _each(body, order, ratio, places)


def _mark(body: bytes, order: str, ratio: Fraction) -> bytes:
    """Scale AIFF markers: each has a number, a position and a Pascal string, padded to an even length."""
    places, at = [], 2
    for _ in range(struct.unpack_from(order + "H", body)[0]):
        places.append(at + 2)
        length = struct.unpack_from("B", body, at + 6)[0]
        at += 7 + length + (length + 1) % 2
    return _each(body, order, ratio, places)


def _caf_mark(body: bytes, order: str, ratio: Fraction) -> bytes:
    count = struct.unpack_from(order + "I", body, 4)[0]
    return _each(body, order, ratio, _places(body, 8, 28, count, 4), "d")


# iXML: (high word, low word) of 64-bit counts, and single numbers.
PAIRS = (
    ("TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI", "TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO"),
    ("BWF_TIME_REFERENCE_HIGH", "BWF_TIME_REFERENCE_LOW"),
    ("SYNC_POINT_HIGH", "SYNC_POINT_LOW"),
)
SINGLES = "TIMESTAMP_SAMPLE_RATE|FILE_SAMPLE_RATE|SYNC_POINT_EVENT_DURATION"


def _ixml(body: bytes, order: str, ratio: Fraction) -> bytes:
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise struct.error("UTF-16")
    text = body.decode("latin-1")  # element names and numbers are ASCII

    def single(found: re.Match[str]) -> str:
        return f"{found[1]}{_times(int(found[2]), ratio)}{found[3]}"

    text = re.sub(rf"(<(?:{SINGLES})>\s*)(\d+)(\s*</)", single, text)
    for high, low in PAIRS:
        found = [[int(number) for number in re.findall(rf"<{name}>\s*(\d+)\s*</", text)] for name in (high, low)]
        counts = [_times((h << 32) + w, ratio, 64) for h, w in zip(*found, strict=False)]
        for name, words in ((high, [c >> 32 for c in counts]), (low, [c & UNKNOWN for c in counts])):
            rest = iter(words)
            text = re.sub(rf"(<{name}>\s*)(\d+)", lambda found: f"{found[1]}{next(rest, found[2])}", text)  # noqa: B023
    return text.encode("latin-1")


def _axml(body: bytes, order: str, ratio: Fraction) -> bytes:
    """Scale ADM metadata: only the sample rate of a track changes, because times are in seconds."""
    text = body.decode("latin-1")
    return re.sub(
        r'(\bsampleRate\s*=\s*["\'])(\d+)', lambda found: f"{found[1]}{_times(int(found[2]), ratio)}", text
    ).encode("latin-1")


SCALERS: dict[bytes, Callable[[bytes, str, Fraction], bytes]] = {
    b"bext": _bext,
    b"cue ": _cue,
    b"plst": _plst,
    b"smpl": _smpl,
    b"cart": _cart,
    b"LIST": _list,
    b"MARK": _mark,
    b"mark": _caf_mark,
    b"iXML": _ixml,
    b"axml": _axml,
    b"aXML": _axml,
}


def described(chunk: Chunk, order: str) -> str:
    r"""Describe a chunk in words, to report what was dropped.

    >>> described((b"cue ", b"\x03\0\0\0"), "<"), described((b"strc", b""), "<")
    ('3 markers', 'strc')
    """
    name, body = chunk
    counts = {b"cue ": ("I", 0), b"MARK": ("H", 0), b"mark": ("I", 4)}
    if name in counts:
        kind, at = counts[name]
        count = struct.unpack_from(order + kind, body.ljust(8, b"\0"), at)[0]
        return f"{count} marker{'s' * (count != 1)}"
    words = {b"bext": "broadcast data", b"smpl": "loops", b"INST": "loops", b"plst": "play list", b"COMT": "comments"}
    if name == b"LIST":
        return "names of markers" if body[:4] == b"adtl" else body[:4].decode("latin-1")
    return words.get(name, name.decode("latin-1").strip())
