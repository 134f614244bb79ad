"""Progress and logs of a run: a bar or plain lines, one JSON line per interval, TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from clearstate.audio.atomic import replacing
from clearstate.metrics.extras import need

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PLAIN_SECONDS = 30.0  # between lines if the output is not a terminal


class Report:
    """The run's log.jsonl, its progress bar (plain lines away from a terminal) and, if asked for, TensorBoard."""

    def __init__(self, folder: Path, after_step: int, tensorboard: bool = False, quiet: bool = False):
        """Open the log; drop lines after `after_step`, whose steps were lost."""
        self.path = folder / "log.jsonl"
        lines = read_log(self.path)
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= after_step).encode()
        if not self.path.is_file() or self.path.read_bytes() != kept:
            with replacing(self.path) as temporary:
                Path(temporary).write_bytes(kept)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = tensorboard_writer(folder, after_step) if tensorboard else None
        self._console = Console(file=sys.stderr, quiet=quiet)
        self._last_line, self._loss = -math.inf, math.nan
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"),
                console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=1.0, text="")
            self._bar.start()

    def moved(self, done: float, step: int, loss: float, speed: float, minutes: float) -> None:
        """Show progress: `done` 0 to 1 after so many minutes, speed in hours of audio per hour, the loss smoothed."""
        if math.isfinite(loss):
            self._loss = loss if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * loss
        left = minutes / done * (1 - done) if done else math.nan
        text = f"step {step}  loss {self._loss:.4f}  {speed:.0f} h/h  {clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{100 * done:5.1f} %  {text}")

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def write(self, kind: str, step: int, values: Mapping[str, float | None]) -> None:
        """Append one line to the log; non-finite values become null."""
        line = {"kind": kind, "step": step, **{name: plain(value) for name, value in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close the log and the progress bar."""
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; one that a kill cut short or a disk spoilt is left out."""
    lines = []
    if path.is_file():
        for text in path.read_bytes().splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines


def plain(value: float | None) -> float | None:
    """A number JSON can hold: six significant digits would hide a difference, so floats stay as they are."""
    return None if value is None or not math.isfinite(value) else value


def clock(minutes: float) -> str:
    """'1:05 h' or '12 min'."""
    if not math.isfinite(minutes):
        return "?"
    return f"{int(minutes // 60)}:{int(minutes % 60):02d} h" if minutes >= 60 else f"{math.ceil(minutes)} min"


def tensorboard_writer(folder: Path, after_step: int) -> "SummaryWriter":
    """A writer in the run folder; events beyond `after_step` are hidden.

    Raises:
        MissingExtra: when TensorBoard is not installed.
    """
    need("tensorboard", "tensorboard", "tensorboard: true")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=after_step + 1)
