"""clearstate separate, end to end, with a small model of random weights: what it gives and what it tells."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from as_typed import in_this_process

from clearstate import separate as separate_file
from clearstate.models import build, save_model

RATE = 16_000


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with weights of a very small separator."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    torch.manual_seed(0)
    save_model(build("s4m-tiny-4ms", channels=8, hidden=16, passes=1, scales=3), "s4m-tiny-4ms", folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def separate(*args, **options):
    return in_this_process("separate", *args, **options)


def write(name, seconds=0.5, channels=1, rate=RATE):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(0, 0.05, (int(seconds * rate), channels))
    soundfile.write(name, x, rate)
    return x


def test_one_file_a_speaker_and_a_timeline(weights):
    x = write("talk.wav", channels=2, rate=44_100)
    result = separate("talk.wav", "-o", "voices", "--model", weights)
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in Path("voices").iterdir()) == [
        "talk.speaker1.wav", "talk.speaker2.wav", "talk.timeline.json",
    ]  # fmt: skip
    voices = [soundfile.read(f"voices/talk.speaker{i}.wav") for i in (1, 2)]
    assert all(rate == 44_100 and voice.shape == x.shape for voice, rate in voices)
    np.testing.assert_allclose(voices[0][0] + voices[1][0], x, atol=1e-4)  # 16 bits
    assert len(json.loads(Path("voices/talk.timeline.json").read_text())["speakers"]) == 2


def test_without_a_folder_the_voices_lie_beside_the_input(weights):
    write("a/talk.flac")
    assert separate("a/talk.flac", "--model", weights).returncode == 0
    assert Path("a/talk.speaker2.flac").is_file()


def test_a_folder_of_recordings_without_our_own_results(weights):
    write("in/a.wav")
    write("in/b.wav")
    assert separate("in", "--model", weights).returncode == 0
    again = separate("in", "--model", weights, "--overwrite")
    assert again.returncode == 0 and "a.speaker1.speaker1.wav" not in [p.name for p in Path("in").iterdir()]
    assert len(list(Path("in").iterdir())) == 2 + 2 * 3


def test_a_file_that_fails_leaves_the_others_done(weights):
    write("a.wav")
    Path("bad.wav").write_text("not audio")
    write("c.wav")
    result = separate("a.wav", "bad.wav", "c.wav", "missing.wav", "-o", "out", "--model", weights, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert (report["done"], report["failed"]) == (2, 2)
    assert Path("out/c.speaker1.wav").is_file() and not Path("out/bad.speaker1.wav").exists()
    assert "bad.wav" in result.stderr and "missing.wav" in result.stderr
    done = next(file for file in report["files"] if file["ok"])
    assert [Path(s["file"]).is_file() for s in done["speakers"]] == [True, True]


def test_a_pipe(weights):
    write("talk.wav")
    result = separate("-", "-o", "out", "--model", weights, stdin=Path("talk.wav").read_bytes())
    assert result.returncode == 0, result.stderr
    assert Path("out/stdin.speaker1.wav").is_file()


def test_existing_files_are_kept(weights):
    write("talk.wav")
    assert separate("talk.wav", "--model", weights).returncode == 0
    result = separate("talk.wav", "--model", weights)
    assert result.returncode == 1 and "already exists" in result.stderr


@pytest.mark.parametrize(
    "args, says",
    [
        (["--model", "live"], "is an enhancement model"),
        (["--model", "s4m-tinny"], "s4m-tiny"),
        (["--model", "s4m-tiny-4ms", "--enhance", "s4m"], "is a separation model"),
        (["-o", "-"], "name a folder"),
        (["-o", "talk.wav"], "name a folder"),
    ],
)
def test_wrong_use_is_told_before_anything_is_read(args, says):
    write("talk.wav")
    result = separate("talk.wav", *args)
    assert result.returncode == 2
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("number", "says"), [(1, "clearstate enhance"), (3, "trained for 3")])
def test_another_number_of_speakers_is_refused_with_a_remedy(weights, number, says):
    write("talk.wav")
    result = separate("talk.wav", "--speakers", number, "-o", "voices", "--model", weights)
    assert result.returncode == 2
    assert all(part in result.stderr for part in (f"--speakers {number}: ", "separates 2 speakers", says))
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(Path("voices").glob("*"))


def test_the_number_of_speakers_that_a_model_separates_changes_nothing(weights):
    write("talk.wav")
    assert separate("talk.wav", "--speakers", 2, "--model", weights).returncode == 0
    assert Path("talk.speaker2.wav").exists()


def test_outputs_that_would_collide(weights):
    write("a/talk.wav")
    write("b/talk.flac")
    result = separate("a/talk.wav", "b/talk.flac", "-o", "out", "--model", weights)
    assert result.returncode == 1 and "use another output folder" in result.stderr


def test_from_python(weights):
    write("talk.wav", seconds=1.0)
    seen = []
    done = separate_file("talk.wav", "out", model=weights, progress=lambda at, of: seen.append(at))
    assert (done.seconds, done.sample_rate, len(done.speakers), seen[-1]) == (1.0, RATE, 2, 1.0)
