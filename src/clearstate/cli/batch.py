"""Process many files: progress bar, worker processes, a list of failures at the end, Ctrl-C without partial outputs.

A verb passes `run_batch` a picklable function that loads the model and returns a worker. `run_batch` returns one
`Outcome` per file. A worker writes each output under a temporary name and renames it when it is complete. To stop a
worker, its progress callback raises an exception, so the worker's own clean-up runs.
"""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from clearstate.audio.paths import shown
from clearstate.audio.streams import STDIO, is_stream
from clearstate.cli.inputs import Job
from clearstate.cli.signals import unwind_when_terminated
from clearstate.cli.terminal import clock, explain, note

Progress = Callable[[float, float], None]  # seconds of audio done, total seconds
Worker = Callable[[Job, Progress], dict[str, Any]]  # returns the file's entries in the JSON report


@dataclass(frozen=True)
class Outcome:
    """The result for one file."""

    source: str
    target: str | None
    error: str | None = None  # one line; None after success
    wall: float = 0.0  # seconds of work
    report: dict[str, Any] = field(default_factory=dict)

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
        known = {"input": self.source, "output": None if self.error else self.target or None, "ok": self.error is None}
        if self.error:
            return known | {"error": self.error}
        return known | self.report | {"wall_seconds": round(self.wall, 3), "speed": round(self.speed, 2)}


def run_batch(
    jobs: list[Job],
    open_worker: Callable[[], Worker],
    *,
    processes: int = 1,
    lengths: dict[str, float],
    show: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run every job and show the progress. A file that fails does not stop the others.

    Args:
        open_worker: called once in each process. It is pickled if there are several processes, so it must be a
            module-level function or a `functools.partial` of one.
        lengths: seconds of audio by source, as far as known. The time left is estimated from them.
        show: prints a finished file; None prints `Outcome.line` on stderr.
    Returns:
        One outcome per job, in the order in which the jobs finished.
    """
    outcomes = []
    with Display(len(jobs), sum(lengths.get(job.source, 0.0) for job in jobs), show) as display:
        streams = any(is_stream(job.source) for job in jobs)  # worker processes cannot read our pipes
        run = _in_this_process if processes <= 1 or len(jobs) == 1 or streams else _in_processes
        for outcome in run(jobs, open_worker, min(processes, len(jobs)), display):
            display.finish(outcome, lengths.get(outcome.source, 0.0))
            outcomes.append(outcome)
    return outcomes


class Display:
    """A progress bar with time left and speed if stderr is a terminal, and one line per finished file."""

    def __init__(self, files: int, seconds: float, show: Callable[[Outcome], None] | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.start: tuple[float, float] | None = None  # time of the first report, and the seconds done then
        self.files, self.finished_files, self.finished_seconds, self.show = files, 0, 0.0, show
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
            disable=not self.console.is_terminal,
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
        names = " ".join(shown(os.path.basename(name)) for name in self.running)
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


def _attempt(work: Worker, job: Job, progress: Progress) -> Outcome:
    started = time.perf_counter()
    try:
        report = work(job, progress)
    except Exception as error:
        named = Outcome(job.source, job.target)
        return replace(named, error=explain(error).removeprefix(f"{named.name}: "))
    return Outcome(job.source, job.target, wall=time.perf_counter() - started, report=report)


def _in_this_process(jobs: list[Job], open_worker: Callable[[], Worker], _: int, display: Display) -> Iterator[Outcome]:
    work = open_worker()
    for job in jobs:
        yield _attempt(work, job, functools.partial(display.advance, job.source))


def _in_processes(
    jobs: list[Job], open_worker: Callable[[], Worker], processes: int, display: Display
) -> Iterator[Outcome]:
    """Run in new processes, one model in each. They are spawned: a forked process would inherit broken thread pools."""
    context = multiprocessing.get_context("spawn")
    stop, news = context.Event(), context.Queue()
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(processes, context, _begin_process, (open_worker, stop, news, threads))
    try:
        # The workers inherit this: only this process handles Ctrl-C, also while they start.
        own_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            pending: dict[Future[Outcome], Job] = {pool.submit(_one_job, job): job for job in jobs}
        finally:
            signal.signal(signal.SIGINT, own_handler)
        while pending:
            done, _ = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            while not news.empty():
                display.advance(*news.get())
            for future in done:
                job = pending.pop(future)
                error = future.exception()
                if error:  # the process died: killed, or out of memory
                    why = f"a worker process died ({explain(error)}); try again with fewer --jobs"
                    yield Outcome(job.source, job.target, error=why)
                else:
                    yield future.result()
    finally:
        stop.set()  # running workers raise at their next progress report and clean up
        pool.shutdown(wait=True, cancel_futures=True)


_stop: Any = None
_news: Any = None
_work: Worker | None = None


def _begin_process(open_worker: Callable[[], Worker], stop: Any, news: Any, threads: int) -> None:
    """Set up a worker process. It ignores Ctrl-C: the parent handles it and sets `stop`."""
    global _stop, _news, _work
    unwind_when_terminated()  # SIGTERM to the whole process group must not end us in the middle of a file
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    _stop, _news = stop, news
    try:
        _work = open_worker()
    except Exception as error:  # raised here, it would break the whole pool without a reason
        _work = functools.partial(_refuse, explain(error))


def _refuse(reason: str, job: Job, progress: Progress) -> dict[str, Any]:
    raise ValueError(reason)


def _one_job(job: Job) -> Outcome:
    last = 0.0

    def progress(done: float, total: float) -> None:
        nonlocal last
        if _stop.is_set():
            raise KeyboardInterrupt  # not an Exception: the file is abandoned, not counted as failed
        if (now := time.monotonic()) - last > 0.1:
            last = now
            _news.put((job.source, done, total))

    assert _work is not None
    return _attempt(_work, job, progress)
