"""What an engine receives and returns, and how one job is done."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from clearstate.audio.atomic import marked, remove_leftovers, write_text
from clearstate.audio.paths import shown
from clearstate.audio.remote import back, is_remote, local_copies, without_secrets
from clearstate.audio.streams import STDIO, is_stream
from clearstate.cli.inputs import Job
from clearstate.cli.terminal import clock, explain

Progress = Callable[[float, float], None]  # seconds of audio done, total seconds
Worker = Callable[[Job, Progress], dict[str, Any]]  # returns the file's entries in the JSON report
Advance = Callable[[str, float, float], None]  # source, seconds of audio done, total seconds

MOST_HELPERS = 8  # per file; the worker that has the file holds two blocks for each in memory
LEAST_BYTES = 1 << 26  # of a file at a URL that is read block by block; a copy of a shorter one is faster
SHARE_SECONDS = 60.0  # of a file, for each worker that computes blocks of it


@dataclass(frozen=True)
class InBlocks:
    """A worker whose model works in blocks of a file, which other workers can compute (`tasks.blocks.lending`)."""

    work: Worker

    def __call__(self, job: Job, progress: Progress) -> dict[str, Any]:
        """Do a job."""
        return self.work(job, progress)


def useful_workers(jobs: list[Job]) -> int:
    """The most workers that can share these jobs, if the model works in blocks."""
    return sum(1 + min(MOST_HELPERS, int(job.seconds / SHARE_SECONDS)) for job in jobs)


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
        return "stdin" if self.source == STDIO else shown(without_secrets(self.source))

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
        known = {
            "input": without_secrets(self.source),
            "output": None if self.error or self.target is None else without_secrets(self.target),
            "ok": self.error is None,
        }
        if self.error:
            return known | {"error": without_secrets(self.error)}
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
    places: dict[str, str] = {}
    try:
        with marked(_mark(job)):
            if job.replace:
                clean_up(job)
            report, outputs = _do(work, job, progress, places)
    except Exception as error:
        from clearstate.audio.info import BrokenOffError  # imports NumPy

        final = isinstance(error, (BrokenOffError, FileExistsError))
        why = without_secrets(back(explain(error), places)).removeprefix(f"{named.name}: ")
        return replace(named, error=why, final=final)
    return replace(named, wall=time.perf_counter() - started, report=report, outputs=outputs)


def clean_up(job: Job) -> None:
    """Delete the partial outputs of an attempt that was killed."""
    if not is_stream(job.target) and not is_remote(job.target):
        remove_leftovers(_mark(job), _folder(job))


def refuse(reason: str, job: Job, progress: Progress) -> dict[str, Any]:
    """A worker whose model does not open."""
    raise ValueError(reason)


def _do(work: Worker, job: Job, progress: Progress, places: dict[str, str]) -> tuple[dict[str, Any], dict[str, int]]:
    """The report of a job, and the bytes of its outputs; files at URLs are worked on as local copies."""
    if not is_remote(job.source) and not is_remote(job.target):
        report = work(job, progress)
        return report, _sizes(_written(job, report))
    with local_copies(job.source, job.target, places, in_place=_is_read_in_blocks(job)) as (source, target):
        local = replace(job, source=source, target=target)
        report = work(local, progress)
        if "timeline" in report:
            _name_input(report["timeline"], without_secrets(job.source))
        sizes = _sizes(_written(local, report))
    return back(report, places), {back(name, places): size for name, size in sizes.items()}


def _is_read_in_blocks(job: Job) -> bool:
    """Whether the source is at a URL and needs no local copy. One with a password or signature would be in messages."""
    if job.size < LEAST_BYTES or not is_remote(job.source) or without_secrets(job.source) != job.source:
        return False
    from clearstate.audio.length import inspect_url

    with suppress(Exception):  # not every storage can seek; a copy tells what else is wrong
        return inspect_url(job.source) is not None
    return False


def _name_input(timeline: str, source: str) -> None:
    """Write the name of the source into a timeline, in place of its local copy's."""
    with open(timeline, encoding="utf-8") as file:
        text = json.load(file) | {"input": source}
    write_text(timeline, json.dumps(text, indent=2) + "\n")


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
