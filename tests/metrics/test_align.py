"""The delay that PESQ does not see."""

import numpy as np
import pytest

from clearstate import metrics
from clearstate.metrics.align import delay

RATE = 16_000


@pytest.mark.parametrize("samples", [-320, -1, 1, 4, 37, 4000])
def test_a_delay_is_found_to_the_sample(pair, samples):
    clean, noisy = pair
    shifted = np.roll(noisy, samples)
    found = delay(clean, shifted)
    assert found.samples == samples
    assert found.aligned == pytest.approx(metrics.si_sdr(clean, noisy), abs=0.5)  # the shifted part is cut off


def test_one_late_sample_costs_si_sdr_and_leaves_pesq(make_pair):
    clean, noisy = make_pair(seconds=3, snr_db=25)
    late = np.r_[0.0, noisy[:-1]]
    assert metrics.si_sdr(clean, late) < metrics.si_sdr(clean, noisy) - 2
    assert abs(metrics.pesq_wb(clean, late, RATE) - metrics.pesq_wb(clean, noisy, RATE)) < 0.02


def test_noise_alone_is_not_a_delay(make_pair):
    for seed in range(5):
        clean, noisy = make_pair(seconds=1, snr_db=-5, seed=seed)
        assert delay(clean, noisy).samples == 0


def test_silence_has_no_delay(pair):
    clean, _ = pair
    assert delay(clean, np.zeros_like(clean)).samples == 0
    assert delay(np.zeros_like(clean), clean).samples == 0
