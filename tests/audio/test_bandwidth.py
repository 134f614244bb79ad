"""The measured bandwidth: right for every rate a signal may have been at, and silent about signals that are whole."""

import numpy as np
import pytest
import soxr
from scipy import signal

from clearstate.audio.bandwidth import HOP, N_FFT, bandwidth, power_spectrum, upper_edge

WIDE = 48_000


def speechlike(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Noise whose spectrum falls by 60 dB to 24 kHz, in syllables, float32."""
    rng = np.random.default_rng(seed)
    n = int(seconds * WIDE)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    f = np.fft.rfftfreq(n, 1 / WIDE)
    x = np.fft.irfft(spectrum * 10 ** (-60 / 20 * f / 24_000), n)
    return (0.1 * x / x.std() * (1 + np.sin(2 * np.pi * 4 * np.arange(n) / WIDE))).astype(np.float32)


def measured(x: np.ndarray, rate: int = WIDE) -> float:
    return bandwidth(x[None], rate).item()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000])
@pytest.mark.parametrize("bits", [16, None])
def test_a_signal_that_was_at_a_lower_rate_shows_it(rate, bits):
    x = soxr.resample(soxr.resample(speechlike(), WIDE, rate), rate, WIDE)
    if bits:
        x = np.round(x * 2**15) / np.float32(2**15)
    assert 0.88 * rate / 2 < measured(x) <= rate / 2  # soxr's filter begins at 0.91


def test_a_falling_spectrum_is_no_edge():
    assert measured(speechlike()) == WIDE / 2


@pytest.mark.parametrize("order, cutoff", [(16, 3_400), (16, 8_000)])
def test_a_gentle_filter_that_no_voice_has_is_an_edge(order, cutoff):
    """Of 96 dB an octave: no cliff, but a slope. The edge is found within half an octave, also in 16 bits."""
    x = signal.sosfilt(signal.butter(order, cutoff, fs=WIDE, output="sos"), speechlike()).astype(np.float32)
    assert 0.85 * cutoff < measured(x) < 1.5 * cutoff
    assert measured(x, 2) * WIDE / 2 == pytest.approx(measured(x))
    recorded = np.round(x * 2**15 + np.random.default_rng(0).uniform(-0.5, 0.5, len(x))).astype(np.float32) / 2**15
    assert 0.85 * cutoff < measured(recorded) < 1.5 * cutoff
    gentle = signal.sosfilt(signal.butter(2, cutoff, fs=WIDE, output="sos"), speechlike()).astype(np.float32)
    assert measured(gentle) == WIDE / 2  # 12 dB an octave, as a tone control has


@pytest.mark.parametrize("x", [np.zeros(WIDE, np.float32), np.zeros(1, np.float32), np.full(5, 0.1, np.float32)])
def test_of_nothing_nothing_is_said(x):
    assert measured(x) == WIDE / 2


def test_it_does_not_depend_on_the_level():
    x = soxr.resample(soxr.resample(speechlike(), WIDE, 16_000), 16_000, WIDE)
    assert measured(x * 1e-6) == pytest.approx(measured(x), abs=50)


def test_it_scales_with_the_rate():
    x = soxr.resample(soxr.resample(speechlike(), WIDE, 16_000), 16_000, WIDE)
    assert measured(x, 2) * WIDE / 2 == pytest.approx(measured(x))


def test_parts_of_a_signal_add_up():
    x = speechlike(1.0)[None, : N_FFT + 9 * HOP]
    first, second = x[:, : N_FFT + 4 * HOP], x[:, 5 * HOP :]
    np.testing.assert_allclose(power_spectrum(first) + power_spectrum(second), power_spectrum(x), rtol=1e-4)


def test_items_of_a_batch_are_measured_apart():
    power = np.ones((2, 1025))
    power[1, 500:] = 1e-8
    whole, cut = upper_edge(power, WIDE).tolist()
    assert whole == 24_000 and cut == pytest.approx(500 * 24_000 / 1024, abs=400)  # it errs to the safe side
