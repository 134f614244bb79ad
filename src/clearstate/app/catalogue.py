"""What the page offers: the models that can run here, their cards, and the examples."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from clearstate.installed import has_torch
from clearstate.metrics.results import markdown_table
from clearstate.models import PRESETS
from clearstate.runtime import exported_file
from clearstate.runtime.contract import KINDS, QUALITY

HERE = Path(__file__).resolve()
CLIPS = (HERE.parent / "clips", HERE.parents[3] / "examples" / "clips")  # in the wheel, in a clone
QUALITY_OF = {model: {"best": "best quality"}.get(quality, quality) for quality, model in QUALITY.items()}
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")  # to another file of the repository


def models(task: str, first: str | None = None) -> list[str]:
    """The models of a task that have weights and can run here; the default, or `first`, comes first."""
    names = [name for name, preset in PRESETS.items() if preset.task == task and runs_here(name)]
    first = first or KINDS[task][1]
    return [first, *(name for name in names if name != first)]


def runs_here(name: str) -> bool:
    """Whether a preset has weights and what runs them is installed."""
    return bool(PRESETS[name].weights) and (has_torch() or exported_file(name) is not None)


def choices(names: list[str]) -> list[tuple[str, str]]:
    """Models as entries of a list: what to show, and the name. Licences that forbid some uses are shown."""

    def label(name: str) -> str:
        remarks = [QUALITY_OF.get(name, ""), licence(name) if "NC" in licence(name) else ""]
        told = ", ".join(filter(None, remarks))
        return f"{shown(name)} ({told})" if told else shown(name)

    return [(label(name), name) for name in names]


def shown(name: str) -> str:
    """A model's name; for a folder of the server, its last part."""
    return name if name in PRESETS else Path(name).name


def licence(name: str) -> str:
    """The licence of a model's weights."""
    return PRESETS[name].licence if name in PRESETS else ""


def table() -> str:
    """All models as a Markdown table."""
    rows = [["model", "task", "what it is", "weights", "licence of the weights"]]
    for name, preset in sorted(PRESETS.items(), key=lambda item: item[1].weights is None):
        state = "to be trained" if not preset.weights else "shipped" if runs_here(name) else "shipped; needs PyTorch"
        rows.append([name, preset.task, preset.summary, state, preset.licence])
    return markdown_table(rows)


def cards() -> dict[str, str]:
    """The cards of the models with weights, in Markdown, by name."""
    found = {name: preset.weights / "README.md" for name, preset in PRESETS.items() if preset.weights}
    texts = {name: card.read_text(encoding="utf-8") for name, card in found.items() if card.is_file()}
    return {name: LINK.sub(r"\1", text) for name, text in texts.items()}


@dataclass(frozen=True)
class Example:
    """A recording that one click loads."""

    label: str
    file: Path


def examples(folder: Path) -> dict[str, list[Example]]:
    """The examples of each tab, copied to `folder`; empty where the clips are missing.

    Separation has two of the clean voices, added; extension has one of them as the telephone would transmit it.
    """
    clips = next((place for place in CLIPS if place.is_dir()), None)
    if clips is None:
        return {"enhance": [], "separate": [], "extend": []}
    clean = [soundfile.read(clips / f"{name}.clean.flac") for name in ("chainsaw_5db", "fire_10db", "helicopter_0db")]
    rate = clean[0][1]
    voices = [0.1 * x / x.std() for x, _ in clean]
    length = min(len(x) for x in voices)
    noisy = [
        Example(label, _copy(folder, clips / f"{name}.noisy.flac"))
        for label, name in (
            ("Helicopter", "helicopter_0db"), ("Chainsaw", "chainsaw_5db"), ("Fire", "fire_10db"),
        )
    ]  # fmt: skip
    both = _write(folder / "two_voices.flac", voices[0][:length] + voices[1][:length], rate)
    narrow = _write(folder / "telephone.flac", soxr.resample(voices[2], 2, 1), rate // 2)
    return {
        "enhance": noisy,
        "separate": [Example("Two voices", both)],
        "extend": [Example("Telephone", narrow), Example("16 kHz", _copy(folder, clips / "fire_10db.clean.flac"))],
    }


def _copy(folder: Path, clip: Path) -> Path:
    (folder / clip.name).write_bytes(clip.read_bytes())
    return folder / clip.name


def _write(path: Path, x: Any, rate: int) -> Path:
    soundfile.write(path, np.clip(x, -1, 1), rate, "PCM_16")
    return path
