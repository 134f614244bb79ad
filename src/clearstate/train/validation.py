"""Validation: score the averaged weights on full-length validation pairs, and keep the best in `best/`."""

import math
import warnings
from contextlib import suppress

import torch
from torch import Tensor

from clearstate.models import save_model
from clearstate.train.pictures import Example, draw_curves, draw_examples
from clearstate.train.plan import spread
from clearstate.train.pool import ScorePool
from clearstate.train.report import Report, read_log
from clearstate.train.scoring import LOWER_IS_BETTER
from clearstate.train.session import Session


class Validation:
    """Score the averaged weights of a session when due, in every process. The first process writes."""

    def __init__(self, session: Session, report: Report | None) -> None:
        self.session, self.plan, self.report = session, session.plan, report
        self.pool = ScorePool[dict[str, float]](self.plan.scorer, self.plan.recipe.valid.workers)

    def due(self) -> bool:
        """Whether a validation is due now."""
        valid, at = self.plan.recipe.valid, self.session.at
        if not self.plan.chosen or at.step in (0, at.validated_step):
            return False
        by_steps = valid.every_steps is not None and at.step % valid.every_steps == 0
        by_time = valid.every_minutes is not None and at.minutes - at.validated_minutes >= valid.every_minutes
        return by_steps or by_time

    def run(self) -> None:
        """Score the averaged weights and save them if they are the best so far."""
        at, metric = self.session.at, self.plan.recipe.valid.best
        result = self.score()
        if result is None:  # a signal arrived; the validation is due again after a resume
            self.session.stop()
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
            numbers = "  ".join(f"{name} {result[name]:.3f}" for name in self.plan.metrics)
            self.report.say(f"step {at.step}  validation: {numbers}{'  (best)' if better else ''}")
            if self.plan.recipe.valid.pictures:
                self.draw()
        self.session.save()

    def finish(self) -> None:
        """Run a last validation at the end of the schedule; without validation, save the last weights."""
        if not self.plan.chosen and self.session.fabric.is_global_zero:
            self.export()
        elif self.plan.chosen and self.session.at.validated_step != self.session.at.step:
            self.run()

    def score(self) -> dict[str, float] | None:
        """Mean of each metric over the chosen pairs, distributed over the processes; same result in each.

        Returns:
            The means, `items` (number of pairs) and `unscored` (pairs with an undefined or failed metric, which are
            excluded from its mean). None if a signal arrived in any process: all of them stop.
        """
        fabric, metrics, chosen = self.session.fabric, self.plan.metrics, self.plan.chosen
        futures, unreadable = [], 0
        for i in chosen[fabric.global_rank :: fabric.world_size]:
            if self.session.signalled:
                break
            try:
                _, clean, estimate = self.estimate(i)
            except (ValueError, OSError, RuntimeError) as error:  # deleted or damaged
                warnings.warn(f"skipping a validation item: {error}")
                unreadable += 1
                continue
            futures += self.pool.submit([clean], [estimate], self.plan.sample_rate)
        missing = dict.fromkeys(metrics, math.nan)
        rows = [row or missing for row in self.pool.collect(futures)] + [missing] * unreadable
        table = torch.tensor([[row[m] for m in metrics] for row in rows])
        table = table.reshape(-1, len(metrics)).double()
        defined = table.isfinite()
        sums = torch.stack([table.nan_to_num(0.0, 0.0, 0.0).sum(0), defined.sum(0).double()])  # (2, metrics)
        unscored = (~defined).any(1).sum().double()
        ends = torch.tensor([float(unscored), float(bool(self.session.signalled))], dtype=torch.float64)
        total = fabric.all_reduce(torch.cat([sums.flatten(), ends]).to(fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        if total[-1]:
            return None
        means = total[: len(metrics)] / total[len(metrics) : -2]  # NaN for a metric without any score
        result: dict[str, float] = dict(zip(metrics, means.tolist(), strict=True))
        return {**result, "items": len(chosen), "unscored": int(total[-2])}

    def draw(self) -> None:
        """Draw the curves so far, and the output of the averaged weights for three fixed examples."""
        folder, chosen = self.plan.folder, self.plan.chosen
        draw_curves(read_log(folder / "log.jsonl"), folder / "curves.png")
        examples = []
        for i in (chosen[k] for k in spread(len(chosen), 3)):
            with suppress(ValueError, OSError, RuntimeError):  # `score` has named it
                noisy, clean, estimate = self.estimate(i)
                examples.append(Example(f"item {i}", noisy, estimate, clean))
        if examples:
            draw_examples(examples, self.plan.sample_rate, folder / "examples" / f"step-{self.session.at.step:07d}.png")

    @torch.no_grad()
    def estimate(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy and clean waveform of pair i, and the estimate of the averaged weights."""
        noisy, clean = self.plan.pairs.pair(i)
        estimate: Tensor = self.session.ema.model(noisy[None].to(self.session.fabric.device))[0]
        return noisy, clean, estimate.float().cpu()

    def export(self) -> None:
        """Write the averaged weights and the model's configuration."""
        save_model(self.session.ema.model, self.plan.recipe.model.name, self.plan.folder / "best")
