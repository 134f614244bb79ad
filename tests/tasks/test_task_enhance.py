"""From any file or array to the model and back, shown with small models whose behaviour is known."""

import copy
import io
import os
import pickle
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from doubles import CausalDouble, Identity, NonCausalDouble

import clearstate
from clearstate.audio.io import open_reader
from clearstate.metrics import si_sdr
from clearstate.runtime import open_model
from clearstate.tasks.chain import BLOCK_SECONDS, FADE_SECONDS, OVERLAP_SECONDS, Chain
from clearstate.tasks.enhance import Enhancer, load
from clearstate.tasks.extend import Extender

RATES = [16_000, 48_000, 44_100, 8_000, 22_050]


def noise(channels, samples, level=0.1, seed=0):
    rng = np.random.default_rng(seed)
    swell = np.maximum(np.sin(np.arange(samples) / 2_000), 0.05)
    return level * swell * rng.standard_normal((channels, samples))


def in_chunks(model, x, rate, sizes, **options):
    """Through one Chain, in chunks of these sizes, in turn."""
    chain, out, start, turn = Chain(open_model(model, "enhance"), rate, len(x), **options), [], 0, 0
    while start < x.shape[1]:
        size = sizes[turn % len(sizes)]
        out.append(chain.push(x[:, start : start + size]))
        start, turn = start + size, turn + 1
    return np.concatenate([*out, chain.finish()], axis=1)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


# --- length, time, chunks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [CausalDouble(), NonCausalDouble()], ids=["causal", "non-causal"])
@pytest.mark.parametrize("rate", RATES)
def test_as_many_samples_come_out_as_went_in(model, rate):
    for samples in (1, 2, 160, 257, 4_097):
        for channels in (1, 2):
            x = noise(channels, samples)
            y = Enhancer(model).enhance(x, rate)
            assert y.shape == x.shape and np.isfinite(y).all()


@pytest.mark.parametrize("model", [CausalDouble(0.5), CausalDouble()], ids=["half", "wiener"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_an_impulse_comes_out_where_it_went_in(model, rate, channels):
    x = np.zeros((channels, rate))
    x[:, 7_000] = 0.9
    y = Enhancer(model).enhance(x, rate)
    assert (np.argmax(np.abs(y), axis=1) == 7_000).all()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_the_output_correlates_best_with_the_input_at_no_delay(rate, channels):
    x = noise(channels, rate)
    y = Enhancer(CausalDouble()).enhance(x, rate)
    for one, two in zip(x, y, strict=True):
        assert np.argmax(np.correlate(two, one[50:-50], "valid")) == 50


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_chunks_of_any_size_give_the_same(rate, channels):
    x = noise(channels, rate + 77)
    whole = in_chunks(CausalDouble(), x, rate, [10**9])
    for sizes in ([rate // 100], [1, 4_000, 0, 333]):
        # Not a click: the sums are the same but for their order.
        np.testing.assert_allclose(in_chunks(CausalDouble(), x, rate, sizes), whole, atol=1e-6)


def test_a_chain_that_forgets_between_chunks_differs():
    """The negative control of the test above."""
    x = noise(1, 16_000)
    parts = [in_chunks(CausalDouble(), piece, 16_000, [10**9]) for piece in np.split(x, 4, axis=1)]
    assert np.abs(np.concatenate(parts, axis=1) - in_chunks(CausalDouble(), x, 16_000, [10**9])).max() > 1e-3


def test_one_channel_at_the_models_rate_is_exactly_the_model():
    x = noise(1, 40_001).astype(np.float32)
    for model in (CausalDouble(), NonCausalDouble()):
        expected = model(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(Enhancer(model).enhance(x, 16_000, warm_up=False), expected, atol=1e-7)


@pytest.mark.parametrize("samples", [1, 255, 300, 8_000, 23_807, 23_808, 40_001])
def test_warmed_up_a_model_begins_as_if_it_had_heard_the_beginning_before(samples):
    """Whole hops of the first 1.5 s: 93 of 256 samples, or what there is."""
    x = noise(1, samples).astype(np.float32)
    model = CausalDouble()
    heard = min(93 * 256, samples // 256 * 256)
    expected = model(torch.from_numpy(np.concatenate([x[:, :heard], x], axis=1))).numpy()[:, heard:]
    np.testing.assert_allclose(Enhancer(model).enhance(x, 16_000), expected, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_warmed_up_too_chunks_of_any_size_give_the_same(rate, channels):
    for samples in (2 * rate, rate // 2):
        x = noise(channels, samples)
        whole = in_chunks(CausalDouble(), x, rate, [10**9], warm_up=True)
        assert whole.shape == x.shape
        assert np.abs(whole - in_chunks(CausalDouble(), x, rate, [10**9])).max() > 1e-3, "nothing was warmed up"
        for sizes in ([rate // 100], [1, 4_000, 0, 333]):
            np.testing.assert_allclose(in_chunks(CausalDouble(), x, rate, sizes, warm_up=True), whole, atol=1e-6)


# --- non-causal models, in blocks ------------------------------------------------------------------------------------


def test_a_non_causal_model_in_blocks_is_nearly_the_model_on_the_whole():
    samples = int(16_000 * (2.5 * BLOCK_SECONDS))
    x = noise(1, samples).astype(np.float32)
    whole = NonCausalDouble()(torch.from_numpy(x)).numpy()
    blocks = Enhancer(NonCausalDouble()).enhance(x, 16_000)
    assert blocks.shape == whole.shape
    # The double looks 20 frames (0.32 s) to each side, less than the context of a block.
    np.testing.assert_allclose(blocks, whole, atol=1e-5)


def test_blocks_meet_without_a_click():
    """A model whose output drifts from block to block: at the borders the output moves no faster than elsewhere."""

    class Drifting(torch.nn.Module):
        sample_rate, causal, calls = 16_000, False, 0

        def forward(self, noisy):
            self.calls += 1
            return noisy * (1 - 0.4 * (self.calls % 2))

    model = Drifting()
    x = np.ones((1, int(16_000 * 2.5 * BLOCK_SECONDS)), dtype=np.float32)
    turns = np.where(np.arange(x.shape[1]) % 2, -1, 1).astype(np.float32)  # a constant would pass as an offset
    y = Enhancer(model).enhance(turns * x, 16_000)[0] * turns
    assert model.calls > 2 and y.min() < 0.61 and y.max() > 0.99
    assert np.abs(np.diff(y)).max() < 1.1 * 0.4 / (FADE_SECONDS * 16_000)
    hard = np.concatenate([x[0, :1000], 0.6 * x[0, :1000]])  # what a hard join would be
    assert np.abs(np.diff(hard)).max() > 0.3


@pytest.mark.parametrize("extra", [-1, 0, 1, 16_000])
def test_block_borders_lose_no_sample(extra):
    """Around the lengths at which another block begins."""
    for blocks in (1, 2):
        samples = int(16_000 * (BLOCK_SECONDS + (blocks - 1) * (BLOCK_SECONDS - OVERLAP_SECONDS))) + extra
        x = noise(1, samples).astype(np.float32)
        y = in_chunks(NonCausalDouble(), x, 16_000, [50_000])
        np.testing.assert_allclose(y, NonCausalDouble()(torch.from_numpy(x)).numpy(), atol=1e-5)


# --- nothing that was not asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_a_model_that_changes_nothing_gives_the_input_back(rate, channels):
    x = noise(channels, rate + 13)
    y = Enhancer(Identity()).enhance(x, rate)
    if channels == 1 and rate != 16_000:
        assert np.array_equal(y, x)  # the very bits: what is added is zero
    np.testing.assert_allclose(y, x, atol=1e-6)  # float32 at the model's rate and in the spectra of the link


@pytest.mark.parametrize("rate", RATES)
def test_strength_zero_changes_nothing_at_all(rate):
    x = noise(2, rate)
    assert np.array_equal(Enhancer(CausalDouble()).enhance(x, rate, strength=0), x)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_strength_is_the_most_by_which_anything_is_attenuated(rate, channels):
    x = noise(channels, rate)
    mute = Enhancer(CausalDouble(0.0))
    # A model that removes everything: what is left is the input, that many decibels down, at every frequency.
    y = mute.enhance(x, rate, strength=12)
    inner = slice(rate // 10, -rate // 10)
    np.testing.assert_allclose(y[:, inner], 10 ** (-12 / 20) * x[:, inner], atol=1e-3 * np.abs(x).max())
    assert rms(mute.enhance(x, rate)[:, inner]) < 1e-3 * rms(x)
    # More strength, less noise; and none removes more than the model.
    levels = [rms(Enhancer(CausalDouble()).enhance(x, rate, strength=s)) for s in (0, 3, 12, 60, None)]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_output_and_residual_add_up_to_the_input(rate):
    x = noise(2, rate)
    enhancer = Enhancer(CausalDouble())
    for strength in (None, 6):
        y, removed = (enhancer.enhance(x, rate, strength, residual=residual) for residual in (False, True))
        np.testing.assert_allclose(y + removed, x, atol=1e-12)
    assert not enhancer.enhance(x, rate, strength=0, residual=True).any()


@pytest.mark.parametrize("model", [CausalDouble(), CausalDouble(0.3), NonCausalDouble()])
@pytest.mark.parametrize("rate", RATES)
def test_digital_silence_stays_digital_silence(model, rate):
    enhancer = Enhancer(model)
    assert not enhancer.enhance(np.zeros((2, rate)), rate).any()
    x = noise(2, 2 * rate)
    x[:, rate // 2 : -rate // 2] = 0
    y = enhancer.enhance(x, rate)
    # A frame, an overlap of the link and the filters' length away from any sound.
    assert not y[:, rate // 2 + rate // 10 : -rate // 2 - rate // 10].any()


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_quiet_and_loud_recordings_are_treated_alike(rate):
    x = noise(2, rate)
    x /= np.abs(x).max()
    enhancer = Enhancer(CausalDouble())
    loud, quiet = (enhancer.enhance(x * 10 ** (level / 20), rate) * 10 ** (-level / 20) for level in (-1, -50))
    np.testing.assert_allclose(loud, quiet, atol=2e-6)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_no_finite_input_becomes_nan(rate):
    x = noise(2, rate)
    for level in (1e-300, 1e-40, 1e7, 1e25, 1e100, 1e300):
        assert np.isfinite(Enhancer(CausalDouble()).enhance(x * level, rate)).all()


# --- channels --------------------------------------------------------------------------------------------------------


def test_equal_channels_come_out_as_the_model_would_enhance_one():
    x = noise(1, 30_000)
    one = Enhancer(CausalDouble()).enhance(x, 16_000)
    three = Enhancer(CausalDouble()).enhance(np.repeat(x, 3, axis=0), 16_000)
    np.testing.assert_allclose(three, np.repeat(one, 3, axis=0), atol=1e-6)


def image(x, y):
    """How much the ratio of the channels differs from the input's, weighted by energy: 0 is an image that stays."""
    (a, b), (c, d) = (
        np.fft.rfft(np.lib.stride_tricks.sliding_window_view(z, 512, axis=1)[:, ::256] * np.hanning(512))
        for z in (x, y)
    )
    cross_in, cross_out = b * a.conj(), d * c.conj()
    # Ratio b/a against d/c, both multiplied by |a|^2 |c|^2 so that nothing is divided by nearly zero.
    return (
        np.abs(cross_in * np.abs(c) ** 2 - cross_out * np.abs(a) ** 2).sum() / np.abs(cross_in * np.abs(c) ** 2).sum()
    )


def test_the_stereo_image_stays_where_it_was():
    speech, hiss = noise(1, 48_000)[0], noise(2, 48_000, 0.02, seed=1)
    x = np.stack([0.9 * speech, 0.4 * np.roll(speech, 9)]) + hiss  # panned by level and time, noise of its own in each
    linked = Enhancer(CausalDouble()).enhance(x, 16_000)
    apart = np.concatenate([Enhancer(CausalDouble()).enhance(channel[None], 16_000) for channel in x])
    assert image(x, x) < 1e-12
    # The ratio in a frame of the analysis is a mix of the gains of the frames it overlaps: not quite zero.
    assert image(x, linked) < 0.5 * image(x, apart)


def test_a_source_panned_by_level_alone_keeps_its_place_exactly():
    x = np.stack([0.8, 0.3])[:, None] * noise(1, 30_000)
    y = Enhancer(CausalDouble()).enhance(x, 16_000)
    np.testing.assert_allclose(y[0] * 0.3, y[1] * 0.8, atol=1e-6)


def test_channels_in_opposite_phase_do_not_cancel_and_a_silent_one_stays_silent():
    x = noise(1, 30_000)
    one = Enhancer(CausalDouble()).enhance(x, 16_000)
    np.testing.assert_allclose(
        Enhancer(CausalDouble()).enhance(np.concatenate([x, -x]), 16_000), np.concatenate([one, -one]), atol=1e-6
    )
    half = Enhancer(CausalDouble()).enhance(np.concatenate([x, 0 * x]), 16_000)
    np.testing.assert_allclose(half[0], one[0], atol=1e-6)
    assert not half[1].any()


# --- above the model's band ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [CausalDouble(), NonCausalDouble()], ids=["causal", "non-causal"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_contrast_can_be_stretched_after_any_model(model, rate, channels):
    x = noise(channels, rate * 9 + 7, level=0.05)  # more than one block
    plain = in_chunks(model, x, rate, [rate])
    stretched = in_chunks(model, x, rate, [rate], pcs=True)
    assert stretched.shape == x.shape
    np.testing.assert_allclose(in_chunks(model, x, rate, [997, 4_001], pcs=True), stretched, atol=1e-5)
    assert rms(stretched) == pytest.approx(rms(plain), rel=0.1)  # the level is kept
    assert rms(stretched - plain) > 0.05 * rms(plain)
    lags = np.fft.irfft(np.fft.rfft(stretched[0], 1 << 19) * np.fft.rfft(plain[0], 1 << 19).conj())
    assert np.argmax(lags) == 0  # and so is time


def band(x, rate, low, high):
    spectrum = np.fft.rfft(x)
    frequency = np.fft.rfftfreq(x.shape[-1], 1 / rate)
    return rms(np.fft.irfft(spectrum * ((frequency >= low) & (frequency < high)), x.shape[-1]))


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_the_band_above_the_model_follows_what_the_model_does_below(rate):
    x = np.random.default_rng(0).standard_normal((1, 3 * rate)) * 0.1
    for gain in (1.0, 0.25):
        y = Enhancer(CausalDouble(gain)).enhance(x, rate)
        for low, high in ((200, 7_000), (7_000, 9_000), (10_000, rate / 2)):
            assert abs(band(y, rate, low, high) / band(x, rate, low, high) - gain) < 0.02


@pytest.mark.parametrize("rate", [48_000, 44_100])
def test_without_the_highs_nothing_above_the_model_is_left_and_the_rest_is_the_same(rate):
    x = noise(1, 2 * rate)
    for model in (CausalDouble(0.5), NonCausalDouble()):
        with_highs, without = (Enhancer(model).enhance(x, rate, highs=highs) for highs in (True, False))
        assert band(without, rate, 8_500, rate / 2) < 0.01 * band(with_highs, rate, 8_500, rate / 2)
        assert abs(band(without, rate, 0, 7_000) / band(with_highs, rate, 0, 7_000) - 1) < 0.001
    x = noise(1, 16_000)  # at the model's rate there is nothing to remove
    enhancer = Enhancer(CausalDouble(0.5))
    np.testing.assert_array_equal(enhancer.enhance(x, 16_000, highs=False), enhancer.enhance(x, 16_000))


def test_the_gain_above_the_band_is_smooth_and_never_amplifies():
    rate = 48_000
    x = np.random.default_rng(0).standard_normal((1, 2 * rate)) * 0.1
    y = Enhancer(CausalDouble(3.0)).enhance(x, rate)  # a model that amplifies
    assert abs(band(y, rate, 10_000, 24_000) / band(x, rate, 10_000, 24_000) - 1) < 0.01
    # A steady high tone over noise that comes and goes: the tone's envelope moves without steps.
    time = np.arange(2 * rate) / rate
    low = np.fft.irfft(np.fft.rfft(x) * (np.fft.rfftfreq(x.shape[1], 1 / rate) < 9_000))
    noisy = low * (np.sin(2 * np.pi * 3 * time) > 0) + 0.1 * np.sin(2 * np.pi * 15_000 * time)
    y = Enhancer(CausalDouble()).enhance(noisy, rate)
    high = np.fft.ifft(np.fft.fft(y[0]) * (np.abs(np.fft.fftfreq(len(time), 1 / rate) - 15_000) < 800))
    envelope = 2 * np.abs(high)[rate // 10 : -rate // 10]
    assert np.ptp(envelope) > 0.005, "the gain does not follow"
    assert np.abs(np.diff(envelope)).max() < 0.1 * 0.01, "the gain jumps"  # less than 1 % of the tone a sample


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5_000,), (2, 5_000), (3, 2, 5_000), (1, 1, 1), (1,)])
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int16", "int32"])
def test_the_same_kind_of_array_comes_back(shape, kind):
    x = (0.1 * np.random.default_rng(0).standard_normal(shape)).clip(-1, 1)
    array = (x * np.iinfo(kind).max).astype(kind) if kind.startswith("int") else x.astype(kind)
    for signal in (array, torch.from_numpy(array)):
        before = signal.copy() if isinstance(signal, np.ndarray) else signal.clone()
        y = Enhancer(CausalDouble(0.5)).enhance(signal, 16_000)
        assert type(y) is type(signal) and y.shape == signal.shape and y.dtype == signal.dtype
        assert (signal == before).all(), "the input was written to"
        np.testing.assert_allclose(
            np.asarray(y, dtype=float), np.asarray(array, dtype=float) / 2, atol=2e-4 * np.abs(array).max() + 0.5
        )


def test_bfloat16_and_tensors_with_gradients_are_taken_too():
    signal = torch.randn(4_000, requires_grad=True)
    y = Enhancer(CausalDouble()).enhance(signal, 16_000)
    assert not y.requires_grad
    assert Enhancer(CausalDouble()).enhance(signal.detach().bfloat16(), 16_000).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.float32, float, np.int64])
def test_a_rate_of_any_numeric_type_is_that_rate(kind):
    x = noise(1, 4_410).astype(np.float32)
    enhancer = Enhancer(NonCausalDouble())
    np.testing.assert_array_equal(enhancer.enhance(x, kind(44_100)), enhancer.enhance(x, 44_100))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.astype(">f8"),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.tolist(),
        lambda x: x.astype(object),
        lambda x: np.ma.array(x),
    ],
    ids=["byte-swapped", "fortran", "strided", "list", "object", "unmasked"],
)
def test_anything_like_an_array_is_enhanced_and_never_written_to(make):
    x = noise(2, 3_000)
    given = make(x)
    y = Enhancer(CausalDouble()).enhance(given, 16_000, 0)
    np.testing.assert_array_equal(y, x)
    assert isinstance(y, np.ndarray) and not (isinstance(given, np.ndarray) and np.shares_memory(y, given))


@pytest.mark.parametrize(
    "signal",
    [None, "talk.wav", {"a": 1}, [[0.0], [0.0, 1.0]], [True, False], object(), np.ma.array([0.0, 1.0], mask=[0, 1]),
     np.array(["a", "b"]), np.array([None, 1.0])],
)  # fmt: skip
def test_what_is_no_signal_is_a_value_error_in_one_line(signal):
    with pytest.raises(ValueError, match=r"expected|holds") as error:
        Enhancer(CausalDouble()).enhance(signal, 16_000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_enhancer_can_be_copied(copying):
    x = noise(1, 4_000)
    enhancer = Enhancer(CausalDouble())
    np.testing.assert_array_equal(copying(enhancer).enhance(x, 16_000), enhancer.enhance(x, 16_000))


@pytest.mark.parametrize("model", [CausalDouble(), NonCausalDouble()], ids=["causal", "blocks"])
def test_apart_each_channel_is_as_if_alone(model):
    x = noise(2, 22_050) * np.array([[1.0], [0.01]])
    enhancer = Enhancer(model)
    apart = enhancer.enhance(x, 44_100, channels="apart")
    for row, y in zip(x, apart, strict=True):
        np.testing.assert_array_equal(y, enhancer.enhance(row, 44_100))
    with pytest.raises(ValueError, match="'linked' or 'apart'"):
        enhancer.enhance(x, 44_100, channels="both")


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("offset", [0.05, 0.3])
def test_an_offset_changes_nothing_but_the_offset(rate, offset):
    x = noise(1, rate)
    enhancer = Enhancer(CausalDouble())
    plain, shifted = enhancer.enhance(x, rate), enhancer.enhance(x + offset, rate) - offset
    error = np.sqrt(np.mean((plain - shifted)[:, rate // 4 :] ** 2))
    assert error < 0.03 * np.sqrt(np.mean(x**2))  # the offset is known to within the mean of some hops of noise


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_the_rate_of_a_file_does_not_change_the_result(rate):
    """A recording as 44.1 or 48 kHz has an empty band below 8 kHz, which the default model must not take for noise."""
    folder = Path(__file__).parents[2] / "examples" / "clips"
    enhancer, losses = load("live"), []
    for clip in ("fire_10db", "chainsaw_5db", "helicopter_0db"):
        noisy, clean = (soundfile.read(folder / f"{clip}.{kind}.flac")[0][:48_000] for kind in ("noisy", "clean"))
        wide = soxr.resample(noisy, 16_000, rate)
        reference, own = (soxr.resample(x, 16_000, rate) for x in (clean, enhancer.enhance(noisy, 16_000)))
        losses.append(si_sdr(reference, own) - si_sdr(reference, enhancer.enhance(wide, rate)))
    assert np.mean(losses) < 0.3 and max(losses) < 0.6, losses  # dB


def test_items_of_a_batch_have_nothing_to_do_with_each_other():
    x = np.stack([noise(2, 9_000, level, seed) for seed, level in enumerate((0.1, 1.0, 0.001))])
    enhancer = Enhancer(CausalDouble())
    for item, y in zip(x, enhancer.enhance(x, 44_100), strict=True):
        assert np.array_equal(enhancer.enhance(item, 44_100), y)


def test_integers_clip_and_never_wrap():
    loud = (np.sin(np.arange(16_000) / 10) * 30_000).astype(np.int16)
    y = Enhancer(CausalDouble(3.0)).enhance(loud, 16_000)
    assert y.max() == 32_767 and y.min() == -32_768
    assert (np.sign(y[600:-600].astype(int)) * np.sign(loud[600:-600].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("signal", "rate", "strength", "says"),
    [
        (np.zeros(0), 16_000, None, r"shape \(0,\): expected \(n,\), \(channels, n\)"),
        (np.zeros((0, 100)), 16_000, None, r"shape \(0, 100\)"),
        (np.zeros((1, 1, 1, 5)), 16_000, None, r"shape \(1, 1, 1, 5\)"),
        (np.float64(1.0), 16_000, None, r"shape \(\)"),
        (np.zeros((16_000, 2)), 16_000, None, "16000 channels of 2 samples; channels come first; transpose"),
        (np.zeros(5, dtype=complex), 16_000, None, "type complex128: expected floating point"),
        (np.zeros(5, dtype=np.int64), 16_000, None, "type int64: expected floating point .*, int16 or int32"),
        (np.array([[0, np.nan, 0]]), 16_000, None, r"signal\[0, 1\] is nan: expected numbers; .*nan_to_num"),
        (np.array([0, 0, -np.inf]), 16_000, None, r"signal\[2\] is -inf"),
        (np.zeros(5), 0, None, "sample rate 0: expected a whole number of Hz"),
        (np.zeros(5), 44_100.5, None, "sample rate 44100.5"),
        (np.zeros(5), 16_000, -3, "strength -3: expected decibels"),
        (np.zeros(5), 16_000, float("nan"), "strength nan"),
    ],
)
def test_a_wrong_argument_says_what_was_expected(signal, rate, strength, says):
    with pytest.raises(ValueError, match=says):
        Enhancer(CausalDouble()).enhance(np.asarray(signal), rate, strength)


def test_a_module_that_does_not_enhance_is_refused():
    with pytest.raises(ValueError, match="Linear is not a clearstate model"):
        Enhancer(torch.nn.Linear(1, 1)).enhance(np.zeros(5), 16_000)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate"),
    [
        ("wav", "PCM_16", 16_000),
        ("wav", "PCM_24", 44_100),
        ("flac", "PCM_16", 48_000),
        ("wav", "FLOAT", 8_000),
        ("ogg", "VORBIS", 44_100),
        ("mp3", "MPEG_LAYER_III", 44_100),
    ],
)
def test_a_file_comes_out_as_the_array_does_with_everything_else_kept(tmp_path, suffix, subtype, rate):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    with soundfile.SoundFile(source, "w", rate, 2, subtype) as file:
        file.title = "A talk"
        file.write(noise(2, 5 * rate + 3).T)
    report = Enhancer(CausalDouble()).enhance_file(source, target)
    x, y = (soundfile.read(path, always_2d=True)[0].T for path in (source, target))
    before, after = soundfile.info(source), soundfile.info(target)
    assert (after.frames, after.samplerate, after.channels, after.subtype) == (before.frames, rate, 2, subtype)
    with open_reader(target) as reader:
        assert reader.info.tags["title"] == "A talk"
    expected = Enhancer(CausalDouble()).enhance(x, rate)
    lossy = suffix in ("ogg", "mp3")
    # A codec is free with noise; a shift by one sample would make it 1.4.
    assert rms(y - expected) < (0.5 * rms(expected) if lossy else 2.0**-15)
    assert (report.input, report.output) == (str(source), str(target))
    assert (report.sample_rate, report.channels, report.seconds) == (rate, 2, (5 * rate + 3) / rate)
    assert report.elapsed > 0 and report.speed == report.seconds / report.elapsed


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_strength_zero_gives_the_file_back_bit_for_bit(tmp_path, subtype):
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    x = np.random.default_rng(0).integers(-(2**31), 2**31, size=(50_000, 2), dtype=np.int64).astype(np.int32)
    soundfile.write(source, x, 44_100, subtype=subtype)
    Enhancer(CausalDouble()).enhance_file(source, target, strength=0)
    one, two = (soundfile.read(path, dtype="float64")[0] for path in (source, target))
    assert np.array_equal(one, two)


def test_output_and_residual_files_add_up_to_the_input(tmp_path):
    source = tmp_path / "in.wav"
    soundfile.write(source, noise(2, 44_100).T, 44_100, subtype="PCM_16")
    for name, residual in (("out.wav", False), ("removed.wav", True)):
        Enhancer(CausalDouble()).enhance_file(source, tmp_path / name, residual=residual)
    x, y, removed = (
        soundfile.read(tmp_path / name, dtype="int16")[0].astype(int) for name in ("in.wav", "out.wav", "removed.wav")
    )
    assert np.abs(x - y - removed).max() <= 1  # each was rounded to 16 bits by itself


def test_a_file_of_one_sample_is_a_file_of_one_sample(tmp_path):
    for rate in (8_000, 16_000, 44_100):
        soundfile.write(tmp_path / "in.wav", np.array([0.5]), rate)
        Enhancer(CausalDouble()).enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", overwrite=True)
        assert soundfile.info(tmp_path / "out.wav").frames == 1


def test_progress_is_told_and_may_stop_the_work_without_a_trace(tmp_path):
    soundfile.write(tmp_path / "in.wav", noise(1, 16_000 * 9).T, 16_000)
    seen = []
    Enhancer(CausalDouble()).enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", progress=lambda *p: seen.append(p))
    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]

    def press_ctrl_c(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Enhancer(CausalDouble()).enhance_file(tmp_path / "in.wav", tmp_path / "new.wav", progress=press_ctrl_c)
    assert sorted(os.listdir(tmp_path)) == ["in.wav", "out.wav"]


def test_a_bad_file_leaves_nothing_behind_and_a_refusal_comes_before_the_work(tmp_path):
    x = noise(1, 16_000 * 5)
    x[0, -1] = np.nan
    soundfile.write(tmp_path / "in.wav", x.T, 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"sample 79999 of channel 0 \(5\.000 s\) is nan"):
        Enhancer(CausalDouble()).enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert os.listdir(tmp_path) == ["in.wav"]
    (tmp_path / "out.wav").write_bytes(b"mine")
    calls = []
    with pytest.raises(FileExistsError, match="already exists"):
        Enhancer(CausalDouble()).enhance_file(
            tmp_path / "in.wav", tmp_path / "out.wav", progress=lambda *p: calls.append(p)
        )
    with pytest.raises(FileExistsError, match="the input itself"):
        Enhancer(CausalDouble()).enhance_file(tmp_path / "in.wav", tmp_path / "in.wav", overwrite=True)
    assert not calls and (tmp_path / "out.wav").read_bytes() == b"mine"


def test_a_pipe_in_and_a_pipe_out(tmp_path, monkeypatch):
    x = noise(2, 100_001)
    buffer = io.BytesIO()
    soundfile.write(buffer, x.T, 44_100, format="WAV", subtype="PCM_16")
    data = bytearray(buffer.getvalue())
    data[4:8] = data[40:44] = b"\xff" * 4  # as ffmpeg leaves them
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(data))))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    report = Enhancer(CausalDouble()).enhance_file("-", "-")
    y, rate = soundfile.read(io.BytesIO(out.getvalue()))
    assert rate == 44_100 and y.shape == (100_001, 2) and report.seconds == 100_001 / 44_100
    quantised = soundfile.read(io.BytesIO(buffer.getvalue()))[0].T
    np.testing.assert_allclose(y.T, Enhancer(CausalDouble()).enhance(quantised, 44_100), atol=2.0**-15)


class Doubled:
    """An extension model that adds a tone at 12 kHz of the level of the signal."""

    name, sample_rate = "doubled", 48_000

    def run(self, x, reach, position, progress=None):
        return x + np.sqrt(np.mean(x**2)) * np.sin(2 * np.pi * 12_000 / 48_000 * np.arange(len(x)), dtype=np.float32)


def test_with_an_extender_it_is_enhanced_and_then_extended(tmp_path):
    """As in two steps with a file of floating point between, but for the rounding of that file."""
    noisy, middle, wide, once = (tmp_path / f"{name}.wav" for name in ("noisy", "middle", "wide", "once"))
    soundfile.write(noisy, soxr.resample(noise(2, 3 * 16_000).T, 16_000, 8_000), 8_000, "FLOAT")
    enhancer, extender, told = Enhancer(CausalDouble()), Extender(Doubled()), []
    report = enhancer.enhance_file(noisy, once, extender=extender, progress=lambda *at: told.append(at))
    enhancer.enhance_file(noisy, middle)
    done = extender.extend_file(middle, wide)
    (got, rate), expected = soundfile.read(once), soundfile.read(wide)[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert (rate, report.sample_rate, len(got)) == (48_000, 48_000, 6 * 12_000 * 2)
    assert report.bandwidth_hz == done.bandwidth_hz and 3_000 < report.bandwidth_hz < 4_000
    assert np.abs(np.fft.rfft(got[:, 0])[12_000 * 3]) > 100 * np.abs(np.fft.rfft(got[:, 0])[12_000 * 3 + 30])
    assert told == sorted(told) and told[-1][0] == pytest.approx(3.0, abs=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle.wav", "noisy.wav", "once.wav", "wide.wav"]


def test_the_band_is_measured_after_the_noise_is_gone(tmp_path):
    """Noise fills the band above the voice; what is removed must not count as recorded."""

    class Lowpass(Identity):
        def forward(self, x):
            spectrum = torch.fft.rfft(x)
            spectrum[..., int(spectrum.shape[-1] * 3_000 / (self.sample_rate / 2)) :] = 0
            return torch.fft.irfft(spectrum, x.shape[-1])

    noisy, out = tmp_path / "noisy.wav", tmp_path / "out.wav"
    soundfile.write(noisy, 0.1 * np.random.default_rng(0).standard_normal(48_000), 16_000)
    lowpass = Lowpass()
    lowpass.causal = False
    report = Enhancer(lowpass).enhance_file(noisy, out, extender=Extender(Doubled()))
    assert report.bandwidth_hz == pytest.approx(3_000, abs=300)  # without the model it is 8,000


def test_a_rate_above_the_extenders_is_refused_before_the_work(tmp_path):
    noisy, out = tmp_path / "noisy.wav", tmp_path / "out.wav"
    soundfile.write(noisy, noise(1, 9_600).T, 96_000)
    with pytest.raises(ValueError, match=r"noisy\.wav is at 96000 Hz: expected 4000 to 48000 Hz"):
        Enhancer(Identity()).enhance_file(noisy, out, extender=Extender(Doubled()))
    assert not out.exists()


def test_memory_does_not_depend_on_the_length(tmp_path):
    peaks = []
    for seconds in (15, 60):
        with soundfile.SoundFile(tmp_path / f"{seconds}.wav", "w", 44_100, 2) as file:
            for second in range(seconds):
                file.write(noise(2, 44_100, seed=second).T)
        tracemalloc.start()
        Enhancer(Identity()).enhance_file(tmp_path / f"{seconds}.wav", tmp_path / f"{seconds}.out.wav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0], f"{peaks[0] / 1e6:.1f} MB for 15 s, {peaks[1] / 1e6:.1f} MB for 60 s"
    assert peaks[1] < 100e6


# --- the package -----------------------------------------------------------------------------------------------------


def test_importing_the_package_does_not_import_torch():
    import subprocess

    code = (
        "import clearstate, sys; clearstate.Stream, clearstate.Separator; assert 'torch' not in sys.modules; "
        "clearstate.Stream(); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_promised_is_there_and_anything_else_is_an_error():
    for name in clearstate.__all__:
        assert getattr(clearstate, name) is not None and name in dir(clearstate)
    with pytest.raises(AttributeError, match="has no attribute 'enhnace'"):
        clearstate.enhnace  # noqa: B018 - the access is the test


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'live'"):
        clearstate.load("lvie")
