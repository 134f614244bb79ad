"""Raw samples to arrays and back."""

import numpy as np

from clearstate.audio.pcm import decode, encode


def test_integers_are_rounded_and_held_within_their_range():
    loud = np.array([[-2.0, -1.0, 1.4 / 32768, 1.0, 2.0]], np.float32)
    assert np.frombuffer(encode(loud), "<i2").tolist() == [-32768, -32768, 1, 32767, 32767]


def test_every_16_bit_value_comes_back():
    every = np.arange(-32768, 32768).astype("<i2")
    assert encode(decode(every.tobytes(), 1)) == every.tobytes()
