"""Do many files: progress, worker processes, failures gathered for the end, Ctrl-C that leaves nothing half-written.

A verb gives `run_batch` a picklable function that makes a worker (loads the model once) and gets back one `Outcome` a
file. The worker writes its output under a temporary name and moves it; stopping it is an exception raised from its
progress callback, so that its own clean-up runs.
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

Progress = Callable[[float, float], None]  # seconds of audio done, seconds in all
Worker = Callable[[Job, Progress], dict[str, Any]]  # returns what the report says of the file


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    source: str
    target: str | None
    error: str | None = None  # one line; None when it went well
    wall: float = 0.0  # seconds it took
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The input as people call it, fit to be printed."""
        return "stdin" if self.source == STDIO else shown(self.source)

    @property
    def speed(self) -> float:
        """Seconds of audio a second of work; 0 where it is not known."""
        return self.report.get("seconds", 0.0) / self.wall if self.wall else 0.0

    def line(self) -> str:
        if self.error:
            return f"{self.name}: failed: {self.error}"
        length = clock(self.report.get("seconds", 0.0))
        target = "stdout" if self.target == STDIO else shown(self.target or "")
        done = f"{self.name} -> {target}  {length} of audio in {clock(self.wall)}, {self.speed:.3g} x real time"
        return done + (f"; {self.report['note']}" if "note" in self.report else "")

    def as_json(self) -> dict[str, Any]:
        known = {"input": self.source, "output": None if self.error else self.target, "ok": self.error is None}
        if self.error:
            return known | {"error": self.error}
        return known | self.report | {"wall_seconds": round(self.wall, 3), "speed": round(self.speed, 2)}


def run_batch(
    jobs: list[Job], open_worker: Callable[[], Worker], *, processes: int = 1, lengths: dict[str, float]
) -> list[Outcome]:
    """Do every job, showing how far along it is; a file that fails leaves the others done.

    Args:
        open_worker: called once in each process. With several processes it is pickled: a module-level function or a
            `functools.partial` of one.
        lengths: seconds of audio by source, as far as known beforehand: the time left is reckoned from them.
    Returns:
        One outcome a job, in the order they came to an end.
    """
    outcomes = []
    with Display(len(jobs), sum(lengths.get(job.source, 0.0) for job in jobs)) as display:
        streams = any(is_stream(job.source) for job in jobs)  # which other processes have not opened
        run = _in_this_process if processes <= 1 or len(jobs) == 1 or streams else _in_processes
        for outcome in run(jobs, open_worker, min(processes, len(jobs)), display):
            display.finish(outcome, lengths.get(outcome.source, 0.0))
            outcomes.append(outcome)
    return outcomes


class Display:
    """A bar with time left and speed where stderr is a terminal; a line per finished file everywhere."""

    def __init__(self, files: int, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.start: tuple[float, float] | None = None  # when the first report came, and of how much audio
        self.files, self.finished_files, self.finished_seconds = files, 0, 0.0
        self.running: dict[str, float] = {}  # seconds done of the files being worked on
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
        self.running[source] = done
        seconds = self.finished_seconds + sum(self.running.values())
        names = " ".join(shown(os.path.basename(name)) for name in self.running)
        count = f"{self.finished_files + 1}/{self.files} " if self.files > 1 else ""
        now = time.perf_counter()
        since, before = self.start = self.start or (now, seconds)
        speed = f"{(seconds - before) / (now - since):.3g} x real time" if now - since > 1 else ""
        if self.files == 1 and total > 0:  # a length that only the reader knew
            self.bar.update(self.task, total=total)
        self.bar.update(self.task, completed=seconds, description=f"{count}{names}"[:40], speed=speed)

    def finish(self, outcome: Outcome, expected: float) -> None:
        self.running.pop(outcome.source, None)
        self.finished_files += 1
        self.finished_seconds += expected
        self.bar.update(self.task, completed=self.finished_seconds + sum(self.running.values()))
        if outcome.error and self.files == 1:
            return  # the list of failures at the end says it
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
    """Fresh processes (spawned, so that no half-copied thread pool is inherited), one model in each."""
    context = multiprocessing.get_context("spawn")
    stop, news = context.Event(), context.Queue()
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(processes, context, _begin_process, (open_worker, stop, news, threads))
    try:
        hear = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is ours, also while they start
        try:
            pending: dict[Future[Outcome], Job] = {pool.submit(_one_job, job): job for job in jobs}
        finally:
            signal.signal(signal.SIGINT, hear)
        while pending:
            done, _ = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            while not news.empty():
                display.advance(*news.get())
            for future in done:
                job = pending.pop(future)
                error = future.exception()
                if error:  # the process itself died: killed, or out of memory
                    why = f"a worker process died ({explain(error)}); try again with fewer --jobs"
                    yield Outcome(job.source, job.target, error=why)
                else:
                    yield future.result()
    finally:
        stop.set()  # work in progress raises at its next report and cleans up after itself
        pool.shutdown(wait=True, cancel_futures=True)


_stop: Any = None
_news: Any = None
_work: Worker | None = None


def _begin_process(open_worker: Callable[[], Worker], stop: Any, news: Any, threads: int) -> None:
    """Ctrl-C is not heard here: the parent hears it and tells us through `stop`. A polite kill unwinds, as there."""
    global _stop, _news, _work
    unwind_when_terminated()  # sent to the whole group it would otherwise end us with a file half-written
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    _stop, _news = stop, news
    try:
        _work = open_worker()
    except Exception as error:  # raised here it would take the whole pool down without saying why
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
