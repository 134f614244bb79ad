"""Clipped peaks are restored, and everything else stays bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.audio.declip import TOLERANCE, Declipper
from clearstate.metrics.intrusive import si_sdr

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
SPEECH = soundfile.read(CLIPS / "helicopter_0db.clean.flac")[0][:32_000]
RATE = 16_000


def restored(x, positive, negative, sizes=(10**6,), rate=RATE):
    declipper, out, at, k = Declipper(rate, len(x), positive, negative), [], 0, 0
    while at < x.shape[1]:
        size = sizes[k % len(sizes)]
        out.append(declipper.push(x[:, at : at + size]))
        at, k = at + size, k + 1
    return np.concatenate([*out, declipper.finish()], axis=1)


@pytest.mark.parametrize("share, gain", [(0.002, 8), (0.01, 7), (0.05, 5)])
def test_peaks_come_back(share, gain):
    level = np.quantile(np.abs(SPEECH), 1 - share)
    x = np.clip(SPEECH, -level, level)
    y = restored(x[None], level, level)[0]
    assert si_sdr(SPEECH, y) > si_sdr(SPEECH, x) + gain  # dB


def test_other_samples_stay_and_peaks_only_grow():
    level = np.quantile(np.abs(SPEECH), 0.98)
    x = np.clip(SPEECH, -level, level)
    y = restored(x[None], level, level)[0]
    cut = np.abs(x) >= level - TOLERANCE
    np.testing.assert_array_equal(y[~cut], x[~cut])
    assert (np.abs(y[cut]) >= level - 2e-3).all() and (np.sign(y[cut]) == np.sign(x[cut])).all()


@pytest.mark.parametrize("positive, negative", [(0.2, None), (None, 0.2), (None, None)])
def test_a_polarity_that_is_not_cut_stays(positive, negative):
    x = np.clip(SPEECH, -(negative or 1), positive or 1)
    y = restored(x[None], positive, negative)[0]
    if positive is None:
        np.testing.assert_array_equal(y[x > 0], x[x > 0])
    if negative is None:
        np.testing.assert_array_equal(y[x < 0], x[x < 0])


@pytest.mark.parametrize("sizes", [(1, 777, 5_000), (128,), (16_000,)])
def test_the_result_does_not_depend_on_the_blocks(sizes):
    x = np.clip(np.stack([SPEECH, SPEECH[::-1]]), -0.2, 0.2)[:, :12_000]
    np.testing.assert_array_equal(restored(x, 0.2, 0.2, sizes), restored(x, 0.2, 0.2))


@pytest.mark.parametrize("samples", [1, 128, 511, 512, 513])
def test_the_length_stays(samples):
    assert restored(SPEECH[None, :samples], 0.1, 0.1).shape == (1, samples)
