"""Audio files block by block: what goes in comes out, bad ones say why, and nothing half-written is ever left."""

import io
import os
import struct
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from clearstate.audio import id3
from clearstate.audio import io as audio_io
from clearstate.audio.chunks import append_chunks, read_chunks
from clearstate.audio.io import AudioError, AudioInfo, choose_format, open_reader, open_writer
from clearstate.audio.wav_pipe import decode, encode

RATE = 16_000


def tone(samples=3 * RATE + 17, channels=2):
    time = np.arange(samples) / RATE
    return np.stack([0.3 * np.sin(2 * np.pi * (200 + 50 * c) * time) for c in range(channels)])  # (channels, n)


def copy(source, target, **options):
    """Through reader and writer, unchanged."""
    with open_reader(source) as reader, open_writer(target, reader.info, **options) as writer:
        for block in reader.blocks():
            writer.write(block)
    return reader.info


def read(path):
    with open_reader(path) as reader:
        return np.concatenate(list(reader.blocks()), axis=1)


def leftovers(folder):
    return [name for name in os.listdir(folder) if name.endswith(".part")]


@pytest.fixture
def pipes(monkeypatch):
    """stdin and stdout that cannot be wound back."""

    class OneWay(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise OSError("a pipe cannot seek")

    def connect(data=b""):
        out = OneWay()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=OneWay(data)))
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
        return out

    return connect


# --- what goes in comes out ------------------------------------------------------------------------------------------

LOSSLESS = [
    ("wav", "WAV", "PCM_U8"),
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "PCM_32"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "DOUBLE"),
    ("wav", "WAVEX", "PCM_24"),
    ("wav", "RF64", "PCM_16"),
    ("w64", "W64", "PCM_24"),
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("aiff", "AIFF", "PCM_16"),
    ("caf", "CAF", "PCM_24"),
    ("au", "AU", "PCM_16"),
]


@pytest.mark.parametrize(("suffix", "container", "subtype"), LOSSLESS)
def test_a_copy_has_the_same_bits_rate_channels_and_depth(tmp_path, suffix, container, subtype):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    whole = np.random.default_rng(0).integers(-(2**31), 2**31, size=(40_000, 2), dtype=np.int64).astype(np.int32)
    soundfile.write(source, whole, 44_100, subtype=subtype, format=container)
    copy(source, target)
    before, after = soundfile.info(source), soundfile.info(target)
    assert (after.format, after.subtype, after.samplerate) == (container, subtype, 44_100)
    assert (after.frames, after.channels) == (before.frames, before.channels)
    one, two = (soundfile.read(path, dtype="float64")[0] for path in (source, target))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate"), [("mp3", None, 44_100), ("ogg", "VORBIS", 44_100), ("opus", "OPUS", 48_000)]
)
@pytest.mark.parametrize("samples", [1, 999, 132_317])
def test_a_lossy_copy_has_the_same_length_and_is_not_shifted(tmp_path, suffix, subtype, rate, samples):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    x = 0.1 * np.convolve(np.random.default_rng(0).standard_normal(samples + 7), np.ones(8) / 4, "valid")
    soundfile.write(source, x, rate, subtype=subtype, format="OGG" if subtype else "MP3")
    copy(source, target)
    after = soundfile.info(target)
    assert (after.frames, after.samplerate) == (samples, rate)
    assert after.subtype == soundfile.info(source).subtype
    if samples > 10_000:
        one, two = (soundfile.read(path)[0][20_000:30_000] for path in (source, target))
        lags = np.correlate(two, one[500:-500], "valid")
        assert np.argmax(lags) == 500


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_tags_are_kept(tmp_path, suffix):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    with soundfile.SoundFile(source, "w", RATE, 1) as file:
        file.title, file.artist, file.date, file.comment = "Über das Hören", "Ada", "2021", "take 3"
        file.write(tone(channels=1).T)
    copy(source, target)
    copy(target, tmp_path / f"again.{suffix}")  # nothing piles up over generations
    with open_reader(tmp_path / f"again.{suffix}") as reader:
        kept = reader.info.tags
    assert (kept["title"], kept["artist"], kept["date"], kept["comment"]) == ("Über das Hören", "Ada", "2021", "take 3")
    assert "libsndfile" not in kept.get("software", "")


def test_an_mp3_keeps_its_whole_tag_with_cover_and_chapters(tmp_path):
    soundfile.write(tmp_path / "plain.mp3", tone(channels=1).T, 44_100, format="MP3")
    cover = b"APIC" + (2_020).to_bytes(4, "big") + b"\0\0\0image/png\0\x03\0" + bytes(range(256)) * 7 + b"x" * 214
    title = id3.pack([("TITLE", "Über 北京"), ("COMMENT", "a")], [])[10:]
    size = bytes((len(title) + len(cover)) >> shift & 127 for shift in (21, 14, 7, 0))
    tag = b"ID3\x03\0\0" + size + title + cover
    (tmp_path / "in.mp3").write_bytes(tag + (tmp_path / "plain.mp3").read_bytes())
    info = copy(tmp_path / "in.mp3", tmp_path / "out.mp3")
    assert info.tags["title"] == "Über 北京"
    assert (tmp_path / "out.mp3").read_bytes().startswith(tag)
    assert soundfile.info(tmp_path / "out.mp3").frames == soundfile.info(tmp_path / "in.mp3").frames
    with open_reader(tmp_path / "out.mp3") as reader:
        assert reader.info.tags["title"] == "Über 北京"


def test_tags_of_another_format_become_those_of_an_mp3_in_any_script(tmp_path):
    info = AudioInfo("x", RATE, 1, None, None, tags={"title": "北京", "artist": "Zoë", "comment": "ok"})
    with open_writer(tmp_path / "a.mp3", info) as writer:
        writer.write(tone(channels=1))
    with open_reader(tmp_path / "a.mp3") as reader:
        assert {key: reader.info.tags[key] for key in info.tags} == info.tags
        assert reader.info.frames == tone().shape[1]


@pytest.mark.parametrize(("container", "to"), [("WAV", "WAV"), ("RF64", "RF64"), ("WAVEX", "WAVEX")])
def test_a_wav_keeps_its_broadcast_data_and_cue_points(tmp_path, container, to):
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, tone(4_001, 1).T, RATE, subtype="PCM_24", format=container)
    cue = struct.pack("<I", 1) + struct.pack("<II4sIII", 1, 1_000, b"data", 0, 0, 1_000)
    chunks = [
        (b"bext", b"a scene".ljust(602, b"\0")),
        (b"cue ", cue),
        (b"LIST", b"adtllabl\x09\0\0\0\1\0\0\0here\0\0"),
        (b"iXML", b"<x/>!"),
    ]
    append_chunks(source, chunks)
    assert soundfile.info(source).frames == 4_001
    copy(source, target)
    assert read_chunks(target) == chunks
    info = soundfile.info(target)
    assert (info.frames, info.format, info.subtype) == (4_001, to, "PCM_24")
    assert np.array_equal(read(source), read(target))
    size = target.stat().st_size
    with open(target, "rb") as file:
        head = file.read(28)
    declared = struct.unpack("<Q", head[20:28])[0] if to == "RF64" else struct.unpack("<I", head[4:8])[0]
    assert declared == size - 8


def test_blocks_are_short_whatever_the_length(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(20 * RATE).T, RATE)
    with open_reader(tmp_path / "a.wav") as reader:
        sizes = [block.shape[1] for block in reader.blocks()]
    assert max(sizes) <= 2 * RATE and sum(sizes) == 20 * RATE


def test_integer_formats_clip_and_never_wrap(tmp_path):
    loud = np.array([[0.5, 1.0, 1.5, -1.0, -1.5, 100.0]])
    for subtype in ("PCM_16", "PCM_24", "PCM_U8"):
        path = tmp_path / f"{subtype}.wav"
        with open_writer(path, AudioInfo("x", RATE, 1, None, None, subtype=subtype)) as writer:
            writer.write(loud)
        np.testing.assert_allclose(read(path), np.clip(loud, -1, 1), atol=2.0**-7)
    assert np.abs(np.frombuffer(encode(loud, "PCM_16"), "<i2") / 2**15 - np.clip(loud, -1, 1)).max() < 2.0**-14


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (("WAV", "FLOAT"), "a.flac", ("FLAC", "PCM_24")),
        (("WAV", "PCM_24"), "a.flac", ("FLAC", "PCM_24")),
        (("FLAC", "PCM_16"), "a.WAV", ("WAV", "PCM_16")),
        (("MP3", "MPEG_LAYER_III"), "a.wav", ("WAV", "PCM_16")),
        (("WAV", "PCM_16"), "a.mp3", ("MP3", "MPEG_LAYER_III")),
        (("WAV", "PCM_16"), "a.ogg", ("OGG", "VORBIS")),
        (("WAV", "PCM_16"), "a.opus", ("OGG", "OPUS")),
        (("OGG", "OPUS"), "a.ogg", ("OGG", "OPUS")),
        (("AV", "PCM_16"), "a.wav", ("WAV", "PCM_16")),
        (("WAV", "MPEG_LAYER_III"), "a.wav", ("WAV", "PCM_16")),
        (("AIFF", "DWVW_12"), "a.aiff", ("AIFF", "PCM_16")),
        (("AIFF", "DWVW_24"), "a.aiff", ("AIFF", "PCM_24")),
        (("WAV", "ALAW"), "a.flac", ("FLAC", "PCM_16")),
    ],
)
def test_the_extension_chooses_the_format_and_the_depth_stays_where_it_can(source, target, expected):
    info = AudioInfo("in.xyz", 48_000, 1, None, None, container=source[0], subtype=source[1])
    assert choose_format(target, info) == expected


def test_a_wav_beyond_four_gigabytes_becomes_rf64():
    ten_hours = AudioInfo("in.wav", 48_000, 2, 10 * 3_600 * 48_000, None, subtype="PCM_24")
    assert choose_format("out.wav", ten_hours) == ("RF64", "PCM_24")


def test_what_32_bits_cannot_count_is_an_error_before_the_work_or_at_the_limit(tmp_path, monkeypatch):
    ten_hours = AudioInfo("in.flac", 48_000, 2, 10 * 3_600 * 48_000, None, container="FLAC", subtype="PCM_24")
    with pytest.raises(AudioError, match=r"AIFF is limited to 4 GB, and this needs 10\.4 GB; write to \.flac"):
        choose_format("out.aiff", ten_hours)
    monkeypatch.setattr(audio_io, "WAV_LIMIT", 100_000)

    def endless():
        with open_writer(tmp_path / "out.wav", AudioInfo("stdin", RATE, 2, None, None)) as writer:
            for _ in range(10):
                writer.write(tone(10_000))

    with pytest.raises(AudioError, match="WAV is limited to 4 GB"):
        endless()
    assert os.listdir(tmp_path) == []


# --- bad input -------------------------------------------------------------------------------------------------------


def broken(path, kind):
    good = path.parent / "good"
    soundfile.write(
        good,
        np.random.default_rng(0).standard_normal(5 * RATE) / 10,
        RATE,
        format="FLAC" if "flac" in path.name else "WAV",
    )
    data = bytearray(good.read_bytes())
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "zero channels":
        data[22:24] = b"\0\0"
    elif kind == "no rate":
        data[24:28] = b"\0\0\0\0"
    elif kind == "no samples":
        soundfile.write(good, np.zeros(0), RATE, format="WAV")
        data = good.read_bytes()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("cut.flac", "cut", r"broken after \d\.\d+ s of 5\.000 s .* fetch it again"),
        ("zero.wav", "zero channels", "header is broken .*[Cc]hannel count is zero"),
        ("rate.wav", "no rate", "header is broken"),
        ("none.wav", "no samples", "holds no samples"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path, name, kind, says):
    broken(tmp_path / name, kind)
    with pytest.raises(AudioError, match=says) as caught:
        copy(tmp_path / name, tmp_path / "out.wav")
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "good"])


def test_an_empty_file_and_text_renamed_to_wav_say_so(tmp_path, monkeypatch):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"empty\.wav: is empty \(0 bytes\); expected an audio file"):
        open_reader(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("Dear diary, today I renamed a file.\n" * 50)
    with pytest.raises(AudioError, match=r"text\.wav: begins with b'Dear diary.* expected an audio file"):
        open_reader(tmp_path / "text.wav")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"text\.wav: begins with b'Dear diary.* pip install 'clearstate\[av\]'"):
        open_reader(tmp_path / "text.wav")


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav: no such file \(looked in "):
        open_reader(tmp_path / "gone.wav")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        open_reader(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone().T, RATE)
    (tmp_path / "a.wav").chmod(0)
    with pytest.raises(PermissionError, match="may not be read"):
        open_reader(tmp_path / "a.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_named_with_its_place(tmp_path, value):
    x = tone(5 * RATE)
    x[1, 4 * RATE] = value
    soundfile.write(tmp_path / "a.wav", x.T, RATE, subtype="FLOAT")
    with pytest.raises(
        AudioError, match=rf"sample 64000 of channel 1 \(4\.000 s\) is {value}, expected a finite number"
    ):
        copy(tmp_path / "a.wav", tmp_path / "out.wav")
    assert os.listdir(tmp_path) == ["a.wav"]


# --- nothing half-written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_the_old_file_is_as_it_was_and_nothing_else_is_left(tmp_path, error):
    target = tmp_path / "out.wav"
    target.write_bytes(b"what was here before")

    def interrupted():
        with open_writer(target, AudioInfo("x", RATE, 2, None, None), overwrite=True) as writer:
            writer.write(tone())
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"what was here before"
    assert os.listdir(tmp_path) == ["out.wav"]


def test_the_file_appears_only_when_it_is_complete_and_with_usual_permissions(tmp_path):
    target = tmp_path / "out.wav"
    mask = os.umask(0o022)
    try:
        with open_writer(target, AudioInfo("x", RATE, 2, None, None)) as writer:
            writer.write(tone())
            assert not target.exists() and len(leftovers(tmp_path)) == 1
    finally:
        os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o644
    assert not leftovers(tmp_path)


def test_an_existing_file_and_the_input_are_not_overwritten(tmp_path):
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, tone().T, RATE)
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="already exists"):
        copy(source, target)
    os.link(source, tmp_path / "alias.wav")
    for same in (source, tmp_path / "alias.wav"):
        with pytest.raises(FileExistsError, match="is the input itself, which is never overwritten"):
            copy(source, same, overwrite=True)
    copy(source, target, overwrite=True)
    assert soundfile.info(target).frames == soundfile.info(source).frames


def test_a_file_that_appears_while_another_is_written_is_not_replaced(tmp_path):
    target = tmp_path / "out.wav"

    def overtaken():
        with open_writer(target, AudioInfo("x", RATE, 2, None, None)) as writer:
            writer.write(tone())
            target.write_bytes(b"somebody was faster")

    with pytest.raises(FileExistsError, match="already exists"):
        overtaken()
    assert target.read_bytes() == b"somebody was faster" and not leftovers(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):

    def fill():
        with open_writer(tmp_path / "a.wav", AudioInfo("x", RATE, 2, None, None)) as writer:
            for _ in range(20):
                writer.write(tone())

    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # the system refuses to let any file grow further
    try:
        with pytest.raises(OSError, match="the disk is full"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written_say_so(tmp_path):
    info = AudioInfo("x", RATE, 2, None, None)
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist; create it first"):
        open_writer(tmp_path / "no" / "a.wav", info)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        open_writer(tmp_path / "file" / "a.wav", info)
    with pytest.raises(AudioError, match=r"ends in '\.xyz'; expected \.wav"):
        open_writer(tmp_path / "a.xyz", info)
    with pytest.raises(AudioError, match="has no extension"):
        open_writer(tmp_path / "a", info)
    with pytest.raises(AudioError, match=r"Opus does not support 44100 Hz.*write to \.flac"):
        open_writer(tmp_path / "a.opus", AudioInfo("x", 44_100, 1, None, None))
    with pytest.raises(AudioError, match=r"MP3 .* cannot hold 16000 Hz with 6 channels"):
        open_writer(tmp_path / "a.mp3", AudioInfo("x", RATE, 6, None, None))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_says_so(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write into"):
        open_writer(tmp_path / "a.wav", AudioInfo("x", RATE, 2, None, None))


# --- pipes -----------------------------------------------------------------------------------------------------------


def wav(x, subtype="PCM_16", size=None, riff=None, extensible=False, extra=b""):
    """A WAV stream as other programs write it; `size` and `riff` override the lengths in the header."""
    data = encode(np.ascontiguousarray(x.T), subtype)
    bits = 8 * audio_io.BYTES[subtype]
    frame, code = len(x) * bits // 8, 3 if subtype in ("FLOAT", "DOUBLE") else 1
    layout = struct.pack("<HHIIHH", 0xFFFE if extensible else code, len(x), RATE, RATE * frame, frame, bits)
    if extensible:
        layout += struct.pack("<HHIH", 22, bits, 3, code) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    header = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + extra + b"data"
    size = len(data) if size is None else size
    return b"RIFF" + struct.pack("<I", riff or len(header) + 4 + len(data)) + header + struct.pack("<I", size) + data


FFMPEG_EXTRA = b"LIST\x1a\0\0\0INFOISFT\x0d\0\0\0Lavf60.16.100\0"


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"size": 0xFFFFFFFF, "riff": 0xFFFFFFFF, "extra": FFMPEG_EXTRA},  # ffmpeg -f wav -
        {"size": 0},
        {"size": 0x7FFFF024, "riff": 0x7FFFF048},  # sox -t wav -
        {"extensible": True},
        {"extensible": True, "subtype": "PCM_24"},
        {"subtype": "PCM_32"},
        {"subtype": "FLOAT"},
        {"subtype": "DOUBLE"},
        {"subtype": "PCM_U8"},
    ],
)
def test_a_wav_stream_is_read_from_a_pipe(pipes, header):
    x = tone()
    pipes(wav(x, **header))
    with open_reader("-") as reader:
        y = np.concatenate(list(reader.blocks()), axis=1)
        assert (reader.info.sample_rate, reader.info.channels) == (RATE, 2)
        assert reader.info.subtype == header.get("subtype", "PCM_16")
        assert reader.info.frames == (None if "size" in header else x.shape[1])
    tolerance = {"PCM_16": 2.0**-15, "PCM_U8": 2.0**-7}.get(header.get("subtype", "PCM_16"), 2.0**-23)
    np.testing.assert_allclose(y, x, atol=tolerance)


def test_a_stream_cut_in_the_middle_of_a_sample_gives_the_whole_samples(pipes):
    x = tone()
    pipes(wav(x, size=0xFFFFFFFF)[:-3])
    with open_reader("-") as reader:
        assert sum(block.shape[1] for block in reader.blocks()) == x.shape[1] - 1


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("known", [True, False])
def test_a_wav_stream_written_to_a_pipe_is_read_by_libsndfile_too(pipes, subtype, known):
    x = tone(channels=1, samples=4_001)
    out = pipes()
    info = AudioInfo("x", RATE, 1, x.shape[1] if known else None, None, subtype=subtype)
    with open_writer("-", info) as writer:
        for piece in np.array_split(x, 3, axis=1):
            writer.write(piece)
    y, rate = soundfile.read(io.BytesIO(out.getvalue()))
    assert rate == RATE and len(y) == x.shape[1]
    np.testing.assert_allclose(y, x[0], atol={"PCM_16": 2.0**-15, "PCM_U8": 2.0**-7}.get(subtype, 2.0**-23))
    assert np.array_equal(decode(encode(y, subtype), subtype), y)
    if known:
        assert struct.unpack("<I", out.getvalue()[4:8])[0] == len(out.getvalue()) - 8


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "stdin: is empty; expected a WAV stream"),
        (b"fLaC\0\0\0\x22 and so on", "stdin: begins with b'fLaC.*ffmpeg -i INPUT -f wav -"),
        (wav(tone())[:30], "ends before its samples"),
        (wav(tone())[:44], "holds no samples"),
        (wav(tone()).replace(struct.pack("<HH", 1, 2), struct.pack("<HH", 1, 0), 1), "0 channels at 16000 Hz"),
        (wav(tone()).replace(struct.pack("<HH", 1, 2), struct.pack("<HH", 17, 2), 1), "WAV of kind 17 with 16 bits"),
        (wav(np.full((1, 5), np.nan), "FLOAT"), r"stdin: sample 0 of channel 0 .* is nan"),
    ],
)
def test_a_bad_stream_says_what_is_wrong(pipes, data, says):
    pipes(data)
    with pytest.raises(AudioError, match=says), open_reader("-") as reader:
        list(reader.blocks())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
def test_a_named_pipe_is_read_as_it_comes(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    x = tone()
    feeder = threading.Thread(target=lambda: path.write_bytes(wav(x, size=0xFFFFFFFF)))
    feeder.start()
    y = read(path)
    feeder.join()
    np.testing.assert_allclose(y, x, atol=2.0**-15)


# --- through PyAV ----------------------------------------------------------------------------------------------------


def test_m4a_is_read_with_its_rate_channels_tags_and_alignment(tmp_path):
    av = pytest.importorskip("av")
    x = 0.1 * np.random.default_rng(0).standard_normal((2, 2 * 44_100)).astype(np.float32)
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        container.metadata["title"] = "A talk"
        stream = container.add_stream("aac", rate=44_100, layout="stereo", bit_rate=192_000)
        for start in range(0, x.shape[1], 1024):
            piece = np.ascontiguousarray(x[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 44_100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_reader(tmp_path / "a.m4a") as reader:
        y = np.concatenate(list(reader.blocks()), axis=1)
        info = reader.info
    assert (info.sample_rate, info.channels, info.tags["title"]) == (44_100, 2, "A talk")
    assert abs(info.seconds - 2) < 0.05
    assert abs(y.shape[1] - x.shape[1]) < 1024  # the codec fills its last frame
    assert np.argmax(np.correlate(y[0, 20_000:24_000], x[0, 21_000:23_000], "valid")[900:1100]) == 100
    copy(tmp_path / "a.m4a", tmp_path / "a.wav")
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


def test_lossless_through_av_keeps_its_depth(tmp_path):
    av = pytest.importorskip("av")
    x = (tone(samples=20_000) * 2**31).astype(np.int32)
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("alac", rate=RATE, layout="stereo", format="s32p")
        for start in range(0, x.shape[1], 4096):
            piece = np.ascontiguousarray(x[:, start : start + 4096])
            frame = av.AudioFrame.from_ndarray(piece, format="s32p", layout="stereo")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_reader(tmp_path / "a.m4a") as reader:
        y = np.concatenate(list(reader.blocks()), axis=1)
        assert reader.info.subtype == "PCM_32"
    np.testing.assert_allclose(y[:, : x.shape[1]], x / 2.0**31, atol=2.0**-23)


@pytest.mark.parametrize("subtype, steps", [("PCM_16", 2**15), ("PCM_24", 2**23)])
def test_integer_files_hold_the_nearest_step(tmp_path, subtype, steps):
    exact = np.arange(-300, 300) / 7 / steps  # between the steps
    path, out = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(path, np.zeros(10), 8_000, subtype)
    with open_reader(path) as source:
        info = source.info
    with open_writer(out, info) as sink:
        sink.write(exact[None])
    written, _ = soundfile.read(out, dtype="float64")
    assert np.array_equal(written * steps, np.rint(exact * steps))


# --- the coding of the output ----------------------------------------------------------------------------------------

LOSSY_OR_IN_BLOCKS = [
    ("wav", "WAV", "IMA_ADPCM"), ("wav", "WAV", "MS_ADPCM"), ("wav", "WAV", "GSM610"), ("wav", "WAV", "G721_32"),
    ("wav", "WAV", "NMS_ADPCM_16"), ("wav", "WAV", "NMS_ADPCM_32"),
    ("w64", "W64", "IMA_ADPCM"), ("w64", "W64", "MS_ADPCM"), ("w64", "W64", "GSM610"), ("aiff", "AIFF", "IMA_ADPCM"),
    ("aiff", "AIFF", "GSM610"), ("au", "AU", "G721_32"), ("au", "AU", "G723_24"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "container", "subtype"), LOSSY_OR_IN_BLOCKS)
def test_a_lossy_coding_is_written_as_pcm_of_the_same_length_and_that_is_said(
    tmp_path, suffix, container, subtype, caplog
):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    soundfile.write(source, tone(samples=4_001, channels=1)[0], 8_000, subtype, format=container)
    copy(source, target)
    decoded, _ = soundfile.read(source)
    written, _ = soundfile.read(target)
    assert soundfile.info(target).subtype == "PCM_16" and soundfile.info(target).format == container
    assert len(written) == len(decoded) and np.abs(written - decoded).max() < 2.0**-15
    assert f"{target}: written as 16-bit PCM" in caplog.text and subtype in caplog.text


@pytest.mark.parametrize(
    ("suffix", "container", "subtype"),
    [
        ("wav", "WAV", "ULAW"), ("wav", "WAV", "ALAW"), ("aiff", "AIFF", "ULAW"), ("au", "AU", "ALAW"),
        ("caf", "CAF", "ULAW"), ("caf", "CAF", "ALAC_16"), ("caf", "CAF", "ALAC_24"),
    ],
)  # fmt: skip
def test_a_coding_that_keeps_every_sample_apart_stays(tmp_path, suffix, container, subtype, caplog):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    soundfile.write(source, tone(samples=4_001, channels=1)[0], 8_000, subtype, format=container)
    copy(source, target)
    assert soundfile.info(target).subtype == subtype and not caplog.text
    assert np.array_equal(soundfile.read(target)[0], soundfile.read(source)[0])


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "caf", "w64", "au"])
def test_a_disk_that_fills_up_is_one_line_in_every_format(tmp_path, suffix, capfd):
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    loud = np.random.default_rng(0).standard_normal((1, 48_000))

    def fill():
        with open_writer(tmp_path / f"a.{suffix}", AudioInfo("x", 48_000, 1, None, None)) as writer:
            for _ in range(20):
                writer.write(loud)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"a\.{suffix}: .*the disk is full") as caught:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []
    assert capfd.readouterr().err == ""  # no traceback from a callback


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_name_of_255_bytes_is_written_and_a_longer_one_refused_before_the_work(tmp_path, suffix):
    info = AudioInfo("x", RATE, 1, None, None)
    name = "日" * 80 + "x" * (255 - 240 - len(suffix) - 1) + f".{suffix}"
    assert len(name.encode()) == 255
    with open_writer(tmp_path / name, info) as writer:
        writer.write(tone(channels=1))
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(OSError, match="the name is 256 bytes long"):
        open_writer(tmp_path / f"x{name}", info)


@pytest.mark.skipif(os.name != "posix", reason="needs names of bytes")
def test_a_folder_whose_name_is_not_text_is_written_into(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    with open_writer(os.path.join(os.fsdecode(folder), "a.flac"), AudioInfo("x", RATE, 1, None, None)) as writer:
        writer.write(tone(channels=1))
    assert os.listdir(folder) == [b"a.flac"]
