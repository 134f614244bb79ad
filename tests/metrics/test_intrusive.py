"""The closed-form scores against their equations, independent packages and their own edge cases."""

import fast_bss_eval
import numpy as np
import pytest
import scipy.signal
import torch
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_distortion_ratio,
    signal_noise_ratio,
)

from clearstate import metrics

RATE = 16_000


def test_snr_and_si_sdr_agree_with_torchmetrics(pair):
    clean, noisy = pair
    clean = clean + 0.05  # an offset that SI-SDR has to take out and SNR has to keep
    r, d = torch.tensor(clean), torch.tensor(noisy)
    assert metrics.snr(clean, noisy) == pytest.approx(signal_noise_ratio(d, r).item(), abs=1e-6)
    expected = scale_invariant_signal_distortion_ratio(d, r, zero_mean=True).item()
    assert metrics.si_sdr(clean, noisy) == pytest.approx(expected, abs=1e-6)


def test_sdr_agrees_with_fast_bss_eval_and_torchmetrics(pair):
    clean, noisy = pair
    room = np.convolve(noisy, [1.0, 0.0, 0.4, -0.2])[: len(noisy)]
    ours = metrics.sdr(clean, room)
    assert ours == pytest.approx(float(np.squeeze(fast_bss_eval.sdr(clean[None], room[None]))), abs=1e-4)
    assert ours == pytest.approx(signal_distortion_ratio(torch.tensor(room), torch.tensor(clean)).item(), abs=1e-4)


def test_sdr_forgives_a_filter_that_si_sdr_does_not(pair):
    clean, _ = pair
    filtered = np.convolve(clean, [0.5, 0.3, 0.0, -0.4])[: len(clean)]
    assert metrics.sdr(clean, filtered) > 40
    assert metrics.si_sdr(clean, filtered) < 20


@pytest.mark.parametrize("gain", [0.1, 3.0, -1.0])
def test_si_sdr_ignores_the_level_and_snr_does_not(pair, gain):
    clean, noisy = pair
    assert metrics.si_sdr(clean, gain * noisy) == pytest.approx(metrics.si_sdr(clean, noisy), abs=1e-9)
    assert abs(metrics.snr(clean, gain * noisy) - metrics.snr(clean, noisy)) > 1


def test_one_sample_of_delay_costs_si_sdr_decibels(pair):
    clean, _ = pair
    assert metrics.si_sdr(clean, clean) == 100
    assert metrics.si_sdr(clean, np.r_[0.0, clean[:-1]]) < 40


def test_segmental_snr_is_the_clipped_mean_over_frames(pair):
    clean, noisy = pair
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, 481) / 481))
    scores = []
    for start in range(0, 120 * int(len(clean) / 120 - 4), 120):
        r, d = clean[start : start + 480] * window, noisy[start : start + 480] * window
        scores.append(np.clip(10 * np.log10((r @ r) / ((r - d) @ (r - d))), -10, 35))
    assert metrics.segmental_snr(clean, noisy, RATE) == pytest.approx(np.mean(scores), abs=1e-6)


@pytest.mark.parametrize("n_fft, frames", [(2048, 43), (1024, 90)])
def test_lsd_is_what_scipys_transform_gives(n_fft, frames):
    r, d = np.random.default_rng(0).standard_normal((2, 24_000)) * [[0.3], [0.1]]
    transform = scipy.signal.ShortTimeFFT(scipy.signal.get_window("hann", n_fft), hop=n_fft // 4, fs=48_000)
    inside = (transform.lower_border_end[1], transform.upper_border_begin(len(r))[1])  # whole frames of the signal
    whole = slice(inside[0] - transform.p_min, inside[1] - transform.p_min)
    level_r, level_d = (np.log10(np.maximum(np.abs(transform.stft(x)[:, whole]) ** 2, 1e-8)) for x in (r, d))
    assert level_r.shape == (n_fft // 2 + 1, frames)
    expected = np.sqrt(((level_r - level_d) ** 2).mean(0)).mean()
    assert metrics.lsd(r, d, 48_000, n_fft=n_fft) == pytest.approx(expected, rel=1e-9)
    if n_fft == 2048:
        assert metrics.lsd(r, d, 48_000) == metrics.lsd(r, d, 48_000, n_fft=n_fft)


def test_a_gain_of_ten_is_a_log_spectral_distance_of_two():
    signal = np.random.default_rng(0).standard_normal(48_000)
    assert metrics.lsd(signal, 10 * signal, 48_000) == pytest.approx(2.0, abs=1e-6)


def test_the_high_band_part_of_lsd_sees_only_the_high_band():
    time = np.arange(48_000) / 48_000
    noise = np.random.default_rng(0).standard_normal(48_000) * 0.1
    low_tone = noise + 0.5 * np.sin(2 * np.pi * 1000 * time)
    assert metrics.lsd(noise, low_tone, 48_000, above=8000) < 1e-3
    assert metrics.lsd(noise, low_tone, 48_000) > 0.01
    with pytest.raises(ValueError, match="expected less than 24000 Hz"):
        metrics.lsd(noise, low_tone, 48_000, above=24_001)


def test_a_silent_reference_is_undefined_and_a_silent_estimate_is_the_worst(pair):
    clean, _ = pair
    silence = np.zeros_like(clean)
    for score in (metrics.snr, metrics.si_sdr, metrics.sdr):
        assert np.isnan(score(silence, clean))
    assert metrics.si_sdr(clean, silence) == -100
    assert metrics.sdr(clean, silence) == -100
    assert metrics.snr(clean, silence) == 0  # what is missing is the whole signal


@pytest.mark.parametrize(
    ("reference", "estimate", "message"),
    [
        (np.zeros((2, 9)), np.zeros((2, 9)), r"shape \(2, 9\), expected \(samples,\)"),
        (np.zeros(9), np.zeros(8), r"cut both with \[:8\]"),
        (np.zeros(0), np.zeros(0), "empty"),
        (np.ones(3), np.array([1, np.nan, np.inf]), "2 NaN or infinite samples"),
    ],
)
def test_bad_signals_are_refused_with_the_remedy(reference, estimate, message):
    with pytest.raises(ValueError, match=message):
        metrics.si_sdr(reference, estimate)
