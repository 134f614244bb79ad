"""Measure training of `live` in hours of audio per hour: the compiled scan against plain PyTorch.

    python benchmarks/training.py [--batch 4] [--seconds 3] [--steps 5] [--threads N]

A step is that of the training loop: forward pass, the recipe's loss, backward pass, clipping, optimiser. The reference
is the same model with the parallel scan in plain PyTorch (`clearstate.ssm.use_backend("parallel")`), the fastest form
without a compiler. The two take turns, so a busy machine slows both. If losses and gradients of the first step differ,
no ratio is printed.
"""

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from clearstate import models
from clearstate.ssm import use_backend
from clearstate.train import optim
from clearstate.train.objective import Objective
from clearstate.train.recipe import Recipe, load_recipe

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "live.yaml"
OURS, REFERENCE = "auto", "parallel"
TOLERANCE = 1e-3  # relative error of the gradient: the order of float32 sums differs over three hundred frames


class Trainer:
    """A model, its loss and optimiser, and one way of running the scan."""

    def __init__(self, recipe: Recipe, backend: str):
        torch.manual_seed(0)
        self.model: nn.Module = models.build(recipe.model.name, **recipe.model.config).train()
        self.objective, self.backend = Objective(recipe.loss), backend
        self.optimiser = optim.make(self.model, recipe.optimiser)
        self.clip = recipe.optimiser.clip

    def gradient(self, noisy: Tensor, clean: Tensor) -> tuple[float, Tensor]:
        self.optimiser.zero_grad()
        with use_backend(self.backend):
            loss = self.objective(self.model(noisy), clean, noisy).total
            loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])

    def step(self, noisy: Tensor, clean: Tensor) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        self.gradient(noisy, clean)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each, after an untimed one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {load}; torch {torch.__version__}, {arguments.threads} threads"
    )

    recipe = load_recipe(RECIPE)
    ours, reference = Trainer(recipe, OURS), Trainer(recipe, REFERENCE)
    samples = round(arguments.seconds * ours.model.sample_rate)
    generator = torch.Generator().manual_seed(0)
    clean = 0.1 * torch.randn(arguments.batch, samples, generator=generator)
    noisy = clean + 0.1 * torch.randn(arguments.batch, samples, generator=generator)

    (loss, gradient), (loss_reference, gradient_reference) = (t.gradient(noisy, clean) for t in (ours, reference))
    error = ((gradient - gradient_reference).norm() / gradient_reference.norm()).item()
    if abs(loss - loss_reference) > TOLERANCE * loss_reference or error > TOLERANCE:
        sys.exit(f"loss {loss:.6f} against {loss_reference:.6f}, gradient off by {error:.1e}: no ratio")

    times: dict[str, list[float]] = {OURS: [], REFERENCE: []}
    for number in range(arguments.steps + 1):
        for trainer in (ours, reference):
            seconds = trainer.step(noisy, clean)
            if number:
                times[trainer.backend].append(seconds)
    speed = {name: arguments.batch * arguments.seconds / statistics.median(taken) for name, taken in times.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{recipe.model.name}, batch {arguments.batch} x {arguments.seconds:g} s, float32, median of {arguments.steps} "
        f"steps: pure PyTorch {speed[REFERENCE]:.1f} h/h   ours {speed[OURS]:.1f} h/h   "
        f"{speed[OURS] / speed[REFERENCE]:.1f}x   gradients equal to {error:.0e}   peak of both {peak:.1f} GiB"
    )


if __name__ == "__main__":
    main()
