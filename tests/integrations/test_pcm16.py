"""Bytes in, bytes out: what every framework of voice agents passes."""

import numpy as np
import pytest

import clearstate
from clearstate.integrations.pcm16 import Pcm16Stream
from clearstate.models import PRESETS

pytestmark = pytest.mark.skipif(PRESETS["live"].weights is None, reason="the package holds no weights of 'live'")


def noise(samples, channels=1, seed=0):
    return np.random.default_rng(seed).normal(0, 3_000, (samples, channels)).astype("<i2")


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (24_000, 2), (48_000, 1), (44_100, 2)])
def test_bytes_are_those_of_a_stream_whatever_the_pieces(rate, channels):
    x = noise(rate // 4, channels)
    data, stream, out = x.tobytes(), Pcm16Stream(rate, channels), []
    for start in range(0, len(data), 333):  # cuts samples in two
        out.append(stream.process(data[start : start + 333]))
    got = np.frombuffer(b"".join(out), "<i2").reshape(-1, channels)
    expected = clearstate.Stream("live", rate, channels).process(x.T.astype(np.float32) / 32768).T
    assert len(got) == len(x)
    np.testing.assert_allclose(got, 32768 * expected, atol=1)


def test_streams_share_the_model_and_nothing_else():
    one, two = Pcm16Stream(16_000), Pcm16Stream(16_000)
    assert one.stream.model is two.stream.model
    alone = Pcm16Stream(16_000).process(noise(8_000).tobytes())
    two.process(noise(8_000, seed=1).tobytes())
    assert one.process(noise(8_000).tobytes()) == alone


def test_switched_off_it_returns_the_input_with_the_same_latency():
    stream, x = Pcm16Stream(16_000), noise(8_000)
    stream.enabled = False
    stream.process(b"\0\0" * 160)  # the cross-fade
    late = stream.stream.latency_samples
    out = np.frombuffer(stream.process(x.tobytes()), "<i2")
    np.testing.assert_array_equal(out[late:], x[:-late, 0])
