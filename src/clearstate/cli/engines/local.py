"""The default engine: this process, or several processes of this machine.

A single file is done in this process. If its model works in blocks, the other processes compute some of them.
"""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import Any

from clearstate.audio.streams import is_stream
from clearstate.cli.engines.contract import (
    Advance,
    InBlocks,
    Outcome,
    Worker,
    attempt,
    clean_up,
    refuse,
    useful_workers,
)
from clearstate.cli.inputs import Job
from clearstate.cli.signals import unwind_when_terminated
from clearstate.cli.terminal import explain


def run(jobs: list[Job], open_worker: Callable[[], Worker], workers: int, advance: Advance) -> Iterator[Outcome]:
    """Run the jobs in `workers` processes; see `contract.Engine`."""
    streams = any(is_stream(job.source) for job in jobs)  # worker processes cannot read our pipes
    if workers <= 1 or len(jobs) == 1 or streams:
        return _in_this_process(jobs, open_worker, advance, min(workers, useful_workers(jobs)) - 1)
    return _in_processes(jobs, open_worker, min(workers, len(jobs)), advance)


def _in_this_process(
    jobs: list[Job], open_worker: Callable[[], Worker], advance: Advance, helpers: int
) -> Iterator[Outcome]:
    work = open_worker()
    with _helping(helpers) if helpers > 0 and isinstance(work, InBlocks) else nullcontext():
        for job in jobs:
            yield attempt(work, job, functools.partial(advance, job.source))


@contextmanager
def _helping(processes: int) -> Iterator[None]:
    """Let new processes compute blocks of the files inside the `with` block."""
    from clearstate.tasks.blocks import Helpers, lending  # imports NumPy

    before = multiprocessing.active_children()
    threads = max(1, (os.cpu_count() or 1) // (processes + 1))
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _set_threads, (threads,))
    try:
        with _without_interrupts():
            pool.submit(os.getpid)  # starts the processes
        helpers = Helpers(pool.submit, processes)
        with lending(lambda: helpers):
            yield
    finally:
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()  # it holds nothing that matters
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start inside the `with` block ignore Ctrl-C, also while they start: this process handles it."""
    own_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own_handler)


def _in_processes(
    jobs: list[Job], open_worker: Callable[[], Worker], processes: int, advance: Advance
) -> Iterator[Outcome]:
    """Run in new processes, one model in each. They are spawned: a forked process would inherit broken thread pools."""
    context = multiprocessing.get_context("spawn")
    stop, news = context.Event(), context.Queue()
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(processes, context, _begin_process, (open_worker, stop, news, threads))
    try:
        with _without_interrupts():
            pending: dict[Future[Outcome], Job] = {pool.submit(_one_job, job): job for job in jobs}
        while pending:
            done, _ = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            while not news.empty():
                advance(*news.get())
            for future in done:
                job = pending.pop(future)
                error = future.exception()
                if error:  # the process died: killed, or out of memory
                    clean_up(job)
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
    _set_threads(threads)
    _stop, _news = stop, news
    try:
        _work = open_worker()
    except Exception as error:  # raised here, it would break the whole pool without a reason
        _work = functools.partial(refuse, explain(error))


def _set_threads(threads: int) -> None:
    """Set the number of threads of libraries that are not loaded yet."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)


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
    return attempt(_work, job, progress)
