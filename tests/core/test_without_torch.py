"""What the core installation does: every everyday verb and the streaming contract, without PyTorch and Numba.

`make test-core` runs this file in an environment that holds the wheel and nothing else. Elsewhere the subprocesses
below are kept from importing PyTorch and Numba.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

import clearstate

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
NOISY, CLEAN = CLIPS / "helicopter_0db.noisy.flac", CLIPS / "helicopter_0db.clean.flac"

BLOCKED = """
import sys
for name in ("torch", "numba", "llvmlite", "safetensors"):
    sys.modules[name] = None
from clearstate.cli import main
main()
"""


def command(*words, stdin=b"", expect=0):
    """Run the command line in a process that cannot import PyTorch: its stdout as bytes, its stderr as text."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, words)], input=stdin, capture_output=True, check=False,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = done.stderr.decode()
    assert done.returncode == expect, told
    assert "Traceback" not in told, told
    return done.stdout, told


def si_sdr(reference, estimate):
    scale = np.dot(estimate, reference) / np.dot(reference, reference)
    return 10 * np.log10(np.sum((scale * reference) ** 2) / np.sum((estimate - scale * reference) ** 2))


def test_the_core_environment_holds_no_torch():
    if "CLEARSTATE_CORE_ONLY" not in os.environ:
        pytest.skip("set by make test-core, which runs in an environment of the core alone")
    assert not any(find_spec(name) for name in ("torch", "numba", "llvmlite", "safetensors", "scipy"))
    packages = Path(clearstate.__file__).parents[1]
    megabytes = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
    print(f"site-packages: {megabytes:.0f} MB")  # with pip and pytest
    assert megabytes < 260


def test_enhance_removes_noise_and_keeps_the_length(tmp_path):
    target = tmp_path / "out.wav"
    command("enhance", NOISY, "-o", target)
    (noisy, rate), (clean, _), (enhanced, rate_out) = (soundfile.read(path) for path in (NOISY, CLEAN, target))
    assert rate_out == rate and enhanced.shape == noisy.shape
    assert si_sdr(clean, enhanced) > si_sdr(clean, noisy) + 5


def test_stream_is_enhance_with_the_fast_model_without_a_warm_up(tmp_path):
    noisy, rate = soundfile.read(NOISY, dtype="int16")
    out, told = command("stream", "--rate", rate, stdin=noisy.tobytes())
    command("enhance", NOISY, "--quality", "fast", "--no-warm-up", "-o", tmp_path / "file.wav")
    streamed = np.frombuffer(out, "<i2")
    latency = len(streamed) - len(noisy)
    assert f"({latency} samples)" in told
    np.testing.assert_allclose(streamed[latency:], soundfile.read(tmp_path / "file.wav", dtype="int16")[0], atol=1)


@pytest.mark.parametrize("rate", [16_000, 48_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_output_of_a_stream_does_not_depend_on_the_chunks(rate, channels):
    x = 0.1 * np.random.default_rng(0).standard_normal((channels, rate)).astype(np.float32)
    outputs = []
    for sizes in ([rate // 100], [1, 0, 4_000, 333], [rate]):
        stream = clearstate.Stream("live", rate, channels, backend="onnx")
        pieces, start, turn = [], 0, 0
        while start < rate:
            pieces.append(stream.process(x[:, start : start + sizes[turn % len(sizes)]]))
            start, turn = start + sizes[turn % len(sizes)], turn + 1
        outputs.append(np.concatenate([*pieces, np.atleast_2d(stream.flush())], axis=1))
        assert outputs[-1].shape[1] == rate + stream.latency_samples
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-5)
    assert np.abs(outputs[0][:, stream.latency_samples :] - x).max() > 0.01  # it does something


def test_separate_writes_voices_that_add_up(tmp_path):
    command("separate", NOISY, "-o", tmp_path)
    voices = [soundfile.read(path)[0] for path in sorted(tmp_path.glob("*.speaker*"))]
    assert len(voices) == 2
    np.testing.assert_allclose(sum(voices), soundfile.read(NOISY)[0], atol=1e-3)


def test_extend_reaches_48_khz(tmp_path):
    target = tmp_path / "wide.wav"
    command("extend", NOISY, "-o", target)
    info = soundfile.info(target)
    assert info.samplerate == 48_000 and abs(info.duration - soundfile.info(NOISY).duration) < 1e-3


def test_models_and_doctor_tell_what_is_ready():
    assert b"live" in command("models")[0]
    report = command("doctor")[0].decode()
    assert "ONNX Runtime" in report and "pip install 'clearstate[torch]'" in report


def test_score_computes_what_has_a_closed_form(tmp_path):
    target = tmp_path / "helicopter_0db.clear.wav"
    command("enhance", NOISY, "-o", target)
    table = command("score", "--clean", CLEAN, "--enhanced", target, "--metrics", "si_sdr")[0].decode()
    assert "si_sdr" in table.lower() or "SI-SDR" in table


def test_plot_draws_or_says_what_is_missing(tmp_path):
    expect = 0 if find_spec("matplotlib") else 1
    _, told = command("plot", NOISY, CLEAN, tmp_path / "both.png", expect=expect)
    assert (tmp_path / "both.png").exists() if expect == 0 else "pip install 'clearstate[" in told


@pytest.mark.parametrize(
    "words",
    [
        ("enhance", NOISY, "-o", "out.wav", "--model", "saf"),
        ("enhance", NOISY, "-o", "out.wav", "--backend", "torch"),
        ("extend", NOISY, "-o", "out.wav", "--model", "mambawave"),
        ("train", "recipes/live.yaml"),
        ("export", "live"),
    ],
)  # fmt: skip
def test_what_needs_torch_says_how_to_get_it_in_one_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, words)], capture_output=True, check=False, text=True
    )
    assert done.returncode in (1, 2)
    last = done.stderr.strip().splitlines()[-1]
    assert "pip install 'clearstate[" in last and "Traceback" not in done.stderr


def test_importing_the_package_loads_no_engine():
    code = "import sys, clearstate; print(sorted({'torch', 'onnxruntime', 'numba', 'numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
