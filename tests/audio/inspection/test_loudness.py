"""Loudness and true peak against the test signals of EBU Tech 3341, in short."""

import numpy as np
import pytest

from clearstate.audio.inspection.loudness import Loudness, TruePeak, k_filter


def sine(levels_dbfs, seconds, rate=48_000, hz=1_000):
    """Equal channels with one level after the other."""
    parts = [
        10 ** (db / 20) * np.sin(2 * np.pi * hz * np.arange(round(s * rate)) / rate)
        for db, s in zip(levels_dbfs, seconds, strict=True)
    ]
    return np.stack([np.concatenate(parts)] * 2)


def integrated(x, rate=48_000, size=10_007):
    meter = Loudness(rate, len(x))
    for start in range(0, x.shape[1], size):
        meter.push(x[:, start : start + size])
    return meter.integrated()


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("level", [-23, -33])
def test_a_stereo_sine_has_its_level_in_lufs(rate, level):
    assert integrated(sine([level], [2], rate), rate) == pytest.approx(level, abs=0.1)


@pytest.mark.parametrize(
    "levels, seconds",
    [
        ([-36, -23, -36], [3, 12, 3]),  # case 3: the quiet parts are below the relative gate
        ([-72, -36, -23, -36, -72], [3, 3, 12, 3, 3]),  # case 4: and below the absolute one
        ([-26, -20, -26], [6, 6.03, 6]),  # case 5: all parts are above the gates
    ],
)
def test_the_gates_leave_out_quiet_parts(levels, seconds):
    assert integrated(sine(levels, seconds)) == pytest.approx(-23, abs=0.15)  # the ends weigh more than in 60 s


def test_without_gates_the_quiet_parts_would_count():
    x = sine([-36, -23, -36], [3, 12, 3])
    meter = Loudness(48_000, 2)
    meter.push(x)
    assert -0.691 + 10 * np.log10(meter.windows().mean()) < -24


def test_surround_channels_weigh_more_and_the_fourth_of_six_not_at_all():
    tone = sine([0], [2])[0]
    levels = np.array([-28.0, -28, -24, 0, -30, -30])  # case 6, and a subwoofer
    assert integrated(10 ** (levels / 20)[:, None] * tone) == pytest.approx(-23, abs=0.1)


def test_the_filter_at_48_khz_is_the_one_in_the_standard():
    z = np.exp(-2j * np.pi * np.arange(513) / 1024)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    high = (1 - z) ** 2 / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    np.testing.assert_allclose(k_filter(48_000, 1024), shelf * high, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.01, 0.3, 0.4, 0.75])
def test_a_short_signal_has_a_loudness(seconds):
    assert integrated(sine([-23], [seconds])) == pytest.approx(-23, abs=1.0)


def test_silence_has_none():
    assert integrated(np.zeros((1, 48_000))) == -np.inf


def true_peak(x, size=4_801):
    meter = TruePeak(len(x))
    for start in range(0, x.shape[1], size):
        meter.push(x[:, start : start + size])
    return 20 * np.log10(meter.true_peak), 20 * np.log10(meter.peak)


@pytest.mark.parametrize("divisor, degrees", [(4, 0), (4, 45), (6, 60), (8, 67.5)])
def test_the_true_peak_of_a_sine_is_its_amplitude(divisor, degrees):
    """Cases 15 to 19: 0.2 dB above to 0.4 dB below are allowed."""
    x = 0.5 * np.sin(2 * np.pi * np.arange(48_000) / divisor + np.radians(degrees))
    x *= np.minimum(1, np.minimum(np.arange(48_000), np.arange(48_000)[::-1]) / 4_800)
    assert -6.42 <= true_peak(x[None])[0] <= -5.82


def test_the_peak_of_the_samples_alone_would_miss_three_decibels():
    x = 0.5 * np.sin(2 * np.pi * np.arange(48_000) / 4 + np.radians(45))
    assert true_peak(x[None])[1] == pytest.approx(-9.03, abs=0.01)
