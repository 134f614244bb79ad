"""Hum: its frequency, its level and its tones, beside speech; and removing it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.audio.dehum import HumRemover
from clearstate.audio.inspection.hum import HumFinder
from clearstate.metrics.intrusive import si_sdr

CLIPS = Path(__file__).resolve().parents[3] / "examples" / "clips"
SPEECH = soundfile.read(CLIPS / "chainsaw_5db.clean.flac")[0]
RATE = 16_000


def hum(hz, harmonics=(1, 2, 3, 4, 5), level_db=-20.0):
    """Tones whose sum is `level_db` below the speech."""
    time = np.arange(len(SPEECH)) / RATE
    x = sum(np.sin(2 * np.pi * hz * k * time + k) / k for k in harmonics)
    return x * np.sqrt(np.mean(SPEECH**2) / np.mean(x**2)) * 10 ** (level_db / 20)


def found(x, rate=RATE, size=7_001):
    finder, x = HumFinder(rate, 1 if x.ndim == 1 else len(x)), np.atleast_2d(x)
    for start in range(0, x.shape[1], size):
        finder.push(x[:, start : start + size])
    finder.push(x[:, :0], last=True)
    return finder.result()


@pytest.mark.parametrize("mains", [50, 60, 49.96, 60.03])
@pytest.mark.parametrize("level", [0, -10, -20])
@pytest.mark.parametrize("harmonics", [(1, 2, 3, 4, 5), (1, 3, 5), (2, 4, 6)])
def test_the_frequency_is_exact_beside_speech(mains, level, harmonics):
    x = hum(mains, harmonics, level)
    result = found(SPEECH + x)
    assert result.hz == round(mains / 10) * 10
    assert result.exact == pytest.approx(mains, abs=0.02)
    assert result.level == pytest.approx(10 * np.log10(np.mean(x**2)), abs=2)
    assert harmonics[0] in result.harmonics


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_any_rate_and_several_channels(rate):
    time = np.arange(3 * rate) / rate
    x = 0.01 * np.random.default_rng(0).standard_normal((2, 3 * rate)) + 0.1 * np.sin(2 * np.pi * 60 * time)
    assert found(x, rate).hz == 60


@pytest.mark.parametrize(
    "x", [SPEECH, 0.1 * np.random.default_rng(0).standard_normal(64_000), np.zeros(64_000), SPEECH[:4_000]]
)
def test_without_hum_none_is_found(x):
    assert found(x) is None


def test_a_steady_tone_elsewhere_is_no_hum():
    assert found(0.1 * np.sin(2 * np.pi * 440 * np.arange(64_000) / RATE)) is None


def removed(x, tones, sizes=(10**6,)):
    remover, out, at, k = HumRemover(RATE, len(x), tones), [], 0, 0
    while at < x.shape[1]:
        size = sizes[k % len(sizes)]
        out.append(remover.push(x[:, at : at + size]))
        at, k = at + size, k + 1
    return np.concatenate([*out, remover.finish()], axis=1)


@pytest.mark.parametrize("mains", [50, 60.02])
def test_removal_leaves_the_speech(mains):
    x = SPEECH + hum(mains, level_db=-5)
    y = removed(x[None], [mains * k for k in range(1, 6)])[0]
    assert si_sdr(SPEECH, y) > si_sdr(SPEECH, x) + 15


def test_removal_hardly_changes_speech_without_hum():
    y = removed(SPEECH[None], [50 * k for k in range(1, 6)])[0]
    assert si_sdr(SPEECH, y) > 40


@pytest.mark.parametrize("sizes", [(1, 777, 5_000), (320,), (32_000,)])
def test_the_result_does_not_depend_on_the_blocks(sizes):
    x = np.stack([SPEECH + hum(50), SPEECH[::-1]])
    np.testing.assert_allclose(removed(x, [50, 100], sizes), removed(x, [50, 100]), atol=1e-12)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 10_000])
def test_the_length_stays(samples):
    assert removed(SPEECH[None, :samples], [50]).shape == (1, samples)


def test_digital_silence_stays_silent():
    x = np.concatenate([SPEECH + hum(50), np.zeros(16_000)])
    assert not removed(x[None], [50, 100, 150])[0, -15_000:].any()
