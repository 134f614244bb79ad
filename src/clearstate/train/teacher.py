"""What a student learns from a frozen teacher.

    L = L_task + r (w_out L_out + w_feat L_feat),   r = min(done / ramp, 1)

Knowledge distillation as RT-SEMamba has it (arXiv:2608.12099): L_out between the outputs of the two
(`losses.output_distillation`), L_feat between the last block of the student and the mean of all blocks of the teacher
(`losses.feature_distillation`).
"""

import torch
from torch import Tensor, nn

from clearstate.models import load_model
from clearstate.train import losses
from clearstate.train.networks import blocks_of, rate_of
from clearstate.train.recipe import Recipe, RecipeError


class Teacher:
    """The teacher that a recipe names; keeps the latest output of its blocks and of the student's last one.

    Raises:
        RecipeError: if it runs at another rate than the student, or blocks are to be compared and one has none.
    """

    def __init__(self, recipe: Recipe, student: nn.Module, device: torch.device) -> None:
        loss = recipe.loss
        assert loss.teacher is not None
        self.loss = loss
        self.model = load_model(loss.teacher).eval().requires_grad_(False).to(device)
        theirs, ours = rate_of(self.model), rate_of(student)
        if theirs != ours:
            raise RecipeError(
                f"loss.teacher={loss.teacher} runs at {theirs} Hz, the student at {ours}: the two must agree"
            )
        self.blocks: list[nn.Module] = []  # that are compared, the student's first
        self.outputs: dict[nn.Module, Tensor] = {}
        if loss.distill_features > 0:
            key = "loss.distill_features"
            self.blocks = blocks_of(student, key, recipe.model.name)[-1:] + blocks_of(self.model, key, loss.teacher)
        for block in self.blocks:
            block.register_forward_hook(self.keep)

    def keep(self, block: nn.Module, inputs: object, output: Tensor | tuple[Tensor, object]) -> None:
        """Remember what a block returned; of (output, state) the output."""
        self.outputs[block] = output[0] if isinstance(output, tuple) else output

    def terms(self, noisy: Tensor, estimate: Tensor, done: float) -> dict[str, Tensor]:
        """What the student (b, n), which has just heard `noisy` (b, n), is told: (b,) each; call after each pass.

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
            ours, *theirs = [self.outputs.pop(block) for block in self.blocks]  # or their graph would be held on to
            if ours.shape != theirs[0].shape:
                raise RecipeError(
                    f"loss.distill_features compares blocks of the same size: the student's give "
                    f"{tuple(ours.shape)}, those of {loss.teacher} {tuple(theirs[0].shape)}"
                )
            terms["distill_features"] = ramp * losses.feature_distillation(ours.float(), theirs)
        return terms
