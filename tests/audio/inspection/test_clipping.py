"""Clipping: its share and its level, and what looks like it but is not."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.audio.inspection.clipping import Clips

CLIPS = Path(__file__).resolve().parents[3] / "examples" / "clips"
SPEECH = [soundfile.read(path)[0] for path in sorted(CLIPS.glob("*.clean.flac"))]


def found(x, size=8_009):
    clips = Clips(1 if x.ndim == 1 else len(x))
    x = np.atleast_2d(x)
    for start in range(0, x.shape[1], size):
        clips.push(x[:, start : start + size])
    return clips.result()


def in_16_bits(x):
    return np.round(x * 32_767) / 32_768


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1])
@pytest.mark.parametrize("level", [1.0, 0.3, 0.06])
@pytest.mark.parametrize("clip", range(len(SPEECH)))
def test_the_share_is_right_within_a_factor_of_one_and_a_half(clip, share, level):
    x = SPEECH[clip] / np.quantile(np.abs(SPEECH[clip]), 1 - share)
    result = found(in_16_bits(np.clip(x, -1, 1) * level))
    true = np.mean(np.abs(x) >= 1)
    assert true / 1.5 <= result.share <= true * 1.5
    assert max(filter(None, result[2:])) == pytest.approx(level, rel=0.01)


@pytest.mark.parametrize("offset", [0.1, -0.2])
def test_with_an_offset_both_levels_are_found(offset):
    level = np.quantile(np.abs(SPEECH[2]), 0.95)
    x = np.clip(SPEECH[2] / level, -1, 1) * 0.5 + offset
    result = found(in_16_bits(x))
    assert (result.positive, -result.negative) == pytest.approx((0.5 + offset, -0.5 + offset), abs=0.002)


def test_one_polarity_alone_can_be_clipped():
    x = SPEECH[0] / np.abs(SPEECH[0]).max()
    result = found(in_16_bits(np.minimum(x, 0.3)))
    assert result.positive == pytest.approx(0.3, abs=0.002) and result.negative is None


@pytest.mark.parametrize(
    "x",
    [
        *SPEECH,
        *(np.round(x * 127) / 128 for x in SPEECH),  # 8 bits
        0.999 * np.sin(2 * np.pi * 50 * np.arange(32_000) / 16_000),
        in_16_bits(0.999 * np.sin(2 * np.pi * 20 * np.arange(96_000) / 48_000)),  # many equal samples at its peaks
        0.1 * np.random.default_rng(0).standard_normal(48_000),
        SPEECH[2] * 0.7 + 0.1,  # its pauses are flat
        SPEECH[1] * 0.7 - 0.05,
        np.zeros(16_000),
        np.full(16_000, 0.5),
    ],
)
def test_what_is_not_clipped_is_not_found(x):
    assert found(x).share == 0


def test_the_result_hardly_depends_on_the_blocks():
    x = in_16_bits(np.clip(SPEECH[0] / np.quantile(np.abs(SPEECH[0]), 0.98), -1, 1))
    assert found(x, 400).share == pytest.approx(found(x, 10**6).share, rel=0.05)
