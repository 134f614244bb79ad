"""Train the metric discriminator (MetricGAN) beside the model, and compute its loss for the model."""

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from clearstate.train import losses, optim
from clearstate.train.discriminator import MetricDiscriminator, discriminator_loss, metric_loss, start_from
from clearstate.train.pool import ScorePool
from clearstate.train.recipe import Recipe, RecipeError


class Adversary:
    """A discriminator, its optimiser, and the processes that compute its PESQ targets.

    Args:
        stft: signals (b, n) to the spectra (b, t, f) that it sees.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, sample_rate: int, stft: Callable[[Tensor], Tensor]):
        self.fabric, self.recipe, self.sample_rate, self.stft = fabric, recipe, sample_rate, stft
        self.plain = MetricDiscriminator()
        if recipe.loss.metric_start is not None:
            try:
                start_from(self.plain, recipe.loss.metric_start)
            except (OSError, ValueError, RuntimeError) as error:
                raise RecipeError(f"loss.metric_start: {error}") from error
        self.model, self.optimiser = fabric.setup(self.plain, optim.adamw(self.plain, recipe.optimiser))
        self.pool = ScorePool[float]("clearstate.train.scoring:pesq_target", recipe.valid.workers, timeout=20.0)
        self.unscored = 0  # items whose PESQ failed or is undefined

    def turn(
        self, estimate: Tensor, clean: Tensor, gain: Tensor, rate: float, predicted: Tensor | None = None
    ) -> Tensor:
        """Train the discriminator on a batch of waveforms (b, n), then return the generator's loss (b,).

        Args:
            gain: (b, 1), which brings the items to the level at which they are judged.
            predicted: spectra (b, t, f) to judge instead of the estimate's own, as in SEMamba; their target is the
                estimate's PESQ.
        """
        futures = self.pool.submit(list(clean * gain), list(estimate * gain), self.sample_rate)
        theirs = self.magnitude(clean * gain)
        ours = self.magnitude(estimate * gain) if predicted is None else self.compressed(predicted * gain[..., None])
        scores = [math.nan if score is None else score for score in self.pool.collect(futures)]
        target = torch.tensor(scores, device=estimate.device)
        self.learn(theirs, ours.detach(), target, rate)
        return self.judge(theirs, ours)

    def magnitude(self, x: Tensor) -> Tensor:
        """Compressed magnitude of signals (b, n), as (b, t, f)."""
        return self.compressed(self.stft(x))

    def compressed(self, spec: Tensor) -> Tensor:
        """Compressed magnitude of spectra."""
        return losses.compress(spec, self.recipe.loss.exponent).magnitude

    def learn(self, clean: Tensor, candidate: Tensor, target: Tensor, rate: float) -> None:
        """Take one discriminator step; skip it if the gradient is not finite."""
        known = target.isfinite()
        self.unscored += int((~known).sum())
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss = discriminator_loss(self.model(clean, clean), self.model(clean, candidate), target.nan_to_num(), known)
        self.fabric.backward(loss.mean())
        norm = self.fabric.clip_gradients(
            self.model, self.optimiser, max_norm=self.recipe.optimiser.clip, error_if_nonfinite=False
        )
        if norm is not None and math.isfinite(norm):
            optim.set_rate(self.optimiser, rate)
            self.optimiser.step()

    def judge(self, clean: Tensor, candidate: Tensor) -> Tensor:
        """The generator's loss. Its gradient passes through the discriminator but does not change it."""
        self.plain.requires_grad_(False)
        try:
            return metric_loss(self.plain(clean, candidate))
        finally:
            self.plain.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser, for a checkpoint."""
        return {"model": self.plain.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.plain.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
