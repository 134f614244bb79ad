"""Long signals and models that listen to the whole of one: what is measured at first hearing, and that blocks meet."""

import numpy as np
import pytest
import soundfile
import torch
from contracts import noise
from scipy.signal import lfilter

from clearstate.models.semamba import SEMamba, SEMambaConfig
from clearstate.runtime import open_model
from clearstate.tasks.chain import Chain, Levelled
from clearstate.tasks.enhance import Enhancer
from clearstate.tasks.first_pass import PIECES, Survey, survey

RATE = 16_000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = SEMamba(SEMambaConfig(n_fft=160, hop=80, channels=6, blocks=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Blocks of 4 s in place of 8, for time's sake."""
    monkeypatch.setattr("clearstate.tasks.chain.BLOCK_SECONDS", 4.0)
    monkeypatch.setattr("clearstate.tasks.enhance.BLOCK_SECONDS", 4.0)


def restless(seconds: float, channels: int = 1) -> np.ndarray:
    """Noise that grows from -34 dB to 0 dB of its last level, and changes its colour: no two blocks are alike."""
    x = noise(channels, round(seconds * RATE), 0.2).double().numpy()
    dull = 0.5 * lfilter([1.0], [1.0, -0.9], x)  # with hardly anything below 2 Hz, which would count as an offset
    way = np.linspace(0, 1, x.shape[1])
    return ((0.02 + way**2) * ((1 - way) * dull + way * x)).astype(np.float32)


def error(y: np.ndarray, reference: np.ndarray) -> float:
    """RMS of the difference over RMS of the reference, in dB."""
    return 10 * np.log10(np.mean((y - reference) ** 2) / np.mean(reference**2))


def whole(model, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def in_blocks(model, x: np.ndarray, overviews) -> np.ndarray:
    chain = Chain(open_model(model, "enhance"), RATE, len(x), overviews=overviews)
    return np.concatenate([chain.push(x), chain.finish()], axis=1)


def test_blocks_meet_as_if_there_were_none(model):
    """Against one pass over 11 s, five blocks: 30 dB and more, where blocks on their own reach a few."""
    x = restless(11.0)
    reference = whole(model, x)
    known = error(Enhancer(model).enhance(x, RATE), reference)
    alone = error(in_blocks(model, x, None), reference)
    print(f"\nerror against one pass: {known:.1f} dB with an overview, {alone:.1f} dB without")
    assert known < -30
    assert alone > -10


def test_an_overview_from_pieces_is_nearly_that_of_the_whole(model, monkeypatch):
    """Two and a half times as long as what is taken together: four pieces stand for the whole."""
    monkeypatch.setattr("clearstate.tasks.first_pass.PIECE_SECONDS", 1.2)
    x = restless(12.0)
    reference = whole(model, x)
    sampled = error(Enhancer(model).enhance(x, RATE), reference)
    assert sampled < -15, f"{sampled:.1f} dB"


def test_a_signal_of_one_block_is_what_the_model_makes_of_it(model):
    """Up to rounding: on some processors that of PyTorch's products depends on where arrays lie."""
    x = restless(3.0)
    np.testing.assert_allclose(Enhancer(model).enhance(x, RATE), whole(model, x), rtol=0, atol=1e-5)


def test_channels_have_overviews_of_their_own(model):
    x = restless(7.0, channels=2) * np.array([[1.0], [0.05]], dtype=np.float32)
    opened = open_model(model, "enhance")
    overviews = survey(opened, RATE, 2, [x], 4.0)
    runner = Levelled(opened, 2, overviews, live=False, warm_up=False)
    both = np.concatenate([runner.push(x), runner.finish()], axis=2)[1]
    for channel, y in zip(x, both, strict=True):
        own = survey(opened, RATE, 1, [channel[None]], 4.0)
        alone = Levelled(opened, 1, own, live=False, warm_up=False)
        expected = np.concatenate([alone.push(channel[None]), alone.finish()], axis=2)[1, 0]
        np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_file_is_heard_twice_and_comes_out_as_the_array(model, tmp_path, rate):
    x = restless(5.0 * rate / RATE)
    soundfile.write(tmp_path / "in.wav", x.T, rate, "FLOAT")
    Enhancer(model).enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    y, _ = soundfile.read(tmp_path / "out.wav", dtype="float32", always_2d=True)
    assert y.T.shape == x.shape
    np.testing.assert_allclose(y.T, Enhancer(model).enhance(x, rate), atol=1e-6)


# --- the survey itself -----------------------------------------------------------------------------------------------


def heard(x: np.ndarray, length: int, step: int = 777) -> Survey:
    survey = Survey(len(x), length)
    for start in range(0, x.shape[1], step):
        survey.push(x[:, start : start + step])
    return survey


def test_a_short_signal_is_one_piece_to_its_last_sample():
    x = np.random.default_rng(0).standard_normal((2, 1_003)).astype(np.float32)
    np.testing.assert_array_equal(heard(x, 251).pieces()[:, 0], x)


@pytest.mark.parametrize("samples", [450, 5_000, 123_456])
def test_pieces_come_from_all_over_a_long_signal_in_bounded_memory(samples):
    x = np.arange(samples, dtype=np.float32)[None]
    survey = heard(x, 100)
    pieces = survey.pieces()
    assert pieces.shape == (1, PIECES, 100)
    starts = pieces[0, :, 0]
    assert (np.diff(pieces[0], axis=1) == 1).all() and (starts % 100 == 0).all()
    assert starts[0] == 0 and starts[-1] >= 0.6 * (samples - 200)
    assert np.diff(starts).max() <= 2.1 * samples / PIECES
    assert len(survey.kept) < 2 * PIECES


def test_the_gain_brings_each_channel_to_one_and_leaves_silence():
    x = noise(3, 5_000).numpy() * np.array([[1e-4], [30.0], [0.0]], dtype=np.float32)
    gain = heard(x, 100).gain()
    np.testing.assert_allclose(np.sqrt(np.mean((x[:2] * gain[:2, None]) ** 2, axis=1)), 1, rtol=1e-5)
    assert gain[2] == 1


def test_how_it_is_cut_into_chunks_does_not_matter():
    x = noise(1, 7_531).numpy()
    a, b = heard(x, 100, 13), heard(x, 100, 7_000)
    np.testing.assert_array_equal(a.pieces(), b.pieces())
    np.testing.assert_allclose(a.gain(), b.gain(), rtol=1e-6)
