"""Process many files: progress bar, a list of failures at the end, Ctrl-C without partial outputs.

A verb passes `run_batch` a picklable function that loads the model and returns a worker. `run_batch` returns one
`Outcome` per file; an engine (`engines/`) decides where the workers run. A worker writes each output under a temporary
name and renames it when it is complete. To stop a worker, its progress callback raises an exception, so the worker's
own clean-up runs.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from clearstate.audio.paths import shown
from clearstate.audio.remote import base_name, is_remote, without_secrets
from clearstate.cli.engines import local
from clearstate.cli.engines.contract import Engine, Outcome, Progress, Worker
from clearstate.cli.inputs import Job
from clearstate.cli.manifest import Manifest
from clearstate.cli.terminal import clock, note

__all__ = ["Display", "Outcome", "Progress", "Worker", "run_batch"]


def run_batch(
    jobs: list[Job],
    open_worker: Callable[[], Worker],
    *,
    processes: int = 1,
    lengths: dict[str, float],
    show: Callable[[Outcome], None] | None = None,
    engine: Engine = local.run,
    manifest: Manifest | None = None,
    events: bool = False,
    summary: bool = False,
) -> list[Outcome]:
    """Run every job and show the progress. A file that fails does not stop the others.

    Args:
        open_worker: called once in each process. It is pickled if there are several processes, so it must be a
            module-level function or a `functools.partial` of one.
        lengths: seconds of audio by source, as far as known. The time left is estimated from them.
        show: prints a finished file; None prints `Outcome.line` on stderr.
        engine: what runs the jobs.
        manifest: records what is done; jobs that it records as done are skipped.
        events: print a line of JSON to stderr after each file, instead of a line for people.
        summary: print files, hours, speed and failures of the whole batch at the end.
    Returns:
        One outcome per job, in the order in which the jobs finished.
    """
    outcomes: list[Outcome] = []
    if manifest:
        jobs, outcomes = manifest.begin(jobs)
    if processes != 1:  # the longest first; where the length is unknown, bytes of 16 kHz mono tell it roughly
        jobs = [replace(job, seconds=lengths.get(job.source, job.size / 32_000)) for job in jobs]
        jobs = sorted(jobs, key=lambda job: -job.seconds)
    by_key = {(job.source, job.target): job for job in jobs}
    with Display(len(jobs), sum(lengths.get(job.source, 0.0) for job in jobs), show, events) as display:
        try:
            for outcome in engine(jobs, open_worker, processes, display.advance) if jobs else ():
                if manifest:
                    manifest.record(by_key[outcome.source, outcome.target or ""], outcome)
                display.finish(outcome, lengths.get(outcome.source) or outcome.report.get("seconds", 0.0))
                outcomes.append(outcome)
        finally:
            if manifest:
                manifest.close()
    if summary and not events:
        note(display.summary())
    return outcomes


class Display:
    """A progress bar with time left and speed if stderr is a terminal, and one line per finished file."""

    def __init__(
        self, files: int, seconds: float, show: Callable[[Outcome], None] | None = None, events: bool = False
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.start: tuple[float, float] | None = None  # time of the first report, and the seconds done then
        self.files, self.finished_files, self.finished_seconds, self.show = files, 0, 0.0, show
        self.seconds, self.failed, self.events, self.began = seconds, 0, events, time.monotonic()
        self.running: dict[str, float] = {}  # seconds done, by file in progress
        self.bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("[dim]time left[/]"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[speed]}"),
            console=self.console,
            transient=True,
            disable=events or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("loading the model", total=seconds or None, speed="")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def advance(self, source: str, done: float, total: float) -> None:
        """Show how far a file is, in seconds of audio."""
        self.running[source] = done
        seconds = self.finished_seconds + sum(self.running.values())
        names = " ".join(shown(base_name(name) if is_remote(name) else os.path.basename(name)) for name in self.running)
        count = f"{self.finished_files + 1}/{self.files} " if self.files > 1 else ""
        now = time.perf_counter()
        since, before = self.start = self.start or (now, seconds)
        speed = f"{(seconds - before) / (now - since):.3g} x real time" if now - since > 1 else ""
        if self.files == 1 and total > 0:  # the reader knows the length only now
            self.bar.update(self.task, total=total)
        self.bar.update(self.task, completed=seconds, description=f"{count}{names}"[:40], speed=speed)

    def finish(self, outcome: Outcome, expected: float) -> None:
        """Print the line of a finished file."""
        self.running.pop(outcome.source, None)
        self.finished_files += 1
        self.finished_seconds += expected
        self.failed += outcome.error is not None
        if not self.running:  # of some engines, only finished files are known
            state = f"{self.finished_files}/{self.files} files" + (f", {self.failed} failed" if self.failed else "")
            speed = self.finished_seconds / (time.monotonic() - self.began)
            self.bar.update(self.task, description=state, speed=f"{speed:.3g} x real time")
        if self.events:
            print(json.dumps(self.event(outcome)), file=sys.stderr, flush=True)
            return
        self.bar.update(self.task, completed=self.finished_seconds + sum(self.running.values()))
        if outcome.error and self.files == 1:
            return  # the list of failures at the end shows it
        if self.show and not outcome.error:
            self.bar.stop()  # it would mix with what `show` prints
            self.show(outcome)
            self.bar.start()
            return
        if self.console.is_terminal:
            self.bar.console.print(outcome.line(), style="red" if outcome.error else None, markup=False)
        else:
            note(outcome.line())

    def summary(self) -> str:
        """One line about the whole batch."""
        passed = time.monotonic() - self.began
        return (
            f"clearstate: {self.finished_files} files, {self.finished_seconds / 3600:.3g} hours of audio in "
            f"{clock(passed)}, {self.finished_seconds / passed:.3g} x real time, {self.failed} failed"
        )

    def event(self, outcome: Outcome) -> dict[str, Any]:
        """The state of the whole batch after a file, for machines."""
        passed = time.monotonic() - self.began
        speed = self.finished_seconds / passed if passed else 0.0
        left = (self.seconds - self.finished_seconds) / speed if speed and self.seconds else None
        return {
            "event": "file", "input": without_secrets(outcome.source), "ok": outcome.error is None,
            "error": outcome.error,
            "files": self.files, "finished": self.finished_files, "failed": self.failed,
            "hours": round(self.seconds / 3600, 4), "hours_finished": round(self.finished_seconds / 3600, 4),
            "speed": round(speed, 2), "seconds_left": None if left is None else round(left, 1),
        }  # fmt: skip
