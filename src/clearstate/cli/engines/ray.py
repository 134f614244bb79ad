"""The engine for many machines: actors of a Ray cluster, each with a model.

An actor receives its next job when it has finished one, so a slow file holds up no other. A new actor replaces one that
dies (killed, out of memory, its machine gone). It receives jobs only after its model is loaded, so an actor for which
the cluster has no room holds none. A job is tried three times.

When no job is left to begin, idle actors compute blocks of the files that still run, if the model works in blocks. Such
a helper may die: the actor that has the file computes the block itself.
"""

import functools
import importlib
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle
from typing import Any

from clearstate import __version__
from clearstate.audio.remote import is_remote
from clearstate.cli.engines.contract import (
    MOST_HELPERS,
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
from clearstate.cli.terminal import CommandError, UsageError, explain, note
from clearstate.tasks.blocks import Helpers, Run, lending

ATTEMPTS = 3
PATIENCE = 60.0  # seconds without a worker after which a note tells so
POLL = 0.2  # seconds
CONNECT = 10.0  # seconds
HOST_PORT = re.compile(r"[^/]+:\d+")
FAREWELL = 10.0  # seconds that workers have to remove their partial outputs after Ctrl-C


def check_installed() -> None:
    """Raise a UsageError if Ray is not installed."""
    if find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: pip install 'clearstate[ray]'")


def run(
    jobs: list[Job],
    open_worker: Callable[[], Worker],
    workers: int,
    advance: Advance,
    *,
    address: str | None = None,
) -> Iterator[Outcome]:
    """Run the jobs in a Ray cluster; see `contract.Engine`.

    Args:
        workers: number of actors, each with one CPU; 0 selects the number of CPUs of the cluster.
        address: "auto", "HOST:PORT", or None for RAY_ADDRESS or a new cluster of this machine.
    """
    ray = _connect(address)
    workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    local = any(not is_remote(name) for job in jobs for name in (job.source, job.target))
    most = min(workers, useful_workers(jobs))
    fleet = _Fleet(ray, open_worker, min(workers, len(jobs)), most, os.getcwd() if local else None)
    try:
        yield from fleet.work_through(jobs)
    finally:
        fleet.stop()
        ray.shutdown()


class _Fleet:
    """The actors of a run, and what each is doing.

    Args:
        size: number of actors at first.   most: number of actors if the model works in blocks.
    """

    def __init__(self, ray: Any, open_worker: Callable[[], Worker], size: int, most: int, folder: str | None) -> None:
        self.ray, self.most = ray, most
        self.open_worker, self.folder = ray.put(open_worker), folder
        self.actor_class = ray.remote(num_cpus=1, max_concurrency=4, max_restarts=0)(Actor)
        self.actors: set[Any] = set()
        self.starting: dict[Any, Any] = {}  # actor by the reference to its answer
        self.working: dict[Any, tuple[Any, Job, int]] = {}  # actor, job, attempts before
        self.idle: list[Any] = []
        self.lent: dict[Any, list[Any]] = {}  # helpers by the actor that they help
        self.lost_starts = 0  # in a row
        self.size = size
        for _ in range(size):
            self.start()

    def start(self) -> None:
        """Ask the cluster for another actor."""
        actor = self.actor_class.remote(self.open_worker, self.folder)
        self.actors.add(actor)
        self.starting[actor.ready.remote()] = actor

    def work_through(self, jobs: list[Job]) -> Iterator[Outcome]:
        """Run the jobs and yield each outcome."""
        todo = deque((job, 0) for job in jobs)
        asked = time.monotonic()
        while todo or self.working:
            while todo and self.idle:
                actor, (job, before) = self.idle.pop(), todo.popleft()
                self.working[actor.work.remote(job)] = (actor, job, before)
            self.lend()
            references = [*self.starting, *self.working]
            for reference in self.ray.wait(references, timeout=POLL)[0]:
                if reference in self.starting:
                    self.welcome(self.starting.pop(reference), reference)
                    continue
                actor, job, before = self.working.pop(reference)
                outcome = self.result(actor, job, reference)
                if outcome.error and not outcome.final and before + 1 < ATTEMPTS:
                    died = actor not in self.actors  # it may have written the output before it died
                    todo.append((replace(job, replace=job.replace or died), before + 1))
                    continue
                if actor not in self.actors:
                    clean_up(job)
                yield outcome
            if self.working or self.idle:
                asked = time.monotonic()
            elif time.monotonic() - asked > PATIENCE:
                note("clearstate: still waiting for the cluster to start a worker; `ray status` shows its free CPUs")
                asked = time.monotonic()

    def welcome(self, actor: Any, reference: Any) -> None:
        """Take in an actor that has loaded its model, or replace it.

        Raises:
            CommandError: if no actor can be started.
        """
        try:
            version, in_blocks = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.actors.discard(actor)
            self.lost_starts += 1
            if self.lost_starts >= ATTEMPTS * self.size:
                raise CommandError(
                    f"no worker starts ({_first_line(error)}); check memory and the installation on the cluster"
                ) from error
            self.start()
            return
        if version != __version__:
            raise CommandError(
                f"the cluster has clearstate {version}, but this is {__version__}; install the same version everywhere"
            )
        self.lost_starts = 0
        self.idle.append(actor)
        if in_blocks:
            for _ in range(self.size, self.most):
                self.start()
            self.size = max(self.size, self.most)

    def lend(self) -> None:
        """Tell each actor with a job which idle actors compute blocks for it."""
        lent: dict[Any, list[Any]] = {actor: [] for actor, _, _ in self.working.values()}
        borrowers = cycle(lent.values())
        for helper in self.idle[: MOST_HELPERS * len(lent)]:
            next(borrowers).append(helper)
        for actor, helpers in lent.items():
            if helpers != self.lent.get(actor, []):
                actor.borrow.remote(helpers)
        self.lent = lent

    def result(self, actor: Any, job: Job, reference: Any) -> Outcome:
        """The outcome of a job; a new actor replaces one that died."""
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.actors.discard(actor)
            with suppress(Exception):
                self.ray.kill(actor)  # it may be cut off, not dead
            self.start()
            why = f"its worker died {ATTEMPTS} times ({_first_line(error)}); is there enough memory?"
            return Outcome(job.source, job.target, error=why)
        self.idle.append(actor)
        return outcome

    def stop(self) -> None:
        """Let the actors abandon their files and clean up, then end them."""
        if self.working:
            starting = set(self.starting.values())
            stopped = [actor.stop.remote() for actor in self.actors if actor not in starting]
            with suppress(Exception):
                self.ray.wait(stopped, num_returns=len(stopped), timeout=FAREWELL)
        for actor in self.actors:
            with suppress(Exception):
                self.ray.kill(actor)


class Actor:
    """A worker process somewhere in the cluster.

    Args:
        folder: the current folder of the command, where relative names begin; None if there are only URLs.
    """

    def __init__(self, open_worker: Callable[[], Worker], folder: str | None) -> None:
        self._stop, self._lock, self._working = threading.Event(), threading.Lock(), False
        self._helpers: Helpers | None = None
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = "1"
        try:
            if folder:
                os.chdir(folder)
            self._work = open_worker()
        except Exception as error:  # raised here, it would look like a crash
            self._work = functools.partial(refuse, explain(error))

    def ready(self) -> tuple[str, bool]:
        """The version of the package, and whether the model works in blocks; answered when the model is loaded."""
        return __version__, isinstance(self._work, InBlocks)

    def work(self, job: Job) -> Outcome:
        """Do one job."""
        self._working = True
        try:
            with self._lock, lending(lambda: self._helpers):
                return attempt(self._work, job, self._progress)
        except KeyboardInterrupt:
            return Outcome(job.source, job.target, error="interrupted", final=True)
        finally:
            self._working, self._helpers = False, None

    def borrow(self, helpers: list[Any]) -> None:
        """Take these actors as helpers."""
        self._helpers = _helpers(helpers) if helpers else None

    def block(self, run: Run, x: Any, position: int) -> Any:
        """Compute a block for another actor.

        Raises:
            RuntimeError: if this actor has a job of its own now.
        """
        if not self._working:
            with self._lock:  # one block at a time
                return run(x.copy(), position)  # what Ray passes is read-only
        raise RuntimeError("this worker has a file")

    def stop(self) -> None:
        """Abandon the job that runs, and wait until its partial output is removed."""
        self._stop.set()
        with self._lock:
            pass

    def _progress(self, done: float, total: float) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt  # not an Exception: the file is abandoned, not counted as failed


def _helpers(actors: list[Any]) -> Helpers:
    """Actors that compute blocks in turn."""
    ray = importlib.import_module("ray")
    turns = cycle(actors)
    stored: tuple[Run, Any] | None = None  # a run is sent once

    def start(run: Run, x: Any, position: int) -> Any:
        nonlocal stored
        if stored is None or stored[0] is not run:
            stored = run, ray.put(run)
        return next(turns).block.remote(stored[1], x, position).future()

    return Helpers(start, len(actors))


def _connect(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no warning about GPUs
    ray = importlib.import_module("ray")
    here = address or os.environ.get("RAY_ADDRESS")
    extra = {} if here else {"include_dashboard": False}
    try:
        if here and HOST_PORT.fullmatch(here):  # Ray itself waits for minutes
            host, port = here.rsplit(":", 1)
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
        ray.init(address=here, log_to_driver=False, logging_level="ERROR", configure_logging=True, **extra)
    except (OSError, RuntimeError, ValueError) as error:
        raise CommandError(
            f"--address {here}: no Ray cluster answers ({_first_line(error)}); start one with `ray start --head`"
        ) from error
    return ray


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
