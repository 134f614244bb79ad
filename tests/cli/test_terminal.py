"""What is printed, whatever the terminal can show and whatever a file is called."""

import errno
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.cli import main
from clearstate.cli.terminal import explain, home_expanded

ENCODINGS = ("ascii", "latin-1", "cp932", "cp850", "cp1252", "utf-8")


def run_in(encoding, monkeypatch, *args):
    """Exit code, stdout and stderr of a command whose output streams have an encoding and fail at what it lacks."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            main([os.fspath(arg) for arg in args])
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


def read(file):
    return json.loads(Path(file).read_text(encoding="utf-8"))


@pytest.fixture
def sound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16_000)
    return "a.wav"


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "cp850"])
@pytest.mark.parametrize("args", [["models"], ["--help"], ["enhance", "--help"]], ids=" ".join)
def test_a_table_is_printed_on_every_terminal(encoding, args, monkeypatch):
    code, out, err = run_in(encoding, monkeypatch, *args)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) > 10


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_scores_are_written_and_shown_on_every_terminal(encoding, sound, monkeypatch):
    words = ("score", "--clean", sound, "--enhanced", sound, "-s", "si_sdr", "--json", "s.json", "--csv", "s.csv")
    code, out, _ = run_in(encoding, monkeypatch, *words)
    assert code == 0
    assert "SI-SDR" in out and read("s.json")["mean"]["si_sdr"] == 100
    assert os.path.exists("s.csv")
    code, out, _ = run_in(encoding, monkeypatch, "leaderboard", "s.json", "--set", "voicebank-demand")
    assert code == 0 and "SI-SDR" in out


def test_what_an_encoding_lacks_is_spelled_out(monkeypatch):
    code, _, err = run_in("ascii", monkeypatch, "enhance", "gone–é\udce9\x1b[31m.wav")
    assert code == 1
    assert r"gone-\xe9\xe9\x1b[31m.wav" in err


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "a\nb\x1b[31m", "[red]x", "日本$x_{"])
def test_a_file_of_any_name_is_enhanced_scored_and_drawn(name, sound, tiny, monkeypatch):
    os.mkdir("in")
    os.rename(sound, f"in/{name}.wav")
    code, out, err = run_in("utf-8", monkeypatch, "enhance", "in", "-o", "out", "-m", tiny, "--json")
    assert code == 0, err
    assert json.loads(out)["files"][0]["output"] == f"out/{name}.wav"
    assert len(err.splitlines()) == 1 and "\x1b" not in err
    words = ("score", "--clean", "in", "--enhanced", "out", "-s", "si_sdr", "--json", "s.json", "--csv", "s.csv")
    code, _, err = run_in("utf-8", monkeypatch, *words)
    assert code == 0, err
    assert list(read("s.json")["files"]) == [name]
    assert Path("s.csv").read_text(encoding="utf-8").startswith("file,")
    code, _, err = run_in("utf-8", monkeypatch, "plot", f"in/{name}.wav", f"out/{name}.wav", "p.svg")
    assert code == 0 and os.path.exists("p.svg"), err


def test_the_table_is_shown_where_the_files_cannot_be_written(sound, monkeypatch):
    os.mkdir("there.csv.d")
    words = ("score", "--clean", sound, "--enhanced", sound, "-s", "si_sdr", "--json", f"{sound}/s.json")
    code, out, err = run_in("utf-8", monkeypatch, *words)
    assert code == 1 and "SI-SDR" in out
    assert len(err.splitlines()) == 1 and "s.json was not written" in err


def test_an_unusable_file_fails_alone_in_score(sound, monkeypatch):
    os.makedirs("clean/sub"), os.mkdir("out")
    for folder in ("clean", "out"):
        soundfile.write(f"{folder}/b.wav", np.ones(800) / 2, 16_000)
        soundfile.write(f"{folder}/c.wav", np.ones(800) / 2, 16_000)
    os.unlink("out/c.wav")
    os.symlink("/nowhere.wav", "out/c.wav")
    os.symlink("..", "clean/sub/loop")
    words = ("score", "--clean", "clean", "--enhanced", "out", "-s", "snr", "--json", "s.json", "-j", "1")
    code, _, err = run_in("utf-8", monkeypatch, *words)
    assert code == 1
    assert "out/c.wav: is a link to /nowhere.wav, which does not exist" in err
    found = read("s.json")
    assert list(found["files"]) == ["b"] and list(found["failed"]) == ["out/c.wav"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x.wav"), "choose another place"),
        (OSError(errno.EROFS, "Read-only file system", "x.wav"), "choose another place"),
        (OSError(errno.ENOSPC, "No space left on device", b"x.wav"), "free some space"),
    ],
)
def test_what_the_system_refuses_comes_with_a_remedy(error, remedy):
    assert explain(error).startswith("x.wav: ") and remedy in explain(error)


def test_an_error_is_one_line_of_bounded_length():
    assert explain(RuntimeError("first\n" + "more\n" * 1000)).startswith("first more more")
    assert len(explain(RuntimeError("word " * 1000))) <= 600


def test_an_error_from_a_library_is_one_line(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("CUDA error: out of everything\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr("clearstate.models.convert.convert", broken)
    code, _, err = run_in("utf-8", monkeypatch, "convert", "x.pth", "--to", "live")
    assert code == 1
    assert err == "clearstate: CUDA error: out of everything Compile with TORCH_USE_CUDA_DSA\n"


def test_the_home_folder_is_found_behind_options_and_keys(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert home_expanded(["~/a.wav", "--json=~/b", "run=~/c", "live=~/d", "valid.noisy=~", "a~b", "-3"]) == [
        f"{tmp_path}/a.wav", f"--json={tmp_path}/b", f"run={tmp_path}/c", f"live={tmp_path}/d",
        "valid.noisy=~", "a~b", "-3",
    ]  # fmt: skip
    os.makedirs("~/x")
    assert home_expanded(["~/x"]) == ["~/x"]


@pytest.mark.parametrize(
    "args",
    [
        ["score", "--clean", "a.wav", "--enhanced", "a.wav", "-s", "snr", "--json"],
        ["plot", "a.wav", "a.wav", "--overwrite"],
    ],
)
def test_a_pipe_or_device_is_not_replaced_by_a_result(sound, monkeypatch, args):
    os.mkfifo("p.png")
    code, _, err = run_in("utf-8", monkeypatch, *args, "p.png")
    assert code == 2 and "is a named pipe" in err
    assert not os.path.isfile("p.png")
