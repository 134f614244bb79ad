"""The state of one training process: model, optimiser, counters, signals and the checkpoint."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from clearstate.train import checkpoint, optim
from clearstate.train.adversary import Adversary
from clearstate.train.memory import keep_freed_memory
from clearstate.train.plan import Plan
from clearstate.train.recipe import Recipe, RecipeError
from clearstate.train.teacher import Teacher


@dataclass
class Counters:
    """The progress of a run, saved in its checkpoint."""

    step: int = 0  # optimiser steps, skipped ones included
    position: int = 0  # items consumed, over all processes
    minutes: float = 0.0  # spent training, over all resumptions
    hours: float = 0.0  # of audio
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    best: float | None = None  # best value of valid.best
    best_step: int = 0
    validated_step: int = 0
    validated_minutes: float = 0.0
    window: dict[str, float] = field(default_factory=dict)  # sums since the last line of the log

    @property
    def speed(self) -> float:
        """Hours of audio per hour since the last line of the log."""
        return 60 * self.window["hours"] / max(self.window["minutes"], 1e-9)


class Session:
    """The training state of a process. It resumes from the checkpoint in the folder, if there is one.

    Raises:
        RecipeError: if the checkpoint has another model or optimiser than the recipe.
    """

    def __init__(self, plan: Plan) -> None:
        recipe, self.plan = plan.recipe, plan
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        keep_freed_memory()
        self.fabric = make_fabric(recipe)
        self.fabric.launch()
        plan.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed * 1_000 + self.fabric.global_rank)  # dropout differs between processes
        self.model, self.optimiser = self.fabric.setup(plan.model, optim.make(plan.model, recipe.optimiser))
        if recipe.loss.own > 0:
            self.model.mark_forward_method("training_loss")  # synchronises its gradients between processes
        self.ema = optim.Ema(plan.model, recipe.optimiser.ema)
        self.adversary: Adversary | None = None
        if recipe.loss.metric > 0:
            self.adversary = Adversary(self.fabric, recipe, plan.sample_rate, plan.objective.stft)
        self.teacher: Teacher | None = None
        if recipe.loss.teacher is not None:
            self.teacher = Teacher(recipe, plan.model, self.fabric.device, plan.objective)
        self.at = Counters()
        self.signalled = 0  # signal to this process; it stops the run once all processes know
        self.stop_signal = 0
        self.resume()

    def close(self) -> None:
        """Leave the group of processes: one that ends while threads of the group run is aborted now and then.

        They run as long as anything refers to the group, as the model does. What lets go of it last waits for them.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            group = torch.distributed.group.WORLD
            torch.distributed.destroy_process_group()
            del self.model, self.optimiser
            gc.collect()  # the model refers to itself
            # Last, because it waits without Python's lock. The model would hold it, and a thread may wait for it.
            del group

    @property
    def done(self) -> float:
        """Progress of the schedule, 0 to 1."""
        return optim.progress(self.plan.recipe.schedule, self.at.step, self.at.minutes)

    @property
    def rate(self) -> float:
        """The current learning rate."""
        return self.plan.recipe.optimiser.lr * optim.rate(self.plan.recipe.schedule, self.done)

    def agree(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Average scalars over the processes, so that all make the same decisions. A signal to one stops all.

        If one process stopped alone, the others would wait for it in the middle of a step.
        """
        scalars = [torch.as_tensor(v, dtype=torch.float64, device=self.fabric.device) for v in values.values()]
        stop = torch.tensor(float(self.signalled), dtype=torch.float64, device=self.fabric.device)
        reduced = self.fabric.all_reduce(torch.stack([*scalars, stop]), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        means = reduced.tolist()
        if means[-1]:
            self.stop()
        return dict(zip(values, means[:-1], strict=True))

    def stop(self) -> None:
        """Stop the run because of a signal to this or another process."""
        self.stop_signal = self.stop_signal or self.signalled or signal.SIGTERM

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Stop the run after the current step on SIGTERM or Ctrl-C; a second Ctrl-C stops it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _: FrameType | None) -> None:
            if number == signal.SIGINT and self.signalled:
                raise KeyboardInterrupt
            self.signalled = number

        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def save(self) -> None:
        """Write a checkpoint. The first process writes; every process contributes its random state."""
        mine = checkpoint.random_state()
        states = [mine] * self.fabric.world_size
        if self.fabric.world_size > 1:
            torch.distributed.all_gather_object(states, mine)
        if self.fabric.is_global_zero:
            state = {
                "format": 1,
                "recipe": asdict(self.plan.recipe),
                "counters": asdict(self.at),
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "random": states,
                "adversary": None if self.adversary is None else self.adversary.state_dict(),
            }
            checkpoint.save(self.plan.folder, state)
        self.fabric.barrier()

    def resume(self) -> None:
        """Load the checkpoint in the folder, if there is one."""
        state = checkpoint.load(self.plan.folder)
        if state is None:
            return
        try:
            self._restore(state)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{self.plan.folder / checkpoint.NAME} is not a checkpoint of this version of clearstate "
                f"({type(error).__name__}: {error}): remove it to start again, or choose another run=FOLDER"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        before, now = state["recipe"], asdict(self.plan.recipe)
        for what, old, new in (
            ("model", before["model"], now["model"]),
            ("optimiser", before["optimiser"].get("name", "adamw"), now["optimiser"]["name"]),
        ):
            if old != new:
                raise RecipeError(
                    f"{self.plan.folder} contains a checkpoint of the {what} {old}, but the recipe has {new}: "
                    "choose another folder with run=FOLDER, or remove the old one"
                )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.adversary is not None and state.get("adversary") is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.at = Counters(**state["counters"])
        if self.fabric.global_rank < len(state["random"]):
            checkpoint.restore_random_state(state["random"][self.fabric.global_rank])


def make_fabric(recipe: Recipe) -> Fabric:
    """Create Fabric for the recipe's device and precision, or for the processes of torchrun."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", recipe.devices))
    world = int(os.environ.get("WORLD_SIZE", local))
    return Fabric(
        accelerator=recipe.accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if recipe.precision == "bfloat16" else "32-true",
    )
