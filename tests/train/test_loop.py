"""One step after another: accumulation, schedule, averages, steps that are not finite, validation."""

import json
import math
import signal
import sys
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tiny import SAMPLES, Tiny, TinyConfig, TonePairs, Tones, finished, losses, stop_after, tiny_model, tiny_run
from torch import nn

from clearstate.train import loop, optim
from clearstate.train.objective import Objective
from clearstate.train.recipe import OptimiserRecipe, ScheduleRecipe
from clearstate.train.report import read_log

NO_DROPOUT = {"dropout": 0.0}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "best" / "model.safetensors")


def test_the_tiny_model_learns(tmp_path):
    finished(tmp_path, "schedule.max_steps=60", "optimiser.ema=0.5")
    course = [loss for _, loss, _ in losses(tmp_path)]
    assert sum(course[-5:]) < 0.6 * sum(course[:5])


def test_accumulated_batches_are_one_large_batch(tmp_path):
    """Same items, same mean: equal up to the order of float32 sums (1e-6 on weights of 0.1), with Adam's division by
    small second moments on top."""
    finished(tmp_path / "one", "data.batch=8", model=tiny_model(**NO_DROPOUT))
    finished(tmp_path / "two", "data.batch=4", "optimiser.accumulate=2", model=tiny_model(**NO_DROPOUT))
    finished(tmp_path / "half", "data.batch=4", model=tiny_model(**NO_DROPOUT))
    one, two, half = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(tmp_path / "half")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    assert (
        max((one[name] - half[name]).abs().max() for name in one) > 1e-3
    )  # the control: half the batch is another run


class Poisoned(Tones):
    """Some items are not numbers."""

    def __init__(self, bad: set[int]):
        super().__init__()
        self.bad = bad

    def example(self, epoch, item):
        drawn = super().example(epoch, item)
        return {**drawn, "noisy": drawn["noisy"] * math.nan} if item in self.bad else drawn


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    outcome = finished(tmp_path, items=Poisoned({5}))
    assert outcome.skipped == 2  # item 5 comes once in each of the two epochs
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped"] == 2 and len(lines) == 12


def test_a_skipped_step_leaves_weights_and_averages_as_they_were(tmp_path):
    run = tiny_run(tmp_path)
    batch = {name: value[None] for name, value in Tones().example(0, 0).items()}
    run.step([batch])
    before = [p.detach().clone() for p in [*run.plan.model.parameters(), *run.session.ema.model.parameters()]]
    run.step([batch, {**batch, "noisy": batch["noisy"] * math.inf}])
    after = [*run.plan.model.parameters(), *run.session.ema.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert run.session.at.skipped == 1


def test_a_run_that_only_skips_gives_up_and_says_what_to_try(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "GIVE_UP_AFTER", 3)
    with pytest.raises(FloatingPointError, match=r"lower optimiser\.lr"):
        finished(tmp_path, items=Poisoned(set(range(24))))


def test_the_rate_rises_then_falls_along_a_cosine():
    schedule = ScheduleRecipe(max_steps=100, warmup=0.1, floor=0.1)
    rates = [optim.rate(schedule, step / 100) for step in range(101)]
    assert rates[0] == 0 and rates[10] == 1 and rates[100] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_an_exponential_fall_loses_the_same_share_in_every_stretch():
    schedule = ScheduleRecipe(max_steps=200, warmup=0.0, floor=0.99**200, fall="exponential")
    assert [optim.rate(schedule, epoch / 200) for epoch in (0, 1, 2, 200)] == pytest.approx(
        [1, 0.99, 0.99**2, 0.99**200]
    )


def test_the_schedule_follows_the_limit_that_is_nearer():
    both = ScheduleRecipe(max_steps=100, max_minutes=10)
    assert optim.progress(both, 50, 1.0) == 0.5
    assert optim.progress(both, 10, 8.0) == 0.8
    assert optim.progress(both, 10, 11.0) == 1.0


def test_a_time_budget_ends_the_run_and_goes_on_counting_after_a_resumption(tmp_path):
    run = stop_after(tiny_run(tmp_path, "schedule.max_steps=null", "schedule.max_minutes=0.02"), 5)
    assert not run.run().finished
    spent = run.session.at.minutes
    again = tiny_run(tmp_path, "schedule.max_steps=null", "schedule.max_minutes=0.02")
    assert again.session.at.minutes == spent > 0
    assert again.run().finished
    assert 0.02 <= again.session.at.minutes < 0.1


def test_what_sets_scales_and_time_constants_is_not_decayed():
    model = nn.Module()
    model.mix = nn.Linear(3, 3)
    model.norm = nn.LayerNorm(3)
    model.A_log = nn.Parameter(torch.zeros(3, 2))
    model.D = nn.Parameter(torch.zeros(3))
    decayed, free = optim.parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(model.mix.weight)]
    assert len(free["params"]) == 5


def test_averaged_weights_follow_the_stated_recursion():
    model = nn.Linear(1, 1, bias=False)
    ema = optim.Ema(model, 0.5)
    expected = model.weight.item()
    for n, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_optimiser_groups_cover_every_parameter_once():
    model = tiny_model()
    groups = optim.adamw(model, OptimiserRecipe()).param_groups
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())


def test_validation_scores_the_averaged_weights_and_keeps_the_best(tmp_path):
    outcome = finished(tmp_path, "valid.every_steps=4", "valid.best=si_sdr", pairs=TonePairs())
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line["kind"] == "valid"]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert outcome.best == max(row["si_sdr"] for row in rows)
    # the file holds the weights that score what the log says
    from clearstate.metrics.intrusive import si_sdr

    model = Tiny(TinyConfig(**json.loads((tmp_path / "best" / "config.json").read_text())["config"])).eval()
    model.load_state_dict(weights(tmp_path))
    pairs = [TonePairs().pair(i) for i in range(3)]
    with torch.no_grad():
        again = [si_sdr(clean.numpy(), model(noisy[None])[0].numpy()) for noisy, clean in pairs]
    assert sum(again) / 3 == pytest.approx(outcome.best, abs=1e-3)


@pytest.mark.slow
def test_a_signal_during_a_validation_puts_it_off_to_the_resumed_run(tmp_path):
    changes = ("valid.every_steps=6", "valid.best=si_sdr")
    finished(tmp_path / "whole", *changes, pairs=TonePairs())

    class Interrupting(TonePairs):
        def pair(self, i):
            run.session.signalled = signal.SIGTERM
            return super().pair(i)

    run = tiny_run(tmp_path / "parts", *changes, pairs=Interrupting())
    assert not run.run().finished and run.session.at.step == 6
    assert all(line["kind"] == "train" for line in read_log(tmp_path / "parts" / "log.jsonl"))
    finished(tmp_path / "parts", *changes, pairs=TonePairs())
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    rows = [[(line["step"], line["si_sdr"]) for line in log if line["kind"] == "valid"] for log in logs]
    assert rows[0] == rows[1] and len(rows[0]) == 2


@pytest.mark.slow
def test_each_validation_draws_curves_and_three_fixed_examples(tmp_path):
    finished(tmp_path, "valid.every_steps=6", "valid.pictures=true", pairs=TonePairs())
    drawn = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert drawn == ["curves.png", "examples/step-0000006.png", "examples/step-0000012.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_a_missing_library_of_the_validation_is_reported_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(ImportError, match=r"validation needs pesq.*clearstate\[metrics\]"):
        tiny_run(tmp_path, pairs=TonePairs())


def test_bfloat16_trains_with_the_loss_in_float32(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, "precision=bfloat16", "schedule.max_steps=30")
    seen = []
    judge = Objective.__call__

    def watched(objective, estimate, *others):
        seen.append(estimate.dtype)
        return judge(objective, estimate, *others)

    monkeypatch.setattr(Objective, "__call__", watched)
    run.run()
    assert set(seen) == {torch.float32}
    assert all(p.dtype == torch.float32 for p in run.plan.model.parameters())
    course = [loss for _, loss, _ in losses(tmp_path)]
    assert course[-1] < course[0]


def test_the_length_of_an_item_is_what_the_hours_count(tmp_path):
    run = tiny_run(tmp_path)
    run.run()
    assert run.session.at.hours == pytest.approx(12 * 4 * SAMPLES / 16_000 / 3600)


def test_a_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"clearstate\[tensorboard\]"):
        tiny_run(tmp_path, "tensorboard=true")


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    finished(tmp_path, "tensorboard=true", "schedule.max_steps=3")
    assert any((tmp_path / "tensorboard").iterdir())
