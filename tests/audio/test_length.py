"""A file is read to its real end, whatever its header says."""

import io
import struct
import sys
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from mutants import RATE, SNDFILE, contained, originals, sound

from clearstate.audio.io import AudioError, BrokenOffError, open_reader, read_audio, until_broken
from clearstate.audio.length import inspect_bytes, mpeg_frame

LOSSLESS = ["wav", "aiff", "au", "caf", "w64", "rf64", "flac"]


def written(suffix, samples, rate=RATE):
    memory = io.BytesIO()
    soundfile.write(memory, samples.T, rate, **SNDFILE[suffix])
    return memory.getvalue()


def put(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def size_field(data, chunk, width=4):
    """Where the size of a chunk is."""
    return data.index(chunk) + (16 if width == 8 and chunk == b"data\xf3" else 4)


def wrong_sizes():
    """Sound files whose header holds a length that a crashed recorder or a stream leaves there."""
    sizes = {"0": bytes(8), "all ones": b"\xff" * 8}
    for name, blank in sizes.items():
        for suffix in ("wav", "float.wav", "adpcm.wav", "aiff", "au", "caf"):
            data = written(suffix, sound())
            at = 8 if suffix == "au" else size_field(data, b"SSND" if suffix == "aiff" else b"data")
            yield pytest.param(suffix, put(data, at, blank[: 8 if suffix == "caf" else 4]), id=f"{suffix} {name}")
        data = written("wav", sound())
        both = put(put(data, 4, blank[:4]), size_field(data, b"data"), blank[:4])
        yield pytest.param("wav", both, id=f"wav, both sizes {name}")
        data = written("w64", sound())
        yield pytest.param("w64", put(data, size_field(data, b"data\xf3", 8), blank), id=f"w64 {name}")
        data = written("rf64", sound())
        yield pytest.param("rf64", put(data, data.index(b"ds64") + 8, blank + blank + blank), id=f"rf64 {name}")
    data = written("aiff", sound())
    yield pytest.param("aiff", put(data, data.index(b"COMM") + 10, bytes(4)), id="aiff of 0 frames")
    data = written("wav", sound())
    yield pytest.param("wav", put(data, size_field(data, b"data"), b"\0\xf0\xff\x7f"), id="wav of sox's pipe")


@pytest.mark.parametrize(("suffix", "data"), list(wrong_sizes()))
def test_a_header_without_a_length_costs_no_sample(tmp_path, suffix, data):
    (tmp_path / "good").write_bytes(written(suffix, sound()))
    (tmp_path / f"a.{suffix}").write_bytes(data)
    good, _ = read_audio(tmp_path / "good")
    got, rate = read_audio(tmp_path / f"a.{suffix}")
    assert rate == RATE and np.array_equal(got, good)


def test_a_wav_that_really_is_empty_stays_empty(tmp_path):
    data = written("wav", np.zeros((1, 0)))
    (tmp_path / "a.wav").write_bytes(data + b"LIST\x04\0\0\0INFO")
    with pytest.raises(AudioError, match="holds no samples"):
        read_audio(tmp_path / "a.wav")


def test_a_chunk_behind_the_sound_is_not_played(tmp_path):
    (tmp_path / "a.wav").write_bytes(written("wav", sound()) + b"LIST\x04\0\0\0INFO")
    assert read_audio(tmp_path / "a.wav")[0].shape[1] == sound().shape[1]


@pytest.mark.parametrize("suffix", [*LOSSLESS, "ogg", "opus"])
def test_joined_files_are_read_whole(tmp_path, suffix):
    a, b = written(suffix, sound()), written(suffix, -sound(0.3))
    for name, data in (("a", a), ("b", b), ("joined", a + b + a)):
        (tmp_path / f"{name}.{suffix}").write_bytes(data)
    one, two = (read_audio(tmp_path / f"{name}.{suffix}")[0] for name in "ab")
    with open_reader(tmp_path / f"joined.{suffix}") as reader:
        got = np.concatenate(list(reader.blocks()), axis=1)
        assert reader.info.frames == got.shape[1] or suffix == "au"
    if suffix != "au":  # it has no chunks: nothing tells where another begins
        assert np.array_equal(got, np.concatenate([one, two, one], axis=1))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus"])
def test_a_part_of_another_rate_and_more_channels_is_made_like_the_first_and_that_is_said(tmp_path, suffix, caplog):
    other = written(suffix, sound(0.5, channels=2), 24_000)  # 0.5 s at RATE's count is a third shorter
    (tmp_path / f"a.{suffix}").write_bytes(written(suffix, sound()) + other)
    got, rate = read_audio(tmp_path / f"a.{suffix}")
    assert rate == RATE and len(got) == 1
    assert got.shape[1] == sound().shape[1] + round(sound(0.5).shape[1] * RATE / 24_000)
    assert "contains joined recordings of different rate" in caplog.text


@pytest.mark.parametrize("with_av", [True, False])
def test_a_flac_of_unknown_length_is_read_with_and_without_av(tmp_path, with_av, monkeypatch):
    if with_av:
        pytest.importorskip("av")
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    x = sound(5.0)
    data = bytearray(written("flac", x))
    data[21] &= 0xF0
    data[22:42] = bytes(20)  # samples in all, and MD5
    (tmp_path / "a.flac").write_bytes(data)
    (tmp_path / "b.flac").write_bytes(written("flac", x))
    with open_reader(tmp_path / "a.flac") as reader:
        assert reader.info.frames is None
        got = np.concatenate(list(reader.blocks()), axis=1)
    assert np.array_equal(got, read_audio(tmp_path / "b.flac")[0])


# --- MP3 -------------------------------------------------------------------------------------------------------------


VARIABLE = {"bit_rate": 40_000, "codec_options": {"abr": "1"}}


def mp3(xing=True, seconds=3.0, **settings):
    """A tone of which every other half second is silent, so that a variable bit rate varies."""
    pytest.importorskip("av")
    x = sound(seconds)
    x[:, (np.arange(x.shape[1]) // (RATE // 2)) % 2 == 1] = 0
    return contained([(0, x)], ("mp3", "libmp3lame", "fltp"), options={"write_xing": str(int(xing))}, **settings)


def frames_of(data):
    import av

    samples = 0
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(audio=0):
            with suppress(av.error.FFmpegError):
                samples += sum(frame.samples for frame in packet.decode())
    return samples


def xing_says(data, frames):
    return put(data, max(data.find(b"Xing"), data.find(b"Info")) + 8, struct.pack(">I", frames))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: mp3(xing=False, bit_rate=32_000), id="CBR without Xing"),
        pytest.param(lambda: mp3(xing=False, **VARIABLE), id="VBR without Xing"),
        pytest.param(lambda: xing_says(mp3(), 20), id="Xing with too few frames"),
        pytest.param(lambda: xing_says(mp3(), 9_999), id="Xing with too many frames"),
        pytest.param(lambda: mp3() + mp3(), id="joined"),
        pytest.param(lambda: mp3(xing=False) + mp3(xing=False), id="joined, without Xing"),
    ],
)
def test_an_mp3_has_the_length_that_ffmpeg_decodes(tmp_path, data):
    made = data()
    (tmp_path / "a.mp3").write_bytes(made)
    assert read_audio(tmp_path / "a.mp3")[0].shape[1] == frames_of(made)


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), bytes(5_000)], ids=["old tag", "padding"])
def test_what_is_behind_an_mp3_changes_nothing(tmp_path, behind):
    (tmp_path / "a.mp3").write_bytes(mp3() + behind)
    assert read_audio(tmp_path / "a.mp3")[0].shape[1] == sound(3.0).shape[1]


def test_without_av_an_mp3_is_read_to_its_end_or_refused_with_the_remedy(tmp_path, monkeypatch):
    plain, joined = mp3(xing=False, bit_rate=32_000), mp3() + mp3()
    expected = frames_of(plain)
    (tmp_path / "plain.mp3").write_bytes(plain)
    (tmp_path / "joined.mp3").write_bytes(joined)
    monkeypatch.setitem(sys.modules, "av", None)
    assert read_audio(tmp_path / "plain.mp3")[0].shape[1] == expected
    with pytest.raises(AudioError, match=r"joined from several files.*pip install 'clearstate\[av\]'"):
        open_reader(tmp_path / "joined.mp3")


def test_an_mpeg_header_gives_the_size_of_its_frame():
    assert mpeg_frame(b"\xff\xfb\x90\x64")[:2] == (417, 1152)  # 128 kbit/s at 44.1 kHz
    assert mpeg_frame(b"\xff\xfb\x92\x64")[:2] == (418, 1152)  # with padding
    assert mpeg_frame(b"\xff\xf3\x80\x64")[:2] == (208, 576)  # version 2: 64 kbit/s at 22.05 kHz
    assert mpeg_frame(b"RIFF") is None and mpeg_frame(b"\xff\xff\xff\xff") is None


# --- files that were cut off -----------------------------------------------------------------------------------------

CUT = [*LOSSLESS, "mp3", "ogg", "opus", "mkv"]


@pytest.mark.parametrize("suffix", CUT)
def test_what_is_left_of_a_cut_file_is_read_and_the_cut_is_reported_behind_it(tmp_path, suffix):
    if suffix in ("mkv", "mp3"):
        pytest.importorskip("av")
    whole = contained([(0, sound(3.0))], "mkv") if suffix == "mkv" else written(suffix, sound(3.0))
    (tmp_path / f"whole.{suffix}").write_bytes(whole)
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) * 2 // 3 + 1])
    broken: list[BrokenOffError] = []
    with open_reader(tmp_path / f"cut.{suffix}") as reader:
        got = np.concatenate(list(until_broken(reader.blocks(), broken)), axis=1)
    assert 0.8 * RATE < got.shape[1] < 2.2 * RATE
    good, _ = read_audio(tmp_path / f"whole.{suffix}")
    inner = slice(0, got.shape[1] - 2_000)  # a codec's last frames lean on the next
    np.testing.assert_allclose(got[:, inner], good[:, : got.shape[1]][:, inner], atol=1e-6)
    assert len(broken) == 1 and "\n" not in str(broken[0])
    assert f"cut.{suffix}: broken after {got.shape[1] / RATE:.3f} s" in str(broken[0])
    saved = broken[0].saved("out.wav")
    assert "the readable part is in out.wav" in str(saved) and isinstance(saved, ValueError)
    with pytest.raises(BrokenOffError):  # whoever does not ask for the rest gets an error
        read_audio(tmp_path / f"cut.{suffix}")


def test_a_cut_m4a_without_its_index_says_that_it_is_cut(tmp_path):
    pytest.importorskip("av")
    data = contained([(0, sound(3.0))], "m4a")
    (tmp_path / "a.m4a").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"a\.m4a: is truncated .* unreadable; fetch it again"):
        read_audio(tmp_path / "a.m4a")


def test_an_m4a_with_its_index_first_is_read_as_far_as_it_goes(tmp_path):
    pytest.importorskip("av")
    contained([(0, sound(3.0))], "m4a", options={"movflags": "faststart"}, file=tmp_path / "whole.m4a")
    whole = (tmp_path / "whole.m4a").read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")
    (tmp_path / "a.m4a").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(BrokenOffError, match="broken after"):
        read_audio(tmp_path / "a.m4a")


@pytest.mark.parametrize("suffix", sorted(originals()))
def test_whole_files_are_plain(suffix):
    extent = inspect_bytes(originals()[suffix])
    assert extent.share == 1 and (extent.plain or suffix == "mp3")


# --- length to the sample --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("suffix", [*LOSSLESS, "mp3", "ogg", "opus"])
def test_the_length_is_that_of_ffmpegs_decoder(tmp_path, suffix, rate):
    if suffix == "opus" and rate == 44_100:
        pytest.skip("Opus has no such rate")
    av = pytest.importorskip("av")
    soundfile.write(tmp_path / f"a.{suffix}", sound(1.3).T, rate, **SNDFILE[suffix])
    with av.open(str(tmp_path / f"a.{suffix}")) as container:
        decoded = sum(frame.samples for frame in container.decode(audio=0))
        theirs = decoded * rate / container.streams.audio[0].rate
    assert read_audio(tmp_path / f"a.{suffix}")[0].shape[1] == theirs
