"""Models that separate sources train on mixtures, with the best assignment, and are scored in the best order."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tiny import SAMPLES, Tiny, TinyConfig, losses, tiny_run
from torch import Tensor, nn

from clearstate.train.items import open_items, open_pairs
from clearstate.train.recipe import RecipeError, recipe_from
from clearstate.train.scoring import scores

TREE = {
    "run": "x",
    "model": {"name": "apart"},
    "data": {"clean": ["s1", "s2"], "seconds": 0.25},
    "loss": {"snr_pit": 1},
    "schedule": {"max_steps": 1},
    "valid": {"clean": ["s1", "s2"]},
}
PIT = ("model.name=apart", "loss={snr_pit: 1}")


class Apart(Tiny):
    """Two outputs."""

    def __init__(self):
        super().__init__(TinyConfig(channels=16, dropout=0.0))
        self.decode = nn.ConvTranspose1d(16, 2, 32, 16, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:  # (b, n) to (b, 2, n)
        frames = nn.functional.pad(mixture, (16, 32))[:, None]
        return self.decode(self.encode(frames))[:, :, 16 : 16 + mixture.shape[-1]]


class TwoBands:
    """A low and a high tone, in random order."""

    def __len__(self) -> int:
        return 24

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * epoch + item)
        seconds = torch.arange(SAMPLES) / 16_000
        pitch = torch.tensor([300.0, 3000.0]) * (1 + 0.3 * torch.rand(2, generator=generator))
        sources = 0.1 * torch.sin(2 * torch.pi * pitch[:, None] * seconds)
        sources = sources[torch.randperm(2, generator=generator)]
        return {"noisy": sources.sum(0), "clean": sources}

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        item = self.example(99, i)
        return item["noisy"], item["clean"]


def test_a_separator_learns_from_sources_in_any_order(tmp_path):
    parts = {"model": Apart(), "items": TwoBands(), "pairs": TwoBands()}
    run = tiny_run(tmp_path, *PIT, "schedule.max_steps=80", "valid.items=2", "valid.best=si_sdr", **parts)
    outcome = run.run()
    course = [loss for _, loss, _ in losses(tmp_path)]
    assert course[-1] < course[0] - 6  # dB; without the best assignment each output is the mean of both
    assert outcome.best > 5
    rows = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "valid" and rows[-1]["items"] == 2


def test_sources_are_scored_in_the_best_order():
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((2, 8000))
    estimate = clean + 0.1 * rng.standard_normal((2, 8000))
    straight, crossed = scores(clean, estimate, 16_000), scores(clean, estimate[::-1], 16_000)
    assert straight == crossed
    assert straight["snr"] == pytest.approx(20, abs=0.5)


def test_the_loss_and_the_task_must_agree(tmp_path):
    with pytest.raises(RecipeError, match="separation models need snr_pit alone"):
        tiny_run(tmp_path, "model.name=apart", model=Apart())
    with pytest.raises(RecipeError, match="separation models need snr_pit alone"):
        tiny_run(tmp_path, "loss={snr_pit: 1}")


@pytest.fixture
def voices(tmp_path):
    for number in (1, 2):
        (tmp_path / f"s{number}").mkdir()
        for name in ("a", "b"):
            noise = 0.1 * np.random.default_rng(number).standard_normal(8000)
            soundfile.write(tmp_path / f"s{number}" / f"{name}.wav", noise, 16_000, subtype="FLOAT")
    return tmp_path


def test_folders_of_voices_are_summed_to_mixtures(voices):
    recipe = recipe_from({**TREE, "audio": str(voices)})
    item = open_items(recipe, "separate", 16_000).example(0, 1)
    assert item["clean"].shape == (2, 4000)
    torch.testing.assert_close(item["noisy"], item["clean"].sum(0))
    mixture, sources = open_pairs(recipe, "separate", 16_000).pair(0)
    assert sources.shape == (2, 8000) and mixture.shape == (8000,)


def test_a_single_folder_of_voices_is_refused():
    with pytest.raises(RecipeError, match=r"a list in data\.clean needs one folder per voice"):
        recipe_from({**TREE, "data": {"clean": ["s1"]}})
