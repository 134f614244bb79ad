"""Knowledge distillation: loss terms between the model and a frozen teacher.

    L = L_task + r (w_out L_out + w_feat L_feat),   r = min(done / ramp, 1)

As in RT-SEMamba (arXiv:2608.12099). L_out compares the outputs (`losses.output_distillation`). L_feat compares the last
block of the student with the mean of all blocks of the teacher (`losses.feature_distillation`).
"""

import torch
from torch import Tensor, nn

from clearstate.models import load_model
from clearstate.train import losses
from clearstate.train.networks import blocks_of, rate_of
from clearstate.train.recipe import Recipe, RecipeError


class Teacher:
    """The teacher of a recipe. It keeps the latest outputs of its blocks and of the student's last block.

    Raises:
        RecipeError: if the sample rates differ, or if blocks are compared and one model has none.
    """

    def __init__(self, recipe: Recipe, student: nn.Module, device: torch.device) -> None:
        loss = recipe.loss
        assert loss.teacher is not None
        self.loss = loss
        self.model = load_model(loss.teacher).eval().requires_grad_(False).to(device)
        theirs, ours = rate_of(self.model), rate_of(student)
        if theirs != ours:
            raise RecipeError(
                f"loss.teacher={loss.teacher} runs at {theirs} Hz and the student at {ours}: the rates must be equal"
            )
        self.blocks: list[nn.Module] = []  # blocks to compare, the student's first
        self.outputs: dict[nn.Module, Tensor] = {}
        if loss.distill_features > 0:
            key = "loss.distill_features"
            self.blocks = blocks_of(student, key, recipe.model.name)[-1:] + blocks_of(self.model, key, loss.teacher)
        for block in self.blocks:
            block.register_forward_hook(self.keep)

    def keep(self, block: nn.Module, inputs: object, output: Tensor | tuple[Tensor, object]) -> None:
        """Store the output of a block, without its state."""
        self.outputs[block] = output[0] if isinstance(output, tuple) else output

    def terms(self, noisy: Tensor, estimate: Tensor, done: float) -> dict[str, Tensor]:
        """The distillation terms (b,) for the student's output on `noisy`, both (b, n). Call after each forward pass.

        Args:
            done: share of the run so far.
        """
        loss = self.loss
        ramp = min(1.0, done / loss.distill_ramp) if loss.distill_ramp else 1.0
        with torch.no_grad():
            taught = self.model(noisy)
        terms: dict[str, Tensor] = {}
        if loss.distill > 0:
            gain = losses.level(noisy)
            terms["distill"] = ramp * losses.output_distillation(estimate * gain, taught * gain, loss.n_fft, loss.hop)
        if self.blocks:
            ours, *theirs = [self.outputs.pop(block) for block in self.blocks]  # pop, to release their graph
            if ours.shape != theirs[0].shape:
                raise RecipeError(
                    f"loss.distill_features needs blocks of the same size: the student's have "
                    f"{tuple(ours.shape)}, those of {loss.teacher} {tuple(theirs[0].shape)}"
                )
            terms["distill_features"] = ramp * losses.feature_distillation(ours.float(), theirs)
        return terms
