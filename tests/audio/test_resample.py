"""Resampling in chunks: against tones, against soxr, bit for bit whatever the chunks, with no shift in time."""

import weakref

import numpy as np
import pytest
import soxr

from clearstate.audio import resample as resample_module
from clearstate.audio.resample import STOP_BAND_DB, Resampler, filter_table, polyphase, resample

RATES = [(48_000, 16_000), (16_000, 48_000), (44_100, 16_000), (16_000, 44_100), (8_000, 16_000), (44_099, 16_000)]


def noise(channels: int, samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((channels, samples)).astype(np.float32)


def in_chunks(resampler: Resampler, x: np.ndarray, sizes: list[int]) -> np.ndarray:
    out, start, turn = [], 0, 0
    while start < x.shape[1]:
        size = sizes[turn % len(sizes)]
        out.append(resampler.push(x[:, start : start + size]))
        start, turn = start + size, turn + 1
    return np.concatenate([*out, resampler.flush()], axis=1)


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_any_chunking_gives_the_same_bits_and_the_exact_length(rate_in, rate_out):
    x = noise(2, rate_in // 2 + 7)
    whole = resample(x, rate_in, rate_out)
    assert whole.shape == (2, -(-x.shape[1] * rate_out // rate_in))
    for sizes in ([441], [1, 0, 5_000, 13], [10**6]):
        assert np.array_equal(in_chunks(Resampler(rate_in, rate_out, 2), x, sizes), whole)


def test_a_resampler_that_forgets_between_chunks_differs():
    """The negative control of the test above."""
    x = noise(1, 4_800)
    resampler = Resampler(48_000, 16_000, 1)
    parts = []
    for piece in np.split(x, 10, axis=1):
        resampler.reset()
        parts += [resampler.push(piece), resampler.flush()]
    forgetful = np.concatenate(parts, axis=1)
    assert np.abs(forgetful - resample(x, 48_000, 16_000)).max() > 0.01


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_a_tone_in_the_pass_band_keeps_level_and_phase(rate_in, rate_out):
    frequency = 0.42 * min(rate_in, rate_out)
    x = np.sin(2 * np.pi * frequency * np.arange(rate_in) / rate_in)[None]
    y = resample(x, rate_in, rate_out)[0]
    expected = np.sin(2 * np.pi * frequency * np.arange(rate_out) / rate_out)
    inner = slice(rate_out // 10, -rate_out // 10)  # the edges hear the silence around the signal
    # The window was made for STOP_BAND_DB in the pass band too; 6 dB for the images that add up.
    assert np.abs(y - expected)[inner].max() < 2 * 10 ** (-STOP_BAND_DB / 20)


@pytest.mark.parametrize("frequency", [8_000, 8_100, 11_000, 16_000, 23_000])
def test_a_tone_above_the_new_band_is_removed(frequency):
    x = np.sin(2 * np.pi * frequency * np.arange(48_000) / 48_000 + 0.5)[None]
    y = resample(x, 48_000, 16_000)[0, 1_000:-1_000]
    assert 20 * np.log10(np.abs(y).max()) < -STOP_BAND_DB + 3


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_it_agrees_with_soxr_in_the_band_both_pass(rate_in, rate_out):
    rng = np.random.default_rng(1)
    time = np.arange(rate_in) / rate_in
    frequencies = rng.uniform(50, 0.42 * min(rate_in, rate_out), 40)
    x = (
        sum(np.sin(2 * np.pi * f * time + p) for f, p in zip(frequencies, rng.uniform(0, 6, 40), strict=True))[None]
        / 40
    )
    ours, theirs = resample(x, rate_in, rate_out)[0], soxr.resample(x[0], rate_in, rate_out, quality="VHQ")
    assert len(ours) == len(theirs)
    inner = slice(rate_out // 10, -rate_out // 10)
    assert np.abs(ours - theirs)[inner].max() < 1e-4


@pytest.mark.parametrize(("rate_in", "rate_out"), [(48_000, 16_000), (16_000, 48_000)])
def test_an_impulse_stays_where_it_was_and_is_symmetric(rate_in, rate_out):
    x = np.zeros((1, rate_in), dtype=np.float32)
    x[0, rate_in // 2] = 1
    y = resample(x, rate_in, rate_out)[0]
    middle = rate_out // 2
    assert np.argmax(np.abs(y)) == middle
    np.testing.assert_allclose(y[middle : middle + 300], y[middle : middle - 300 : -1], atol=1e-7)


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_a_constant_passes_exactly_at_every_phase(rate_in, rate_out):
    y = resample(np.ones((1, rate_in), dtype=np.float32), rate_in, rate_out)[0]
    np.testing.assert_allclose(y[rate_out // 10 : -rate_out // 10], 1, atol=1e-6)


def test_there_and_back_is_aligned_to_the_sample():
    x = noise(1, 8_000)
    smooth = np.convolve(x[0], np.hanning(60) / 30)[None, :8_000].astype(np.float32)  # well inside the band
    back = resample(resample(smooth, 16_000, 44_100), 44_100, 16_000)[:, :8_000]
    np.testing.assert_allclose(back[:, 200:-200], smooth[:, 200:-200], atol=2e-4)


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_the_lookahead_is_what_an_output_waits_for_and_no_less(rate_in, rate_out):
    resampler = Resampler(rate_in, rate_out, 1)
    for received in (0, 1, resampler.lookahead, resampler.lookahead + 1, 1_000, 1_001):
        ready = resampler.available(received)
        if ready:
            last = (ready - 1) * resampler.down // resampler.up
            assert last + resampler.lookahead <= received - 1
        assert ready * resampler.down // resampler.up + resampler.lookahead > received - 1


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_the_compiled_loop_equals_its_readable_twin(rate_in, rate_out, monkeypatch):
    x = noise(2, 3_000)
    compiled = resample(x, rate_in, rate_out)
    monkeypatch.setattr("clearstate.audio.resample.fastest", lambda: polyphase)
    np.testing.assert_allclose(resample(x, rate_in, rate_out), compiled, atol=2e-6)


def test_the_readable_loop_gives_the_same_bits_whatever_the_chunks(monkeypatch):
    monkeypatch.setattr("clearstate.audio.resample.fastest", lambda: polyphase)
    x, whole = noise(1, 9_000), Resampler(44_100, 16_000, 1)
    wanted = np.concatenate([whole.push(x), whole.flush()], axis=1)
    parts = Resampler(44_100, 16_000, 1)
    pieces = [parts.push(part) for part in np.split(x, [1, 50, 51, 7_000], axis=1)]
    np.testing.assert_array_equal(np.concatenate([*pieces, parts.flush()], axis=1), wanted)


def test_the_loop_equals_the_sum_it_stands_for():
    up, down = 160, 441
    table, x = filter_table(up, down), noise(1, 900)
    y = np.empty((1, 197), dtype=np.float32)
    half = table.shape[1] // 2
    polyphase(x, table, 80 * 441, up, down, 0, y)  # from input 220 on: well inside x
    for m in range(0, 197, 7):
        instant = 80 * 441 + m * down
        first = instant // up - half + 1
        expected = np.dot(table[instant % up].astype(np.float64), x[0, first : first + 2 * half])
        assert abs(y[0, m] - expected) < 1e-5


def test_two_resamplers_do_not_meet():
    x, y = noise(1, 4_000), 0.5 * noise(1, 4_000)
    a, b = Resampler(16_000, 48_000, 1), Resampler(16_000, 48_000, 1)
    out = [(a.push(p), b.push(q)) for p, q in zip(np.split(x, 8, axis=1), np.split(y, 8, axis=1), strict=True)]
    first, second = (np.concatenate(parts, axis=1) for parts in zip(*out, strict=True))
    assert np.array_equal(first * np.float32(0.5), second)


def test_memory_does_not_grow_with_the_signal():
    resampler = Resampler(44_100, 16_000, 1)
    held = []
    for _ in range(300):
        resampler.push(np.zeros((1, 441), dtype=np.float32))
        held.append(resampler._held.nbytes)
    assert max(held) <= max(held[:5])


def test_one_sample_gives_one_sample_and_nothing_gives_nothing():
    assert resample(np.ones((1, 1), dtype=np.float32), 48_000, 16_000).shape == (1, 1)
    assert resample(np.zeros((1, 0), dtype=np.float32), 48_000, 16_000).shape == (1, 0)


def test_a_ratio_that_would_take_too_much_memory_is_an_error():
    with pytest.raises(ValueError, match="999983 phases"):
        Resampler(16_000, 999_983, 1)


def test_the_filter_is_a_kaiser_windowed_sinc():
    """Read off a fine curve, the window is still scipy's to float32 precision."""
    windows = pytest.importorskip("scipy.signal.windows")
    half = 48
    table = filter_table(3, 1)
    beta = 0.1102 * (STOP_BAND_DB - 8.7)
    whole = windows.kaiser(2 * 3 * half + 1, beta)  # on the fine grid of all phases
    cutoff = 1 - (STOP_BAND_DB - 7.95) / 14.36 / (2 * half)
    prototype = whole * np.sinc(cutoff * np.arange(-3 * half, 3 * half + 1) / 3)
    for phase in range(3):
        expected = prototype[3 * (1 - half) - phase + 3 * half :: 3][: 2 * half].copy()
        expected[-1] *= phase > 0  # at phase 0 the last tap lies on the end of the window, whose twin is not there
        np.testing.assert_allclose(table[phase], expected / expected.sum(), atol=2e-7)


def test_a_large_filter_is_shared_while_it_is_used_and_freed_afterwards(monkeypatch):
    monkeypatch.setattr(resample_module, "SMALL_TABLE", 0)
    one, two = Resampler(48_000, 16_000, 1), Resampler(48_000, 16_000, 2)
    assert one.table is two.table
    freed = weakref.ref(one.table)
    del one, two
    assert freed() is None
