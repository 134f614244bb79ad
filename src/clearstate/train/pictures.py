"""Draw pictures of a run: curves of loss and scores, and spectrograms of fixed validation examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clearstate.audio.pictures import new_figure, show, spectrogram_of
from clearstate.train.checkpoint import write_atomically
from clearstate.train.scoring import EXTENSION_METRICS, METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {
    "pesq": "PESQ", "stoi": "STOI", "si_sdr": "SI-SDR, dB", "snr": "SNR, dB", "lsd": "LSD", "lsd_high": "LSD, high band"
}  # fmt: skip
RANGE_DB = 70.0  # range of the colours of a spectrogram
SMOOTHED = 200  # maximum number of points of a loss curve


class Example(NamedTuple):
    """One held-out item, each (n,)."""

    name: str
    noisy: Tensor
    enhanced: Tensor
    clean: Tensor


def draw_curves(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss over the steps and each score over the validations, from the lines of a run's log, as a PNG."""
    train = [line for line in lines if line["kind"] == "train" and line.get("loss") is not None]
    valid = [line for line in lines if line["kind"] == "valid"]
    figure = new_figure((14, 3.2))
    metrics = EXTENSION_METRICS if valid and "lsd" in valid[-1] else METRICS
    axes = figure.subplots(1, 1 + len(metrics))
    steps, values = thinned([line["step"] for line in train], [line["loss"] for line in train])
    axes[0].plot(steps, values, color="tab:blue")
    axes[0].set_title("loss", loc="left")
    for axis, metric in zip(axes[1:], metrics, strict=True):
        points = [(line["step"], line[metric]) for line in valid if line.get(metric) is not None]
        axis.plot([p[0] for p in points], [p[1] for p in points], ".-", color="tab:orange")
        axis.set_title(UNITS[metric], loc="left")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    save(figure, path)


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most SMOOTHED points, each the mean of consecutive values.

    >>> thinned(range(400), range(400))[1][:2]
    [0.5, 2.5]
    """
    stride = max(1, -(-len(values) // SMOOTHED))
    parts = range(0, len(values), stride)
    means = [sum(values[i : i + stride]) / len(values[i : i + stride]) for i in parts]
    return [steps[min(i + stride, len(steps)) - 1] for i in parts], means


def draw_examples(examples: Sequence[Example], sample_rate: int, path: Path) -> None:
    """Draw spectrograms of noisy, enhanced and clean as a PNG: one row and one colour scale per example."""
    figure = new_figure((14, 2.6 * len(examples)))
    axes = figure.subplots(len(examples), 3, squeeze=False, sharey=True)
    for row, example in zip(axes, examples, strict=True):
        signals = {"noisy": example.noisy, "enhanced": example.enhanced, "clean": example.clean}
        drawn = [spectrogram_of(mixed(x), sample_rate) for x in signals.values()]
        brightest = max(float(one.level.max()) for one in drawn)
        for axis, one, title in zip(row, drawn, signals, strict=True):
            show(axis, one, brightest, RANGE_DB)
            axis.set_title(f"{example.name}: {title}", loc="left", fontsize=9)
        row[0].set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("s")
    save(figure, path)


def mixed(x: Tensor) -> NDArray[np.float64]:
    """A waveform (n,); the sum of sources (k, n)."""
    return x.reshape(-1, x.shape[-1]).sum(0).double().numpy()


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
