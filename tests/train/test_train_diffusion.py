"""A model with a loss of its own trains with that: the diffusion of MambaWave, in miniature."""

import json

import pytest
import torch
from tiny import Tiny, TinyConfig, losses, stop_after, tiny_run
from torch import Tensor

from clearstate.models import load_model
from clearstate.models.mambawave import MambaWave, MambaWaveConfig
from clearstate.train.recipe import RecipeError

SMALL = MambaWaveConfig(channels=8, blocks=1, states=2, step_width=16)
OWN = ("model.name=mambawave", "loss={own: 1.0}", "data.batch=2")
SAMPLES = 4_096


class NarrowAndWide:
    """Noise below 12 kHz, and with a little above it."""

    def __len__(self) -> int:
        return 8

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * epoch + item)
        spectrum = torch.fft.rfft(torch.randn(SAMPLES, generator=generator))
        low, high = spectrum.clone(), 1e-4 * spectrum
        low[len(low) // 2 :] = 0
        high[: len(high) // 2] = 0
        narrow = torch.fft.irfft(low, SAMPLES)
        return {"noisy": narrow, "clean": narrow + torch.fft.irfft(high, SAMPLES)}

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        item = self.example(99, i)
        return item["noisy"], item["clean"]


def run(folder, *overrides, **parts):
    torch.manual_seed(0)
    return tiny_run(folder, *OWN, *overrides, model=MambaWave(SMALL), items=NarrowAndWide(), **parts)


def test_a_diffusion_model_learns_with_its_own_loss(tmp_path):
    outcome = run(tmp_path, "schedule.max_steps=50").run()
    trained = load_model(str(outcome.weights))
    rows = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(row["velocity"] == pytest.approx(row["loss"]) for row in rows)
    pairs = [NarrowAndWide().pair(i) for i in range(8)]
    narrow, wide = (torch.stack(signals) for signals in zip(*pairs, strict=True))
    before, after = (
        model.training_loss(narrow, wide, generator=torch.Generator().manual_seed(0))["velocity"].mean()
        for model in (MambaWave(SMALL), trained)
    )
    assert after < 0.9 * before
    assert torch.isfinite(trained(narrow, bandwidth_hz=12_000.0)).all()


def test_the_weight_scales_the_loss(tmp_path):
    run(tmp_path / "one", "schedule.max_steps=1").run()
    run(tmp_path / "three", "schedule.max_steps=1", "loss.own=3").run()
    (_, one, _), (_, three, _) = losses(tmp_path / "one")[0], losses(tmp_path / "three")[0]
    assert three == pytest.approx(3 * one)


def test_noise_goes_on_where_a_stopped_run_was(tmp_path):
    run(tmp_path / "whole", "schedule.max_steps=6").run()
    stop_after(run(tmp_path / "parts", "schedule.max_steps=6"), 3).run()
    run(tmp_path / "parts", "schedule.max_steps=6").run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_it_is_scored_by_what_extension_is_scored_by(tmp_path):
    outcome = run(
        tmp_path, "schedule.max_steps=1", "valid.clean=.", "valid.every_steps=1", "valid.items=1", "valid.best=lsd",
        pairs=NarrowAndWide(),
    ).run()  # fmt: skip
    assert 0 < outcome.best < 5


def test_a_loss_that_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"a diffusion model needs its own loss alone: set loss=\{own: 1\}"):
        run(tmp_path, "loss={magnitude: 1.0}")
    with pytest.raises(RecipeError, match="needs its own loss alone"):
        run(tmp_path, "loss={own: 1.0, l1: 1.0}")
    with pytest.raises(RecipeError, match="tiny has no own loss"):
        tiny_run(tmp_path, "loss={own: 1.0}", model=Tiny(TinyConfig()))
