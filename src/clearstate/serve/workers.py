"""Processes for files: one file at a time in each, at low priority.

A process that dies (killed, out of memory, or crashed in a decoder) fails only its own file; the next file gets a new
one. When the service dies, its end of the pipe closes, and the processes end with it.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any

from clearstate.serve.work import Done, Progress, Task, TooLongError, run

NICENESS = 10  # live streams come first
POLL_SECONDS = 0.1
KILL_SECONDS = 5.0  # after a request to stop


def start(process: Any) -> None:
    """Start a process that SIGINT and SIGTERM do not end. They may reach all processes at once; the service decides."""
    if not hasattr(signal, "pthread_sigmask"):
        process.start()
        return
    resource_tracker.ensure_running()  # the first start would do it, and unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # inherited
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(eq=False)
class Assignment:
    """A task, and where its news go. The callbacks run in a thread of `Workers`."""

    task: Task
    progress: Progress
    finish: Callable[[Done | None, str, str], None]  # the result, or a code of `errors` with a message
    most_seconds: float  # of work
    stop: threading.Event = field(default_factory=threading.Event)


class Workers:
    """A number of processes, each with a thread that talks to it."""

    def __init__(self, count: int) -> None:
        self._queue: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._context = multiprocessing.get_context("spawn")
        self.processes: list[Any] = [None] * count
        self._threads = [
            threading.Thread(target=self._serve, args=(i,), name=f"clearstate-worker-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, assignment: Assignment) -> None:
        """Queue a task."""
        self._queue.put(assignment)

    def close(self) -> None:
        """End the processes, whatever they are doing; the spool has their files."""
        self._closing.set()
        for _ in self._threads:
            self._queue.put(None)
        for process in self.processes:
            if process is not None:
                process.kill()
        for thread in self._threads:
            thread.join(KILL_SECONDS)

    def _serve(self, index: int) -> None:
        pipe = self._start(index)
        while (assignment := self._queue.get()) is not None and not self._closing.is_set():
            if assignment.stop.is_set():
                assignment.finish(None, "failed", "cancelled")
                continue
            if not self.processes[index].is_alive():
                pipe = self._start(index)
            assignment.finish(*self._run(index, pipe, assignment))
        pipe.close()
        self.processes[index].kill()
        self.processes[index].join()

    def _start(self, index: int) -> Any:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs,), daemon=True)
        start(process)
        theirs.close()
        self.processes[index] = process
        return ours

    def _run(self, index: int, pipe: Any, assignment: Assignment) -> tuple[Done | None, str, str]:
        started, asked = time.monotonic(), 0.0
        try:
            pipe.send(assignment.task)
            while True:
                if pipe.poll(POLL_SECONDS):
                    kind, *news = pipe.recv()
                    if kind != "progress":
                        return tuple(news)
                    assignment.progress(*news)
                now = time.monotonic()
                overdue = now - started > assignment.most_seconds
                if (overdue or assignment.stop.is_set()) and not asked:
                    asked = now
                    pipe.send(None)
                if asked and now - asked > KILL_SECONDS:
                    self.processes[index].kill()
        except (EOFError, OSError):
            self.processes[index].join(1)
            if asked:
                return None, "work_timeout", f"stopped after {time.monotonic() - started:.0f} s of work"
            code = self.processes[index].exitcode
            return None, "failed", f"the worker process died (exit code {code}); try again"


# ------------------------------------------------------------------------------------------- inside the process


class _StoppedError(Exception):
    """The service asked to stop."""


def work(pipe: Any) -> None:
    """Process tasks from the pipe until the service closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `start`, also on Windows
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = pipe.recv()
            if task is not None:  # None: a request to stop that came too late
                pipe.send(("done", *_attempt(task, pipe)))


def _attempt(task: Task, pipe: Any) -> tuple[Done | None, str, str]:
    last = 0.0

    def progress(done: float, total: float) -> None:
        nonlocal last
        if pipe.poll():
            pipe.recv()  # raises EOFError if the service is gone
            raise _StoppedError
        if (now := time.monotonic()) - last > POLL_SECONDS:
            last = now
            pipe.send(("progress", done, total))

    try:
        return run(task, progress), "", ""
    except _StoppedError:
        return None, "work_timeout", "stopped, because it took too long"
    except TooLongError as error:
        return None, "too_long", str(error)
    except EOFError:
        raise
    except OSError as error:
        return None, "storage", str(error)
    except (ValueError, RuntimeError) as error:
        return None, "bad_audio", " ".join(str(error).split())[:600]
    except MemoryError:
        return None, "failed", "out of memory"
    except Exception as error:
        return None, "failed", f"{type(error).__name__}: {error}"[:600]
