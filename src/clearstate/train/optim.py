"""Optimiser groups, learning rate and averaged weights."""

import copy
import math

import torch
from torch import Tensor, nn

from clearstate.train.recipe import OptimiserRecipe, ScheduleRecipe


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and filters are decayed; what sets a scale, an offset or a time constant is not.

    Not decayed: one-dimensional parameters (norm gains, biases, PReLU slopes, D) and A_log, whose decay would pull
    every time constant of a recurrence towards one value (Gu & Dao 2023 mark A_log and D in the same way).
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.rpartition(".")[2] in ("A_log", "D")
        (free if plain or getattr(parameter, "_no_weight_decay", False) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def adamw(model: nn.Module, recipe: OptimiserRecipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the learning rate is set at every step."""
    groups = [group for group in parameter_groups(model, recipe.weight_decay) if group["params"]]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)


def progress(schedule: ScheduleRecipe, step: int, minutes: float) -> float:
    """How much of the run is over, 0 to 1: the further of steps and time."""
    by_step = step / schedule.max_steps if schedule.max_steps else 0.0
    by_time = minutes / schedule.max_minutes if schedule.max_minutes else 0.0
    return min(1.0, max(by_step, by_time))


def rate(schedule: ScheduleRecipe, done: float) -> float:
    """The learning rate as a share of its peak when `done` (0 to 1) of the run is over.

    >>> [round(rate(ScheduleRecipe(max_steps=100, warmup=0.1, floor=0.0), x), 3) for x in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if done < schedule.warmup:
        return done / schedule.warmup
    fall = (done - schedule.warmup) / (1 - schedule.warmup)
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * fall))


class Ema:
    """A running average of a model's weights, which scores better than the weights themselves.

    The decay grows from 0.1 to its value as (1 + n) / (10 + n), so that the random start is soon forgotten. Buffers
    are copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for old, new in zip(self.model.buffers(), model.buffers(), strict=True):
            old.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
