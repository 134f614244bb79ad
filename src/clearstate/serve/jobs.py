"""The files in work: from the upload to the result, and its expiry."""

import asyncio
import functools
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from clearstate.serve.errors import RefusedError
from clearstate.serve.metrics import Metrics
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool
from clearstate.serve.work import UPLOAD, Done, Task
from clearstate.serve.workers import Assignment, Workers

STATES = ("uploading", "queued", "running", "done", "failed")
PIECE = 1 << 20  # bytes of an upload that are written at a time
RESERVE = 64 << 20  # bytes of the disk that uploads leave free


@dataclass(eq=False)
class Job:
    """One file."""

    id: str
    owner: str
    verb: str
    folder: Path
    result: str  # file name
    state: str = "uploading"
    done_seconds: float = 0.0  # of audio
    total_seconds: float = 0.0  # 0 if unknown
    note: str = ""
    error: RefusedError | None = None
    started: float = field(default_factory=time.monotonic)  # of the state
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    assignment: Assignment | None = None

    @property
    def progress(self) -> float:
        """Share of the work that is done."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done_seconds / self.total_seconds) if self.total_seconds else 0.0


class Jobs:
    """All files of a service. Its methods run in the event loop."""

    def __init__(self, settings: Settings, spool: Spool, workers: Workers, metrics: Metrics) -> None:
        self.settings, self.spool, self.workers, self.metrics = settings, spool, workers, metrics
        self._loop = asyncio.get_running_loop()
        self.jobs: dict[str, Job] = {}
        self.draining = False

    async def upload(self, owner: str, verb: str, result: str, body: AsyncIterator[bytes], length: int | None) -> Job:
        """Receive a file.

        Args:
            length: the declared size in bytes, if any.
        Raises:
            RefusedError: if there is no room, or the upload is too large, too slow or empty. Nothing remains.
        """
        self._check(owner, length)
        try:
            folder = self.spool.new_folder()
        except OSError as error:
            raise storage(error) from None
        job = Job(secrets.token_urlsafe(16), owner, verb, folder, result)
        self.jobs[job.id] = job
        self._count()
        try:
            await asyncio.wait_for(self._receive(folder / UPLOAD, body), self.settings.transfer_seconds)
        except BaseException as error:
            await self.remove(job)
            if isinstance(error, asyncio.TimeoutError):
                raise RefusedError("timeout", "the upload took too long, or stopped arriving") from None
            if isinstance(error, OSError):
                raise storage(error) from None
            raise
        return job

    def _check(self, owner: str, length: int | None) -> None:
        settings = self.settings
        if self.draining:
            raise RefusedError("draining", "the service is shutting down; try again in some seconds")
        if sum(job.owner == owner for job in self.jobs.values()) >= settings.jobs_per_key:
            raise RefusedError("limit", f"{settings.jobs_per_key} jobs exist, the most for one client; delete some")
        if len(self.jobs) >= settings.most_jobs:
            raise RefusedError("busy", f"{settings.most_jobs} jobs exist, the most of this service; try again later")
        if length is not None and length > settings.most_bytes:
            raise too_large(settings.most_bytes)
        if self.spool.free_bytes() < RESERVE + (length or 0):
            raise RefusedError("storage", "the disk of the service is full; try again later")

    async def _receive(self, path: Path, body: AsyncIterator[bytes]) -> None:
        size, buffer = 0, bytearray()
        with open(path, "wb") as file:
            while (chunk := await asyncio.wait_for(anext(body, None), self.settings.idle_seconds)) is not None:
                size += len(chunk)
                if size > self.settings.most_bytes:
                    raise too_large(self.settings.most_bytes)
                buffer += chunk
                if len(buffer) >= PIECE:
                    await asyncio.to_thread(write, file, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(write, file, bytes(buffer))
        if not size:
            raise RefusedError("bad_request", "the body is empty; send the file itself as the body of the request")

    def start(self, job: Job, model: str, options: dict[str, Any]) -> None:
        """Queue an uploaded file."""
        settings, where = self.settings, str(job.folder)
        task = Task(job.verb, where, model, settings.backend, job.result, settings.most_seconds, options)
        call = self._loop.call_soon_threadsafe
        job.assignment = Assignment(
            task,
            progress=lambda done, total: call(self._progress, job, done, total),  # type: ignore[arg-type]
            finish=lambda done, code, message: call(self._finish, job, done, code, message),  # type: ignore[arg-type]
            most_seconds=settings.work_seconds,
        )
        self._enter(job, "queued")
        self.workers.submit(job.assignment)

    def find(self, id_: str, owner: str) -> Job:
        """The job of this owner.

        Raises:
            RefusedError: if there is none, also if it belongs to somebody else.
        """
        job = self.jobs.get(id_)
        if job is None or job.owner != owner or job.state == "uploading":
            raise RefusedError("not_found", "no such job; it was deleted, or its time is over")
        return job

    async def remove(self, job: Job) -> None:
        """Delete a job and its files; stop it if it is running."""
        if self.jobs.pop(job.id, None) is None:
            return
        self._count()
        if job.assignment:
            job.assignment.stop.set()
        if job.state not in ("queued", "running"):  # otherwise `_finish` does it: a process may still write there
            await asyncio.to_thread(shutil.rmtree, job.folder, True)

    def fail(self, job: Job, why: RefusedError) -> None:
        """Stop a job that is not finished, and give whoever waits for it the reason."""
        if job.assignment:
            job.assignment.stop.set()
        job.error = why
        self._enter(job, "failed")
        job.finished.set()

    @property
    def unfinished(self) -> list[Job]:
        """The jobs in progress."""
        return [job for job in self.jobs.values() if job.state not in ("done", "failed")]

    async def tick(self) -> None:
        """Delete finished jobs whose time is over."""
        now = time.monotonic()
        for job in [job for job in self.jobs.values() if job.state in ("done", "failed")]:
            if now - job.started > self.settings.keep_seconds:
                await self.remove(job)

    def as_json(self, job: Job) -> dict[str, Any]:
        """What a client sees of a job."""
        finished = job.state in ("done", "failed")
        return {
            "id": job.id,
            "task": job.verb,
            "state": job.state,
            "progress": round(job.progress, 4),
            "audio_seconds": round(max(job.done_seconds, job.total_seconds), 3),
            "note": job.note,
            "error": job.error.as_json()["error"] if job.error else None,
            "result": f"/v1/jobs/{job.id}/result" if job.state == "done" else None,
            "expires_in": round(self.settings.keep_seconds - (time.monotonic() - job.started), 1) if finished else None,
        }

    def _progress(self, job: Job, done: float, total: float) -> None:
        if job.state == "queued":
            self._enter(job, "running")
        job.done_seconds, job.total_seconds = done, total

    def _finish(self, job: Job, done: Done | None, code: str, message: str) -> None:
        self.metrics.job_seconds.labels(job.verb).observe(time.monotonic() - job.started)
        if job.error:  # `fail` was faster
            done = None
        elif done:
            self.metrics.audio.labels(job.verb).inc(done.seconds)
            job.done_seconds = job.total_seconds = done.seconds
            job.note = done.note
        else:
            job.error = RefusedError(code, message)
            if job.error.status >= 500:
                self.metrics.errors.labels("job").inc()
        self._enter(job, "done" if done else "failed")
        job.finished.set()
        if job.id not in self.jobs or not done:  # deleted meanwhile, or nothing to keep
            threaded = functools.partial(shutil.rmtree, job.folder, True)
            self._loop.run_in_executor(None, threaded)

    def _enter(self, job: Job, state: str) -> None:
        job.state, job.started = state, time.monotonic()
        self._count()

    def _count(self) -> None:
        for state in STATES:
            self.metrics.jobs.labels(state).set(sum(job.state == state for job in self.jobs.values()))


def write(file: IO[bytes], data: bytes) -> None:
    """Write to the disk, so that a full one is noticed now."""
    file.write(data)
    file.flush()


def too_large(most: int) -> RefusedError:
    """The refusal of a large upload."""
    return RefusedError("too_large", f"the upload is too large; this service accepts {most / 1e6:.0f} MB")


def storage(error: OSError) -> RefusedError:
    """The refusal when a file cannot be written."""
    return RefusedError("storage", f"the service cannot store the upload ({error.strerror or error}); try again later")
