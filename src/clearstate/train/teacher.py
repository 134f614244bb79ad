"""Knowledge distillation: loss terms between the model and a frozen teacher.

    L = L_task + r (w_out L_out + w_feat L_feat),   r = min(done / ramp, 1)

As in RT-SEMamba (arXiv:2608.12099). L_out compares the outputs (`losses.output_distillation`). L_feat compares the last
block of the student with the mean of all blocks of the teacher (`losses.feature_distillation`).
"""

import torch
from torch import Tensor, nn

from clearstate.models import load_model
from clearstate.train import losses
from clearstate.train.networks import PredictsSpectrum, blocks_of, rate_of
from clearstate.train.objective import Objective
from clearstate.train.recipe import Recipe, RecipeError


class Teacher:
    """The teacher of a recipe. It keeps the latest outputs of its blocks and of the student's last block.

    Args:
        objective: whose frames and level the outputs are compared in.
    Raises:
        RecipeError: if the sample rates differ, or if blocks are compared and one model has none.
    """

    def __init__(self, recipe: Recipe, student: nn.Module, device: torch.device, objective: Objective) -> None:
        loss = recipe.loss
        assert loss.teacher is not None
        self.loss, self.objective = loss, objective
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

    def terms(
        self, noisy: Tensor, estimate: Tensor, done: float, gain: Tensor, predicted: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The distillation terms (b,) for the student's output on `noisy`, both (b, n). Call after each forward pass.

        Args:
            done: share of the run so far.
            gain: (b, 1), which brings the items to the level at which they are judged.
            predicted: spectra (b, t, f) that the student predicted, compared with the teacher's if it predicts any.
        """
        loss = self.loss
        ramp = min(1.0, done / loss.distill_ramp) if loss.distill_ramp else 1.0
        by_prediction = predicted is not None and isinstance(self.model, PredictsSpectrum) and loss.spectra != "output"
        with torch.no_grad():
            taught, prediction = self.model(noisy, with_spectrum=True) if by_prediction else (self.model(noisy), None)
        terms: dict[str, Tensor] = {}
        if loss.distill > 0:
            if predicted is not None and prediction is not None and predicted.shape == prediction.shape:
                ours, theirs = predicted * gain[..., None], prediction * gain[..., None]
                floors = {"floor": losses.PREDICTED_FLOOR, "phase_floor": losses.ANY_PHASE}
            else:
                ours, theirs = self.objective.stft(estimate * gain), self.objective.stft(taught * gain)
                floors = {}
            distance = losses.output_distillation(ours, theirs, **floors)
            terms["distill"] = ramp * distance
        if self.blocks:
            ours, *theirs = [self.outputs.pop(block) for block in self.blocks]  # pop, to release their graph
            if ours.shape != theirs[0].shape:
                raise RecipeError(
                    f"loss.distill_features needs blocks of the same size: the student's have "
                    f"{tuple(ours.shape)}, those of {loss.teacher} {tuple(theirs[0].shape)}"
                )
            terms["distill_features"] = ramp * losses.feature_distillation(ours.float(), theirs)
        return terms
