"""clearstate stream: raw samples through a pipe."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest

from clearstate.cli import main
from clearstate.cli.stream import Format, pump


class Trickle(io.BytesIO):
    """A pipe that hands out a few bytes at a time, cutting samples in two."""

    def read1(self, size=-1):
        return super().read(7)


class Late:
    """A stream that gives everything back three samples later."""

    def __init__(self, channels):
        self.held = np.zeros((channels, 3), np.float32)
        self.chunks = []

    def process(self, chunk):
        self.chunks.append(chunk.shape)
        both = np.concatenate([self.held, chunk], 1)
        self.held = both[:, chunk.shape[1] :]
        return both[:, : chunk.shape[1]]

    def flush(self):
        return self.held


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_samples_survive_a_pipe_that_cuts_them_in_two(form, channels):
    dtype = "<i2" if form is Format.s16le else "<f4"
    scale = 32767 if form is Format.s16le else 1
    samples = (scale * np.random.default_rng(0).uniform(-1, 1, (100, channels))).astype(dtype)
    sink = io.BytesIO()
    pump(Late(channels), Trickle(samples.tobytes()), sink, channels, form)
    got = np.frombuffer(sink.getvalue(), dtype).reshape(-1, channels)
    np.testing.assert_array_equal(got, np.concatenate([np.zeros((3, channels), dtype), samples]))


def test_an_input_that_ends_within_a_sample_is_said_and_the_rest_is_kept():
    sink = io.BytesIO()
    with pytest.raises(ValueError, match="after 1 of the 4 bytes of a sample"):
        pump(Late(2), io.BytesIO(b"\1\0" * 20 + b"\1"), sink, 2, Format.s16le)
    assert len(sink.getvalue()) == (10 + 3) * 4


def stream(*args, stdin, model, monkeypatch, capsys):
    """The verb in this process, with bytes for a pipe; gives the exit code, stdout and stderr."""
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit) as leave:
        main(["stream", "--model", str(model), *map(str, args)])
    return leave.value.code or 0, out.buffer.getvalue(), capsys.readouterr().err


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_the_output_is_that_of_a_stream_in_python(tiny, rate, channels, monkeypatch, capsys):
    import clearstate

    noisy = np.random.default_rng(0).normal(0, 0.1, (rate // 2, channels)).astype("<f4")
    args = ("--rate", rate, "--channels", channels, "--format", "f32le")
    code, out, told = stream(*args, stdin=noisy.tobytes(), model=tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, told
    got = np.frombuffer(out, "<f4").reshape(-1, channels)
    here = clearstate.Stream(tiny, rate, channels=channels)
    expected = np.concatenate([here.process(noisy.T.copy()), here.flush()], axis=1)
    [(milliseconds, samples)] = re.findall(r"latency ([\d.]+) ms \((\d+) samples\)", told)
    assert int(samples) == here.latency_samples == len(got) - len(noisy)
    assert float(milliseconds) == pytest.approx(1000 * here.latency_samples / rate, abs=0.06)
    np.testing.assert_allclose(got.T, expected, atol=1e-5)  # chunks fall otherwise: rounding only


def test_an_unknown_model_is_wrong_use(monkeypatch, capsys):
    code, out, told = stream(stdin=b"", model="lvie", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, b"")
    assert "'live'" in told and told.count("\n") == 1


def test_an_input_cut_within_a_sample_is_one_line_after_the_latency(tiny, monkeypatch, capsys):
    code, out, told = stream(stdin=b"\1\0\1", model=tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert len(out) > 2  # the whole samples came through
    assert "--channels" in told and told.count("\n") == 2


@pytest.mark.parametrize("args", [["--format", "mp3"], ["--rate", "0"], ["--channels", "two"]])
def test_wrong_use(args):
    with pytest.raises(SystemExit) as leave:
        main(["stream", *args])
    assert leave.value.code == 2


def test_a_reader_that_leaves_is_no_traceback(tiny):
    code = "import sys; from clearstate.cli import main; main(['stream', '--model', sys.argv[1]])"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    _, told = child.communicate(np.ones(100_000, "<i2").tobytes(), timeout=600)
    assert child.returncode == 1, told
    assert b"Traceback" not in told and b"Exception" not in told
