"""Noise, speech, pauses, rooms, music and bandwidth, on material with a known answer."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from clearstate.audio.inspection.measure import EXCERPTS, Excerpts, measure

CLIPS = Path(__file__).resolve().parents[3] / "examples" / "clips"
SPEECH = [soundfile.read(path)[0] for path in sorted(CLIPS.glob("*.clean.flac"))]
RATE = 16_000


def measured(x, rate=RATE, size=9_001):
    x = np.atleast_2d(x)
    return measure((x[:, start : start + size] for start in range(0, x.shape[1], size)), rate, len(x))


def noise(samples, colour="white", seed=0):
    x = np.random.default_rng(seed).standard_normal(samples)
    if colour == "pink":
        spectrum = np.fft.rfft(x)
        x = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 100)), samples)
    return x / np.sqrt(np.mean(x**2))


def with_noise(speech, snr, colour="white"):
    return speech + noise(len(speech), colour) * np.sqrt(np.mean(speech**2) * 10 ** (-snr / 10))


@pytest.mark.parametrize("clip", range(len(SPEECH)))
@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("snr", [0, 5, 10, 15, 20, 25, 30])
def test_the_ratio_to_steady_noise_is_right_within_3_db(clip, colour, snr):
    assert measured(with_noise(SPEECH[clip], snr, colour)).speech.snr == pytest.approx(snr, abs=3)


@pytest.mark.parametrize("level", [-30, -45, -60])
def test_the_noise_floor_is_the_level_of_the_noise(level):
    x = SPEECH[0] + noise(len(SPEECH[0])) * 10 ** (level / 20)
    assert measured(x).speech.noise_floor == pytest.approx(level, abs=2)


@pytest.mark.parametrize("floor", [0, 1e-4, 3e-3])
def test_pauses_are_silence_and_speech_is_speech(floor):
    """As much silence as speech, and the speech has pauses of its own."""
    pause = np.zeros(5 * RATE)
    x = np.concatenate([SPEECH[2], pause, SPEECH[2], pause])
    result = measured(x + floor * noise(len(x))).speech
    inside = measured(SPEECH[2] + floor * noise(len(SPEECH[2]))).speech.speech
    assert result.speech == pytest.approx(inside / 2, abs=0.08)
    assert result.speech + result.silence == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("x", [0.1 * noise(80_000), 0.1 * noise(80_000, "pink"), np.zeros(80_000)])
def test_noise_and_silence_hold_no_speech(x):
    result = measured(x).speech
    assert result.speech == 0 and result.music == 0


def music(seconds=6, seed=0):
    """Chords with decaying notes."""
    rng, x, time = np.random.default_rng(seed), np.zeros(seconds * RATE), np.arange(RATE) / RATE
    for start in np.arange(0, seconds - 1, 0.4):
        root = 220 * 2 ** (rng.integers(-12, 5) / 12)
        for interval in (0, 4, 7):
            tones = sum(np.sin(2 * np.pi * root * 2 ** (interval / 12) * k * time) / k for k in range(1, 8))
            x[round(start * RATE) :][:RATE] += tones * np.exp(-3 * time) * np.minimum(1, 100 * time)
    return 0.1 * x


@pytest.mark.parametrize("seed", range(3))
def test_chords_are_music_and_not_speech(seed):
    result = measured(music(seed=seed)).speech
    assert result.music == 1 and result.speech == 0


@pytest.mark.parametrize("clip", range(len(SPEECH)))
def test_speech_is_not_music(clip):
    assert measured(SPEECH[clip]).speech.music == 0


def in_a_room(x, seconds, seed=0):
    """Decaying noise, as in a room with this reverberation time, 3 dB above the direct sound."""
    time = np.arange(round(1.2 * seconds * RATE)) / RATE
    tail = np.random.default_rng(seed).standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    tail *= 10 ** (3 / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1
    return np.fft.irfft(np.fft.rfft(x, 2 * len(x)) * np.fft.rfft(tail, 2 * len(x)))[: len(x)]


@pytest.mark.parametrize("seconds, least, most", [(0.5, 0.35, 0.7), (0.8, 0.6, 1.1), (1.2, 0.9, 1.2)])
def test_the_reverberation_time_is_about_right(seconds, least, most):
    x = np.concatenate([in_a_room(clip / np.abs(clip).max(), seconds) for clip in SPEECH])
    assert least <= measured(x).speech.reverberation <= most


def test_a_dry_voice_has_little():
    assert measured(np.concatenate([x / np.abs(x).max() for x in SPEECH])).speech.reverberation < 0.3


# ---------------------------------------------------------------------------------------------------------- bandwidth


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("edge", [3_400, 4_000, 5_500, 7_000, 8_000, 11_025, 12_000, 16_000, 20_000])
@pytest.mark.parametrize("floor", [0, 1e-5])
def test_the_bandwidth_is_right_within_5_percent(rate, edge, floor):
    if edge > 0.45 * rate:
        pytest.skip("nothing is missing")
    x = 0.1 * noise(2 * rate)
    spectrum = np.fft.rfft(x)
    spectrum[round(edge * len(x) / rate) :] = 0
    x = np.fft.irfft(spectrum, len(x)) + floor * noise(len(x), seed=1)
    assert measured(x, rate).bandwidth == pytest.approx(edge, rel=0.05)


@pytest.mark.parametrize("clip", range(len(SPEECH)))
@pytest.mark.parametrize("narrow", [8_000, 12_000])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_resampled_speech_ends_at_the_old_rate(clip, narrow, rate):
    x = soxr.resample(soxr.resample(SPEECH[clip], RATE, narrow), narrow, rate)
    assert measured(x, rate).bandwidth == pytest.approx(narrow / 2, rel=0.05)


@pytest.mark.parametrize("clip", range(len(SPEECH)))
def test_speech_that_lacks_nothing_has_the_whole_band(clip):
    assert measured(SPEECH[clip]).bandwidth == RATE / 2


# ----------------------------------------------------------------------------------------------------------- excerpts


@pytest.mark.parametrize("seconds", [0.1, 4, 63, 69, 1_000])
def test_excerpts_are_all_of_a_short_signal_and_bounded_for_a_long_one(seconds):
    rate = 100
    x = np.arange(round(seconds * rate), dtype=float)[None]
    excerpts = Excerpts(rate, 1)
    for start in range(0, x.shape[1], 333):
        excerpts.push(x[:, start : start + 333])
    parts = excerpts.result()
    if seconds < 64:
        np.testing.assert_array_equal(np.concatenate(parts), x[0])
    else:
        assert EXCERPTS <= len(parts) <= 2 * EXCERPTS
        assert all((np.diff(part) == 1).all() for part in parts)


@pytest.mark.parametrize("samples", [1, 10, 320, 1_000])
@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 192_000])
def test_any_length_and_rate_is_measured(samples, rate):
    result = measured(0.1 * noise(samples), rate)
    assert result.samples == samples and np.isfinite(result.lufs)


def test_the_result_does_not_depend_on_the_blocks():
    x = np.stack([SPEECH[0], 0.5 * SPEECH[0]])
    first, second = measured(x, size=123), measured(x, size=10**6)
    assert first.speech == pytest.approx(second.speech, rel=1e-3)
    assert (first.lufs, first.true_peak) == pytest.approx((second.lufs, second.true_peak), rel=1e-6)
    np.testing.assert_allclose(first.spectrogram, second.spectrogram, atol=0.01)
