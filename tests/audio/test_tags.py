"""Comments, covers and tags: everything within a format, what the target can hold between formats, the rest named."""

import random
import re
import struct
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from clearstate.audio import chunks, id3, tags, vorbis
from clearstate.audio.io import AudioInfo, open_reader, open_writer
from clearstate.audio.tags import Metadata
from clearstate.audio.vorbis import Picture

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
COVER = Picture("image/png", 3, "front", PNG)
COMMENTS = [
    ("TITLE", "Über 北京"), ("ARTIST", "Anna"), ("ARTIST", "Bernd"), ("ALBUM", "Gespräche"), ("COMMENT", "take 3"),
    ("DATE", "2021"), ("GENRE", "Speech"), ("TRACKNUMBER", "3/7"), ("ALBUMARTIST", "R"),
    ("CHAPTER001", "00:00:00.000"), ("CHAPTER001NAME", "Intro"), ("REPLAYGAIN_TRACK_GAIN", "-3 dB"),
]  # fmt: skip
BASIC = {"TITLE", "ALBUM", "COMMENT", "DATE", "GENRE", "TRACKNUMBER"}
FORMATS = ["wav", "flac", "ogg", "opus", "mp3", "aiff", "caf"]
WITH_COVER = {"wav", "flac", "ogg", "opus", "mp3", "aiff"}
RATE = 48_000  # that all of them can hold
SAMPLES = 9_001


def make(path, comments=COMMENTS, pictures=(COVER,), samples=SAMPLES):
    metadata = Metadata(list(comments), list(pictures))
    x = np.random.default_rng(0).standard_normal((1, samples)) / 10
    with open_writer(path, AudioInfo("x", RATE, 1, None, None, metadata=metadata)) as writer:
        writer.write(x)


def copy(source, target):
    with open_reader(source) as reader, open_writer(target, reader.info) as writer:
        for block in reader.blocks():
            writer.write(block)


def length(path):
    return len(soundfile.read(path)[0])


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_tags_and_cover_go_from_every_format_to_every_other(tmp_path, source, to, caplog):
    first, second = tmp_path / f"in.{source}", tmp_path / f"out.{to}"
    make(first)
    caplog.clear()
    copy(first, second)
    before, after = tags.read(first), tags.read(second)
    assert {key: text for key, text in after.comments if key in BASIC} == {k: t for k, t in COMMENTS if k in BASIC}
    artists = "/".join(text for key, text in after.comments if key == "ARTIST")
    assert set(re.split("[;/] ?", artists)) == {"Anna", "Bernd"}
    assert {key for key, _ in after.comments} >= {key for key, _ in before.comments}
    assert after.pictures == (before.pictures if to in WITH_COVER else [])
    assert ("cover" in caplog.text) == (bool(before.pictures) and to not in WITH_COVER)
    assert length(second) == length(first) == SAMPLES


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_changes_over_generations(tmp_path, format):
    make(tmp_path / f"a.{format}")
    copy(tmp_path / f"a.{format}", tmp_path / f"b.{format}")
    copy(tmp_path / f"b.{format}", tmp_path / f"c.{format}")
    assert tags.read(tmp_path / f"c.{format}") == tags.read(tmp_path / f"a.{format}")


@pytest.mark.parametrize("format", FORMATS)
def test_another_reader_finds_the_tags(tmp_path, format):
    av = pytest.importorskip("av")
    make(tmp_path / f"a.{format}")
    with av.open(str(tmp_path / f"a.{format}")) as container:
        audio = container.streams.audio[0]
        found = {key.lower(): text for key, text in (dict(audio.metadata) | dict(container.metadata)).items()}
        decoded = sum(frame.samples for frame in container.decode(audio))
        pictures = len(container.streams.video)
    assert (found["title"], found["album"], found["genre"]) == ("Über 北京", "Gespräche", "Speech")
    assert pictures == (format in WITH_COVER) and decoded >= SAMPLES


@pytest.mark.parametrize("format", ["flac", "ogg", "opus", "mp3", "wav", "aiff"])
def test_a_cover_of_any_size_is_kept_and_the_sound_after_it_is_whole(tmp_path, format):
    big = Picture("image/jpeg", 3, "", random.Random(0).randbytes(700_000))
    make(tmp_path / f"plain.{format}", [], [], samples=5 * RATE)
    make(tmp_path / f"a.{format}", COMMENTS, [big, COVER], samples=5 * RATE)
    assert tags.read(tmp_path / f"a.{format}").pictures == [big, COVER]
    plain, tagged = (soundfile.read(tmp_path / f"{name}.{format}")[0] for name in ("plain", "a"))
    assert np.array_equal(plain, tagged)


def test_a_picture_too_big_for_flac_is_left_out_and_named(tmp_path, caplog):
    make(tmp_path / "a.flac", COMMENTS, [Picture("image/png", 3, "", bytes(2**24))], samples=100)
    assert (
        "dropped, because the format does not support it: cover" in caplog.text and length(tmp_path / "a.flac") == 100
    )


def test_a_flac_has_one_set_of_comments_and_keeps_its_cue_sheet_and_applications(tmp_path):
    make(tmp_path / "a.flac")
    data = (tmp_path / "a.flac").read_bytes()
    cuesheet = bytes(128) + struct.pack(">Q", 88_200) + b"\x80" + bytes(258) + b"\x01"
    cuesheet += struct.pack(">QB", 480, 1) + bytes(26) + b"\x01" + struct.pack(">QB", 96, 1) + bytes(3)
    extra = vorbis.pack_block(vorbis.CUESHEET, cuesheet) + vorbis.pack_block(vorbis.APPLICATION, b"test1234")
    (tmp_path / "b.flac").write_bytes(data[:42] + extra + data[42:])
    copy(tmp_path / "b.flac", tmp_path / "c.flac")
    with open(tmp_path / "c.flac", "rb") as file:
        kinds = [kind for kind, _ in vorbis.flac_blocks(file)]
    assert kinds.count(vorbis.COMMENTS) == 1 and kinds[0] == 0
    metadata = tags.read(tmp_path / "c.flac")
    assert metadata.blocks == [(vorbis.CUESHEET, cuesheet), (vorbis.APPLICATION, b"test1234")]
    wide = tags.fit(metadata.at_rate(16_000, 48_000), "FLAC", "PCM_16")
    assert wide.left_out == ["application data"] and struct.pack(">Q", 3 * 480) in wide.front


def test_comments_that_count_samples_follow_the_rate():
    metadata = Metadata([("LOOPSTART", "16000"), ("LoopLength", "8000"), ("TITLE", "16000")]).at_rate(16_000, 48_000)
    assert tags.fit(metadata, "OGG", "VORBIS").comments == [
        ("LOOPSTART", "48000"), ("LoopLength", "24000"), ("TITLE", "16000"),
    ]  # fmt: skip


@pytest.mark.parametrize("raw", ["Müller".encode("latin-1"), "Müller".encode()])
def test_text_of_a_wav_is_copied_byte_for_byte_and_understood_elsewhere(tmp_path, raw):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 48_000)
    info = b"INFO" + chunks.packed("RIFF", [(b"INAM", raw + b"\0"), (b"IXYZ", b"private\0")])
    chunks.append_chunks(tmp_path / "a.wav", [(b"LIST", info)])
    copy(tmp_path / "a.wav", tmp_path / "b.wav")
    assert chunks.read_chunks(tmp_path / "b.wav") == [(b"LIST", info)]
    for format in ("flac", "mp3", "ogg", "aiff"):
        copy(tmp_path / "b.wav", tmp_path / f"c.{format}")
        assert dict(tags.read(tmp_path / f"c.{format}").comments)["TITLE"] == "Müller"


def id3_tag(version, frames, flags=0):
    body = b""
    for name, content in frames:
        if version == 2:
            body += name.encode() + len(content).to_bytes(3, "big") + content
        else:
            size = len(content).to_bytes(4, "big")
            if version == 4:
                size = bytes(len(content) >> shift & 127 for shift in (21, 14, 7, 0))
            body += name.encode() + size + b"\0\0" + content
    body = body.replace(b"\xff", b"\xff\0") if flags & 0x80 else body
    return b"ID3" + bytes([version, 0, flags]) + bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0)) + body


@pytest.mark.parametrize(
    ("version", "flags", "names"),
    [(2, 0, ("TT2", "TP1", "PIC")), (3, 0, ("TIT2", "TPE1", "APIC")), (3, 0x80, ("TIT2", "TPE1", "APIC")),
     (4, 0, ("TIT2", "TPE1", "APIC"))],
)  # fmt: skip
def test_every_version_of_id3_is_understood(version, flags, names):
    mime = b"PNG" if version == 2 else b"image/png\0"
    frames = [
        (names[0], b"\x01\xff\xfe" + "Über".encode("utf-16-le")),
        (names[1], b"\0M\xfcller"),
        (names[2], b"\0" + mime + b"\x03\0" + PNG + b"\xff" * 9),
    ]
    comments, pictures, others = id3.unpack(id3_tag(version, frames, flags))
    assert comments == [("TITLE", "Über"), ("ARTIST", "Müller")] and others == []
    assert pictures == [Picture("image/png", 3, "", PNG + b"\xff" * 9)]


def test_an_old_id3_tag_at_the_end_is_not_lost(tmp_path):
    make(tmp_path / "a.mp3", [], [])
    tag = b"TAG" + b"Title".ljust(30, b"\0") + b"Anna".ljust(30, b" ") + bytes(30) + b"1999" + bytes(28) + b"\0\x07\xff"
    (tmp_path / "a.mp3").write_bytes((tmp_path / "a.mp3").read_bytes() + tag)
    copy(tmp_path / "a.mp3", tmp_path / "b.flac")
    found = dict(tags.read(tmp_path / "b.flac").comments)
    assert found == {"TITLE": "Title", "ARTIST": "Anna", "DATE": "1999", "TRACKNUMBER": "7"}


def test_chapters_of_an_mp3_are_kept_in_mp3_and_named_elsewhere(tmp_path, caplog):
    make(tmp_path / "a.mp3", [], [])
    tag = id3_tag(3, [("TIT2", b"\0Talk"), ("CHAP", b"one\0" + bytes(16)), ("CHAP", b"two\0" + bytes(16))])
    (tmp_path / "b.mp3").write_bytes(tag + (tmp_path / "a.mp3").read_bytes())
    copy(tmp_path / "b.mp3", tmp_path / "c.mp3")
    assert (tmp_path / "c.mp3").read_bytes().startswith(tag) and not caplog.text
    copy(tmp_path / "b.mp3", tmp_path / "c.flac")
    assert "dropped, because the format does not support it: 2 chapters" in caplog.text


def test_a_video_or_m4a_gives_its_tags_to_a_flac(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        container.metadata.update({"title": "A talk", "artist": "Anna", "album_artist": "R", "track": "3"})
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        for start in range(0, 10 * 1024, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    copy(tmp_path / "a.m4a", tmp_path / "a.flac")
    found = dict(tags.read(tmp_path / "a.flac").comments)
    assert found == {"TITLE": "A talk", "ARTIST": "Anna", "ALBUMARTIST": "R", "TRACKNUMBER": "3"}


def test_damaged_metadata_is_read_as_far_as_it_goes(tmp_path):
    chance, path = random.Random(0), tmp_path / "damaged"
    sound = {}
    for format in ("wav", "flac", "ogg", "mp3", "aiff", "caf"):
        make(tmp_path / f"a.{format}", samples=500)
        sound[format] = (tmp_path / f"a.{format}").read_bytes()
    for _ in range(400):
        data = bytearray(sound[chance.choice(list(sound))])
        for _ in range(chance.choice((1, 3, 20))):
            at = min(len(data) - 1, int(chance.expovariate(1 / 300)))
            data[at] = chance.choice((0, 127, 128, 255, chance.randrange(256)))
        path.write_bytes(data[: chance.choice((len(data), chance.randrange(1, len(data))))])
        metadata = tags.read(path).at_rate(16_000, 48_000)
        for container in ("FLAC", "OGG", "MP3", "WAV", "AIFF", "CAF", "W64"):
            tags.fit(metadata, container, "PCM_16")
    assert metadata.ratio == Fraction(3)
