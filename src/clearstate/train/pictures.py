"""Draw pictures of a run: curves of loss and scores, and spectrograms of fixed validation examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from clearstate.metrics.extras import need
from clearstate.train import losses
from clearstate.train.checkpoint import write_atomically
from clearstate.train.scoring import EXTENSION_METRICS, METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {
    "pesq": "PESQ", "stoi": "STOI", "si_sdr": "SI-SDR, dB", "snr": "SNR, dB", "lsd": "LSD", "lsd_high": "LSD, high band"
}  # fmt: skip
RANGE_DB = 70.0  # of a spectrogram's colours
SMOOTHED = 200  # points of a loss curve


class Example(NamedTuple):
    """One held-out item, each (n,)."""

    name: str
    noisy: Tensor
    enhanced: Tensor
    clean: Tensor


def draw_curves(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The loss over the steps and each score over the validations, from the lines of a run's log, as a PNG."""
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
    """At most SMOOTHED points, each the mean of its stretch.

    >>> thinned(range(400), range(400))[1][:2]
    [0.5, 2.5]
    """
    stride = max(1, -(-len(values) // SMOOTHED))
    parts = range(0, len(values), stride)
    means = [sum(values[i : i + stride]) / len(values[i : i + stride]) for i in parts]
    return [steps[min(i + stride, len(steps)) - 1] for i in parts], means


def draw_examples(examples: Sequence[Example], sample_rate: int, path: Path) -> None:
    """Spectrograms of noisy, enhanced and clean, one row an example, on one colour scale a row, as a PNG."""
    figure = new_figure((14, 2.6 * len(examples)))
    axes = figure.subplots(len(examples), 3, squeeze=False, sharey=True)
    for row, example in zip(axes, examples, strict=True):
        levels = [level_db(signal) for signal in (example.noisy, example.enhanced, example.clean)]
        top = max(float(level.max()) for level in levels)
        seconds = len(example.noisy) / sample_rate
        for axis, level, title in zip(row, levels, ("noisy", "enhanced", "clean"), strict=True):
            axis.imshow(
                level.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=top - RANGE_DB, vmax=top,
                extent=(0, seconds, 0, sample_rate / 2000),
            )  # fmt: skip
            axis.set_title(f"{example.name}: {title}", loc="left", fontsize=9)
        row[0].set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("s")
    save(figure, path)


def level_db(x: Tensor) -> Tensor:
    """Levels (f, t) in dB of a waveform (n,); sources (k, n) are summed."""
    whole = x.reshape(-1, x.shape[-1]).sum(0)
    power = losses.spectrum(whole[None], 512, 128)[0].abs().square().T
    return 10 * torch.log10(power + 1e-12)


def new_figure(inches: tuple[float, float]) -> "Figure":
    """A figure that needs no screen.

    Raises:
        MissingExtra: without matplotlib.
    """
    need("matplotlib.figure", "train", "drawing the course of a run")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
