"""A discriminator that learns to predict PESQ, which turns PESQ into a loss (MetricGAN).

    c clean, g candidate: compressed magnitudes (b, t, f)
    Q(c, g) = (PESQ - 1) / 3.5, about 0 to 1
    discriminator  (D(c, c) - 1)² + (D(c, g) - Q(c, g))²
    generator      (D(c, g) - 1)²

Idea: Fu et al. 2019 (arXiv:1905.04874). Layers as in CMGAN (arXiv:2203.15149), MP-SENet (arXiv:2305.13686) and
SEMamba (arXiv:2405.06573), 181,650 parameters.
"""

import os
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from clearstate.audio.atomic import replacing
from clearstate.models.convert import Form, Outcome, Source, Table, read_checkpoint, translate

MIN_FRAMES = 32  # four halvings leave two, the least an instance norm can work with
WEIGHTS = "discriminator.safetensors"


class LearnableSigmoid(nn.Module):
    """beta sigmoid(slope x), one slope for all."""

    def __init__(self, beta: float = 1.0):
        super().__init__()
        self.beta = beta
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation."""
        return self.beta * torch.sigmoid(self.slope * x)


class MetricDiscriminator(nn.Module):
    """D(c, g): a guess at Q of two compressed magnitudes (b, t, f), to (b,)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        widths = [2, channels, 2 * channels, 4 * channels, 8 * channels]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            conv = spectral_norm(nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False))
            layers += [conv, nn.InstanceNorm2d(wide, affine=True), nn.PReLU(wide)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            spectral_norm(nn.Linear(8 * channels, 4 * channels)),
            nn.Dropout(0.3),
            nn.PReLU(4 * channels),
            spectral_norm(nn.Linear(4 * channels, 1)),
            LearnableSigmoid(),
        )

    def forward(self, clean: Tensor, candidate: Tensor) -> Tensor:
        """The predicted score of a candidate beside the clean spectrum, (b,)."""
        if min(clean.shape[1:]) < MIN_FRAMES:
            raise ValueError(
                f"the discriminator got {clean.shape[1]} frames of {clean.shape[2]} bins, it needs {MIN_FRAMES} of "
                "each: make the training items longer (data.seconds)"
            )
        x = torch.stack([clean, candidate], dim=1)  # (b, 2, t, f)
        x = self.body(x).amax((2, 3))  # (b, 128)
        scores: Tensor = self.head(x)  # (b, 1)
        return scores[:, 0]


def discriminator_loss(judged_clean: Tensor, judged: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """(D(c, c) - 1)² + (D(c, g) - Q)² for each item, (b,); without the second where Q is not `known` (b,) bool."""
    away = torch.where(known, judged - target, torch.zeros_like(judged))
    return (judged_clean - 1).square() + away.square()


def metric_loss(judged: Tensor) -> Tensor:
    """(D(c, g) - 1)²: what the generator minimises, (b,)."""
    return (judged - 1).square()


# ---------------------------------------------------------------------------------------------- published weights

# There the input is (b, 2, f, t), here (b, 2, t, f): the kernels of the convolutions are turned, and so is v, the right
# singular vector of a kernel as a matrix.
TURNED = Form(lambda s: (s[0], s[1], s[3], s[2]), lambda x: x.transpose(2, 3))
TURNED_VECTOR = Form(lambda s: s, lambda x: x.view(-1, 4, 4).transpose(1, 2).flatten())


def published_table() -> Table:
    """Where the tensors of `MetricDiscriminator` lie in the checkpoints of SEMamba and MP-SENet."""
    table = {"head.2.weight": Source("layers.16.weight"), "head.4.slope": Source("layers.18.slope")}
    spectral = [(f"body.{3 * i}", f"layers.{3 * i}") for i in range(4)]
    spectral += [("head.0", "layers.14"), ("head.3", "layers.17")]
    for ours, theirs in spectral:
        kernel = ours.startswith("body")
        weight = f"{ours}.parametrizations.weight"
        table[f"{weight}.original"] = Source(f"{theirs}.weight_orig", *([TURNED] if kernel else []))
        table[f"{weight}.0._u"] = Source(f"{theirs}.weight_u")
        table[f"{weight}.0._v"] = Source(f"{theirs}.weight_v", *([TURNED_VECTOR] if kernel else []))
        if kernel:
            index = int(ours.rpartition(".")[2])
            for name in ("weight", "bias"):
                table[f"body.{index + 1}.{name}"] = Source(f"layers.{index + 1}.{name}")
            table[f"body.{index + 2}.weight"] = Source(f"layers.{index + 2}.weight")
        else:
            table[f"{ours}.bias"] = Source(f"{theirs}.bias")
    return table


def convert(checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Outcome:
    """Write a published discriminator as a folder that `loss.metric_start` reads.

    Args:
        checkpoint: `pretrained_discriminator.pth` of SEMamba, or a training state, `{"discriminator": ...}`.
        folder: written anew; must not contain a discriminator.
    Raises:
        ValueError: for a checkpoint that does not fit in every tensor.
        FileExistsError: if the folder contains a discriminator already.
        OSError: if the file cannot be read.
    """
    file = Path(folder) / WEIGHTS
    if file.exists():
        raise FileExistsError(f"{folder} contains a discriminator already: choose another folder, or remove it")
    model = MetricDiscriminator()
    state = translate(read_checkpoint(checkpoint, "discriminator"), model, published_table())
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        Path(temporary).write_bytes(save(state))
    return Outcome(len(state), sum(p.numel() for p in model.parameters()), file.parent)


def start_from(model: MetricDiscriminator, folder: str | os.PathLike[str]) -> None:
    """Load the weights that `convert` wrote.

    Raises:
        FileNotFoundError: if the folder has none.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} contains no {WEIGHTS}: expected a folder that "
            "`clearstate convert CHECKPOINT --to discriminator` wrote"
        )
    model.load_state_dict(load_file(file))
