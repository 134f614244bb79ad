"""A discriminator that learns to predict PESQ, which turns PESQ into a loss (MetricGAN).

    c clean, g candidate: compressed magnitudes (b, t, f)
    Q(c, g) = (PESQ - 1) / 3.5, about 0 to 1
    discriminator  (D(c, c) - 1)² + (D(c, g) - Q(c, g))²
    generator      (D(c, g) - 1)²

Idea: Fu et al. 2019 (arXiv:1905.04874). Layers as in CMGAN (arXiv:2203.15149), MP-SENet (arXiv:2305.13686) and
SEMamba (arXiv:2405.06573), 181,650 parameters.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

MIN_FRAMES = 32  # four halvings leave two, the least an instance norm can work with


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
