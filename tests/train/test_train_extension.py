"""Training a model that extends the bandwidth: its losses, its held-out items, and a metric that is better when low."""

import json

import numpy as np
import pytest
import soundfile
import torch

from clearstate.data import NarrowedFolder
from clearstate.data.extension import resampled
from clearstate.train import losses
from clearstate.train.command import run_recipe
from clearstate.train.recipe import RecipeError, recipe_from
from clearstate.train.scoring import extension_scores

RATE = 48_000


def hiss(seconds: float, seed: int = 0, cut: float = 24_000.0) -> np.ndarray:
    """Noise in syllables whose spectrum falls by 40 dB to 24 kHz, and ends at `cut` Hz; float32."""
    n = int(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(n))
    f = np.fft.rfftfreq(n, 1 / RATE)
    x = np.fft.irfft(spectrum * 10 ** (-40 / 20 * f / 24_000) * (f < cut), n)
    swell = 1.1 + np.sin(2 * np.pi * 4 * np.arange(n) / RATE)
    return (0.05 * x / x.std() * swell).astype(np.float32)


def pair(rate: int = 16_000, **wide):
    x = hiss(1.0, **wide)
    return torch.from_numpy(x)[None], torch.from_numpy(resampled(x, RATE, rate))[None]


# ------------------------------------------------------------------------------------------------------ losses


def test_the_missing_band_lies_between_the_two_bandwidths():
    wide, narrow = pair()
    band = losses.missing_band(narrow, wide, 481)[0]  # bins of 50 Hz
    assert not band[: 7_000 // 50].any() and band[8_000 // 50 :].all()
    coded, narrow = pair(cut=20_000.0)
    band = losses.missing_band(narrow, coded, 481)[0]
    assert band[8_000 // 50 : 19_000 // 50].all() and not band[20_000 // 50 :].any()


def test_a_target_that_is_no_wider_teaches_silence():
    """As noise has it, to which nothing is to be added; the bins below the edge still do not count."""
    _, narrow = pair()
    nothing = narrow + 1e-5 * torch.randn(narrow.shape)
    band = losses.missing_band(narrow, nothing, 481)[0]
    assert not band[: 7_000 // 50].any() and band[8_000 // 50 :].all()
    added = narrow + 1e-2 * torch.randn(narrow.shape)
    quiet, loud = (losses.log_spectral_loss(y * 100, nothing * 100, narrow * 100).item() for y in (nothing, added))
    assert quiet < 0.01 and loud > 2


def test_the_log_spectral_loss_is_the_metric_over_that_band():
    wide, narrow = pair()
    estimate = wide * 10 ** (6 / 20)  # 0.6 in log10 power everywhere
    loss = losses.log_spectral_loss(estimate * 100, wide * 100, narrow * 100)
    assert loss.item() == pytest.approx(0.6, abs=0.01)
    assert losses.log_spectral_loss(wide * 100, wide * 100, narrow * 100).item() < 0.02
    assert losses.log_spectral_loss(narrow * 100, wide * 100, narrow * 100).item() > 2


def test_what_a_codec_took_from_the_target_is_not_learnt():
    """Filling the band above a target's own end costs nothing; filling the band below it wrongly does."""
    coded, narrow = pair(cut=20_000.0)
    whole = torch.from_numpy(hiss(1.0))[None]
    assert losses.log_spectral_loss(whole * 100, coded * 100, narrow * 100).item() < 0.1
    assert losses.log_spectral_loss(narrow * 100, coded * 100, narrow * 100).item() > 2


def test_the_added_error_is_free_up_to_its_allowance():
    wide, narrow = pair()
    missing = wide - narrow
    assert losses.added_error(narrow, wide, narrow).item() == 0
    assert losses.added_error(wide, wide, narrow).item() == 0
    against = losses.added_error(narrow - missing, wide, narrow)  # twice the missing band away: 6 dB
    assert against.item() == pytest.approx(20 * np.log10(2) - 1, abs=0.01)


@pytest.mark.parametrize("loss", [losses.log_spectral_loss, losses.added_error])
def test_gradients_are_finite_even_in_silence(loss):
    silent = torch.zeros(2, 9_000)
    estimate = torch.zeros(2, 9_000, requires_grad=True)
    wide, narrow = pair()
    for s, x in ((silent, silent), (wide[:, :9_000].expand(2, -1), narrow[:, :9_000].expand(2, -1))):
        value = loss(estimate, s, x)
        assert value.shape == (2,)
        (gradient,) = torch.autograd.grad(value.sum(), estimate)
        assert torch.isfinite(gradient).all()


# ------------------------------------------------------------------------------------------------------ held-out items


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        (tmp_path / "wide").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "wide" / f"{name}.wav", hiss(0.7, seed=ord(name)), RATE, "FLOAT")
    return tmp_path / "wide"


def test_each_wide_file_is_narrowed_to_each_rate(folder):
    items = NarrowedFolder(folder, rates=(8_000, 24_000))
    assert len(items) == 4 and [items[i]["info"]["narrow_rate"] for i in range(4)] == [8_000, 24_000] * 2
    for item in (items[i] for i in range(4)):
        assert item["narrow"].shape == item["wide"].shape and item["narrow"].dtype == np.float32
        half, spectrum = item["info"]["narrow_rate"] / 2, np.abs(np.fft.rfft(item["narrow"] * np.hanning(33_600))) ** 2
        f = np.fft.rfftfreq(len(item["narrow"]), 1 / RATE)
        assert spectrum[f > 1.05 * half].sum() < 1e-6 * spectrum.sum()


def test_files_of_another_rate_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 44_100)
    with pytest.raises(ValueError, match="expected wide files at 48000"):
        NarrowedFolder(tmp_path)[0]
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="contains no audio"):
        NarrowedFolder(tmp_path / "none")


def test_scores_of_an_extension():
    wide = hiss(1.0)
    perfect, plain = extension_scores(wide, wide, RATE), extension_scores(wide, resampled(wide, RATE, 16_000), RATE)
    assert perfect["lsd"] == perfect["lsd_high"] == 0 and perfect["snr"] > 90
    assert plain["lsd_high"] > plain["lsd"] > 2


# ------------------------------------------------------------------------------------------------------ a run


def tree(folder, tmp_path, **valid):
    return {
        "run": str(tmp_path / "run"),
        "audio": str(tmp_path),
        "model": {"name": "extend-fast", "config": {"width": 16, "blocks": 1, "states": 2, "dropout": 0.0}},
        "data": {
            "sources": {"speech": [str(folder)], "cache": str(tmp_path / "cache")},
            "mixture": {"rates": [16_000], "speed": 0.5},
            "seconds": 0.5,
            "batch": 2,
            "items": 8,
            "workers": 0,
        },
        "loss": {"log_spectral": 1.0, "added_error": 0.05},
        "optimiser": {"lr": 0.003},
        "schedule": {"max_steps": 24},
        "valid": {"clean": str(folder), "best": "lsd", "every_steps": 6, "workers": 1, "pictures": False} | valid,
        "log_steps": 4,
    }


@pytest.mark.filterwarnings("ignore:the validation files")
def test_a_run_learns_and_keeps_the_lowest_distance(folder, tmp_path):
    outcome = run_recipe(recipe_from(tree(folder, tmp_path)), quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    train, valid = ([line for line in lines if line["kind"] == kind] for kind in ("train", "valid"))
    assert len(train) == 6 and all(line["log_spectral"] > 0 for line in train)
    assert valid[0]["items"] == 6 and valid[0]["unscored"] == 0
    # The items of two windows differ too much to compare their losses; and noise has little to be learnt.
    assert outcome.best == min(line["lsd"] for line in valid) < valid[0]["lsd"] - 0.005


def test_a_metric_that_validation_does_not_give_is_refused(folder, tmp_path):
    with pytest.raises(RecipeError, match=r"valid.best=pesq: expected one of lsd, lsd_high, snr for extend-fast"):
        run_recipe(recipe_from(tree(folder, tmp_path, best="pesq")), quiet=True)


def test_wide_files_alone_are_for_models_that_extend(folder, tmp_path):
    wrong = tree(folder, tmp_path) | {"model": {"name": "live"}}
    with pytest.raises(RecipeError, match="go together"):
        recipe_from(wrong)
