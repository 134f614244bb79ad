"""What the buttons of the page do: `clearstate enhance`, `separate`, `extend`, and several models on one file.

The functions read an upload and write their results to a folder of their own. They know nothing of the page.
"""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from clearstate.app.catalogue import shown
from clearstate.app.drawings import INCHES, draw_timeline
from clearstate.app.players import equally_loud
from clearstate.audio.formats import WRITABLE
from clearstate.audio.io import BrokenOffError, open_reader, until_broken
from clearstate.audio.pictures import one_above_the_other
from clearstate.metrics import learned, scoring
from clearstate.metrics.table import SCORES
from clearstate.runtime import exported_file

Progress = Callable[[float, str], None]  # share of the work that is done, and what is being done

SCORED_SECONDS = 60.0  # of a recording, in a comparison
OPINIONS = ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl", "dnsmos_p808", "nisqa", "utmos", "scoreq")


@dataclass(frozen=True)
class Limits:
    """What the app accepts."""

    minutes: float = 30.0
    megabytes: float = 500.0


@dataclass(frozen=True)
class Result:
    """What a tab shows."""

    seconds: float  # of audio
    note: str
    files: list[Path]  # to download
    players: list[Path]
    picture: Path
    table: list[list[str]] = field(default_factory=list)


class Stages:
    """Progress over several stages, each with its share of the whole."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.start = progress, 0.0

    def next(self, share: float, text: str, total: float) -> Callable[..., None]:
        """Begin a stage. The result is called with the seconds of audio done; `total` is their number at the end."""
        start, self.start = self.start, self.start + share

        def report(done: float, of: float = 0.0) -> None:
            part = min(1.0, done / (of or total)) if of or total else 0.0
            self.progress(min(1.0, start + share * part), text)

        report(0.0)
        return report


def enhance(
    source: Path,
    folder: Path,
    limits: Limits,
    progress: Progress,
    *,
    model: str,
    strength: float | None,
    pcs: bool,
    highs: bool,
) -> Result:
    """Remove noise, as `clearstate enhance` does; and play what was removed, as its option --residual does."""
    seconds = checked(source, limits)
    stages = Stages(progress)
    options: dict[str, Any] = {"strength": strength, "pcs": pcs, "highs": highs}
    enhancer = opened("enhance", model)
    after, removed = folder / f"{source.stem}.clear{suffix(source)}", folder / "removed.wav"
    broken = saved(
        enhancer.enhance_file, source, after, progress=stages.next(0.4, "Removing noise", seconds), **options
    )
    report = stages.next(0.3, "Collecting what was removed", seconds)
    saved(enhancer.enhance_file, source, removed, residual=True, progress=report, **options)
    report = stages.next(0.2, "Preparing the players", 6 * seconds)
    players = equally_loud([source, after], folder, report, as_first=[removed])
    stages.next(0.1, "Drawing", 1)
    picture = drawn({"before": source, "after": after}, folder)
    return Result(seconds, broken or f"Done: {clock(seconds)} with {shown(model)}.", [after], players, picture)


def separate(
    source: Path, folder: Path, limits: Limits, progress: Progress, *, model: str, denoise: str | None
) -> Result:
    """Separate speakers, as `clearstate separate` does."""
    seconds = checked(source, limits)
    stages = Stages(progress)
    separator = opened("separate", model, denoise)
    report = stages.next(0.7, "Separating the speakers", seconds)
    before = set(folder.iterdir())
    broken = saved(separator.separate_file, source, folder, progress=report)
    files = sorted(set(folder.iterdir()) - before)
    voices = [file for file in files if file.suffix != ".json"]
    report = stages.next(0.2, "Preparing the players", 2 * len(voices) * seconds)
    players = equally_loud([source], folder, report, as_first=voices)[1:]
    stages.next(0.1, "Drawing", 1)
    timeline = next(file for file in files if file.suffix == ".json")
    found = read_timeline(timeline, source.name)
    picture = folder / "timeline.png"
    draw_timeline([speaker["segments"] for speaker in found["speakers"]], found["seconds"], picture)
    active = ", ".join(
        f"speaker {number} is active for {speaker['active_seconds']:.1f} s"
        for number, speaker in enumerate(found["speakers"], 1)
    )
    return Result(seconds, broken or f"Done: {active}.", files, players, picture)


def extend(source: Path, folder: Path, limits: Limits, progress: Progress, *, model: str, to: int) -> Result:
    """Add the missing high frequencies, as `clearstate extend` does."""
    seconds = checked(source, limits)
    stages = Stages(progress)
    extender = opened("extend", model)
    wide = folder / f"{source.stem}.wide{suffix(source)}"
    reports: list[Any] = []
    report = stages.next(0.7, "Adding high frequencies", seconds)
    broken = saved(extender.extend_file, source, wide, to=to, progress=report, reports=reports)
    report = stages.next(0.2, "Preparing the players", 4 * seconds)
    players = equally_loud([source, wide], folder, report)
    stages.next(0.1, "Drawing", 1)
    picture = drawn({"before": source, "after": wide}, folder)
    note = broken or ""
    for done in reports:
        reach = f"The recording holds frequencies up to {done.bandwidth_hz / 1000:.3g} kHz"
        added = "the model added those above" if done.extended else "nothing was missing"
        note = "The recording is silent; nothing was added." if done.silent else f"{reach}; {added}."
    return Result(seconds, note, [wide], players, picture)


def compare(source: Path, folder: Path, limits: Limits, progress: Progress, *, models: Sequence[str]) -> Result:
    """Enhance one file with several models, with the opinion scores that are installed."""
    if not models:
        raise ValueError("no model is chosen: choose one or more")
    seconds = checked(source, limits)
    stages = Stages(progress)
    files, speeds = [], ["–"]
    note = ""
    for number, model in enumerate(models, 1):
        place = folder / str(number)
        place.mkdir()
        files.append(place / f"{source.stem}.{shown(model)}{suffix(source)}")
        reports: list[Any] = []
        report = stages.next(0.6 / len(models), f"Removing noise with {shown(model)}", seconds)
        note = saved(opened("enhance", model).enhance_file, source, files[-1], progress=report, reports=reports) or note
        speeds.append(f"{reports[0].speed:.0f} x" if reports else "–")
    report = stages.next(0.2, "Preparing the players", 2 * (1 + len(models)) * seconds)
    players = equally_loud([source, *files], folder, report)
    keys, weights, missing = scoring.available(OPINIONS, {})
    names = ["before", *map(shown, models)]
    rows = [["", "speed", *(SCORES[key].label for key in keys)]]
    for name, speed, path in zip(names, speeds, [source, *files], strict=True):
        stages.next(0.1 / len(names), f"Scoring {name}", 1)
        rows.append([name, speed, *opinions(path, keys, weights)])
    stages.next(0.1, "Drawing", 1)
    picture = drawn(dict(zip(names, [source, *files], strict=True)), folder)
    absent = ", ".join(SCORES[key].label for key in missing)
    note = note or "Speed is in multiples of real time."
    if keys and seconds > SCORED_SECONDS:
        note += f" The scores are of the first {SCORED_SECONDS:.0f} s."
    if absent:
        note += f" Not installed: {absent}."
    return Result(seconds, note, files, players, picture, rows)


# ----------------------------------------------------------------------------------------------------- what they share


@lru_cache(maxsize=8)
def opened(task: str, model: str, denoise: str | None = None) -> Any:
    """A model, loaded once. ONNX Runtime runs it if it can: it is ready at once, and so is every process."""
    from clearstate.tasks.enhance import load
    from clearstate.tasks.extend import load_extender
    from clearstate.tasks.separate import load_separator

    backend = "onnx" if exported_file(model) else "auto"
    if task == "separate":
        return load_separator(model, denoise, backend)
    return (load if task == "enhance" else load_extender)(model, backend=backend)


def checked(source: Path, limits: Limits) -> float:
    """The length of an upload in seconds.

    Raises:
        ValueError: if it is too large or too long.
    """
    megabytes = os.path.getsize(source) / 1e6
    if megabytes > limits.megabytes:
        raise ValueError(f"{source.name} has {megabytes:.0f} MB; this app accepts {limits.megabytes:g} MB")
    most = 60 * limits.minutes
    with open_reader(source) as reader:
        rate, seconds = reader.info.sample_rate, reader.info.seconds or 0.0
        if not seconds:  # only reading to the end tells
            for block in until_broken(reader.blocks(), []):
                seconds += block.shape[1] / rate
                if seconds > most:
                    break
    if seconds > most:
        raise ValueError(f"{source.name} is longer than {limits.minutes:g} minutes, the limit of this app")
    return seconds


def saved(run: Callable[..., Any], *args: Any, reports: list[Any] | None = None, **options: Any) -> str | None:
    """Run a task and append its report to `reports`. A damaged file is processed as far as it can be read.

    Returns:
        What to tell about a damaged file.
    """
    try:
        report = run(*args, **options)
    except BrokenOffError as error:
        return f"{Path(error.name).name} is damaged: it could be read up to {error.lost.done:.1f} s."
    if reports is not None:
        reports.append(report)
    return None


def read_timeline(timeline: Path, name: str) -> Any:
    """The content of a timeline; in the file, the name of the upload replaces its place on the server."""
    found = json.loads(timeline.read_text(encoding="utf-8")) | {"input": name}
    timeline.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def suffix(source: Path) -> str:
    """The extension of a result: the one of the upload, or .wav where that format cannot be written."""
    return source.suffix if source.suffix.lower() in WRITABLE else ".wav"


def drawn(recordings: dict[str, Path], folder: Path) -> Path:
    """A picture with the spectrograms of some recordings."""
    picture = folder / "spectrograms.png"
    inches = (INCHES[0], 0.5 + 2.2 * len(recordings))
    with contextlib.suppress(BrokenOffError):  # what can be read has been drawn, and the note says so
        one_above_the_other(recordings, picture, inches)
    return picture


def opinions(path: Path, keys: Sequence[str], weights: dict[str, Path]) -> list[str]:
    """The scores of a recording without a reference, of its first minute."""
    if not keys:
        return []
    signal, rate = read_start(path)
    found: dict[str, float] = {}
    for group, place in weights.items():
        found |= learned.score(group, signal, rate, place)
    return [f"{found[key]:.2f}" if np.isfinite(found[key]) else "–" for key in keys]


def read_start(path: Path) -> tuple[Any, int]:
    """The first SCORED_SECONDS of a recording as one channel, and its rate."""
    with open_reader(path) as reader:
        rate, blocks, count = reader.info.sample_rate, [], 0
        for block in until_broken(reader.blocks(), []):
            blocks.append(block.mean(axis=0))
            count += block.shape[1]
            if count >= SCORED_SECONDS * rate:
                break
    return np.concatenate(blocks)[: int(SCORED_SECONDS * rate)], rate


def clock(seconds: float) -> str:
    """A duration for people.

    >>> clock(4.96), clock(75)
    ('5.0 s', '1:15 min')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
