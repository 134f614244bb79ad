"""NISQA v2.0: predict speech quality and four of its dimensions, with weights that the user provides.

Mittag, Naderi, Chehadi & Möller 2021, "NISQA: A Deep CNN-Self-Attention Model for Multidimensional Speech Quality
Prediction with Crowdsourced Datasets" (arXiv:2104.09494). The released `nisqa.tar` (CC BY-NC-SA 4.0) holds `args` and
`model_state_dict`; the modules below use the names of that dictionary.

Letters: b batch, w windows (steps in time), m mel bands, k frames of a window, c channels.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from clearstate.audio.rates import whole_rate
from clearstate.metrics.mel import mel_spectrogram, to_db
from clearstate.metrics.pairs import as_signal


class NISQA(NamedTuple):
    """Predicted opinion scores, about 1 to 5."""

    mos: float
    noisiness: float
    discontinuity: float
    coloration: float
    loudness: float


def nisqa(signal: ArrayLike, sample_rate: int, weights: Path) -> NISQA:
    """Score a signal (samples,) in [-1, 1] at its own rate, up to 48 kHz.

    All NaN for silence, for signals shorter than a window (about 0.15 s), and for more windows than the network
    supports (about 52 s).

    Raises:
        ValueError: if the file is not a NISQA checkpoint.
    """
    sample_rate = whole_rate(sample_rate)
    x = as_signal(signal)
    model, args = _load(weights)
    windows = _windows(_features(x, sample_rate, args), args) if len(x) > args["ms_n_fft"] // 2 and x.any() else None
    if windows is None or not 0 < len(windows) <= args["ms_max_segments"]:
        return NISQA(*(math.nan,) * 5)
    with torch.no_grad():
        return NISQA(*model(torch.from_numpy(windows)[None].float())[0].tolist())


def _features(x: np.ndarray, sample_rate: int, args: dict[str, Any]) -> np.ndarray:
    """Mel magnitudes in dB (frames, m), limited to 80 dB below the peak."""
    mel = mel_spectrogram(
        x,
        sample_rate,
        n_fft=args["ms_n_fft"],
        hop=int(sample_rate * args["ms_hop_length"]),
        window=int(sample_rate * args["ms_win_length"]),
        mels=args["ms_n_mels"],
        highest=args["ms_fmax"],
        power=1.0,
        padding="reflect",
    )
    return to_db(mel**2, floor=1e-8)


def _windows(features: np.ndarray, args: dict[str, Any]) -> np.ndarray:
    """Overlapping windows (w, m, k) of the features (frames, m)."""
    length = args["ms_seg_length"]
    if len(features) < length:
        return np.empty((0, features.shape[1], length))
    cut = np.lib.stride_tricks.sliding_window_view(features, length, axis=0)  # (frames - k + 1, m, k)
    return np.ascontiguousarray(cut[:: args["ms_seg_hop_length"]])


@lru_cache(maxsize=1)
def _load(path: Path) -> tuple[_Network, dict[str, Any]]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        args = checkpoint["args"]
        model = _Network(args)
        model.load_state_dict(checkpoint["model_state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a NISQA v2.0 checkpoint (nisqa.tar): {error}") from error
    return model.eval(), args


class _Network(nn.Module):
    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        self.cnn = _Holder(_Convolutions(args))
        self.time_dependency = _Holder(_SelfAttention(args))
        self.pool_layers = nn.ModuleList(copy.deepcopy(_Holder(_Pool(args))) for _ in NISQA._fields)

    def forward(self, windows: Tensor) -> Tensor:  # (b, w, m, k)
        b, w = windows.shape[:2]
        x = self.cnn(windows.flatten(0, 1)[:, None])  # (b w, features)
        x = self.time_dependency(x.view(b, w, -1))  # (b, w, d)
        return torch.cat([pool(x) for pool in self.pool_layers], dim=1)  # (b, 5)


class _Holder(nn.Module):
    """In the checkpoint, every part is nested under `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class _Convolutions(nn.Module):
    """Six 2-D convolutions with adaptive max pooling after the first, second and fourth."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        self.pools = {1: args["cnn_pool_1"], 2: args["cnn_pool_2"], 4: args["cnn_pool_3"]}
        kernel = tuple(args["cnn_kernel_size"])
        padding = (1, 0) if kernel[0] == 1 else (1, 1)
        widths = [1, args["cnn_c_out_1"], args["cnn_c_out_2"], *[args["cnn_c_out_3"]] * 4]
        for i in range(1, 6):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], kernel, padding=padding))
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))
        last = (kernel[0], args["cnn_pool_3"][1])
        self.conv6 = nn.Conv2d(widths[5], widths[6], last, padding=(1, 0))
        self.bn6 = nn.BatchNorm2d(widths[6])

    def forward(self, x: Tensor) -> Tensor:  # (n, 1, m, k)
        for i in range(1, 7):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
            if i in self.pools:
                x = F.adaptive_max_pool2d(x, self.pools[i])
        return x.flatten(1)  # (n, c rows)


class _SelfAttention(nn.Module):
    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(args["td_sa_d_model"])
        self.linear = nn.Linear(args["cnn_c_out_3"] * args["cnn_pool_3"][0], args["td_sa_d_model"])
        self.layers = nn.ModuleList(_Layer(args) for _ in range(args["td_sa_num_layers"]))

    def forward(self, x: Tensor) -> Tensor:  # (b, w, features)
        x = self.norm1(self.linear(x))
        for layer in self.layers:
            x = layer(x)
        return x  # (b, w, d)


class _Layer(nn.Module):
    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        d = args["td_sa_d_model"]
        self.self_attn = nn.MultiheadAttention(d, args["td_sa_nhead"], batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, args["td_sa_h"]), nn.Linear(args["td_sa_h"], d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, x, x, need_weights=False)[0])
        y: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return y


class _Pool(nn.Module):
    """Attention pooling over time, then one number."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        self.linear1 = nn.Linear(args["td_sa_d_model"], args["pool_att_h"])
        self.linear2 = nn.Linear(args["pool_att_h"], 1)
        self.linear3 = nn.Linear(args["td_sa_d_model"], 1)

    def forward(self, x: Tensor) -> Tensor:  # (b, w, d)
        share = self.linear2(F.relu(self.linear1(x))).softmax(dim=1)  # (b, w, 1)
        y: Tensor = self.linear3((share * x).sum(1))  # (b, 1)
        return y
