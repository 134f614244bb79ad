"""What is done, in a file of JSON Lines beside the outputs, so that a batch can continue after any interruption.

Every job is recorded before the work starts ("planned") and after it ("done" or "failed"). A line is appended in one
step, and a line that a crash cut off is ignored. An output of a planned or failed job is ours: the next run replaces
it. A done job is skipped if its outputs still have the recorded sizes, and if input, settings and version are the same.
"""

import hashlib
import io
import json
import os
import time
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from clearstate import __version__
from clearstate.audio import remote
from clearstate.audio.remote import is_remote, without_secrets
from clearstate.audio.streams import is_stream
from clearstate.cli.engines.contract import Outcome
from clearstate.cli.inputs import Job, already_exists
from clearstate.cli.terminal import note

NAME = "clearstate.manifest.jsonl"
PARTS = "clearstate.manifest.*.jsonl"  # in a storage; the numbers increase with time
UPLOAD_SECONDS = 30.0

Entry = dict[str, Any]


class Manifest:
    """The manifests of a batch: one in the output folder, or one in the folder of each output.

    Args:
        folder: the output folder; None selects the folder of each output.
        settings: everything that changes the outputs.
        overwrite: replace outputs that no manifest records.
    """

    def __init__(self, folder: str | None, settings: dict[str, Any], overwrite: bool = False) -> None:
        self._folder = folder.rstrip("/") if folder and is_remote(folder) else folder
        self._overwrite = overwrite
        self._settings = json.dumps({"version": __version__} | settings, sort_keys=True, default=str)
        self._logs: dict[str, Log] = {}

    def begin(self, jobs: list[Job]) -> tuple[list[Job], list[Outcome]]:
        """Find out what is left to do, and record it as planned.

        Returns:
            The jobs to run, and the outcomes of the others: done by an earlier run, or with an output in the way.
        """
        todo, known = [], []
        planned: dict[str, list[Entry]] = {}
        for job in jobs:
            if is_stream(job.source) or is_stream(job.target):
                todo.append(job)
                continue
            log = self._log(job)
            entry = log.entries.get(_identity(job, log.folder))
            if entry and self._is_done(entry, job, log):
                known.append(_outcome(entry, job))
            elif not self._overwrite and not (_is_ours(entry, log) if entry else not _occupied(job, log)):
                known.append(Outcome(job.source, job.target, error=already_exists(job.target)))
            else:
                todo.append(replace(job, replace=job.replace or entry is not None))
                planned.setdefault(log.folder, []).append(self._entry(job, log.folder, "planned"))
        for folder, entries in planned.items():
            self._logs[folder].append(entries)
        if before := sum(outcome.error is None for outcome in known):
            note(f"clearstate: {before} of {len(jobs)} files are done already ({NAME}); --no-resume does them again")
        return todo, known

    def record(self, job: Job, outcome: Outcome) -> None:
        """Append the outcome of a job."""
        if is_stream(job.source) or is_stream(job.target):
            return
        log = self._log(job)
        entry = self._entry(job, log.folder, "failed" if outcome.error else "done")
        if outcome.error:
            entry["error"] = outcome.error
        else:
            outputs = {_relative(name, log.folder): size for name, size in outcome.outputs.items()}
            entry |= {"outputs": outputs, "wall": round(outcome.wall, 3), "report": outcome.report}
        log.append([entry])

    def close(self) -> None:
        """Write what is not written yet."""
        for log in self._logs.values():
            log.close()

    def _log(self, job: Job) -> "Log":
        folder = self._folder or _folder(job)
        if folder not in self._logs:
            self._logs[folder] = RemoteLog(folder) if is_remote(folder) else Log(folder)
        return self._logs[folder]

    def _entry(self, job: Job, folder: str, state: str) -> Entry:
        source, target = _identity(job, folder)
        return {"state": state, "input": source, "target": target, "key": self._key(job)}

    def _key(self, job: Job) -> str:
        text = f"{_stamp(job)}\n{self._settings}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _is_done(self, entry: Entry, job: Job, log: "Log") -> bool:
        return entry["state"] == "done" and entry["key"] == self._key(job) and _is_intact(entry, log)


class Log:
    """One manifest on a file system."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.path = os.path.join(folder, NAME)
        self.entries: dict[tuple[str, str], Entry] = {}
        self._file: Any = None
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8", errors="replace") as file:
                self.entries = _read(file.read())

    def append(self, entries: list[Entry]) -> None:
        """Append lines in one step, and wait until the disk has them."""
        data = _lines(entries)
        if self._file is None:
            os.makedirs(self.folder or ".", exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed in `close`
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                data = (b"" if self._file.read(1) == b"\n" else b"\n") + data  # a crash cut off the last line
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file:
            self._file.close()
            self._file = None

    def size(self, name: str) -> int | None:
        """Bytes of a file beside the manifest; None if it does not exist."""
        try:
            return os.path.getsize(os.path.join(self.folder, name))
        except OSError:
            return None


class RemoteLog(Log):
    """One manifest at a URL, where nothing can be appended: each object holds the lines of half a minute."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        found = {entry.url: entry.size for entry in remote.find(self.folder)}
        self._sizes = {_relative(url, self.folder): size for url, size in found.items()}
        parts = sorted(name for name in self._sizes if fnmatch(name, PARTS))
        self.entries = _read("\n".join(remote.read(f"{self.folder}/{name}").decode() for name in parts))
        self._waiting: list[Entry] = []
        self._written: float | None = None

    def append(self, entries: list[Entry]) -> None:
        """Keep lines until the next upload."""
        self._waiting += entries
        if self._written is None or time.monotonic() - self._written > UPLOAD_SECONDS:
            self.close()

    def close(self) -> None:
        """Upload the waiting lines."""
        if self._waiting:
            name = PARTS.replace("*", str(time.time_ns()))
            remote.write(io.BytesIO(_lines(self._waiting)), f"{self.folder}/{name}")
            self._waiting, self._written = [], time.monotonic()

    def size(self, name: str) -> int | None:
        """Bytes of a file beside the manifest when the run began; None if it did not exist."""
        return self._sizes.get(name)


def _lines(entries: list[Entry]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def _read(text: str) -> dict[tuple[str, str], Entry]:
    """The last entry of each job. A line that was cut off is not valid JSON."""
    entries = {}
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
            entries[entry["input"], entry["target"]] = {"outputs": {}, "report": {}, "wall": 0.0} | {
                name: entry[name] for name in entry if name in ("state", "outputs", "report", "wall", "key")
            }
        except (ValueError, KeyError, TypeError):
            continue
    return {job: entry for job, entry in entries.items() if {"state", "key"} <= entry.keys()}


def _identity(job: Job, folder: str) -> tuple[str, str]:
    source = without_secrets(job.source) if is_remote(job.source) else os.path.abspath(job.source)
    return source, _relative(job.target, folder)


def _relative(name: str, folder: str) -> str:
    if is_remote(name):
        return name.removeprefix(folder.rstrip("/") + "/")
    return os.path.relpath(name, folder or ".")


def _folder(job: Job) -> str:
    if is_remote(job.target):
        return job.target.rstrip("/") if job.target.endswith("/") else remote.parent(job.target)
    return job.target if os.path.isdir(job.target) else os.path.dirname(job.target)


def _stamp(job: Job) -> str:
    if job.stamp:
        return job.stamp
    try:
        found = os.stat(job.source)
    except OSError as error:
        return f"unreadable: {error.strerror}"  # the worker reports it
    return f"{found.st_size} {found.st_mtime_ns}"


def _is_intact(entry: Entry, log: Log) -> bool:
    return bool(entry["outputs"]) and all(log.size(name) == size for name, size in entry["outputs"].items())


def _is_ours(entry: Entry, log: Log) -> bool:
    """Whether the outputs may be replaced: nobody changed them since we wrote them."""
    return entry["state"] != "done" or all(log.size(name) in (size, None) for name, size in entry["outputs"].items())


def _occupied(job: Job, log: Log) -> bool:
    is_folder = job.target.endswith("/") if is_remote(job.target) else os.path.isdir(job.target)
    return not is_folder and log.size(_relative(job.target, log.folder)) is not None


def _outcome(entry: Entry, job: Job) -> Outcome:
    return Outcome(job.source, job.target, wall=entry["wall"], report=entry["report"] | {"resumed": True})
