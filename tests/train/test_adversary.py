"""Steps with a metric discriminator, a teacher and a consistency term: each does what the recipe says."""

import math
import signal

import pytest
import torch
from safetensors.torch import save_file
from tiny import SAMPLES, Tiny, TinyConfig, Tones, finished, losses, stop_after, tiny_model, tiny_run
from torch import Tensor

from clearstate.train import teacher as teaching
from clearstate.train.command import start_from
from clearstate.train.discriminator import MetricDiscriminator
from clearstate.train.losses import feature_distillation, level, output_distillation
from clearstate.train.recipe import RecipeError

METRIC = ("loss.metric=0.05", "schedule.max_steps=4", "data.batch=2")


class Voices(Tones):
    """Syllables of buzz, 1 s: enough like speech for PESQ, which sees no utterance in steady tones."""

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * epoch + item)
        seconds = torch.arange(2 * SAMPLES) / 16_000
        clean = 0.1 * sum(torch.sin(2 * torch.pi * 140 * k * seconds) / k for k in range(1, 20))
        clean = clean * (torch.sin(2 * torch.pi * 3 * seconds) > 0)
        noisy = clean + 0.05 * torch.randn(2 * SAMPLES, generator=generator)
        return {"clean": clean * (item != 5), "noisy": noisy}


@pytest.fixture
def pool_targets(monkeypatch):
    """Targets without processes: item by item 0.5, as many as there are items."""

    def give(values):
        monkeypatch.setattr("clearstate.train.pool.ScorePool.submit", lambda self, c, e, rate: list(c))
        monkeypatch.setattr("clearstate.train.pool.ScorePool.collect", lambda self, items: values[: len(items)])

    return give


def test_generator_and_discriminator_learn_from_pesq_and_a_silent_item_is_only_masked(tmp_path):
    run = tiny_run(tmp_path, *METRIC, "schedule.max_steps=12", items=Voices(items=24))
    before = {name: p.detach().clone() for name, p in run.session.adversary.plain.named_parameters()}
    seen = []
    learn = run.session.adversary.learn

    def watched(clean, candidate, target, rate):
        seen.append(target)
        learn(clean, candidate, target, rate)

    run.session.adversary.learn = watched
    assert run.run().skipped == 0
    targets = torch.cat(seen)
    known = targets[targets.isfinite()]
    assert len(targets) == 24 and len(known) == 23  # item 5 has no speech, and nothing else is lost with it
    assert run.session.adversary.unscored == 1
    assert ((known >= 0) & (known <= 1.05)).all()
    after = dict(run.session.adversary.plain.named_parameters())
    after.pop("body.11.weight")  # slopes for negative values, none of which is the maximum that is pooled
    assert all(not torch.equal(before[name], value) for name, value in after.items())


def test_what_the_generator_gets_goes_through_the_discriminator_and_not_into_it(tmp_path, pool_targets):
    pool_targets([0.5, 0.5])
    run = tiny_run(tmp_path, *METRIC)
    run.session.adversary.learn = lambda *_: None
    batch = [Tones().example(0, i) for i in range(2)]
    noisy, clean = (torch.stack([item[name] for item in batch]) for name in ("noisy", "clean"))
    estimate = run.plan.model(noisy)
    loss = run.session.adversary.turn(estimate, clean, torch.ones(len(noisy), 1), 1e-3)
    assert loss.shape == (2,)
    loss.mean().backward()
    assert all(p.grad is None and p.requires_grad for p in run.session.adversary.plain.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.plan.model.parameters())


def test_with_no_score_at_all_the_discriminator_still_learns_what_clean_is(tmp_path, pool_targets):
    pool_targets([None, math.nan])
    outcome = finished(tmp_path, *METRIC)
    assert outcome.finished and outcome.skipped == 0


def test_an_adversarial_run_resumes_with_its_discriminator(tmp_path, pool_targets):
    pool_targets([0.5, 0.7])
    finished(tmp_path / "whole", *METRIC)
    assert stop_after(tiny_run(tmp_path / "parts", *METRIC), 2).run().signal == signal.SIGTERM
    finished(tmp_path / "parts", *METRIC)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_pesq_needs_16_khz(tmp_path):
    model = tiny_model()
    model.sample_rate = 8_000
    with pytest.raises(RecipeError, match="this one runs at 8000"):
        tiny_run(tmp_path, *METRIC, model=model)


def test_a_student_is_drawn_to_its_teacher(tmp_path, monkeypatch):
    teacher = Tiny(TinyConfig(channels=8)).eval()
    monkeypatch.setattr(teaching, "load_model", lambda name: teacher)
    distil = ("loss.distill=1", "loss.teacher=big", "loss.distill_ramp=0", "loss.magnitude=0", "loss.complex=0")
    distil += ("loss.multi_resolution=0", "loss.log_error=0", "optimiser.lr=0.02", "optimiser.ema=0.5")
    noisy = torch.stack([Tones().example(9, i)["noisy"] for i in range(4)])

    def distance(student) -> float:
        with torch.no_grad():
            gain = level(noisy)
            return output_distillation(student(noisy) * gain, teacher(noisy) * gain, 512, 256).mean().item()

    run = tiny_run(tmp_path, *distil, "schedule.max_steps=60", model=tiny_model(dropout=0.0))
    before = distance(run.plan.model.eval())
    run.run()
    assert distance(run.plan.model.eval()) < 0.8 * before


def test_the_teacher_gains_weight_over_the_ramp(tmp_path, monkeypatch):
    teacher = Tiny(TinyConfig(channels=8)).eval()
    monkeypatch.setattr(teaching, "load_model", lambda name: teacher)
    finished(tmp_path, "loss.distill=1", "loss.teacher=big", "loss.distill_ramp=0.5", model=tiny_model(dropout=0.0))
    import json

    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    course = [line["distill"] for line in lines]
    assert course[0] == 0 and 0 < course[3] < course[6]


def test_a_teacher_of_another_rate_is_refused(tmp_path, monkeypatch):
    teacher = tiny_model()
    teacher.sample_rate = 48_000
    monkeypatch.setattr(teaching, "load_model", lambda name: teacher)
    with pytest.raises(RecipeError, match="runs at 48000 Hz and the student at 16000"):
        tiny_run(tmp_path, "loss.distill=1", "loss.teacher=big")


class Spectral(Tiny):
    """Predicts a spectrum: the noisy one, with a gain for each bin and a phase that no signal has."""

    predicts_spectrum = True

    def __init__(self):
        super().__init__(TinyConfig())
        self.window = torch.hann_window(512)
        self.gain = torch.nn.Parameter(torch.ones(257))
        self.turn = torch.nn.Parameter(torch.linspace(0, 3, 63)[:, None] * torch.linspace(-9, 9, 257))

    def forward(self, noisy: Tensor, with_spectrum: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        spec = self.spectrum(noisy)
        spec = spec * torch.polar(self.gain.expand(63, -1), self.turn)
        wave = torch.istft(spec.transpose(1, 2), 512, 128, window=self.window, length=noisy.shape[-1])
        return (wave, spec) if with_spectrum else wave

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.stft(x, 512, 128, window=self.window, return_complex=True).transpose(1, 2)


def test_the_consistency_of_a_predicted_spectrum_improves(tmp_path):
    model = Spectral()
    only = ("loss.consistency=1", "loss.magnitude=0", "loss.complex=0", "loss.multi_resolution=0", "loss.log_error=0")
    run = tiny_run(tmp_path, *only, "optimiser.lr=0.05", "schedule.max_steps=30", model=model)
    run.validation.export = lambda: None  # its configuration is no dataclass
    run.run()
    course = [loss for _, loss, _ in losses(tmp_path)]
    assert course[-1] < 0.9 * course[0]


def test_a_model_without_a_spectrum_cannot_have_a_loss_on_it(tmp_path):
    with pytest.raises(RecipeError, match=r"no with_spectrum.*loss\.consistency=0"):
        tiny_run(tmp_path, "loss.consistency=0.1")
    with pytest.raises(RecipeError, match=r"no with_spectrum.*loss\.metric_sees=output"):
        tiny_run(tmp_path, *METRIC, "loss.metric_sees=prediction")


def test_the_discriminator_judges_the_output_or_the_prediction(tmp_path, pool_targets):
    """The two differ where a prediction is no signal's spectrum; for one that is they are the same."""
    pool_targets([0.5, 0.5])
    noisy, clean = (torch.stack([Tones().example(0, i)[name] for i in range(2)]) for name in ("noisy", "clean"))
    judged = {}
    for turned in (False, True):
        model = Spectral()
        with torch.no_grad():
            model.turn.mul_(turned)
        for sees in ("output", "prediction"):
            where = tmp_path / f"{sees}-{turned}"
            run = tiny_run(where, *METRIC, f"loss.metric_sees={sees}", model=model)
            candidates = []
            run.session.adversary.learn = lambda clean, candidate, *_, seen=candidates: seen.append(candidate)
            run.judge(noisy, clean)
            (judged[sees, turned],) = candidates
    inside = slice(None, -1)  # the last samples, after the last whole hop, are not in the prediction
    torch.testing.assert_close(judged["output", False][:, inside], judged["prediction", False][:, inside])
    assert (judged["output", True] - judged["prediction", True])[:, inside].abs().max() > 0.1


def test_the_discriminator_starts_from_published_weights(tmp_path, pool_targets):
    pool_targets([0.5] * 4)
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(7)
    known = MetricDiscriminator()
    save_file(known.state_dict(), folder / "discriminator.safetensors")
    run = tiny_run(tmp_path / "run", *METRIC, f"loss.metric_start={folder}")
    for name, value in run.session.adversary.plain.state_dict().items():
        torch.testing.assert_close(value, known.state_dict()[name])
    with pytest.raises(RecipeError, match=r"loss\.metric_start: .*contains no discriminator\.safetensors"):
        tiny_run(tmp_path / "other", *METRIC, f"loss.metric_start={tmp_path}")
    with pytest.raises(RecipeError, match=r"metric_start has no use without loss\.metric"):
        tiny_run(tmp_path / "third", f"loss.metric_start={folder}")


# --- spectra and levels ----------------------------------------------------------------------------------------------


def terms_of(model, tmp_path, *overrides, gain=None) -> dict[str, float]:
    """The loss terms of two items under overrides."""
    noisy, clean = (torch.stack([Tones().example(0, i)[name] for i in range(2)]) for name in ("noisy", "clean"))
    run = tiny_run(tmp_path, "loss.multi_resolution=0", "loss.log_error=0", "loss.phase=1", *overrides, model=model)
    judged = run.judge(noisy, clean, gain)
    return {name: value.item() for name, value in judged.terms.items()}


def test_a_model_with_a_prediction_is_judged_by_it_unless_told_otherwise(tmp_path):
    model = Spectral()
    by_default = terms_of(model, tmp_path / "auto")
    assert by_default == terms_of(model, tmp_path / "prediction", "loss.spectra=prediction")
    other = terms_of(model, tmp_path / "output", "loss.spectra=output")
    assert all(other[name] != pytest.approx(by_default[name], rel=0.01) for name in ("magnitude", "complex", "phase"))
    with pytest.raises(RecipeError, match=r"no with_spectrum.*loss\.spectra=output"):
        tiny_run(tmp_path / "none", "loss.spectra=prediction")


def test_a_model_with_its_own_frames_is_judged_in_its_window(tmp_path):
    """Not in one of unit energy, where squared terms would count a fifth: 192^-0.3 for a Hann window of 512."""
    model = Spectral()
    with torch.no_grad():
        model.turn.zero_()  # the output is the input
    own = terms_of(model, tmp_path / "own", "loss.spectra=output")
    noisy, clean = (torch.stack([Tones().example(0, i)[name] for i in range(2)]) for name in ("noisy", "clean"))
    ours, theirs = (model.spectrum(signal * level(noisy)).abs() ** 0.3 for signal in (noisy, clean))
    assert own["magnitude"] == pytest.approx(
        (ours - theirs).square().mean().item(), rel=0.1
    )  # the floor under silent bins


def test_the_level_is_that_of_the_item_of_the_utterance_or_none(tmp_path):
    model = Spectral()
    item = terms_of(model, tmp_path / "item", "loss.l1=1")
    none = terms_of(model, tmp_path / "none", "loss.l1=1", "loss.level=none")
    noisy = torch.stack([Tones().example(0, i)["noisy"] for i in range(2)])
    assert item["l1"] == pytest.approx(none["l1"] * level(noisy).mean().item(), rel=0.05)
    gain = torch.tensor([[3.0], [3.0]])
    assert terms_of(model, tmp_path / "known", "loss.l1=1", gain=gain)["l1"] == pytest.approx(3 * none["l1"])
    with pytest.raises(RecipeError, match=r"loss\.level=utterance needs pairs"):
        tiny_run(
            tmp_path / "mixed", "loss.level=utterance", "data.noisy=null", "data.clean=null", "data.sources.speech=[.]"
        )


def test_a_model_that_normalises_works_at_the_level_of_the_utterance(tmp_path):
    class Normalising(Tiny):
        normalises = True

        def forward(self, noisy, gain=None):
            seen.append(gain)
            return super().forward(noisy)

    seen, gain = [], torch.tensor([[2.0], [4.0]])
    terms_of(Normalising(TinyConfig()), tmp_path / "with", "loss.phase=0", gain=gain)
    terms_of(Normalising(TinyConfig()), tmp_path / "without", "loss.phase=0")
    assert seen[0] is gain and seen[1] is None


# --- distillation of features ----------------------------------------------------------------------------------------


class Stacked(Tiny):
    """With blocks between the filter banks; each gives (output, state), as causal blocks do."""

    class Block(torch.nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.mix = torch.nn.Conv1d(channels, channels, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + self.mix(x), None

    def __init__(self, blocks: int, channels: int = 4):
        super().__init__(TinyConfig(channels=channels, dropout=0.0))
        self.blocks = torch.nn.ModuleList(self.Block(channels) for _ in range(blocks))

    def forward(self, noisy: Tensor) -> Tensor:
        x = self.encode(torch.nn.functional.pad(noisy, (16, 32))[:, None]).tanh()
        for block in self.blocks:
            x, _ = block(x)
        return self.decode(x)[:, 0, 16 : 16 + noisy.shape[-1]]

    def features(self, noisy: Tensor) -> list[Tensor]:
        x, found = self.encode(torch.nn.functional.pad(noisy, (16, 32))[:, None]).tanh(), []
        for block in self.blocks:
            x, _ = block(x)
            found.append(x)
        return found


ALONE = ("loss.magnitude=0", "loss.complex=0", "loss.multi_resolution=0", "loss.log_error=0", "loss.distill_ramp=0")
FEATURES = ("loss.distill_features=1", "loss.teacher=big", *ALONE)


def stacked(seed: int, blocks: int, channels: int = 4) -> Stacked:
    torch.manual_seed(seed)
    return Stacked(blocks, channels)


def test_a_student_s_last_block_is_drawn_to_the_mean_of_its_teacher_s(tmp_path, monkeypatch):
    teacher = stacked(1, 3).eval()
    monkeypatch.setattr(teaching, "load_model", lambda name: teacher)
    noisy = torch.stack([Tones().example(9, i)["noisy"] for i in range(4)])

    def distance(student: Stacked) -> float:
        with torch.no_grad():
            return feature_distillation(student.features(noisy)[-1], teacher.features(noisy)).mean().item()

    run = tiny_run(tmp_path, *FEATURES, "optimiser.lr=0.02", "schedule.max_steps=60", model=stacked(2, 2))
    run.validation.export = lambda: None
    judged = run.judge(noisy, noisy)
    before = distance(run.plan.model.eval())
    assert set(judged.terms) == {"distill_features"}
    torch.testing.assert_close(judged.total.item(), before)
    run.run()
    assert distance(run.plan.model.eval()) < 0.8 * before


def test_features_that_cannot_be_compared_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "load_model", lambda name: stacked(1, 3, channels=6))
    with pytest.raises(RecipeError, match="blocks of the same size"):
        finished(tmp_path / "a", *FEATURES, model=stacked(2, 2))
    with pytest.raises(RecipeError, match=r"tiny has none: set loss\.distill_features=0"):
        tiny_run(tmp_path / "b", *FEATURES)
    with pytest.raises(RecipeError, match="go together"):
        tiny_run(tmp_path / "c", "loss.distill_features=1")


def test_while_the_hold_lasts_only_the_blocks_learn(tmp_path):
    run = tiny_run(tmp_path, "schedule.hold=0.5", "model.start=here", "optimiser.weight_decay=0.1", model=stacked(2, 2))
    run.validation.export = lambda: None
    start = {name: p.detach().clone() for name, p in run.plan.model.named_parameters()}
    moved = []
    count = run.count

    def counted(values, minutes):
        count(values, minutes)
        moved.append({name for name, p in run.plan.model.named_parameters() if not torch.equal(p, start[name])})

    run.count = counted
    run.run()
    inner = {name for name in start if name.startswith("blocks.")}
    assert moved[2] == moved[5] == inner  # of twelve steps
    assert moved[6] == set(start)
    with pytest.raises(RecipeError, match=r"set model\.start"):
        tiny_run(tmp_path / "b", "schedule.hold=0.5")


def test_a_student_starts_from_the_tensors_that_it_shares_with_its_teacher():
    teacher, student = stacked(1, 3), stacked(2, 2)
    start_from(student, teacher.state_dict(), "big")
    for name, value in student.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name])
    with pytest.raises(RecipeError, match=r"model\.start=small does not fit: blocks\.2\.mix\.weight .* no such tensor"):
        start_from(teacher, student.state_dict(), "small")
    with pytest.raises(RecipeError, match=r"encode\.weight is \(4, 1, 32\) here, there it is \(6, 1, 32\)"):
        start_from(student, stacked(1, 3, channels=6).state_dict(), "wide")
