"""Copy metadata (tags, pictures, chunks) from any audio format to any other.

    metadata = tags.of(info)                       # comments, pictures, chunks, channel mask
    fitted = tags.fit(metadata, "FLAC", "PCM_16")  # the bytes for that format, and what it does not support

Within a format, everything is copied unchanged: all Vorbis comments and pictures of FLAC, Ogg and Opus, the ID3 tag of
an MP3, all chunks of WAV, AIFF and CAF. Between formats, comments and cover are translated. Metadata that the target
does not support is listed, for the report. After a change of the sample rate (`at_rate`), sample counts are corrected;
see `audio/chunks.py`.
"""

import io
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

from clearstate.audio import chunks, id3, vorbis
from clearstate.audio.chunks import Chunk
from clearstate.audio.remote import is_remote, open_file
from clearstate.audio.vorbis import Comment, Picture

if TYPE_CHECKING:
    from clearstate.audio.info import AudioInfo

INFO = {  # Vorbis comment: chunk of a WAV's LIST/INFO
    "TITLE": b"INAM",
    "ARTIST": b"IART",
    "ALBUM": b"IPRD",
    "COMMENT": b"ICMT",
    "DATE": b"ICRD",
    "GENRE": b"IGNR",
    "TRACKNUMBER": b"ITRK",
    "COPYRIGHT": b"ICOP",
}
INFO_KEYS = {name: key for key, name in INFO.items()} | {b"IPRT": "TRACKNUMBER", b"IENG": "ENGINEER", b"ISFT": ""}
AIFF_TEXTS = {"TITLE": b"NAME", "ARTIST": b"AUTH", "COPYRIGHT": b"(c) ", "COMMENT": b"ANNO"}
CAF_KEYS = {"TRACKNUMBER": "track number", "COMMENT": "comments", "DATE": "year"}
AV_KEYS = {"track": "TRACKNUMBER", "disc": "DISCNUMBER", "album_artist": "ALBUMARTIST", "publisher": "ORGANIZATION"}
ABOUT_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", "duration"}
MASK_KEY = "WAVEFORMATEXTENSIBLE_CHANNEL_MASK"
FAMILIES = {"WAV": "RIFF", "WAVEX": "RIFF", "RF64": "RIFF", "AIFF": "AIFF", "CAF": "CAF"}


@dataclass
class Metadata:
    """The metadata of a recording. `chunks` may grow until the end of a stream."""

    comments: list[Comment] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tag: bytes = b""  # ID3v2, whole
    family: str | None = None  # of the chunks
    chunks: list[Chunk] = field(default_factory=list)
    blocks: list[tuple[int, bytes]] = field(default_factory=list)  # FLAC's others: type and body
    others: list[str] = field(default_factory=list)  # known to be there, in words
    mask: int | None = None  # loudspeakers of the channels
    ratio: Fraction = Fraction(1)  # output rate / input rate

    def at_rate(self, old: int, new: int) -> "Metadata":
        """The same metadata for another sample rate."""
        return replace(self, ratio=self.ratio * Fraction(new, old))


@dataclass
class Fitted:
    """Metadata in the form of one format."""

    front: bytes = b""  # bytes to insert
    at: int = 0  # offset of `front` in the output of libsndfile
    comments: list[Comment] | None = None  # of an Ogg file
    family: str | None = None
    chunks: list[Chunk] = field(default_factory=list)  # to be appended
    left_out: list[str] = field(default_factory=list)  # in words


def of(info: "AudioInfo") -> Metadata:
    """The metadata of an opened recording."""
    if info.metadata is not None:
        return info.metadata
    found = read(info.name) if is_remote(info.name) or os.path.isfile(info.name) else Metadata()
    if info.container == "AV" and not (found.comments or found.pictures or found.chunks):
        found = _from_av(info.name)
    if not (found.comments or found.tag or found.chunks):
        found.comments = [(key.upper(), text) for key, text in info.tags.items() if key != "software"]
    return found


def with_comment(metadata: Metadata, description: str, text: str) -> Metadata:
    """The metadata with one more comment. `description` is its name where a format has one."""
    found = replace(metadata, comments=[*metadata.comments, ("COMMENT", text)])
    if metadata.tag and (tag := id3.with_comment(metadata.tag, description, text)):
        found.tag = tag
    if metadata.family:
        found.chunks = _more_chunks(metadata.family, metadata.chunks, text.encode("utf-8", "surrogateescape"))
    return found


def _more_chunks(family: str, known: list[Chunk], text: bytes) -> list[Chunk]:
    """The chunks with one more comment. It joins the chunk of the other comments, if there is one."""
    if family == "AIFF":
        return [*known, (AIFF_TEXTS["COMMENT"], text)]
    if family == "CAF":
        name, start = b"info", struct.pack(">I", 0)
        item = b"comments\0" + text + b"\0"
    else:
        name, start = b"LIST", b"INFO"
        item = chunks.packed(family, [(INFO["COMMENT"], text + b"\0")])
    at = next(
        (i for i, (own, body) in enumerate(known) if own == name and (family == "CAF" or body[:4] == start)), None
    )
    body = start if at is None else known[at][1]
    if family == "CAF":
        body = struct.pack(">I", struct.unpack(">I", body[:4])[0] + 1) + body[4:]
    else:
        body += b"\0" * (len(body) % 2)
    joined = (name, body + item)
    return [*known, joined] if at is None else [*known[:at], joined, *known[at + 1 :]]


def read(path: str | os.PathLike[str]) -> Metadata:
    """Read the metadata of a FLAC, Ogg, WAV, AIFF, CAF or MP3 file; empty for other files."""
    with open_file(path) as file:
        tag = id3.tag_of(file)
        start = file.tell()
        head = file.read(12)
        file.seek(start)
        if head.startswith(b"fLaC"):
            return _from_flac(file)
        if head.startswith(b"OggS"):
            comments, pictures = vorbis.pictures_in(vorbis.ogg_comments(file))
            return Metadata(comments, pictures)
        if family := chunks.family_of(head):
            found = from_chunks(family, chunks.read_chunks(path))
            found.mask = chunks.channel_mask(path)
            return found
        if tag:
            comments, pictures, others = id3.unpack(tag)
            return Metadata(comments, pictures, tag, others=_frames_in_words(others))
        return Metadata(id3.old_tag_of(file))


def from_chunks(family: str, found: list[Chunk]) -> Metadata:
    """The metadata of a file with chunks."""
    metadata = Metadata(family=family, chunks=found)
    for name, body in found:
        add_chunk_comments(metadata, name, body)
    return metadata


def add_chunk_comments(metadata: Metadata, name: bytes, body: bytes) -> None:
    """Parse a chunk with text; ignore other chunks."""
    known = {key for key, _ in metadata.comments}
    if name == b"LIST" and body[:4] == b"INFO":
        metadata.comments += [one for one in _info_comments(body, metadata.family) if one[0] not in known]
    elif name in (b"id3 ", b"ID3 "):
        metadata.tag = metadata.tag or id3.tag_of(io.BytesIO(body))
        comments, pictures, others = id3.unpack(metadata.tag) if metadata.tag else ([], [], [])
        metadata.others += _frames_in_words(others)
        metadata.comments += [one for one in comments if one[0] not in known]
        metadata.pictures += pictures
    elif key := next((key for key, chunk in AIFF_TEXTS.items() if chunk == name and metadata.family == "AIFF"), None):
        metadata.comments.append((key, _decoded(body)))
    elif name == b"info" and metadata.family == "CAF":
        words = [_decoded(word) for word in body[4:].split(b"\0")]
        keys = {text: key for key, text in CAF_KEYS.items()} | {"date": "DATE", "tracknumber": "TRACKNUMBER"}
        pairs = zip(words[::2], words[1::2], strict=False)
        metadata.comments += [(keys.get(key, key.upper()), text) for key, text in pairs if key and key != "software"]


def fit(metadata: Metadata, container: str, subtype: str, endian: str = "FILE") -> Fitted:
    """Convert metadata to a format of libsndfile."""
    comments = vorbis.scaled_comments(metadata.comments, metadata.ratio)
    if metadata.mask and not any(key.upper() == MASK_KEY for key, _ in comments) and container == "FLAC":
        comments.append((MASK_KEY, f"0x{metadata.mask:04X}"))
    family = "RIFX" if container in ("WAV", "WAVEX") and endian == "BIG" else FAMILIES.get(container)
    if family and family == metadata.family:
        return _same_family(metadata)
    tag, lost = _tag(metadata, comments)
    if container == "FLAC":
        fitted, lost = _for_flac(metadata, comments), metadata.others
    elif container == "OGG":
        comments += [vorbis.picture_comment(picture) for picture in metadata.pictures]
        fitted, lost = Fitted(comments=comments), metadata.others
    elif container == "MP3":
        fitted = Fitted(front=tag)
    elif family:
        fitted = _for_chunks(metadata, family, comments, tag)
    else:
        lost = [key.lower() for key in dict(comments)] + _covers(metadata.pictures) + metadata.others
        fitted = Fitted()
    lost = fitted.left_out + _foreign(metadata) + lost
    if container != "FLAC":
        lost += [_block_in_words(kind) for kind, _ in metadata.blocks]
    fitted.left_out = list(dict.fromkeys(lost))
    return fitted


def _tag(metadata: Metadata, comments: list[Comment]) -> tuple[bytes, list[str]]:
    """The ID3 tag (the original one, if it contains everything) and the dropped parts."""
    if metadata.tag and set(comments) <= set(id3.unpack(metadata.tag)[0]):
        return metadata.tag, []
    return id3.pack(comments, metadata.pictures), metadata.others


def _same_family(metadata: Metadata) -> Fitted:
    fitted = Fitted(family=metadata.family)
    assert metadata.family is not None
    for chunk in metadata.chunks:
        kept = chunks.scaled(metadata.family, chunk, metadata.ratio)
        if kept:
            fitted.chunks.append(kept)
        else:
            fitted.left_out.append(chunks.described(chunk, chunks.FAMILIES[metadata.family].order))
    return fitted


def _for_flac(metadata: Metadata, comments: list[Comment]) -> Fitted:
    fitted = Fitted(at=42)  # after "fLaC" and STREAMINFO, which must be first
    blocks: list[tuple[int, bytes]] = []
    if comments:
        blocks.append((vorbis.COMMENTS, vorbis.pack_comments(b"clearstate", comments)))
    blocks += [(vorbis.PICTURE, vorbis.pack_picture(picture)) for picture in metadata.pictures]
    for kind, body in metadata.blocks:
        scaled = vorbis.scaled_block(kind, body, metadata.ratio)
        if scaled is None:
            fitted.left_out.append(_block_in_words(kind))
        else:
            blocks.append((kind, scaled))
    for kind, body in blocks:
        if len(body) > vorbis.MOST_OF_BLOCK:
            fitted.left_out.append("cover" if kind == vorbis.PICTURE else "comments")
        else:
            fitted.front += vorbis.pack_block(kind, body)
    return fitted


def _for_chunks(metadata: Metadata, family: str, comments: list[Comment], tag: bytes) -> Fitted:
    """Store comments in the format's own chunks, and the rest in an ID3 chunk."""
    fitted = Fitted(family=family)
    texts: dict[str, list[str]] = {}
    for key, text in comments:
        texts.setdefault(key.upper(), []).append(text)
    encoded = {key: "; ".join(values).encode("utf-8", "surrogateescape") for key, values in texts.items()}
    simple = INFO if family in ("RIFF", "RIFX") else AIFF_TEXTS
    if family == "CAF":
        words = [
            (CAF_KEYS.get(key, key.lower()).encode("utf-8", "surrogateescape"), text) for key, text in encoded.items()
        ]
        body = struct.pack(">I", len(words)) + b"".join(key + b"\0" + text + b"\0" for key, text in words)
        fitted.chunks += [(b"info", body)] if words else []
        fitted.left_out += _covers(metadata.pictures) + metadata.others
        return fitted
    own = [(name, encoded[key]) for key, name in simple.items() if key in encoded]
    if family == "AIFF":
        fitted.chunks += own
    elif own:
        fitted.chunks.append((b"LIST", b"INFO" + chunks.packed(family, [(name, text + b"\0") for name, text in own])))
    if tag and (metadata.pictures or len(comments) > len(own) or tag == metadata.tag):
        fitted.chunks.append((b"ID3 " if family == "AIFF" else b"id3 ", tag))
    return fitted


def _foreign(metadata: Metadata) -> list[str]:
    """Describe the chunks of another family, except those whose content is translated."""
    if metadata.family is None:
        return []
    texts = {b"id3 ", b"ID3 ", b"info", b"CHAN", b"chan", *AIFF_TEXTS.values()}
    return [
        chunks.described((name, body), chunks.FAMILIES[metadata.family].order)
        for name, body in metadata.chunks
        if name not in texts and not (name == b"LIST" and body[:4] == b"INFO")
    ]


def _block_in_words(kind: int) -> str:
    return "cue sheet" if kind == vorbis.CUESHEET else "application data"


def _covers(pictures: list[Picture]) -> list[str]:
    return ["cover"] if pictures else []


def _from_flac(file: BinaryIO) -> Metadata:
    metadata = Metadata()
    for kind, body in vorbis.flac_blocks(file):
        if kind == vorbis.COMMENTS:
            comments, pictures = vorbis.pictures_in(vorbis.unpack_comments(body)[1])
            metadata.comments += comments
            metadata.pictures += pictures
        elif kind == vorbis.PICTURE:
            picture = vorbis.unpack_picture(body)
            metadata.pictures += [picture] if picture else []
        elif kind in (vorbis.APPLICATION, vorbis.CUESHEET):
            metadata.blocks.append((kind, body))
    return metadata


def _from_av(name: str) -> Metadata:
    """Read metadata with PyAV, for m4a and video."""
    import av

    metadata = Metadata()
    with suppress(av.error.FFmpegError), av.open(name) as container:
        found = dict(container.metadata)
        for stream in container.streams.audio[:1]:
            found = dict(stream.metadata) | found  # Ogg and Matroska: the tags may be the track's
        metadata.comments = [
            (AV_KEYS.get(key.lower(), key.upper()), text)
            for key, text in found.items()
            if key.lower() not in ABOUT_THE_FILE and not key.lower().startswith(("handler", "vendor_id", "language"))
        ]
        covers = [s for s in container.streams.video if s.disposition & av.stream.Disposition.attached_pic]
        for stream in covers:
            kind = {"mjpeg": "image/jpeg", "png": "image/png"}.get(stream.codec_context.name, "image/jpeg")
            packet = next((packet for packet in container.demux(stream) if packet.size), None)
            metadata.pictures += [Picture(kind, 3, "", bytes(packet))] if packet else []
        count = len(container.chapters()) if hasattr(container, "chapters") else 0
        metadata.others += [f"{count} chapter{'s' * (count != 1)}"] if count else []
    return metadata


def _info_comments(body: bytes, family: str | None) -> list[Comment]:
    order = chunks.FAMILIES[family or "RIFF"].order
    found, at = [], 4
    while at + 8 <= len(body):
        name, size = struct.unpack_from(order + "4sI", body, at)
        key = INFO_KEYS.get(name, name.decode("latin-1"))
        text = _decoded(body[at + 8 : at + 8 + size])
        if key and text:
            found.append((key, text))
        at += 8 + size + size % 2
    return found


def _decoded(text: bytes) -> str:
    """Decode text without a declared encoding: UTF-8 if valid, otherwise Windows-1252."""
    text = text.split(b"\0")[0]
    try:
        return text.decode("utf-8").strip()
    except UnicodeDecodeError:
        return text.decode("cp1252", "replace").strip()


def _frames_in_words(names: list[str]) -> list[str]:
    chapters = names.count("CHAP")
    words = [f"{chapters} chapter{'s' * (chapters != 1)}"] if chapters else []
    return words + [f"ID3 {name}" for name in dict.fromkeys(names) if name not in ("CHAP", "CTOC")]


def late(metadata: Metadata, known: int) -> list[str]:
    """Describe the chunks after the sound of a stream, which arrived too late for the output."""
    if metadata.family is None:
        return []
    order = chunks.FAMILIES[metadata.family].order
    return [chunks.described(chunk, order) for chunk in metadata.chunks[known:]]


class Sink(io.RawIOBase):
    """A file object that hides inserted bytes from its writer and never raises; system errors are kept in `error`.

    Args:
        front, at: inserted bytes and their offset in the file.
    """

    def __init__(self, file: BinaryIO, front: bytes = b"", at: int = 0) -> None:
        self._file, self._front, self._at = file, len(front), at
        self._position = 0  # as the writer sees it
        self.error: OSError | None = None
        self._try(lambda: (file.seek(at), file.write(front), file.seek(0)))

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position behind the front."""
        if whence == io.SEEK_END:
            end = self._file.seek(0, io.SEEK_END)
            position += max(min(end, self._at), end - self._front)
        elif whence == io.SEEK_CUR:
            position += self._position
        self._position = position
        return position

    def tell(self) -> int:
        """The position behind the front."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Refuse: the sink is only written."""
        raise io.UnsupportedOperation("a sink is written only")

    def write(self, data: Any) -> int:
        """Write at the position, around what was there before."""
        data = memoryview(data)
        parts = [data]
        if self._position < self._at:
            parts = [data[: self._at - self._position], data[self._at - self._position :]]
        for part in parts:
            if len(part) and not self._try(lambda part=part: self._put(part)):  # type: ignore[misc]
                return 0
        return len(data)

    def _put(self, part: memoryview) -> None:
        self._file.seek(self._position + (self._front if self._position >= self._at else 0))
        while len(part):
            written = self._file.write(part)
            self._position += written
            part = part[written:]

    def _try(self, action: Callable[[], Any]) -> bool:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error
        return self.error is None


def blank_comments(path: str, at: int) -> None:
    """Turn the comments that libFLAC wrote at this offset into padding, because a file has one comment block."""
    with open(path, "r+b") as file:
        file.seek(at)
        head = file.read(4)
        if len(head) == 4 and head[0] & 127 == vorbis.COMMENTS:
            file.seek(at)
            file.write(bytes([head[0] & 128 | vorbis.PADDING]) + head[1:] + bytes(int.from_bytes(head[1:], "big")))
