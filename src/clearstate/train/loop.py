"""The training loop: one step after another until the schedule ends, a signal comes, or nothing is finite any more.

A run folder holds `checkpoint.pt` (everything needed to go on), `log.jsonl`, pictures, and `best/`: the averaged
weights of the best validation (of the last step when there is none) as a folder that `clearstate.load` reads. Starting
a run whose folder holds a checkpoint resumes it.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from clearstate.models import find, save_model
from clearstate.train import checkpoint, optim
from clearstate.train.adversary import Adversary
from clearstate.train.batches import Items, Positions, loader
from clearstate.train.objective import (
    Judged,
    Objective,
    at_common_level,
    check_extras,
    check_model,
    own_loss,
    predicted_consistency,
    sees_prediction,
)
from clearstate.train.pictures import Example, draw_curves, draw_examples
from clearstate.train.pool import ScorePool
from clearstate.train.recipe import Recipe, RecipeError, as_tree
from clearstate.train.report import Report, read_log
from clearstate.train.scoring import LOWER_IS_BETTER, metrics_of
from clearstate.train.teacher import Teacher, blocks_of
from clearstate.train.validate import Pairs, spread, validate

GIVE_UP_AFTER = 100  # steps in a row that were not finite


@dataclass
class Counters:
    """Where a run stands; kept in its checkpoint."""

    step: int = 0  # optimiser steps, skipped ones included
    position: int = 0  # items consumed, over all processes
    minutes: float = 0.0  # spent training, over all resumptions
    hours: float = 0.0  # of audio
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    best: float | None = None  # value of the metric that chooses
    best_step: int = 0
    validated_step: int = 0
    validated_minutes: float = 0.0
    window: dict[str, float] = field(default_factory=dict)  # sums since the last line of the log


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    finished: bool  # False: stopped by a signal, to be resumed
    signal: int  # which one; 0 if finished
    step: int
    skipped: int
    best: float | None
    weights: Path | None  # the folder best/, if written


def make_fabric(recipe: Recipe) -> Fabric:
    """Fabric for the recipe's device and precision; under torchrun for the processes it started."""
    import os

    local = int(os.environ.get("LOCAL_WORLD_SIZE", recipe.devices))
    world = int(os.environ.get("WORLD_SIZE", local))
    return Fabric(
        accelerator=recipe.accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if recipe.precision == "bfloat16" else "32-true",
    )


def held_parameters(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """What does not learn while `schedule.hold` lasts: all but the model's blocks."""
    if not recipe.schedule.hold:
        return []
    blocks = {id(p) for block in blocks_of(model, "schedule.hold", recipe.model.name) for p in block.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in blocks]


class Run:
    """A model in training: `run()` goes from where the folder's checkpoint stands to the end of the schedule."""

    def __init__(self, recipe: Recipe, model: nn.Module, items: Items, pairs: Pairs | None = None, quiet: bool = False):
        self.recipe, self.items, self.pairs = recipe, items, pairs
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        self.fabric = make_fabric(recipe)
        self.fabric.launch()
        check_model(recipe, model)
        self.folder = Path(recipe.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sample_rate = int(model.sample_rate)  # type: ignore[arg-type]  # every model of ours has one
        torch.manual_seed(recipe.seed * 1_000 + self.fabric.global_rank)  # dropout differs between processes
        self.plain = model  # without Fabric's wrapper
        self.optimiser_plain = optim.make(model, recipe.optimiser)
        self.model, self.optimiser = self.fabric.setup(model, self.optimiser_plain)
        if recipe.loss.own > 0:
            self.model.mark_forward_method("training_loss")  # so that its gradients meet those of other processes
        self.ema = optim.Ema(model, recipe.optimiser.ema)
        self.objective = Objective(recipe.loss)
        self.adversary = Adversary(self.fabric, recipe, self.sample_rate) if recipe.loss.metric > 0 else None
        self.teacher = Teacher(recipe, model, self.fabric.device) if recipe.loss.teacher is not None else None
        self.held = held_parameters(model, recipe)
        self.at = Counters()
        self.signalled = 0  # by a signal to this process; it becomes a stop when all have heard of it
        self.stop_signal = 0
        self.shown: float | None = None
        self.resume()
        if pairs is not None:
            check_extras(recipe)
        self.metrics, scorer = metrics_of(find(recipe.model.name).task)
        self.pool = ScorePool(scorer, recipe.valid.workers)
        self.report = Report(self.folder, self.at.step, recipe.tensorboard, quiet) if self.first else None
        if self.report is not None and self.at.step:
            self.report.say(f"resuming {self.folder} at step {self.at.step}")
        self.chosen = spread(len(pairs), recipe.valid.items) if pairs is not None else []

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.fabric.global_rank == 0

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> Outcome:
        """Train until the schedule ends or a signal comes; a checkpoint is written either way."""
        previous = self.catch_signals()
        last, saved = time.monotonic(), self.at.minutes
        batches = self.batches()
        try:
            while (done := self.done()) < 1 and not self.stop_signal:
                if self.validation_is_due():  # first, for a run may have stopped on its way into a validation
                    self.validate()
                    continue
                self.set_rate(done)
                values = self.step(list(islice(batches, self.recipe.optimiser.accumulate)))
                now = time.monotonic()
                minutes, last = (now - last) / 60, now
                self.count(values, minutes)
                if self.at.minutes - saved >= self.recipe.checkpoint_minutes:  # by the time that all agree on
                    saved = self.at.minutes
                    self.save()
            if not self.stop_signal:
                self.finish()
            self.save()
        finally:
            self.pool.close()
            if self.adversary is not None:
                self.adversary.pool.close()
            if self.report is not None:
                self.report.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        best = self.folder / "best"
        return Outcome(
            not self.stop_signal, self.stop_signal, self.at.step, self.at.skipped, self.at.best,
            best if best.is_dir() else None,
        )  # fmt: skip

    def step(self, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """One step of the optimiser over one or more batches; not taken if anything is not finite.

        Returns:
            loss, its terms, the gradient's norm and how long the data was waited for: means over all processes.
        """
        self.model.train()
        count = len(batches)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with self.fabric.no_backward_sync(self.model, enabled=i < count - 1):
                judged = self.judge(batch["noisy"], batch["clean"])
                self.fabric.backward(judged.total / count)
                if self.done() < self.recipe.schedule.hold:
                    for parameter in self.held:
                        parameter.grad = None
            for name, value in {"loss": judged.total.detach(), **judged.terms}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / count
        norm = self.fabric.clip_gradients(
            self.model, self.optimiser, max_norm=self.recipe.optimiser.clip, error_if_nonfinite=False
        )
        values = self.agree({**sums, "gradient": norm})
        if math.isfinite(values["loss"]) and math.isfinite(values["gradient"]):
            self.optimiser.step()
            self.ema.update(self.plain)
            self.at.skipped_in_a_row = 0
        else:
            self.skip()
        self.optimiser.zero_grad(set_to_none=True)
        return values

    def judge(self, noisy: Tensor, clean: Tensor) -> Judged:
        """The loss of a batch; with a metric term the discriminator takes its own step first."""
        loss = self.recipe.loss
        if loss.own > 0:
            return own_loss(self.model.training_loss(noisy, clean), loss.own)
        extra: dict[str, Tensor] = {}
        predicted: Any = None
        if loss.consistency > 0 or sees_prediction(loss):
            estimate, predicted = self.model(noisy, with_spectrum=True)
        else:
            estimate = self.model(noisy)
        if loss.consistency > 0:
            extra["consistency"] = predicted_consistency(predicted, noisy, self.plain.config)
        if self.adversary is not None:
            rate = self.recipe.optimiser.lr * optim.rate(self.recipe.schedule, self.done())
            seen = at_common_level(predicted, noisy, self.plain.config) if sees_prediction(loss) else None
            extra["metric"] = self.adversary.turn(estimate, clean, noisy, rate, seen)
        if self.teacher is not None:
            extra.update(self.teacher.terms(noisy, estimate, self.done()))
        return self.objective(estimate, clean, noisy, extra)

    def agree(self, values: dict[str, Tensor | None]) -> dict[str, float]:
        """Means over the processes of some scalars, so that all of them decide alike; a signal to one stops all.

        A process that stopped by itself would leave the others waiting for it in the middle of a step.
        """
        scalars = [torch.as_tensor(v, dtype=torch.float64, device=self.fabric.device) for v in values.values()]
        stop = torch.tensor(float(self.signalled), dtype=torch.float64, device=self.fabric.device)
        reduced = self.fabric.all_reduce(torch.stack([*scalars, stop]), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        means = reduced.tolist()
        if means[-1] and not self.stop_signal:
            self.stop_signal = self.signalled or signal.SIGTERM
        return dict(zip(values, means[:-1], strict=True))

    def skip(self) -> None:
        self.at.skipped += 1
        self.at.skipped_in_a_row += 1
        if self.at.skipped_in_a_row >= GIVE_UP_AFTER:
            raise FloatingPointError(
                f"{GIVE_UP_AFTER} steps in a row had a loss or gradient that is not finite (step {self.at.step}): "
                "lower optimiser.lr or optimiser.clip, set precision: float32, or listen to the data with --preview; "
                f"the last checkpoint in {self.folder} is from before"
            )

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Batches from the position the run has reached, on the device."""
        data, fabric = self.recipe.data, self.fabric
        positions = Positions(
            len(self.items), data.batch, self.recipe.seed, self.at.position, fabric.global_rank, fabric.world_size
        )
        for batch in loader(self.items, positions, data.workers, data.prefetch):
            yield {name: batch[name].to(fabric.device, non_blocking=True) for name in ("noisy", "clean")}

    # ------------------------------------------------------------------------------------------ time and rate

    def done(self) -> float:
        return optim.progress(self.recipe.schedule, self.at.step, self.at.minutes)

    def set_rate(self, done: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.optimiser.lr * optim.rate(self.recipe.schedule, done)

    def count(self, values: dict[str, float], minutes: float) -> None:
        """Move the counters past a step; log and show what is due."""
        at, data = self.at, self.recipe.data
        items = data.batch * self.recipe.optimiser.accumulate * self.fabric.world_size
        at.step += 1
        at.position += items
        at.minutes += self.agree({"minutes": torch.tensor(minutes)})["minutes"]
        at.hours += items * data.seconds / 3600
        if math.isfinite(values["loss"]) and math.isfinite(values["gradient"]):
            for name, value in {**values, "steps": 1.0}.items():
                at.window[name] = at.window.get(name, 0.0) + value
        at.window["minutes"] = at.window.get("minutes", 0.0) + minutes
        at.window["hours"] = at.window.get("hours", 0.0) + items * data.seconds / 3600
        if self.report is not None:
            done = self.done()
            left = at.minutes / done * (1 - done) if done else math.nan
            speed = 60 * at.window["hours"] / max(at.window["minutes"], 1e-9)
            self.report.moved(done, at.step, self.smoothed(values["loss"]), speed, left)
        if at.step % self.recipe.log_steps == 0:
            self.log_window()

    def smoothed(self, loss: float) -> float:
        """A running mean of the loss over some twenty steps, for the eye."""
        if math.isfinite(loss):
            self.shown = loss if self.shown is None else 0.95 * self.shown + 0.05 * loss
        return math.nan if self.shown is None else self.shown

    def log_window(self) -> None:
        """One line of the log: means over the finite steps since the last one."""
        at, sums = self.at, self.at.window
        steps = sums.pop("steps", 0.0)
        speed = 60 * sums.pop("hours") / max(sums.pop("minutes"), 1e-9)
        line = {name: value / steps for name, value in sums.items()}
        line |= {
            "rate": self.optimiser.param_groups[0]["lr"],
            "epoch": at.position // len(self.items),
            "position": at.position,
            "hours": at.hours,
            "minutes": at.minutes,
            "audio_hours_per_hour": speed,
            "skipped": at.skipped,
        }
        if self.adversary is not None:
            line["unscored"] = self.adversary.unscored
        at.window = {}
        if self.report is not None:
            self.report.write("train", at.step, line)

    def catch_signals(self) -> dict[int, Any]:
        """SIGTERM and Ctrl-C end the run after the step in hand; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            return {}

        def note(number: int, _: Any) -> None:
            if number == signal.SIGINT and self.signalled:
                raise KeyboardInterrupt
            self.signalled = number

        return {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}

    # -------------------------------------------------------------------------------------------- validation

    def validation_is_due(self) -> bool:
        valid, at = self.recipe.valid, self.at
        if not self.chosen or at.step == at.validated_step or at.step == 0:
            return False
        by_steps = valid.every_steps is not None and at.step % valid.every_steps == 0
        by_time = valid.every_minutes is not None and at.minutes - at.validated_minutes >= valid.every_minutes
        return by_steps or by_time

    def validate(self) -> None:
        """Score the averaged weights; keep them if they are the best so far."""
        assert self.pairs is not None
        at, metric = self.at, self.recipe.valid.best
        result = validate(
            self.fabric, self.ema.model, self.pairs, self.chosen, self.pool, self.sample_rate,
            stopped=lambda: bool(self.signalled), metrics=self.metrics,
        )  # fmt: skip
        if result is None:  # a signal came: it is due again when the run goes on
            self.stop_signal = self.signalled or signal.SIGTERM
            return
        at.validated_step, at.validated_minutes = at.step, at.minutes
        sign = -1 if metric in LOWER_IS_BETTER else 1
        better = math.isfinite(result[metric]) and (at.best is None or sign * result[metric] > sign * at.best)
        if better:
            at.best, at.best_step = result[metric], at.step
        if self.report is not None:
            if better:
                self.export()
            self.report.write("valid", at.step, {**result, "minutes": at.minutes, "hours": at.hours, "best": at.best})
            numbers = "  ".join(f"{name} {result[name]:.3f}" for name in self.metrics)
            self.report.say(f"step {at.step}  validation: {numbers}{'  (best)' if better else ''}")
            if self.recipe.valid.pictures:
                self.draw()
        self.save()

    @torch.no_grad()
    def draw(self) -> None:
        """Curves so far, and what the averaged weights make of three fixed examples."""
        assert self.pairs is not None
        draw_curves(read_log(self.folder / "log.jsonl"), self.folder / "curves.png")
        examples = []
        for i in spread(len(self.chosen), 3):
            try:
                noisy, clean = self.pairs.pair(self.chosen[i])
            except (ValueError, OSError, RuntimeError):  # validation has named it
                continue
            enhanced = self.ema.model(noisy[None].to(self.fabric.device))[0].float().cpu()
            examples.append(Example(f"item {self.chosen[i]}", noisy, enhanced, clean))
        if examples:
            draw_examples(examples, self.sample_rate, self.folder / "examples" / f"step-{self.at.step:07d}.png")

    def finish(self) -> None:
        """At the end of the schedule: a last validation, or without one the last weights as the result."""
        if self.chosen and self.at.validated_step != self.at.step:
            self.validate()
        elif not self.chosen and self.first:
            self.export()

    def export(self) -> None:
        """Write the averaged weights and the model's configuration."""
        save_model(self.ema.model, self.recipe.model.name, self.folder / "best")

    # ------------------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write a checkpoint; every process gives its random state, the first one writes."""
        mine = checkpoint.random_state()
        states = [mine]
        if self.fabric.world_size > 1:
            states = [{}] * self.fabric.world_size
            torch.distributed.all_gather_object(states, mine)
        if self.first:
            state = {
                "format": 1,
                "recipe": as_tree(self.recipe),
                "counters": asdict(self.at),
                "model": self.plain.state_dict(),
                "ema": self.ema.state_dict(),
                "optimiser": self.optimiser_plain.state_dict(),
                "random": states,
                "adversary": None if self.adversary is None else self.adversary.state_dict(),
            }
            checkpoint.save(self.folder, state)
        self.fabric.barrier()

    def resume(self) -> None:
        """Go back to the folder's checkpoint, if it has one.

        Raises:
            RecipeError: if the checkpoint is of another model or optimiser than the recipe's.
        """
        state = checkpoint.load(self.folder)
        if state is None:
            return
        try:
            self._restore(state)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{self.folder / checkpoint.NAME} is no checkpoint of this program, or of another version "
                f"({type(error).__name__}: {error}): remove it to start this run afresh, or give another run=FOLDER"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        """Take everything from a checkpoint, in place."""
        before, now = state["recipe"], as_tree(self.recipe)
        for what, old, new in (
            ("model", before["model"], now["model"]),
            ("optimiser", before["optimiser"].get("name", "adamw"), now["optimiser"]["name"]),
        ):
            if old != new:
                raise RecipeError(
                    f"{self.folder} holds a checkpoint of the {what} {old}, the recipe asks for {new}: "
                    "give this run another folder with run=FOLDER, or remove the old one"
                )
        self.plain.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser_plain.load_state_dict(state["optimiser"])
        if self.adversary is not None and state.get("adversary") is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.at = Counters(**state["counters"])
        ranks = state["random"]
        if self.fabric.global_rank < len(ranks):
            checkpoint.restore_random_state(ranks[self.fabric.global_rank])
