"""A model, data and recipe so small that a step takes milliseconds; also a program, for tests that kill it."""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from clearstate.models import PRESETS, Preset
from clearstate.train import loop
from clearstate.train.loop import Outcome, Run
from clearstate.train.plan import resolve
from clearstate.train.recipe import Recipe, recipe_from, set_dotted

# so that their weights can be saved; conftest.py puts them among PRESETS for the tests of this folder alone
TINY_PRESETS = {
    "tiny": Preset("tiny", "enhance", "", "for tests"),
    "other": Preset("tiny", "enhance", "", "for tests"),
    "apart": Preset("apart", "separate", "", "for tests"),
}
SAMPLES = 8_000  # half a second


@dataclass(frozen=True)
class TinyConfig:
    channels: int = 4
    dropout: float = 0.1  # so that the random state of a resumed run matters


class Tiny(nn.Module):
    """A filter bank, a gain, a filter bank."""

    sample_rate = 16_000

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.config = config
        self.encode = nn.Conv1d(1, config.channels, 32, 16)
        self.drop = nn.Dropout(config.dropout)
        self.decode = nn.ConvTranspose1d(config.channels, 1, 32, 16, bias=False)

    def forward(self, noisy: Tensor) -> Tensor:  # (b, n)
        frames = nn.functional.pad(noisy, (16, 32))[:, None]
        y = self.decode(self.drop(self.encode(frames).tanh()))[:, 0]
        return y[:, 16 : 16 + noisy.shape[-1]]


class Tones:
    """Tones in noise, a function of (epoch, item)."""

    def __init__(self, items: int = 24, delay: float = 0.0):
        self.items, self.delay = items, delay

    def __len__(self) -> int:
        return self.items

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        time.sleep(self.delay)
        generator = torch.Generator().manual_seed(1000 * epoch + item)
        pitch = 100 + 200 * torch.rand(1, generator=generator)
        seconds = torch.arange(SAMPLES) / 16_000
        clean = 0.1 * sum(torch.sin(2 * torch.pi * k * pitch * seconds) / k for k in range(1, 6))
        return {"clean": clean, "noisy": clean + 0.1 * torch.randn(SAMPLES, generator=generator)}


class TonePairs:
    """Held-out tones."""

    def __len__(self) -> int:
        return 3

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        item = Tones().example(10_000, i)
        return item["noisy"], item["clean"]


def tiny_recipe(folder: Path, *overrides: str) -> Recipe:
    """A recipe for twelve steps in `folder`, without validation unless the overrides ask for it."""
    tree: dict = {
        "run": str(folder),
        "model": {"name": "tiny"},
        "data": {"noisy": ".", "clean": ".", "seconds": 0.5, "batch": 4, "workers": 0},
        "loss": {"magnitude": 0.7, "complex": 0.3, "multi_resolution": 0.1, "log_error": 0.002},
        "optimiser": {"lr": 1e-2, "ema": 0.9},
        "schedule": {"max_steps": 12},
        "valid": {"every_minutes": None, "pictures": False},
        "accelerator": "cpu",
        "log_steps": 1,
        "threads": 1,
        "seed": 3,
    }
    for override in overrides:
        set_dotted(tree, override)
    return recipe_from(tree)


def tiny_model(**config) -> Tiny:
    torch.manual_seed(0)
    return Tiny(TinyConfig(**config))


def tiny_run(folder: Path, *overrides: str, model: nn.Module | None = None, items=None, pairs=None) -> Run:
    """A run of `tiny_recipe`, not started."""
    recipe = tiny_recipe(folder, *overrides)
    return Run(resolve(recipe, tiny_model() if model is None else model, items or Tones(), pairs), quiet=True)


def finished(folder: Path, *overrides: str, **parts) -> Outcome:
    return tiny_run(folder, *overrides, **parts).run()


def losses(folder: Path) -> list[tuple[int, float, int]]:
    """(step, loss, position) of every line of a run's log."""
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["position"]) for line in lines if line["kind"] == "train"]


def stop_after(run: Run, steps: int) -> Run:
    """Make a run stop after `steps` steps as a signal would make it."""
    count = run.count

    def counted(values, minutes):
        count(values, minutes)
        if run.session.at.step == steps:
            run.session.stop_signal = signal.SIGTERM

    run.count = counted
    return run


def copy_at(run: Run, step: int, folder: Path) -> None:
    """Make a run copy its folder at a step, with a checkpoint of that step: what a kill would leave."""
    count = run.count

    def counted(values, minutes):
        count(values, minutes)
        if run.session.at.step == step:
            run.session.save()
            if run.session.fabric.is_global_zero:
                shutil.copytree(run.plan.folder, folder)

    run.count = counted


def group_threads() -> list[str]:
    """Threads of this process that serve a group of processes: one that ends beside them is aborted now and then."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # none outside Linux
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":  # FOLDER DELAY DROPOUT [copy_at=STEP:FOLDER] overrides...
    PRESETS.update(TINY_PRESETS)
    if os.environ.get("RANK") == "1":  # a clock that runs fast: processes must not decide by clocks of their own
        loop.time = SimpleNamespace(monotonic=lambda: 2 * time.monotonic())
    where, delay, dropout, *changes = sys.argv[1:]
    copies = [change for change in changes if change.startswith("copy_at=")]
    changes = [change for change in changes if change not in copies]
    run = tiny_run(Path(where), *changes, model=tiny_model(dropout=float(dropout)), items=Tones(delay=float(delay)))
    for copy in copies:
        step, _, target = copy.removeprefix("copy_at=").partition(":")
        copy_at(run, int(step), Path(target))
    run.run()
    assert not group_threads()
