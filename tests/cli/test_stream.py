"""clearstate stream: raw samples through a pipe."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from clearstate.cli.stream import Format, decode, encode, pump


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
    with pytest.raises(ValueError, match="ended 1 bytes into a sample of 4"):
        pump(Late(2), io.BytesIO(b"\1\0" * 20 + b"\1"), sink, 2, Format.s16le)
    assert len(sink.getvalue()) == (10 + 3) * 4


def test_integers_are_rounded_and_held_within_their_range():
    loud = np.array([[-2.0, -1.0, 1.4 / 32768, 1.0, 2.0]], np.float32)
    assert np.frombuffer(encode(loud, Format.s16le), "<i2").tolist() == [-32768, -32768, 1, 32767, 32767]


def test_every_16_bit_value_comes_back():
    every = np.arange(-32768, 32768).astype("<i2")
    assert encode(decode(every.tobytes(), 1, Format.s16le), Format.s16le) == every.tobytes()


def stream(*args, data, model):
    code = "import sys; from clearstate.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "stream", "--model", str(model), *map(str, args)]
    return subprocess.run(
        command, input=data, capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_the_output_is_that_of_a_stream_in_python(tiny, rate, channels):
    import clearstate

    noisy = np.random.default_rng(0).normal(0, 0.1, (rate // 2, channels)).astype("<f4")
    args = ("--rate", rate, "--channels", channels, "--format", "f32le")
    result = stream(*args, data=noisy.tobytes(), model=tiny)
    assert result.returncode == 0, result.stderr
    got = np.frombuffer(result.stdout, "<f4").reshape(-1, channels)
    here = clearstate.Stream(tiny, rate, channels=channels)
    expected = np.concatenate([here.process(noisy.T.copy()), here.flush()], axis=1)
    told = re.search(rb"latency ([\d.]+) ms \((\d+) samples\)", result.stderr)
    assert int(told[2]) == here.latency_samples == len(got) - len(noisy)
    assert float(told[1]) == pytest.approx(1000 * here.latency_samples / rate, abs=0.06)
    np.testing.assert_allclose(got.T, expected, atol=1e-5)  # chunks fall otherwise: rounding only


def test_wrong_use(tiny):
    assert stream("--format", "mp3", data=b"", model=tiny).returncode == 2
    assert stream("--rate", "0", data=b"", model=tiny).returncode == 2
    unknown = stream(data=b"", model="lvie")
    assert unknown.returncode == 2
    assert b"'live'" in unknown.stderr and unknown.stderr.count(b"\n") == 1
    cut = stream(data=b"\1\0\1", model=tiny)
    assert cut.returncode == 1
    assert b"--channels" in cut.stderr and b"Traceback" not in cut.stderr


def test_a_reader_that_leaves_is_no_traceback(tiny):
    code = "import sys; from clearstate.cli import main; main(['stream', '--model', sys.argv[1]])"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    _, told = child.communicate(np.ones(100_000, "<i2").tobytes(), timeout=60)
    assert child.returncode == 1
    assert b"Traceback" not in told and b"Exception" not in told
