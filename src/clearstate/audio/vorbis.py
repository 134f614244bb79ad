"""Read and write Vorbis comments and pictures of FLAC and Ogg files (Vorbis, Opus, Speex, FLAC).

Formats: xiph.org, "Ogg Vorbis I format specification: comment field and header specification"; RFC 9639 (FLAC), 3533
(Ogg), 7845 (Opus).
"""

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

Comment = tuple[str, str]  # key, text; keys may repeat, their case does not matter

PADDING, APPLICATION, COMMENTS, CUESHEET, PICTURE = 1, 2, 4, 5, 6  # types of FLAC's metadata blocks
MOST_OF_BLOCK = 2**24 - 1  # bytes
MOST_OF_HEADERS = 2**26  # bytes of Ogg pages searched for the comments
PICTURE_KEY = "METADATA_BLOCK_PICTURE"  # holds a FLAC picture in base64
COUNTING = ("LOOPSTART", "LOOPLENGTH", "LOOPEND")  # samples, in music of games


class Picture(NamedTuple):
    """A cover or another picture, as FLAC and ID3 describe it."""

    mime: str
    kind: int  # 3: front cover
    description: str
    data: bytes


def pack_picture(picture: Picture) -> bytes:
    """Encode a picture as the body of a FLAC block."""
    mime, text = picture.mime.encode(), picture.description.encode()
    return b"".join(
        (struct.pack(">II", picture.kind, len(mime)), mime, struct.pack(">I", len(text)), text)
        + (bytes(16), struct.pack(">I", len(picture.data)), picture.data)  # size and colours: unknown
    )


def unpack_picture(body: bytes) -> Picture | None:
    """The inverse of `pack_picture`; None for a damaged block."""
    try:
        kind, size = struct.unpack_from(">II", body)
        mime, at = body[8 : 8 + size].decode("latin-1"), 8 + size
        size = struct.unpack_from(">I", body, at)[0]
        text, at = body[at + 4 : at + 4 + size].decode("utf-8", "replace"), at + 20 + size
        size = struct.unpack_from(">I", body, at)[0]
    except struct.error:
        return None
    data = body[at + 4 : at + 4 + size]
    return Picture(mime, kind, text, data) if data else None


def pack_comments(vendor: bytes, comments: list[Comment]) -> bytes:
    """Encode Vorbis comments, without the prefix and the framing bit, which depend on the codec."""
    fields = [f"{key}={text}".encode("utf-8", "surrogateescape") for key, text in comments]
    counted = [struct.pack("<I", len(one)) + one for one in (vendor, *fields)]
    return counted[0] + struct.pack("<I", len(fields)) + b"".join(counted[1:])


def unpack_comments(body: bytes) -> tuple[bytes, list[Comment]]:
    """The vendor and the comments, up to the first damaged one."""
    found: list[Comment] = []
    vendor = b""
    try:
        size = struct.unpack_from("<I", body)[0]
        vendor, at = body[4 : 4 + size], 8 + size
        for _ in range(struct.unpack_from("<I", body, at - 4)[0]):
            size = struct.unpack_from("<I", body, at)[0]
            key, equals, text = body[at + 4 : at + 4 + size].decode("utf-8", "surrogateescape").partition("=")
            if equals:
                found.append((key, text))
            at += 4 + size
    except struct.error:
        pass
    return vendor, found


def pictures_in(comments: list[Comment]) -> tuple[list[Comment], list[Picture]]:
    """Split comments into those without pictures, and the pictures."""
    rest, pictures = [], []
    for key, text in comments:
        picture = None
        if key.upper() == PICTURE_KEY:
            try:
                picture = unpack_picture(base64.b64decode(text))
            except (binascii.Error, ValueError):
                continue
        if picture:
            pictures.append(picture)
        else:
            rest.append((key, text))
    return rest, pictures


def picture_comment(picture: Picture) -> Comment:
    """Encode a picture as a comment, as in Ogg files."""
    return PICTURE_KEY, base64.b64encode(pack_picture(picture)).decode()


def scaled_comments(comments: list[Comment], ratio: Fraction) -> list[Comment]:
    """Adapt comments to another sample rate: loop points of game music count samples."""
    return [
        (key, str(round(int(text) * ratio)) if key.upper() in COUNTING and text.isdecimal() else text)
        for key, text in comments
    ]


# ------------------------------------------------------------------------------------------------------------- FLAC


def flac_blocks(file: BinaryIO) -> list[tuple[int, bytes]]:
    """Type and body of the metadata blocks of a FLAC stream that starts at the file position."""
    blocks: list[tuple[int, bytes]] = []
    if file.read(4) != b"fLaC":
        return blocks
    last = False
    while not last and len(head := file.read(4)) == 4:
        last, size = bool(head[0] & 128), int.from_bytes(head[1:], "big")
        blocks.append((head[0] & 127, file.read(size)))
    return blocks


def pack_block(kind: int, body: bytes) -> bytes:
    """Encode a FLAC metadata block that is not the last one."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def scaled_block(kind: int, body: bytes, ratio: Fraction) -> bytes | None:
    """Adapt a cue sheet to another rate; None for an application block, which may count samples, too."""
    if ratio == 1:
        return body
    if kind != CUESHEET or len(body) < 396:
        return None
    out = bytearray(body)

    def scale(at: int) -> None:
        struct.pack_into(">Q", out, at, round(struct.unpack_from(">Q", out, at)[0] * ratio))

    scale(128)  # lead-in
    out[136] &= 0x7F  # not a CD any more
    at = 396
    try:
        for _ in range(out[395]):
            scale(at)
            indices, at = out[at + 35], at + 36
            for _ in range(indices):
                scale(at)
                at += 12
    except (struct.error, IndexError):
        return None
    return bytes(out)


# -------------------------------------------------------------------------------------------------------------- Ogg

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
PREFIXES = {b"\x01vorbis": 7, b"OpusHead": 8, b"Speex   ": 0, b"\x7fFLAC": 4}  # bytes before the comments, by codec


def ogg_comments(file: BinaryIO) -> list[Comment]:
    """The comments of the first stream of an Ogg file that starts at the file position."""
    packets: list[bytes] = []
    open_packet, read, serial = b"", 0, b""
    for head, lacing, body in _pages(file):
        read += len(body)
        serial = serial or head[14:18]
        if head[14:18] != serial:
            continue
        for packet, whole in _packets(lacing, body):
            open_packet += packet
            if whole:
                packets.append(open_packet)
                open_packet = b""
        if len(packets) > 1 or read > MOST_OF_HEADERS:
            break
    if len(packets) < 2:
        return []
    skip = next((size for magic, size in PREFIXES.items() if packets[0].startswith(magic)), None)
    return [] if skip is None else unpack_comments(packets[1][skip:])[1]


def _pages(file: BinaryIO) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Header (27 bytes), lacing values and body of each page."""
    while len(head := file.read(27)) == 27 and head[:4] == b"OggS":
        lacing = file.read(head[26])
        yield head, lacing, file.read(sum(lacing))


def _packets(lacing: bytes, body: bytes) -> Iterator[tuple[bytes, bool]]:
    """Parts of packets in a page, and whether they end in it."""
    start = size = 0
    for value in lacing:
        size += value
        if value < 255:
            yield body[start : start + size], True
            start, size = start + size, 0
    if size:
        yield body[start:], False


def _page(head: bytes, number: int, lacing: bytes, body: bytes) -> bytes:
    """Encode a page with a new number and checksum."""
    page = head[:18] + struct.pack("<I", number) + bytes(4) + bytes([len(lacing)]) + lacing + body
    # Ogg's CRC uses the opposite bit order of zlib's, and no inversion.
    crc = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    crc = int(f"{crc:032b}"[::-1], 2)
    return page[:22] + struct.pack("<I", crc) + page[26:]


class OggCommenter(io.RawIOBase):
    """A file for an Ogg writer. It forwards everything, but replaces the comments by its own.

    The header pages are encoded again; later pages only receive new numbers.
    """

    def __init__(self, file: Any, comments: list[Comment]) -> None:
        self._file, self._comments = file, comments
        self._held = b""  # an incomplete page
        self._received = 0
        self._headers: list[bytes] = []  # packets
        self._open = b""
        self._wanted = 0  # header packets after the first; 0 until the codec is known
        self._shift = 0  # additional pages
        self._done = False

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Stay at the end of what was written."""
        return self._received  # Ogg is written sequentially

    def tell(self) -> int:
        """Bytes received so far."""
        return self._received

    def write(self, data: Any) -> int:
        """Forward all complete pages."""
        data = bytes(data)
        self._received += len(data)
        self._held += data
        stream = io.BytesIO(self._held)
        at = 0
        for head, lacing, body in _pages(stream):
            if len(lacing) < head[26] or len(body) < sum(lacing):
                break  # the page is incomplete
            at = stream.tell()
            self._file.write(self._rewritten(head, lacing, body))
        self._held = self._held[at:]
        return len(data)

    def _rewritten(self, head: bytes, lacing: bytes, body: bytes) -> bytes:
        number = struct.unpack_from("<I", head, 18)[0]
        if self._done:
            return _page(head, number + self._shift, lacing, body)
        if not self._wanted:
            self._wanted = 1 if body.startswith(b"OpusHead") else 2  # in Vorbis, the code books follow the comments
            return _page(head, number, lacing, body)
        for packet, whole in _packets(lacing, body):
            self._open += packet
            if whole:
                self._headers.append(self._open)
                self._open = b""
        if len(self._headers) < self._wanted:
            return b""
        pages = list(self._header_pages(head))
        self._shift, self._done = len(pages) - number, True
        return b"".join(pages)

    def _header_pages(self, head: bytes) -> Iterator[bytes]:
        comment, *others = self._headers
        prefix = b"\x03vorbis" if comment.startswith(b"\x03vorbis") else b"OpusTags"
        vendor, _ = unpack_comments(comment[len(prefix) :])
        framing = b"\x01" if prefix == b"\x03vorbis" else b""
        packets = [prefix + pack_comments(vendor, self._comments) + framing, *others]
        lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
        body = b"".join(packets)
        for start in range(0, len(lacing), 255):
            part = lacing[start : start + 255]
            begun = start > 0 and lacing[start - 1] == 255  # the page continues a packet
            whole = any(value < 255 for value in part)  # a page in which no packet ends has no time stamp
            flags = bytes([head[4], 1 if begun else 0]) + (bytes(8) if whole else b"\xff" * 8)
            yield _page(b"OggS" + flags + head[14:], 1 + start // 255, part, body[: sum(part)])
            body = body[sum(part) :]
