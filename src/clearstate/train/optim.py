"""Optimisers (AdamW, Muon), learning rate schedule and averaged weights (EMA)."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from clearstate.train.recipe import OptimiserRecipe, ScheduleRecipe

Group = dict[str, Any]  # of an optimiser: "params", and the settings that hold for them


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Apply weight decay to matrices and filters, but not to scales, offsets and time constants.

    Not decayed: one-dimensional parameters (norm gains, biases, PReLU slopes, D) and A_log. Its decay would pull all
    time constants of a recurrence to one value (Gu & Dao 2023 mark A_log and D in the same way).
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.rpartition(".")[2] in ("A_log", "D")
        (free if plain or getattr(parameter, "_no_weight_decay", False) else decayed).append(parameter)
    groups = ((decayed, weight_decay), (free, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def adamw(model: nn.Module, recipe: OptimiserRecipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`. The learning rate is set at every step."""
    return torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas)


class Muon(torch.optim.Optimizer):
    """AdamW for vectors and small tensors; for matrices, momentum with all singular values set to one.

        M <- 0.95 M + G,   W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) orthogonal(G + 0.95 M)

    Jordan et al. 2024 (Muon: an optimizer for hidden layers), with the scale of Liu et al. 2025 (arXiv:2502.16982,
    eq. 4), under which a matrix moves as far in a step as AdamW would move it, so one learning rate serves both.
    A filter of more dimensions counts as the matrix of its outputs by all its inputs.
    """

    SMALLEST = 16  # least number of rows and columns for the orthogonal update

    def __init__(self, groups: list[Group], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the loop has no closures
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                flat = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[None]
                update = self._orthogonal if min(flat.shape) >= self.SMALLEST else self._adam
                parameter.add_(update(parameter.grad, state, group), alpha=-group["lr"])

    @staticmethod
    def _orthogonal(gradient: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        mean = state["mean"].mul_(0.95).add_(gradient)
        matrix = (gradient + 0.95 * mean).flatten(1)
        update: Tensor = orthogonal(matrix) * 0.2 * max(matrix.shape) ** 0.5
        return update.view_as(gradient)

    @staticmethod
    def _adam(gradient: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        first, second = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (square / (1 - second ** state["step"])).sqrt() + 1e-8
        update: Tensor = mean / (1 - first ** state["step"]) / root
        return update


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate the nearest (semi-)orthogonal matrix: singular values between 0.7 and 1.2.

    Five Newton-Schulz steps with the quintic polynomial of Jordan et al. 2024, whose slope at zero is steep.
    """
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        square = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, square, x, beta=3.4445)
    return x.T if tall else x


def make(model: nn.Module, recipe: OptimiserRecipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe."""
    if recipe.name == "adamw":
        return adamw(model, recipe)
    return Muon(parameter_groups(model, recipe.weight_decay), recipe.lr, recipe.betas)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def progress(schedule: ScheduleRecipe, step: int, minutes: float) -> float:
    """Progress of the run, 0 to 1: the larger of steps and time."""
    by_step = step / schedule.max_steps if schedule.max_steps else 0.0
    by_time = minutes / schedule.max_minutes if schedule.max_minutes else 0.0
    return min(1.0, max(by_step, by_time))


def rate(schedule: ScheduleRecipe, done: float) -> float:
    """The learning rate as a share of its peak at progress `done` (0 to 1).

    >>> [round(rate(ScheduleRecipe(max_steps=100, warmup=0.1, floor=0.1), x), 3) for x in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    if done < schedule.warmup:
        return done / schedule.warmup
    fall = (done - schedule.warmup) / (1 - schedule.warmup)
    if schedule.fall == "exponential":
        return math.pow(schedule.floor, fall)
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * fall))


class Ema:
    """A running average of a model's weights. It scores better than the weights themselves.

    The decay grows from 0.1 to its value as (1 + n) / (10 + n), so the random initial weights fade quickly. Buffers are
    copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the averages towards the weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for old, new in zip(self.model.buffers(), model.buffers(), strict=True):
            old.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The averages, for a checkpoint."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
