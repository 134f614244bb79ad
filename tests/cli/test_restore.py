"""clearstate restore, end to end: what it writes and what it tells."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from as_typed import in_this_process

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
RATE = 16_000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clean = soundfile.read(CLIPS / "chainsaw_5db.clean.flac")[0]
    soundfile.write("clean.wav", clean, RATE)
    soundfile.write("offset.wav", clean * 0.8 + 0.1, RATE)


def restore(*args, **options):
    return in_this_process("restore", *args, **options)


def test_a_folder_is_restored_and_explained():
    result = restore(".", "-o", "out", "--explain")
    assert result.returncode == 0, result.stderr
    assert Path("out/clean.wav").read_bytes() == Path("clean.wav").read_bytes()
    assert abs(soundfile.read("out/offset.wav")[0].mean()) < 1e-4
    text = result.stdout.decode()
    assert "clean.wav: nothing to do, copied unchanged" in text
    assert "offset.wav: removed the offset\n  removed the offset: constant offset of 10 % of full scale" in text


def test_the_default_name_is_beside_the_input_and_not_an_input_later():
    assert restore(".").returncode == 0
    assert Path("clean.restored.wav").exists() and Path("offset.restored.wav").exists()
    assert restore(".", "--overwrite").returncode == 0
    assert len(list(Path().iterdir())) == 4


def test_a_dry_run_writes_nothing_even_where_the_output_exists():
    Path("offset.restored.wav").write_bytes(b"mine")
    result = restore("offset.wav", "--dry-run")
    assert result.returncode == 0 and "removed the offset" in result.stdout.decode()
    assert Path("offset.restored.wav").read_bytes() == b"mine"


def test_the_json_report_says_what_was_done_and_why():
    result = restore("offset.wav", "--json")
    (entry,) = json.loads(result.stdout)["files"]
    assert entry["steps"] == [
        {"kind": "offset", "what": "removed the offset", "why": "constant offset of 10 % of full scale"}
    ]
    assert entry["output"] == "offset.restored.wav" and entry["inspection"]["dc_offset"] == [
        pytest.approx(0.1, abs=0.01)
    ]


def test_skipping_leaves_the_step_out():
    result = restore("offset.wav", "--skip", "offset", "--json")
    (entry,) = json.loads(result.stdout)["files"]
    assert entry["steps"] == [] and Path("offset.restored.wav").read_bytes() == Path("offset.wav").read_bytes()


def test_an_unknown_step_is_wrong_use():
    assert restore("offset.wav", "--skip", "echo").returncode == 2


@pytest.mark.parametrize("name, same", [("clean.wav", True), ("offset.wav", False)])
def test_a_pipe_goes_through(name, same):
    source = Path(name).read_bytes()
    result = restore("-", "-o", "out.wav", stdin=source)
    assert result.returncode == 0, result.stderr
    assert (Path("out.wav").read_bytes() == source) is same
    assert soundfile.info("out.wav").frames == soundfile.info(name).frames


def test_a_narrow_recording_is_extended():
    x = soundfile.read("clean.wav")[0]
    spectrum = np.fft.rfft(x)
    spectrum[round(3_400 * len(x) / RATE) :] = 0
    soundfile.write("narrow.wav", np.fft.irfft(spectrum, len(x)), RATE)
    result = restore("narrow.wav", "--json")
    (entry,) = json.loads(result.stdout)["files"]
    assert [step["kind"] for step in entry["steps"]] == ["band"]
    assert "commercial" not in result.stderr  # the weights may be used for everything
    assert soundfile.info("narrow.restored.wav").samplerate == RATE


def test_a_file_that_fails_leaves_the_others_done():
    Path("broken.wav").write_bytes(b"no sound")
    result = restore(".", "-o", "out")
    assert result.returncode == 1 and "broken.wav" in result.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["clean.wav", "offset.wav"]
