"""What only FFmpeg reads, through PyAV: time stamps, tracks, changes of format, and a second opinion."""

import sys

import numpy as np
import pytest
import soundfile
from mutants import RATE, contained, sound

from clearstate.audio import av as audio_av
from clearstate.audio.av import Timeline
from clearstate.audio.io import AudioError, BrokenOffError, open_reader, read_audio, until_broken

av = pytest.importorskip("av")

AAC = 1024  # samples by which its first and last frame may lengthen a file


def decoded(path, track=0):
    """Samples that FFmpeg's decoder gives."""
    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(container.streams.audio[track]))


def burst(seconds=1.0, at=0.4):
    """Silence with a tone of 0.1 s in it, (1, n)."""
    x = np.zeros((1, int(seconds * RATE) // AAC * AAC))
    x[:, int(at * RATE) : int((at + 0.1) * RATE)] = 0.5 * np.sin(np.arange(int(0.1 * RATE)))
    return x


def heard_at(x):
    """Where the bursts begin and end in all, in s."""
    return np.flatnonzero(np.abs(x[0]) > 0.2)[[0, -1]] / RATE


# --- time stamps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["m4a", "mkv", "ts"])
@pytest.mark.parametrize("video", [0.0, 1.0])
def test_sound_that_begins_with_the_file_and_has_no_holes_gets_no_silence(tmp_path, kind, video):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(contained([(0, sound(1.5))], kind, video=video))
    assert read_audio(path)[0].shape[1] == decoded(path)


@pytest.mark.parametrize("kind", ["mkv", "m4a"])
def test_a_hole_becomes_silence(tmp_path, kind):
    (tmp_path / "a").write_bytes(contained([(0, burst()), (3.0, burst())], kind))
    x, _ = read_audio(tmp_path / "a")
    begin, end = heard_at(x)
    assert abs(begin - 0.4) < 0.1 and abs(end - 3.5) < 0.1
    assert abs(x.shape[1] / RATE - 3.0 - burst().shape[1] / RATE) < 0.2


def test_sound_that_begins_behind_the_picture_begins_with_silence_and_behind_nothing_does_not(tmp_path):
    (tmp_path / "video.mkv").write_bytes(contained([(1.0, burst())], "mkv", video=2.0))
    (tmp_path / "sound.mkv").write_bytes(contained([(1.0, burst())], "mkv"))
    assert abs(heard_at(read_audio(tmp_path / "video.mkv")[0])[0] - 1.4) < 0.1
    assert abs(heard_at(read_audio(tmp_path / "sound.mkv")[0])[0] - 0.4) < 0.1


def test_time_that_goes_back_costs_nothing(tmp_path):
    piece = contained([(0, burst())], "ts")
    (tmp_path / "joined.ts").write_bytes(piece + piece)  # the second begins at the time of the first
    (tmp_path / "one.ts").write_bytes(piece)
    assert read_audio(tmp_path / "joined.ts")[0].shape[1] >= 2 * read_audio(tmp_path / "one.ts")[0].shape[1] - AAC


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        pytest.param([0.0, 0.1, 0.2], [0, 0, 0], id="in order"),
        pytest.param([0.004, 0.099, 0.203], [0, 0, 0], id="rounded"),
        pytest.param([0.0, 0.1, 0.5], [0, 0, 0.3], id="a hole"),
        pytest.param([0.5, 0.6], [0.5, 0], id="a late start"),
        pytest.param([0.0, None, 0.2], [0, 0, 0], id="without a stamp"),
        pytest.param([0.0, 0.1, 0.02, 0.12], [0, 0, 0, 0], id="an overlap"),
        pytest.param([0.0, 0.1, 9e4, 9e4 + 0.1], [0, 0, 0, 0], id="a clock that was set"),
        pytest.param([0.1 * i + 0.001 * i for i in range(200)], [0] * 200, id="two clocks that drift apart"),
        pytest.param([0.0, 0.13, 0.26], [0, 0, 0.06], id="many small holes add up"),
    ],
)
def test_silence_is_where_time_stamps_leave_a_hole(stamps, expected):
    timeline = Timeline(origin=0.0)
    assert [round(timeline.silence(at, 0.1), 6) for at in stamps] == pytest.approx(expected)


# --- tracks ----------------------------------------------------------------------------------------------------------


def two_tracks(path, default=None):
    with av.open(str(path), "w", format="matroska") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        streams[1].metadata["title"] = "Microphone"
        if default is not None:
            for i, stream in enumerate(streams):
                stream.disposition = av.stream.Disposition.default if i == default else av.stream.Disposition(0)
        for stream, level in zip(streams, (0.0, 0.5), strict=True):
            piece = np.full((1, RATE), level * 32767, np.int16)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def test_of_several_tracks_the_first_is_taken_and_that_is_said_once(tmp_path, caplog):
    two_tracks(tmp_path / "a.mkv")
    for _ in range(2):
        assert not read_audio(tmp_path / "a.mkv")[0].any()
    assert len(caplog.records) == 1
    assert "reading sound track 1 of 2 (pcm_s16le, 1 channel)" in caplog.text
    assert "--track N selects another: 2 (pcm_s16le, 1 channel, Microphone)" in caplog.text


def test_a_track_is_chosen_by_number_or_by_the_container(tmp_path, caplog):
    two_tracks(tmp_path / "a.mkv")
    assert read_audio(tmp_path / "a.mkv", track=2)[0].max() == pytest.approx(0.5, abs=1e-3)
    assert not caplog.records  # it was asked for
    two_tracks(tmp_path / "b.mkv", default=1)
    assert read_audio(tmp_path / "b.mkv")[0].max() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", ["a.mkv", "a.wav"])
def test_a_track_that_is_not_there_is_an_error(tmp_path, name):
    two_tracks(tmp_path / "a.mkv")
    soundfile.write(tmp_path / "a.wav", sound().T, RATE)
    assert read_audio(tmp_path / name, track=1)[1] == RATE
    with pytest.raises(AudioError, match=r"no number 3; choose from 1 to \d"):
        open_reader(tmp_path / name, track=3)


# --- changes in the middle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "channels"), [(24_000, 1), (16_000, 2), (24_000, 2)])
def test_after_a_change_of_rate_or_channels_everything_is_like_the_first(tmp_path, rate, channels):
    parts = [contained([(0, sound(1.0))], ("adts", "aac", "fltp"))]
    parts.append(contained([(0, np.zeros((channels, rate)))], ("adts", "aac", "fltp"), rate=rate))
    (tmp_path / "a.aac").write_bytes(b"".join(parts))
    with open_reader(tmp_path / "a.aac") as reader:
        got = np.concatenate(list(reader.blocks()), axis=1)
        assert (reader.info.sample_rate, reader.info.channels) == (RATE, 1)
    assert abs(got.shape[1] - 2 * RATE) < 4 * AAC
    assert np.abs(got[:, : int(0.9 * RATE)]).max() > 0.3 and np.abs(got[:, int(1.3 * RATE) :]).max() < 0.01


# --- a second opinion ------------------------------------------------------------------------------------------------


def test_behind_damage_pyav_reads_the_rest_and_the_damage_is_reported(tmp_path):
    soundfile.write(tmp_path / "a.flac", sound(8.0).T, RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "b.flac").write_bytes(data)
    broken: list[BrokenOffError] = []
    with open_reader(tmp_path / "b.flac") as reader:
        got = np.concatenate(list(until_broken(reader.blocks(), broken)), axis=1)
    good, _ = read_audio(tmp_path / "a.flac")
    assert abs(got.shape[1] - good.shape[1]) <= 2 * 4096
    assert np.array_equal(got[:, : 3 * RATE], good[:, : 3 * RATE])
    assert len(broken) == 1 and "more were read after it" in str(broken[0])


def test_what_libsndfile_refuses_is_read_if_pyav_can(tmp_path):
    (tmp_path / "a.wav").write_bytes(contained([(0, sound())], "m4a"))  # named wrongly
    assert read_audio(tmp_path / "a.wav")[0].shape[1] == decoded(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (
            "a.mp3",
            b"<!DOCTYPE html><html>404</html>" + bytes(2_000),
            "is a web page .*; download the sound",
        ),
        ("a.mp3", b"\r\n<HTML>" + bytes(2_000), "is a web page"),
        ("a.wav", b"PK\x03\x04" + bytes(200), "is a ZIP archive .*; unpack it first"),
        ("a.flac", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.ogg", b"#EXTM3U\na.mp3\n", "is a playlist"),
        ("a.wav", bytes(4_000), "starts with zeros"),
        ("a.mp3", b"Just some text. " * 200, "begins with b'Just some text"),
        ("a.m4a", b"\0\0\0\x18ftypM4A " + bytes(12), "expected an audio file"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_line_that_says_what_it_is(tmp_path, name, data, says, capfd):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AudioError, match=says) as caught:
        read_audio(tmp_path / name)
    assert "\n" not in str(caught.value) and "does not exist" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_video_without_sound_and_a_codec_that_nobody_knows_say_so(tmp_path):
    with av.open(str(tmp_path / "mute.mkv"), "w") as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(picture.encode(None))
    with pytest.raises(AudioError, match="is a video without sound"):
        open_reader(tmp_path / "mute.mkv")
    (tmp_path / "odd.mkv").write_bytes(contained([(0, sound())], "mkv").replace(b"A_AAC", b"A_ZZZ"))
    with pytest.raises(AudioError, match="its audio codec is unknown; convert the file"):
        open_reader(tmp_path / "odd.mkv")


def test_a_name_with_a_colon_is_a_file_and_no_protocol(tmp_path):
    path = tmp_path / "data:12.m4a"
    path.write_bytes(contained([(0, sound())], "m4a"))
    assert read_audio(path)[1] == RATE


def test_without_pyav_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(contained([(0, sound())], "m4a"))
    monkeypatch.setitem(sys.modules, "av", None)
    assert not audio_av.installed()
    with pytest.raises(AudioError, match=r"pip install 'clearstate\[av\]'"):
        open_reader(tmp_path / "a.m4a")
