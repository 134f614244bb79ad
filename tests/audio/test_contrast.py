"""Perceptual contrast stretching: the published gains, and what each makeup promises."""

import numpy as np
import pytest

from clearstate.audio.contrast import ContrastStretcher, gains, stretch_contrast

# As published, to the nine digits printed there: (first bin, last bin + 1, gain).
PUBLISHED = {
    400: [
        (0, 3, 1.0), (3, 5, 1.070175439), (5, 8, 1.182456140), (8, 10, 1.287719298), (10, 110, 1.4),
        (110, 130, 1.322807018), (130, 160, 1.238596491), (160, 190, 1.161403509), (190, 201, 1.077192982),
    ],
    512: [
        (0, 3, 1.0), (3, 6, 1.070175439), (6, 9, 1.182456140), (9, 12, 1.287719298), (12, 138, 1.4),
        (138, 166, 1.322807018), (166, 200, 1.238596491), (200, 241, 1.161403509), (241, 256, 1.077192982),
        (256, 257, 1.0),
    ],
}  # fmt: skip


def speechlike(samples: int = 16_000, level: float = 0.1) -> np.ndarray:
    time = np.arange(samples, dtype=np.float32) / 16_000
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 40))
    return level * voice * (1.2 + np.sin(2 * np.pi * 3 * time))


@pytest.mark.parametrize("n_fft", [400, 512])
def test_gains_are_the_published_ones(n_fft):
    expected = np.ones(n_fft // 2 + 1)
    for first, end, gain in PUBLISHED[n_fft]:
        expected[first:end] = gain
    np.testing.assert_allclose(gains(n_fft), expected, atol=6e-10, rtol=0)  # they print nine digits


def test_an_n_fft_without_published_bands_is_an_error():
    with pytest.raises(ValueError, match="400 or 512"):
        gains(256)


@pytest.mark.parametrize("makeup", ["rms", "peak", "none"])
def test_silence_stays_silent_and_lengths_are_kept(makeup):
    for samples in (1, 99, 200, 401, 4_321):
        assert not stretch_contrast(np.zeros((2, samples), np.float32), makeup).any()
        y = stretch_contrast(speechlike(samples), makeup)
        assert y.shape == (samples,) and np.isfinite(y).all()


def test_rms_makeup_keeps_the_level_and_scales_with_the_input():
    x = speechlike()
    y = stretch_contrast(x)
    assert np.sqrt(np.square(y).mean()) == pytest.approx(np.sqrt(np.square(x).mean()), rel=1e-5)
    np.testing.assert_allclose(stretch_contrast(x * np.float32(1e-3)), y * 1e-3, atol=1e-8, rtol=1e-4)
    # The map itself does not scale: without makeup a quiet signal is changed less than a loud one.
    loud, quiet = (stretch_contrast(level * x, "none") / level for level in (1.0, 1e-3))
    assert np.abs(loud - x).max() > 1.5 * np.abs(quiet - x).max()


def test_items_of_a_batch_have_their_own_makeup():
    x = np.stack([speechlike(level=0.3), speechlike(level=0.001), np.zeros(16_000, np.float32)])
    for makeup in ("rms", "peak"):
        for item, y in zip(x, stretch_contrast(x, makeup), strict=True):
            np.testing.assert_allclose(stretch_contrast(item, makeup), y, atol=1e-7, rtol=1e-5)


def test_peak_makeup_peaks_at_one():
    assert np.abs(stretch_contrast(speechlike(level=0.02), "peak")).max() == pytest.approx(1.0)


def test_it_is_the_published_program():
    """Against the published procedure in NumPy, frame by frame: padding, Hamming window, inverse, peak."""
    x = speechlike(2_750).astype(np.float64)
    n_fft, hop = 400, 100
    window = np.hamming(n_fft)  # symmetric
    padded = np.pad(x, (n_fft // 2, n_fft // 2 + n_fft // 2))
    frames = 1 + (len(padded) - n_fft) // hop
    out, weight = np.zeros(len(padded)), np.zeros(len(padded))
    g = gains(n_fft)
    for k in range(frames):
        at = slice(k * hop, k * hop + n_fft)
        spectrum = np.fft.rfft(padded[at] * window)
        magnitude = np.exp(g * np.log1p(np.abs(spectrum))) - 1
        out[at] += window * np.fft.irfft(magnitude * np.exp(1j * np.angle(spectrum)), n=n_fft)
        weight[at] += window**2
    expected = (out / np.maximum(weight, 1e-12))[n_fft // 2 :][: len(x)]
    y = stretch_contrast(x, "none")
    np.testing.assert_allclose(y, expected, atol=1e-10)
    np.testing.assert_allclose(stretch_contrast(x, "peak"), y / np.abs(y).max(), atol=1e-12)


def test_low_and_high_bins_are_left_alone_and_the_middle_gains():
    time = np.arange(16_000) / 16_000
    tone = {f: 0.3 * np.sin(2 * np.pi * f * time) for f in (20.0, 1_000.0, 7_900.0)}
    change = {f: np.square(stretch_contrast(x, "none")).mean() / np.square(x).mean() for f, x in tone.items()}
    assert change[1_000.0] > 4 * change[7_900.0] > 4
    assert change[20.0] < 1.5  # its side lobes reach the bands that gain


def test_an_unknown_makeup_is_an_error():
    with pytest.raises(ValueError, match="expected 'rms', 'peak' or 'none'"):
        stretch_contrast(np.zeros(10), "loud")


@pytest.mark.parametrize(("grid", "delay"), [(256, 256), (800, 300)])
def test_bit_by_bit_it_is_the_stretching_of_the_whole_but_for_the_level(grid, delay):
    x = speechlike(64_000)  # steady: the running level is soon that of the whole
    stretcher = ContrastStretcher(1, 16_000, grid)
    assert stretcher.delay == delay and grid % stretcher.hop == 0
    pair = np.stack([x[None], x[None]])
    out = np.concatenate([stretcher.push(pair), stretcher.finish()], axis=2)[:, 0, delay : delay + len(x)]
    np.testing.assert_array_equal(out[0], x)  # the first row is only delayed
    whole = stretch_contrast(x, n_fft=400 if grid == 800 else 512)
    error = out[1, 16_000:48_000] - whole[16_000:48_000]
    assert np.sqrt(np.mean(error**2) / np.mean(whole**2)) < 0.03
    assert np.sqrt(np.mean((x - whole) ** 2) / np.mean(whole**2)) > 0.1  # there is something to see


def test_chunks_silence_and_scale_change_nothing_bit_by_bit():
    x = speechlike(20_000)
    x[5_000:9_000] = 0
    pair = np.stack([x[None], x[None]]).repeat(2, axis=1)  # two channels

    def in_chunks(pair, size):
        stretcher = ContrastStretcher(2, 16_000, 256)
        parts = [stretcher.push(pair[:, :, i : i + size]) for i in range(0, pair.shape[2], size)]
        return np.concatenate([*parts, stretcher.finish()], axis=2)

    whole = in_chunks(pair, 20_000)
    np.testing.assert_allclose(in_chunks(pair, 77), whole, atol=1e-7)
    np.testing.assert_allclose(in_chunks(0.01 * pair, 20_000), 0.01 * whole, atol=1e-6)
    assert not whole[1, :, 5_000 + 512 + 256 : 9_000 - 512 + 256].any()  # but for what shares a frame with sound


def test_rates_and_grids_without_bands_are_errors():
    with pytest.raises(ValueError, match="16000 Hz; this one works at 8000 Hz"):
        ContrastStretcher(1, 8_000, 100)
    with pytest.raises(ValueError, match="this model's is 90"):
        ContrastStretcher(1, 16_000, 90)
