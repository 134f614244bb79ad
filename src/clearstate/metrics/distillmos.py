"""Distill-MOS: predict speech quality from a compressed spectrum, with the weights in the `distillmos` wheel (MIT).

Stahl & Gamper 2025, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
Assessment" (arXiv:2502.05356). The package itself needs torchaudio and is not imported; the modules below use the names
of its checkpoint.

Letters: b batch, f bins, t frames, c channels, d width of the transformer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from clearstate.metrics.files import resample
from clearstate.metrics.pairs import as_signal

RATE = 16_000  # Hz
EXCERPT = 122_880  # samples: 7.68 s, the only length that the network takes
N_FFT, HOP = 320, 160  # samples
WIDTHS = (64, 64, 128, 256, 256, 256)  # c of the convolutions
WIDTH, HEADS, LAYERS = 200, 8, 7  # of the transformer
FRAMES = 384  # after the convolutions


def distillmos(signal: ArrayLike, sample_rate: int, weights: Path) -> float:
    """Predict the mean opinion, 1 to 5, of a signal (samples,) in [-1, 1] at any rate; NaN for an all-zero signal.

    A short signal is padded with zeros to 7.68 s. A longer one is cut into excerpts of 7.68 s, at most one second
    apart, and the mean is taken, as in the authors' code.

    Raises:
        ValueError: if the file is not a Distill-MOS checkpoint.
    """
    x = resample(as_signal(signal), sample_rate, RATE)
    if not x.any():
        return math.nan
    x = np.pad(x, (0, max(0, EXCERPT - len(x))))
    count = math.ceil((len(x) - EXCERPT) / RATE) + 1
    starts = (np.linspace(0, 1, count) * (len(x) - EXCERPT)).astype(int)
    model = _load(weights)
    with torch.no_grad():
        scores = [model(torch.from_numpy(x[start : start + EXCERPT])[None].float()).item() for start in starts]
    return float(np.mean(scores))


@lru_cache(maxsize=1)
def _load(path: Path) -> _Network:
    model = _Network()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a Distill-MOS checkpoint (distill_mos_v7.pt): {error}") from error
    return model.eval()


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cnn = _Convolutions()
        self.transformer_pool_attn = _Head()

    def forward(self, x: Tensor) -> Tensor:  # (b, EXCERPT) -> (b, 1)
        x = x / (x.abs().amax(dim=1, keepdim=True) + 1e-8)
        return 1 + 4 * torch.sigmoid(self.transformer_pool_attn(self.cnn(_compressed(x))))


def _compressed(x: Tensor) -> Tensor:
    """Real and imaginary parts of X / |X|^0.7: (b, 2, f, t)."""
    x = F.pad(x, ((N_FFT - HOP) // 2,) * 2, mode="reflect")
    window = torch.hann_window(N_FFT)
    spec = torch.view_as_real(torch.stft(x, N_FFT, HOP, window=window, center=False, return_complex=True))
    mag = spec.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)  # (b, f, t, 1)
    return (mag**0.3 * spec / mag).permute(0, 3, 1, 2)


class _Convolutions(nn.Module):
    """3 x 3 convolutions that halve the bins, except the first; the last one also halves the frames."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((2, *WIDTHS), WIDTHS, strict=False)):
            stride = (2 if i else 1, 2 if i == len(WIDTHS) - 1 else 1)
            layers += [nn.Conv2d(before, after, 3, stride, padding=(0, 1)), nn.LeakyReLU(0.1)]
        self.cnn = nn.Sequential(*layers)

    def forward(self, spec: Tensor) -> Tensor:  # (b, 2, f, t) -> (b, FRAMES, c f)
        y: Tensor = self.cnn(spec).flatten(1, 2).transpose(1, 2)
        return y


class _Head(nn.Module):
    """A transformer over the frames, then attention pooling to one number."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_input = nn.BatchNorm1d(4 * WIDTHS[-1])  # 4 bins are left
        self.transformer = _Transformer()
        self.norm_trans = nn.BatchNorm1d(WIDTH)
        self.pool = _Pool()

    def forward(self, x: Tensor) -> Tensor:  # (b, FRAMES, c f) -> (b, 1)
        x = self.transformer(_over_channels(self.norm_input, x))
        y: Tensor = self.pool(_over_channels(self.norm_trans, x))
        return y


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4 * WIDTHS[-1])
        self.position_encoding = _Positions()
        self.linear_proj = nn.Linear(4 * WIDTHS[-1], WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_proj(_over_channels(self.norm, x)) + self.position_encoding.pe
        y: Tensor = self.transformer_encoder(x)
        return y


class _Positions(nn.Module):
    """The sines and cosines that are added to the frames; the checkpoint holds them."""

    pe: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pe", torch.zeros(1, FRAMES, WIDTH))


class _Pool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, 1)
        self.linear3 = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        share = self.linear2(F.relu(self.linear1(x))).softmax(dim=1)  # (b, t, 1)
        y: Tensor = self.linear3((share * x).sum(1))  # (b, 1)
        return y


def _over_channels(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """A norm of channels on (b, t, c)."""
    y: Tensor = norm(x.transpose(1, 2)).transpose(1, 2)
    return y
