"""Files that are cut off, joined, full of tracks, or no sound at all: what the command line makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_enhance import RATE, in_a_process, in_this_process, sound

from clearstate.audio.quiet import tell


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test stands in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARSTATE_VERBOSE", "0")
    tell.cache_clear()


def cut(name, **options):
    """A file of 2 s of which little more than half is there."""
    soundfile.write(name, sound(2.0), RATE, **options)
    data = Path(name).read_bytes()
    Path(name).write_bytes(data[: len(data) * 6 // 10])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.ogg", "a.mp3"])
def test_what_is_left_of_a_cut_file_is_written_and_the_rest_of_the_batch_done(tiny, name):
    if name == "a.mp3":
        pytest.importorskip("av")
    cut(name)
    soundfile.write("whole.wav", sound(), RATE)
    result = in_this_process("enhance", name, "whole.wav", "--model", tiny, "-o", "out/", "--json")
    assert result.returncode == 1
    told = [line for line in result.stderr.splitlines() if line.startswith(f"clearstate: {name}: ")]
    assert len(told) == 1 and "broken after" in told[0] and f"the readable part is in out/{name}" in told[0]
    assert 0.5 < soundfile.info(f"out/{name}").duration < 1.5
    assert soundfile.info("out/whole.wav").frames == len(sound())
    assert [file["ok"] for file in json.loads(result.stdout)["files"]] == [False, True]


@pytest.mark.parametrize("verb", ["separate", "extend"])
def test_the_other_verbs_save_what_is_left_as_well(tmp_path, verb):
    cut("a.wav")
    result = in_this_process(verb, "a.wav", "-o", "out/")
    assert result.returncode == 1
    assert "the readable part is in out" in result.stderr
    written = list(Path("out").glob("*.wav"))
    assert len(written) == (2 if verb == "separate" else 1)
    assert all(0.5 < soundfile.info(path).duration < 1.5 for path in written)


def test_a_picture_of_a_cut_file_is_drawn_and_the_cut_reported(tiny):
    pytest.importorskip("matplotlib")
    cut("a.flac")
    soundfile.write("b.wav", sound(2.0), RATE)
    result = in_this_process("plot", "a.flac", "b.wav", "p.png")
    assert result.returncode == 1 and Path("p.png").stat().st_size > 1_000
    assert "a.flac: broken after" in result.stderr


def test_a_cut_file_is_not_scored_and_a_joined_one_is_scored_whole():
    cut("a.wav")
    soundfile.write("b.wav", sound(2.0), RATE)
    result = in_this_process("score", "--clean", "b.wav", "--enhanced", "a.wav", "-s", "si_sdr", "-j", 1)
    assert result.returncode == 1 and "broken after" in result.stderr
    soundfile.write("c.wav", np.concatenate([sound(2.0)] * 2), RATE)
    Path("joined.wav").write_bytes(Path("b.wav").read_bytes() * 2)
    result = in_this_process("score", "--clean", "c.wav", "--enhanced", "joined.wav", "-s", "si_sdr", "-j", 1)
    assert result.returncode == 0 and "shorter" not in result.stderr


def test_a_track_is_chosen_on_the_command_line(tiny, caplog):
    av = pytest.importorskip("av")
    with av.open("two.mkv", "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for stream, level in zip(streams, (0, 9_000), strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, RATE), level, np.int16), format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
    for track, peak in (([], 0.0), (["--track", 2], 9_000 / 2**15)):
        args = ("enhance", "two.mkv", "--model", tiny, "--strength", 0, "-o", "o.wav", "--overwrite")
        assert in_this_process(*args, *track).returncode == 0
        assert np.abs(soundfile.read("o.wav")[0]).max() == pytest.approx(peak, abs=1e-3)
    assert [record.getMessage()[:40] for record in caplog.records] == ["clearstate: two.mkv: reading sound track"]
    refused = in_this_process("enhance", "two.mkv", "--model", tiny, "--track", 7)
    assert refused.returncode == 1 and "no number 7; choose from 1 to 2" in refused.stderr


def test_a_web_page_named_mp3_is_one_line_and_verbose_shows_what_the_libraries_say(tiny):
    Path("page.mp3").write_bytes(b"<!DOCTYPE html><html>404 Not Found</html>" + bytes(2_000))
    quiet = in_a_process("enhance", "page.mp3", "--model", tiny)
    assert quiet.returncode == 1 and len(quiet.stderr.splitlines()) == 1
    assert "page.mp3: is a web page" in quiet.stderr
    for args in (("--verbose", "enhance", "page.mp3"), ("enhance", "page.mp3", "--verbose")):
        chatty = in_a_process(*args, "--model", tiny)
        assert chatty.returncode == 1 and len(chatty.stderr.splitlines()) > 1
        assert "page.mp3: is a web page" in chatty.stderr
