"""What a worker process does with one file: `clearstate enhance`, `separate` or `extend` on an upload.

The input and the outputs are in the folder of the job, under names that the service chooses.
"""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

UPLOAD = "upload"  # name of the input in the folder of a job
Progress = Callable[[float, float], None]  # seconds of audio done, total seconds (0 if unknown)


@dataclass(frozen=True)
class Task:
    """One file to process."""

    verb: str  # enhance, separate or extend
    folder: str
    model: str
    backend: str  # see `runtime.choose`
    result: str  # file name of the result; the extension selects the format
    most_seconds: float  # of audio
    options: dict[str, Any] = field(default_factory=dict)  # of the verb


@dataclass(frozen=True)
class Done:
    """The result of a task."""

    seconds: float  # of audio
    sample_rate: int  # Hz, of the result
    channels: int
    note: str = ""


class TooLongError(ValueError):
    """The recording is longer than the service accepts."""


def run(task: Task, progress: Progress) -> Done:
    """Process the upload of a task.

    Raises:
        ValueError, OSError: one line; paths are relative to the folder of the job.
    """
    from clearstate.audio.io import BrokenOffError, open_reader

    def within(done: float, total: float) -> None:
        if max(done, total) > task.most_seconds:
            raise TooLongError(
                f"the recording has {max(done, total):.0f} s; this service accepts {task.most_seconds:.0f} s"
            )
        progress(done, total)

    source = os.path.join(task.folder, UPLOAD)
    note = ""
    try:
        with open_reader(source, task.options.get("track")) as reader:
            info = reader.info
        within(0.0, info.seconds or 0.0)
        verb = {"enhance": _enhance, "separate": _separate, "extend": _extend}[task.verb]
        try:
            report = verb(task, source, within)
            seconds, rate = report.seconds, report.sample_rate
        except BrokenOffError as error:  # the readable part has been written
            seconds, rate, note = error.lost.done, task.options.get("to", info.sample_rate), str(error)
        if task.verb == "separate":
            _zip(task)
    except (ValueError, OSError) as error:
        error.args = tuple(_shown(arg, task.folder) for arg in error.args)
        raise
    os.unlink(source)  # frees its space while the result waits
    return Done(seconds, rate, info.channels, _shown(note, task.folder))


def _enhance(task: Task, source: str, progress: Progress) -> Any:
    enhancer = _model("enhance", task.model, task.backend)
    return enhancer.enhance_file(source, _target(task), progress=progress, **task.options)


def _extend(task: Task, source: str, progress: Progress) -> Any:
    extender = _model("extend", task.model, task.backend)
    return extender.extend_file(source, _target(task), progress=progress, **task.options)


def _separate(task: Task, source: str, progress: Progress) -> Any:
    options = dict(task.options)
    separator = _model("separate", task.model, task.backend, options.pop("enhance", None))
    return separator.separate_file(source, task.folder, progress=progress, **options)


def _target(task: Task) -> str:
    return os.path.join(task.folder, task.result)


def _zip(task: Task) -> None:
    """Move the voices and the timeline into one ZIP file, without the names of our files."""
    folder = Path(task.folder)
    timeline = folder / f"{UPLOAD}.timeline.json"
    if timeline.exists():
        found = json.loads(timeline.read_text(encoding="utf-8")) | {"input": UPLOAD}
        for speaker in found["speakers"]:
            speaker["file"] = speaker["file"].removeprefix(f"{UPLOAD}.")
        timeline.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with zipfile.ZipFile(_target(task), "w", zipfile.ZIP_STORED) as archive:
        for part in sorted(folder.glob(f"{UPLOAD}.*")):
            archive.write(part, part.name.removeprefix(f"{UPLOAD}."))
            part.unlink()


def _shown(text: Any, folder: str) -> Any:
    """A message without the path of the folder, which is nobody's business."""
    return text.replace(f"{folder}{os.sep}", "").replace(folder, "the folder") if isinstance(text, str) else text


@lru_cache(maxsize=4)
def _model(verb: str, name: str, backend: str, enhance: str | None = None) -> Any:
    """A model, loaded once in this process."""
    if verb == "enhance":
        from clearstate.tasks.enhance import load

        return load(name, backend)
    if verb == "extend":
        from clearstate.tasks.extend import load_extender

        return load_extender(name, backend=backend)
    from clearstate.tasks.separate import load_separator

    return load_separator(name, enhance, backend)
