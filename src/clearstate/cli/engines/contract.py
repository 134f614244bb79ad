"""What an engine receives and returns, and how one job is done."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from clearstate.audio.atomic import marked, remove_leftovers
from clearstate.audio.paths import shown
from clearstate.audio.streams import STDIO, is_stream
from clearstate.cli.inputs import Job
from clearstate.cli.terminal import clock, explain

Progress = Callable[[float, float], None]  # seconds of audio done, total seconds
Worker = Callable[[Job, Progress], dict[str, Any]]  # returns the file's entries in the JSON report
Advance = Callable[[str, float, float], None]  # source, seconds of audio done, total seconds


@dataclass(frozen=True)
class Outcome:
    """The result for one file."""

    source: str
    target: str | None
    error: str | None = None  # one line; None after success
    wall: float = 0.0  # seconds of work
    report: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)  # bytes by written file
    final: bool = False  # whether another attempt would fail in the same manner

    @property
    def name(self) -> str:
        """The input's name, safe to print."""
        return "stdin" if self.source == STDIO else shown(self.source)

    @property
    def speed(self) -> float:
        """Seconds of audio per second of work; 0 if unknown."""
        return self.report.get("seconds", 0.0) / self.wall if self.wall else 0.0

    def line(self) -> str:
        """The line that the terminal shows."""
        if self.error:
            return f"{self.name}: failed: {self.error}"
        length = clock(self.report.get("seconds", 0.0))
        target = "stdout" if self.target == STDIO else shown(self.target or "")
        done = f"{self.name} -> {target}  {length} of audio in {clock(self.wall)}, {self.speed:.3g} x real time"
        return done + (f"; {self.report['note']}" if "note" in self.report else "")

    def as_json(self) -> dict[str, Any]:
        """The entry of the JSON report."""
        known = {"input": self.source, "output": None if self.error else self.target, "ok": self.error is None}
        if self.error:
            return known | {"error": self.error}
        return known | self.report | {"wall_seconds": round(self.wall, 3), "speed": round(self.speed, 2)}


class Engine(Protocol):
    """Run jobs anywhere, in any order, and yield one outcome per job as soon as it is known."""

    def __call__(
        self, jobs: list[Job], open_worker: Callable[[], Worker], workers: int, advance: Advance
    ) -> Iterator[Outcome]:
        """Run the jobs.

        Args:
            jobs: the longest first.
            open_worker: loads the model; called once in each worker. It can be pickled.
            workers: number of jobs at the same time; 0 if the engine decides.
            advance: shows how far a file is.
        """
        ...


def attempt(work: Worker, job: Job, progress: Progress) -> Outcome:
    """Do one job. An exception becomes the outcome's error."""
    started = time.perf_counter()
    named = Outcome(job.source, job.target)
    try:
        with marked(_mark(job)):
            if job.replace and not is_stream(job.target):
                remove_leftovers(_mark(job), _folder(job))
            report = work(job, progress)
    except Exception as error:
        from clearstate.audio.info import BrokenOffError  # imports NumPy

        final = isinstance(error, (BrokenOffError, FileExistsError))
        return replace(named, error=explain(error).removeprefix(f"{named.name}: "), final=final)
    wall = time.perf_counter() - started
    return replace(named, wall=wall, report=report, outputs=_sizes(_written(job, report)))


def refuse(reason: str, job: Job, progress: Progress) -> dict[str, Any]:
    """A worker whose model does not open."""
    raise ValueError(reason)


def _written(job: Job, report: dict[str, Any]) -> list[str]:
    """The files that a job wrote; `separate` writes several into the folder `job.target`."""
    if "timeline" in report:
        return [report["timeline"], *(speaker["file"] for speaker in report["speakers"])]
    return [job.target]


def _sizes(names: list[str]) -> dict[str, int]:
    return {name: os.path.getsize(name) for name in names if os.path.isfile(name)}


def _mark(job: Job) -> str:
    """A name for the temporary files of this job, the same in each attempt."""
    return hashlib.sha1(f"{job.source}\n{job.target}".encode(errors="surrogateescape")).hexdigest()[:12]


def _folder(job: Job) -> str:
    return job.target if os.path.isdir(job.target) else os.path.dirname(os.path.abspath(job.target))
