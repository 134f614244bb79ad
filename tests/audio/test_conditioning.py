"""What is evened out before a model: the offset and the empty top of the band, and nothing else."""

import numpy as np
import pytest

from clearstate.audio.conditioning import BANDS, Conditioner, cliff, noise_above

HOP, RATE = 256, 16_000


def noise(samples=2 * RATE, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal((1, samples))).astype(np.float32)


def band_limited(x, hz):
    spectrum = np.fft.rfft(x)
    spectrum[:, int(hz / RATE * x.shape[1]) :] = 0
    return np.fft.irfft(spectrum, x.shape[1]).astype(np.float32)


def above(x, hz):
    """RMS above a frequency."""
    return float(np.sqrt(np.mean((x - band_limited(x, hz)) ** 2)))


def test_a_full_band_signal_without_an_offset_is_untouched():
    x = noise()
    heard, fill = Conditioner(1, HOP, RATE).push(x)
    assert not fill.any()
    # The mean of a hop of noise is chance; it counts from 4 % of the power on.
    np.testing.assert_array_equal(heard, x)


@pytest.mark.parametrize("edge", [7_400, 7_600, 7_750])
def test_an_empty_top_is_filled_and_nothing_below_it(edge):
    x = band_limited(noise(), edge)
    heard, fill = Conditioner(1, HOP, RATE).push(x)
    assert above(fill[:, RATE:], 7_850) > 0.002
    assert above(fill[:, RATE:], 7_000) == pytest.approx(np.sqrt(np.mean(fill[:, RATE:] ** 2)), rel=0.02)
    np.testing.assert_array_equal(heard, x + fill)


@pytest.mark.parametrize("edge", [3_400, 5_512, 7_000])
def test_a_narrow_recording_is_left_as_it_is(edge):
    assert not Conditioner(1, HOP, RATE).push(band_limited(noise(), edge)).fill.any()


@pytest.mark.parametrize("level", [1e-4, 1.0])
def test_the_fill_follows_the_level(level):
    x = band_limited(noise(), 7_600)
    one, other = (Conditioner(1, HOP, RATE).push(np.float32(scale) * x).fill for scale in (1.0, level))
    np.testing.assert_allclose(other, level * one, rtol=1e-3, atol=1e-4 * level)


def test_the_fill_stops_with_the_sound():
    x = band_limited(noise(), 7_600)
    x[:, RATE:] = 0
    fill = Conditioner(1, HOP, RATE).push(x).fill
    assert fill[:, :RATE].any()
    assert not fill[:, RATE + 3 * HOP :].any()


def test_silence_stays_silence():
    heard, fill = Conditioner(2, HOP, RATE).push(np.zeros((2, 3_000), dtype=np.float32), last=True)
    assert heard.shape == (2, 3_000) and not heard.any() and not fill.any()


@pytest.mark.parametrize("offset", [0.05, -0.3, 3.0])
def test_an_offset_is_taken_away_from_the_first_hop_on(offset):
    x = noise()
    heard = Conditioner(1, HOP, RATE).push(x + np.float32(offset)).heard
    assert abs(float(heard[:, :HOP].mean())) < 0.02  # of noise of 0.1
    np.testing.assert_allclose(heard[:, RATE // 2 :], x[:, RATE // 2 :], atol=0.02)


def test_an_offset_that_jumps_is_found_again_within_half_a_second():
    x = noise()
    jump = np.where(np.arange(x.shape[1]) < RATE, 0, 0.5).astype(np.float32)
    heard = Conditioner(1, HOP, RATE).push(x + jump).heard
    np.testing.assert_allclose(heard[:, 3 * RATE // 2 :], x[:, 3 * RATE // 2 :], atol=0.03)


def test_a_constant_is_all_offset():
    assert not Conditioner(1, HOP, RATE).push(np.full((1, 4 * HOP), 0.5, dtype=np.float32)).heard.any()


@pytest.mark.parametrize("sizes", [[1, 700, 0, 255], [HOP], [10_000]])
def test_any_chunking_gives_the_same_bits(sizes):
    x = band_limited(noise(), 7_600) + np.float32(0.2)
    whole = Conditioner(1, HOP, RATE).push(x, last=True)
    conditioner, parts, start, turn = Conditioner(1, HOP, RATE), [], 0, 0
    while start < x.shape[1]:
        parts.append(conditioner.push(x[:, start : start + sizes[turn % len(sizes)]]))
        start, turn = start + sizes[turn % len(sizes)], turn + 1
    parts.append(conditioner.push(x[:, :0], last=True))
    for together, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(together, np.concatenate(pieces, axis=1))


@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0])
def test_what_a_model_does_to_the_fill_is_taken_out_again(gain):
    """A model with one gain: the change that is left above the cliff is that of the signal, which has nothing there."""
    x = band_limited(noise(), 7_600)
    conditioner = Conditioner(1, HOP, RATE)
    heard, fill = conditioner.push(x)
    enhanced = np.float32(gain) * heard
    whole = heard.shape[1]
    change = enhanced - conditioner.without_fill(heard, fill, enhanced)
    leak = above(change[:, RATE:whole], 7_800)
    assert leak < 0.05 * above(fill[:, RATE:whole], 7_800)
    plain = above((enhanced - heard)[:, RATE:whole], 7_800)
    assert gain == 1 or plain > 0.5 * above(fill[:, RATE:whole], 7_800)  # without it, it would leak


def test_where_a_spectrum_ends():
    power = np.ones(BANDS)
    assert cliff(power) == (0.0, BANDS)
    power[61:] = 1e-6
    assert cliff(power) == (1.0, 61)
    slope = 10 ** (-np.linspace(0, 4, BANDS))  # 40 dB over the band, without a cliff
    assert cliff(slope)[0] == 0


def test_the_noise_is_white_above_its_band_and_always_the_same():
    np.testing.assert_array_equal(noise_above(60), noise_above(60))
    assert above(noise_above(60)[None], 7_500) == pytest.approx(np.sqrt(4 / BANDS), rel=0.1)
