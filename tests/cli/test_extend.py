"""clearstate extend, end to end, with a small model of random weights: what it gives and what it tells."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from as_typed import in_this_process

from clearstate import models
from clearstate.models import build, save_model

RATE = 16_000


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with weights of a very small model."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    torch.manual_seed(0)
    save_model(build("extend-fast", width=8, blocks=1, states=2), "extend-fast", folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extend(*args, **options):
    return in_this_process("extend", *args, **options)


def write(name, seconds=0.5, channels=1, rate=RATE):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(0, 0.05, (int(seconds * rate), channels))
    soundfile.write(name, x, rate)
    return x


def test_a_wide_file_lies_beside_the_narrow_one(weights):
    write("old.wav", channels=2)
    result = extend("old.wav", "--to", 48_000, "--model", weights)
    assert result.returncode == 0, result.stderr
    info = soundfile.info("old.wide.wav")
    assert (info.samplerate, info.channels, info.frames) == (48_000, 2, 24_000)
    assert "it held up to 7.5" in result.stderr


@pytest.mark.parametrize("rate, to", [(8_000, 48_000), (11_025, 44_100), (22_050, 48_000), (24_000, 32_000)])
def test_any_rate_to_any_rate(weights, rate, to):
    write("old.flac", rate=rate)
    assert extend("old.flac", "-o", "new.flac", "--to", to, "--model", weights).returncode == 0
    info = soundfile.info("new.flac")
    assert info.samplerate == to and abs(info.frames - soundfile.info("old.flac").frames * to / rate) <= 0.5


def test_a_file_that_lacks_nothing_is_told_and_kept(weights):
    x = write("whole.wav", rate=48_000)
    result = extend("whole.wav", "--model", weights, "--json")
    report = json.loads(result.stdout)["files"][0]
    assert report["extended"] is False and report["bandwidth_hz"] == 24_000 and "nothing was added" in report["note"]
    np.testing.assert_allclose(soundfile.read("whole.wide.wav")[0], x[:, 0], atol=2**-15)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_silence_is_said_to_be_silent(weights, rate):
    soundfile.write("quiet.wav", np.zeros(rate), rate)
    result = extend("quiet.wav", "--model", weights)
    assert result.returncode == 0 and "it is silent: nothing was added" in result.stderr
    assert not soundfile.read("quiet.wide.wav")[0].any()


def test_a_file_that_fails_leaves_the_others_done(weights):
    write("a.wav")
    Path("bad.wav").write_text("not audio")
    write("fast.wav", rate=96_000)
    result = extend("a.wav", "bad.wav", "fast.wav", "missing.wav", "-o", "out", "--model", weights, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert (report["done"], report["failed"]) == (1, 3)
    assert [p.name for p in Path("out").iterdir()] == ["a.wav"]
    assert "resample it first" in result.stderr and "bad.wav" in result.stderr and "missing.wav" in result.stderr
    done = next(file for file in report["files"] if file["ok"])
    assert (done["from_rate"], done["sample_rate"], done["extended"]) == (RATE, 48_000, True)


def test_a_folder_without_our_own_results(weights):
    write("in/a.wav")
    for _ in range(2):
        assert extend("in", "--model", weights, "--overwrite").returncode == 0
    assert sorted(p.name for p in Path("in").iterdir()) == ["a.wav", "a.wide.wav"]


@pytest.mark.parametrize("name", ["old.wav", "old.flac"])
def test_a_pipe_gives_what_the_file_gives_although_it_begins_with_silence(weights, name):
    """The bandwidth is that of the whole recording."""
    noise = 0.05 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(name, np.concatenate([np.zeros(6 * RATE), noise]), RATE)
    options = ("--model", weights, "--backend", "torch")
    assert extend(name, "-o", "file.wav", *options).returncode == 0
    result = extend("-", *options, stdin=Path(name).read_bytes())
    assert result.returncode == 0, result.stderr
    assert "it held up to 7.5" in result.stderr
    assert result.stdout == Path("file.wav").read_bytes()


def test_existing_files_are_kept(weights):
    write("old.wav")
    assert extend("old.wav", "--model", weights).returncode == 0
    result = extend("old.wav", "--model", weights)
    assert result.returncode == 1 and "already exists" in result.stderr


@pytest.mark.parametrize(
    "args, says",
    [
        (["--model", "live"], "is an enhancement model"),
        (["--model", "extend-fats"], "extend-fast"),
        (["--model", "mambawave", "--fast"], "give only one of them"),
        (["--steps", 4], "works in one step"),
        (["--to", 96_000], "8000 to 48000"),
        (["-o", "old.wav"], "the input itself"),
        (["-o", "wide.txt"], ".txt"),
    ],
)
def test_wrong_use_is_told_before_anything_is_read(args, says):
    write("old.wav")
    result = extend("old.wav", *args)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_without_weights_the_remedy_is_named(monkeypatch, tmp_path):
    write("old.wav")
    monkeypatch.setattr("clearstate.models.presets.WEIGHTS", tmp_path / "none")
    result = extend("old.wav")
    assert result.returncode == 2 and "no weights of 'extend-fast' are shipped" in result.stderr
    assert not Path("old.wide.wav").exists()


def test_a_licence_that_forbids_some_uses_is_told_once():
    write("a.wav", 0.2)
    write("b.wav", 0.2)
    models.tell_licence.cache_clear()  # as in a new process
    result = extend("a.wav", "b.wav", "--model", "mambawave", "--steps", 1, "-o", "out")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("CC BY-NC-SA 4.0") == 1 and not result.stdout
