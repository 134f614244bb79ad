import numpy as np
import pytest
from corpora_in_miniature import voice

from clearstate.data.pitch import median_pitch


def pulses(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    """A buzz with ten harmonics, the higher the weaker."""
    time = np.arange(round(seconds * rate)) / rate
    return sum(np.cos(2 * np.pi * hertz * h * time) / h for h in range(1, 11)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("hertz", [75.0, 110.0, 140.0, 210.0, 280.0, 380.0])
def test_the_pitch_of_a_buzz_to_a_semitone(hertz, rate):
    assert abs(12 * np.log2(median_pitch(pulses(hertz, rate), rate) / hertz)) < 1.0


def test_of_a_voice_that_pauses_only_what_is_voiced_counts():
    x = np.concatenate([pulses(120.0, 16_000), np.zeros(32_000, np.float32)])
    x += 1e-3 * np.random.default_rng(0).standard_normal(len(x)).astype(np.float32)
    assert abs(12 * np.log2(median_pitch(x, 16_000) / 120.0)) < 1.0


def test_noise_silence_and_a_moment_have_none():
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    assert median_pitch(noise, 16_000) is None
    assert median_pitch(np.zeros(16_000, np.float32), 16_000) is None
    assert median_pitch(voice(100, 1.0)[:500], 16_000) is None
