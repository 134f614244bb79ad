"""The training loop: take steps until the schedule ends, a signal arrives, or the loss stays non-finite.

A run folder contains `checkpoint.pt` (the complete state), `log.jsonl`, pictures, and `best/`: the averaged weights of
the best validation (without validation, of the last step), as a folder that `clearstate.load` reads. If the run folder
contains a checkpoint, the run resumes from it.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from clearstate.train.batches import Positions, loader
from clearstate.train.objective import Judged, own_loss, sees_prediction
from clearstate.train.optim import set_rate
from clearstate.train.plan import Plan
from clearstate.train.report import Report
from clearstate.train.session import Session
from clearstate.train.validation import Validation

GIVE_UP_AFTER = 100  # consecutive non-finite steps


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    finished: bool  # False: stopped by a signal; can be resumed
    signal: int  # which one; 0 if finished
    step: int
    skipped: int
    best: float | None
    weights: Path | None  # the folder best/, if written


class Run:
    """Train a plan: `run()` continues from the checkpoint in the folder to the end of the schedule."""

    def __init__(self, plan: Plan, quiet: bool = False) -> None:
        self.plan, self.recipe, self.objective = plan, plan.recipe, plan.objective
        self.session = session = Session(plan)
        self.report: Report | None = None
        if session.fabric.is_global_zero:
            self.report = Report(plan.folder, session.at.step, plan.recipe.tensorboard, quiet)
            if session.at.step:
                self.report.say(f"resuming {plan.folder} at step {session.at.step}")
        self.validation = Validation(session, self.report)

    def run(self) -> Outcome:
        """Train until the schedule ends or a signal arrives, then write a checkpoint."""
        session, at = self.session, self.session.at
        try:
            with session.heeding_signals():
                self.steps()
                if not session.stop_signal:
                    self.validation.finish()
                session.save()
        finally:
            self.validation.pool.close()
            if session.adversary is not None:
                session.adversary.pool.close()
            if self.report is not None:
                self.report.close()
            session.close()
        best = self.plan.folder / "best"
        return Outcome(
            not session.stop_signal, session.stop_signal, at.step, at.skipped, at.best, best if best.is_dir() else None
        )

    def steps(self) -> None:
        """Run steps, validations and checkpoints when they are due."""
        session, at = self.session, self.session.at
        last, saved = time.monotonic(), at.minutes
        batches = self.batches()
        while session.done < 1 and not session.stop_signal:
            if self.validation.due():  # first, because a run may have stopped just before a validation
                self.validation.run()
                continue
            values = self.step(list(islice(batches, self.recipe.optimiser.accumulate)))
            now = time.monotonic()
            minutes, last = (now - last) / 60, now
            self.count(values, minutes)
            if at.minutes - saved >= self.recipe.checkpoint_minutes:  # all processes use the same time
                saved = at.minutes
                session.save()

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches from the current position, on the device."""
        data, fabric, items = self.recipe.data, self.session.fabric, self.plan.items
        positions = Positions(
            len(items), data.batch, self.recipe.seed, self.session.at.position, fabric.global_rank, fabric.world_size
        )
        for batch in loader(items, positions, data.workers, data.prefetch):
            yield {name: value.to(fabric.device, non_blocking=True) for name, value in batch.items()}

    def step(self, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Take one optimiser step over one or more batches; skip it if anything is not finite.

        Returns:
            Loss, its terms and the gradient norm: means over all processes.
        """
        session, fabric, recipe = self.session, self.session.fabric, self.recipe.optimiser
        session.model.train()
        set_rate(session.optimiser, session.rate)
        count = len(batches)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with fabric.no_backward_sync(session.model, enabled=i < count - 1):
                judged = self.judge(**batch)
                fabric.backward(judged.total / count)
                if session.done < self.recipe.schedule.hold:
                    for parameter in self.plan.held:
                        parameter.grad = None
            for name, value in {"loss": judged.total.detach(), **judged.terms}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / count
        norm = fabric.clip_gradients(session.model, session.optimiser, max_norm=recipe.clip, error_if_nonfinite=False)
        assert norm is not None
        values = session.agree({**sums, "gradient": norm})
        if finite(values):
            session.optimiser.step()
            session.ema.update(self.plan.model)
            session.at.skipped_in_a_row = 0
        else:
            self.skip()
        session.optimiser.zero_grad(set_to_none=True)
        return values

    def judge(self, noisy: Tensor, clean: Tensor, gain: Tensor | None = None) -> Judged:
        """Compute the loss of a batch; with a metric term, first take a discriminator step.

        Args:
            gain: 1 / RMS (b, 1) of the utterances that the items are cut from; None: of the items themselves.
        """
        session, loss, plan = self.session, self.recipe.loss, self.plan
        if loss.own > 0:
            return own_loss(session.model.training_loss(noisy, clean), loss.own)
        options = {"gain": gain} if plan.normalises and gain is not None else {}
        extra: dict[str, Tensor] = {}
        if plan.predicts:
            estimate, predicted = session.model(noisy, with_spectrum=True, **options)
        else:
            estimate, predicted = session.model(noisy, **options), None
        level = self.objective.level(noisy, gain)
        if session.adversary is not None:
            seen = predicted if sees_prediction(loss) else None
            extra["metric"] = session.adversary.turn(estimate, clean, level, session.rate, seen)
        if session.teacher is not None:
            extra.update(session.teacher.terms(noisy, estimate, session.done, level, predicted))
        return self.objective(estimate, clean, noisy, extra, predicted, gain)

    def skip(self) -> None:
        """Count a step that was not taken; give up after GIVE_UP_AFTER in a row."""
        at = self.session.at
        at.skipped += 1
        at.skipped_in_a_row += 1
        if at.skipped_in_a_row >= GIVE_UP_AFTER:
            raise FloatingPointError(
                f"{GIVE_UP_AFTER} consecutive steps had a non-finite loss or gradient (step {at.step}): "
                "lower optimiser.lr or optimiser.clip, set precision: float32, or listen to the data with --preview; "
                f"the last checkpoint in {self.plan.folder} is from before these steps"
            )

    def count(self, values: dict[str, float], minutes: float) -> None:
        """Update the counters after a step; log and show progress."""
        session, at, data = self.session, self.session.at, self.recipe.data
        items = data.batch * self.recipe.optimiser.accumulate * session.fabric.world_size
        hours = items * data.seconds / 3600
        at.step += 1
        at.position += items
        at.minutes += session.agree({"minutes": torch.tensor(minutes)})["minutes"]
        at.hours += hours
        counted = {**values, "steps": 1.0} if finite(values) else {}
        for name, value in {**counted, "minutes": minutes, "hours": hours}.items():
            at.window[name] = at.window.get(name, 0.0) + value
        if self.report is not None:
            self.report.moved(session.done, at.step, values["loss"], at.speed, at.minutes)
        if at.step % self.recipe.log_steps == 0:
            self.log_window()

    def log_window(self) -> None:
        """Write one line to the log: means over the finite steps since the last line."""
        session, at = self.session, self.session.at
        speed, sums, at.window = at.speed, at.window, {}
        line = {name: sums[name] / sums["steps"] for name in sums if name not in ("steps", "minutes", "hours")}
        line |= {
            "rate": session.optimiser.param_groups[0]["lr"],
            "epoch": at.position // len(self.plan.items),
            "position": at.position,
            "hours": at.hours,
            "minutes": at.minutes,
            "audio_hours_per_hour": speed,
            "skipped": at.skipped,
        }
        if session.adversary is not None:
            line["unscored"] = session.adversary.unscored
        if self.report is not None:
            self.report.write("train", at.step, line)


def finite(values: dict[str, float]) -> bool:
    """Whether the loss and the gradient of a step are finite."""
    return math.isfinite(values["loss"]) and math.isfinite(values["gradient"])
