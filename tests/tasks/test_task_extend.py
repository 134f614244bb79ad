"""Extension of signals and files: what is there stays, lengths and channels are right, blocks leave no seams."""

import struct

import numpy as np
import pytest
import soundfile
import soxr
import torch
from torch import nn

import clearstate
from clearstate.audio.chunks import append_chunks, read_chunks
from clearstate.models import build, save_model
from clearstate.tasks import extend as extension
from clearstate.tasks.extend import MODEL_RATE, Extender, highpass, length_at, measure


class Meddler(nn.Module):
    """Changes everything: half the input, and loud noise that is a function of the place in the block."""

    task, sample_rate, causal = "extend", MODEL_RATE, False

    def forward(self, narrow, *, bandwidth_hz=None):
        noise = torch.randn(narrow.shape, generator=torch.Generator().manual_seed(0))
        return 0.5 * narrow + 0.1 * noise


class Copying(nn.Module):
    """Adds the signal moved up by 12 kHz: depends on the input alone, with the place on the grid of its carrier."""

    task, sample_rate, causal = "extend", MODEL_RATE, False

    def forward(self, narrow, *, bandwidth_hz=None):
        carrier = torch.tensor([1.0, 0.0, -1.0, 0.0]).repeat(-(-narrow.shape[-1] // 4))[: narrow.shape[-1]]
        return narrow + narrow * carrier


class Stepwise(Copying):
    """With the interface of a diffusion model; notes what it was asked."""

    is_diffusion = True

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, narrow, *, bandwidth_hz=None, steps=None, seed=0, position=0, progress=None):
        self.asked.append((steps, seed, position))
        for step in range(steps or 6):
            progress(step + 1, steps or 6)
        return super().forward(narrow)


@pytest.fixture(scope="module")
def model():
    """A small extend-fast of random weights."""
    torch.manual_seed(1)
    return build("extend-fast", width=16, blocks=1, states=4).eval()


def speech(seconds, rate, channels=1, seed=0):
    """Noise in syllables that fills the band of its rate, (channels, n) float64."""
    n = int(seconds * rate)
    x = np.random.default_rng(seed).standard_normal((channels, n))
    return 0.05 * x * (1 + np.sin(2 * np.pi * 3 * np.arange(n) / rate)) + 1e-4 * x


def held_up(x, to=MODEL_RATE, rate=16_000):
    """x (channels, n) as plain sinc interpolation has it."""
    y = soxr.resample(np.ascontiguousarray(x.T), rate, to).T
    return y


def band(x, low, high, rate=MODEL_RATE):
    spectrum = np.fft.rfft(x * np.hanning(x.shape[-1]))
    f = np.fft.rfftfreq(x.shape[-1], 1 / rate)
    return spectrum[..., (f >= low) & (f < high)]


def db(error, reference):
    return 10 * np.log10(np.sum(np.abs(error) ** 2) / np.sum(np.abs(reference) ** 2))


# ------------------------------------------------------------------------------------------- what is there stays


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
def test_whatever_a_model_does_the_band_that_is_there_comes_back(rate):
    x = speech(1.0, rate)
    y = Extender(Meddler()).extend(x, rate)
    plain = held_up(x, rate=rate)
    reach = measure([x], rate, 1)
    below = band(y, 0, reach - 500), band(plain, 0, reach - 500)
    assert db(below[0] - below[1], below[1]) < -75
    changed = Meddler()(torch.from_numpy(plain).float()).numpy()
    assert db(band(changed, 0, reach - 500) - below[1], below[1]) > -10  # without the crossover it would not
    assert np.abs(band(y, reach + 100, 22_000)).mean() > 100 * np.abs(band(plain, rate / 2, 22_000)).mean()


def test_a_file_that_claims_48_khz_is_left_bit_for_bit_below():
    x = held_up(speech(1.0, 16_000))
    y = Extender(Copying()).extend(x, 48_000)
    low = db(band(y - x, 0, 6_800), band(x, 0, 6_800))
    assert low < -75 and np.abs(band(y, 9_000, 16_000)).mean() > 1e-3


def test_a_whole_signal_comes_back_bit_for_bit(model):
    x = speech(0.5, 48_000)
    assert np.array_equal(Extender(model).extend(x, 48_000), x)


def test_the_interpolation_is_aligned():
    t48, t16 = np.arange(48_000) / 48_000, np.arange(16_000) / 16_000
    x = np.sin(2 * np.pi * 1000 * t16) + 0.3 * np.sin(2 * np.pi * 6000 * t16)
    y = Extender(Quiet()).extend(x, 16_000)
    true = np.sin(2 * np.pi * 1000 * t48) + 0.3 * np.sin(2 * np.pi * 6000 * t48)
    inside = slice(2_000, -2_000)
    assert db((y - true)[inside], true[inside]) < -60
    late = np.interp(t48 - 0.5 / 48_000, t48, true)  # the classic half a sample
    assert db((y - late)[inside], true[inside]) > -30


class Quiet(nn.Module):
    """Adds nothing."""

    task, sample_rate, causal = "extend", MODEL_RATE, False

    def forward(self, narrow, *, bandwidth_hz=None):
        return narrow


def test_the_crossover_is_flat_above_and_down_by_80_db_below():
    response = np.abs(np.fft.rfft(highpass(8_000), 65_536))
    f = np.linspace(0, 24_000, len(response))
    assert 20 * np.log10(response[f < 7_500].max()) < -78
    assert np.abs(20 * np.log10(response[f > 8_010])).max() < 0.01


# ------------------------------------------------------------------------------------------- lengths, rates, channels


@pytest.mark.parametrize("rate, n", [(8_000, 1), (8_000, 999), (11_025, 5_000), (22_050, 12_345), (24_000, 1_001)])
@pytest.mark.parametrize("to", [48_000, 44_100])
def test_lengths_are_exact(model, rate, n, to):
    x = speech(2.0, rate)[:, :n]
    y = Extender(model).extend(x, rate, to=to)
    assert y.shape == (1, length_at(n, rate, to)) and np.isfinite(y).all()


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4_000,), (2, 4_000), (3, 2, 4_000)])
def test_kind_and_shape_come_back(model, kind, shape):
    x = 0.1 * np.random.default_rng(0).standard_normal(shape)
    x = (x * 2**15).astype(kind) if kind == np.int16 else x.astype(kind)
    y = Extender(model).extend(x, 16_000)
    assert y.dtype == kind and y.shape == (*shape[:-1], 12_000)


def test_a_tensor_gives_a_tensor(model):
    y = Extender(model).extend(torch.randn(2, 4_000), 16_000)
    assert isinstance(y, torch.Tensor) and y.shape == (2, 12_000) and y.dtype == torch.float32


def test_equal_channels_stay_equal_and_others_do_not_meet(model):
    a, b = speech(0.5, 16_000), speech(0.5, 16_000, seed=1)
    same = Extender(model).extend(np.concatenate([a, a]), 16_000)
    assert np.array_equal(same[0], same[1])
    mixed = Extender(model).extend(np.concatenate([a, b]), 16_000)
    np.testing.assert_allclose(mixed[0], same[0], atol=0.02 * np.abs(same[0]).max())  # the bandwidth is common


def test_silence_stays_silent(model):
    assert not Extender(model).extend(np.zeros(8_000), 8_000).any()


# ---------------------------------------------------------------------------------------------------- blocks


def in_chunks(extender, x, rate, sizes):
    reach, at, blocks = measure([x], rate, len(x)), 0, []
    for size in sizes:
        blocks.append(x[:, at : at + size])
        at += size
    blocks.append(x[:, at:])
    return np.concatenate(list(extender.stream(blocks, rate, len(x), MODEL_RATE, reach)), axis=1)


def test_any_chunking_gives_the_same(model):
    x = speech(12.0, 16_000)
    whole = in_chunks(Extender(model), x, 16_000, [])
    for sizes in ([1, 7, 60_000], [30_000] * 6):
        np.testing.assert_allclose(in_chunks(Extender(model), x, 16_000, sizes), whole, atol=1e-9)


def test_blocks_meet_without_a_seam(model, monkeypatch):
    """21 s in blocks against one block: the difference is what a model remembers from beyond its context."""
    x = speech(21.0, 16_000) * 10 ** np.sin(np.arange(21 * 16_000) / 16_000)  # 40 dB up and down in 6 s
    blocks = Extender(model).extend(x, 16_000)[0]
    monkeypatch.setattr(extension, "BLOCK_SECONDS", 60.0)
    once = Extender(model).extend(x, 16_000)[0]
    added = once - held_up(x)[0]
    error = db(blocks - once, added)
    assert error < -50
    monkeypatch.setattr(extension, "BLOCK_SECONDS", 4.0)
    monkeypatch.setattr(extension, "CONTEXT_SECONDS", 0.1)
    assert db(Extender(model).extend(x, 16_000)[0] - once, added) > error + 10  # too little context would show


def test_a_model_that_remembers_nothing_is_the_same_in_blocks_as_at_once(monkeypatch):
    x = speech(17.0, 16_000)
    blocks = Extender(Copying()).extend(x, 16_000)
    monkeypatch.setattr(extension, "BLOCK_SECONDS", 60.0)
    np.testing.assert_allclose(blocks, Extender(Copying()).extend(x, 16_000), atol=1e-6)


def test_memory_does_not_grow_with_the_length():
    extender, longest = Extender(Copying()), 0
    blocks = (speech(2.0, 16_000) for _ in range(30))
    for y in extender.stream(blocks, 16_000, 1, MODEL_RATE, 7_500.0):
        longest = max(longest, y.shape[1])
    assert longest <= 1.1 * extension.BLOCK_SECONDS * MODEL_RATE


def test_steps_seed_and_place_reach_a_diffusion_model():
    model, told = Stepwise(), []
    extender = Extender(model, steps=4, seed=7)
    x = speech(14.0, 16_000)
    list(extender.stream([x], 16_000, 1, MODEL_RATE, 7_500.0, told.append))
    assert [asked[:2] for asked in model.asked] == [(4, 7)] * len(model.asked)
    first, second = (asked[2] for asked in model.asked[:2])
    assert first == 0 < second and second % extension.GRID == 0
    assert told == [0.25, 0.5, 0.75, 1.0] * len(model.asked)


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "signal, rate, to, says",
    [
        (np.zeros(10), 48_000, 44_100, "resample it first"),
        (np.zeros(10), 2_000, 48_000, "bandwidth is too small"),
        (np.zeros(10), 16_000, 96_000, "at most 48000"),
        (np.zeros(0), 16_000, 48_000, "none of them 0"),
        (np.array([0.0, np.nan]), 16_000, 48_000, "nan"),
        (np.zeros((4_000, 2)), 16_000, 48_000, "transpose"),
    ],
)
def test_what_cannot_be_is_told(model, signal, rate, to, says):
    with pytest.raises(ValueError, match=says):
        Extender(model).extend(signal, rate, to=to)


def test_models_of_other_kinds_are_refused(model):
    with pytest.raises(ValueError, match="Live is an enhancement model; `extend` needs an extension model"):
        Extender(build("live"))
    with pytest.raises(ValueError, match="one step"):
        Extender(model, steps=4)
    with pytest.raises(ValueError, match="live is an enhancement model"):
        clearstate.extend("a.wav", "b.wav", model="live")


# ---------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_model(model, "extend-fast", folder)
    return folder


@pytest.mark.parametrize("rate, channels, subtype", [(8_000, 1, "PCM_16"), (22_050, 2, "PCM_24"), (8_000, 1, "ULAW")])
def test_a_file_keeps_all_but_its_rate(weights, tmp_path, rate, channels, subtype):
    x = speech(1.3, rate, channels)
    soundfile.write(tmp_path / "old.wav", x.T, rate, subtype)
    seen = []
    done = clearstate.extend(
        tmp_path / "old.wav", tmp_path / "wide.wav", model=weights, progress=lambda at, of: seen.append((at, of))
    )
    info = soundfile.info(tmp_path / "wide.wav")
    assert (info.samplerate, info.channels, info.frames) == (48_000, channels, length_at(x.shape[1], rate, 48_000))
    assert info.subtype == ("PCM_16" if subtype == "ULAW" else subtype)
    assert done.extended and 0.85 * rate / 2 < done.bandwidth_hz <= rate / 2
    assert seen[-1][0] == pytest.approx(1.3, abs=0.01) and seen[-1][1] == pytest.approx(1.3, abs=0.01)
    heard = soundfile.read(tmp_path / "old.wav")[0].reshape(-1, channels).T
    array = Extender(clearstate.models.load_model(str(weights))).extend(heard, rate)
    written = soundfile.read(tmp_path / "wide.wav")[0].reshape(-1, channels).T
    np.testing.assert_allclose(written, array, atol=2**-15)


def test_an_error_leaves_nothing_behind(weights, tmp_path):
    soundfile.write(tmp_path / "old.wav", speech(1.0, 16_000)[0], 16_000)

    def stop(at, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clearstate.extend(tmp_path / "old.wav", tmp_path / "wide.wav", model=weights, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["old.wav"]


def test_the_input_is_never_overwritten(weights, tmp_path):
    soundfile.write(tmp_path / "old.wav", speech(0.2, 16_000)[0], 16_000)
    with pytest.raises(FileExistsError, match="input itself"):
        clearstate.extend(tmp_path / "old.wav", tmp_path / "old.wav", model=weights, overwrite=True)


@pytest.mark.parametrize(("rate", "to"), [(16_000, 48_000), (8_000, 44_100)])
def test_times_that_count_samples_keep_their_place(tmp_path, rate, to):
    soundfile.write(tmp_path / "in.wav", speech(0.5, rate).T, rate)
    cue = [(b"cue ", struct.pack("<I", 1) + struct.pack("<II4sIII", 1, at, b"data", 0, 0, at)) for at in (rate, to)]
    append_chunks(tmp_path / "in.wav", [cue[0]])
    Extender(Copying()).extend_file(tmp_path / "in.wav", tmp_path / "out.wav", to=to)
    assert read_chunks(tmp_path / "out.wav") == [cue[1]]


@pytest.mark.parametrize("subtype", ["ALAW", "ULAW", "GSM610", "IMA_ADPCM", "PCM_U8"])
def test_a_coarse_coding_becomes_16_bits(tmp_path, subtype):
    soundfile.write(tmp_path / "in.wav", speech(0.5, 8_000).T, 8_000, subtype)
    Extender(Copying()).extend_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").subtype == "PCM_16"
