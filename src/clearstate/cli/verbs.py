"""Shared by enhance, separate, extend and restore: options, checks of pipes and models, and the final report."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from clearstate import __version__
from clearstate.audio.paths import native_name
from clearstate.audio.remote import is_remote
from clearstate.audio.streams import STDIO, is_stream
from clearstate.cli.batch import Outcome, Worker, run_batch
from clearstate.cli.engines import EngineName, find
from clearstate.cli.inputs import Job
from clearstate.cli.manifest import Manifest
from clearstate.cli.terminal import UsageError, abandon_stdout, note

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Audio files, folders (with their subfolders), patterns, or - for stdin."),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=1, help="Number of files to process at the same time, or of parts of a single long file."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
Track = Annotated[
    int | None,
    typer.Option(
        "--track", min=1, metavar="N", help="Sound track of a video to read. Default: the video's default track."
    ),
]


LOOPBACK = ("127.0.0.1", "::1", "localhost")  # addresses that only this machine reaches
MODEL_FILES = "a folder with weights, or an .onnx file"  # what `--model` accepts beside names


class Backend(str, Enum):
    """What runs the model; see `runtime.choose`."""

    auto = "auto"
    onnx = "onnx"
    torch = "torch"


Runtime = Annotated[
    Backend,
    typer.Option(
        "--backend",
        help="What runs the model: ONNX Runtime, or PyTorch with compiled kernels. auto takes the faster one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON report to stdout.")]
Engines = Annotated[
    EngineName, typer.Option("--engine", help="What runs the files: processes of this machine, or a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The Ray cluster; auto finds the one that runs here. Default: a cluster of this machine alone.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, metavar="N", help="Number of Ray workers. Default: one per CPU of the cluster."),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Skip files that a manifest beside the outputs records as done. Default: on for --engine ray.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Batch:
    """How a batch runs: the options that enhance, separate, extend and restore share."""

    output: str | None
    overwrite: bool
    as_json: bool
    jobs: int = 1
    engine: EngineName = EngineName.local
    address: str | None = None
    workers: int | None = None
    resume: bool | None = None

    def __post_init__(self) -> None:
        if self.engine == EngineName.local:
            given = [name for name, value in (("--address", self.address), ("--workers", self.workers)) if value]
            if given:
                raise UsageError(f"{' and '.join(given)}: for --engine ray only; --jobs sets the processes here")
        elif self.jobs != 1:
            raise UsageError(f"--jobs {self.jobs}: for local processes; --workers sets the workers of --engine ray")

    @property
    def resumes(self) -> bool:
        """Whether to keep a manifest."""
        return self.engine != EngineName.local if self.resume is None else self.resume

    @property
    def may_exist(self) -> bool:
        """Whether `plan` accepts existing outputs: the manifest knows better."""
        return self.overwrite or self.resumes

    def run(
        self,
        jobs: list[Job],
        opener: Callable[[], Worker],
        seconds: dict[str, float],
        settings: dict[str, Any],
        into_folders: bool = False,
    ) -> list[Outcome]:
        """Run the jobs.

        Args:
            seconds: of audio by source, as far as known.
            settings: the options that change the outputs.
            into_folders: the jobs' targets are folders.
        """
        local = self.engine == EngineName.local
        if not local and any(is_stream(name) for job in jobs for name in (job.source, job.target)):
            raise UsageError("--engine ray works on files; leave it out for '-' and pipes")
        manifest = None
        if self.resumes:
            single = not into_folders and [job.target for job in jobs] == [self.output]  # -o names a file
            manifest = Manifest(None if single else self.output, settings, self.overwrite)
        return run_batch(
            jobs, opener, processes=self.jobs if local else self.workers or 0, lengths=seconds,
            engine=find(self.engine, self.address), manifest=manifest, events=self.as_json and not local,
            summary=not local,
        )  # fmt: skip


def check_pipes(jobs: list[Job], as_json: bool) -> None:
    """Refuse to read audio from the keyboard or to print it on the screen."""
    if any(job.source == STDIO for job in jobs):
        check_stdin("pipe a file in, or name one")
    if any(job.target == STDIO for job in jobs):
        if as_json:
            raise UsageError(
                "--json prints its report to stdout, and so does -o -; write the audio to a file with -o FILE"
            )
        check_stdout("add '> out.wav' or -o FILE")


def check_stdin(remedy: str) -> None:
    """Refuse to read audio from a stdin that is closed or the keyboard."""
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError(f"the audio comes from stdin, which is closed; {remedy}")
    if sys.stdin.isatty():
        raise UsageError(f"the audio comes from stdin, which is the keyboard; {remedy}")


def check_stdout(remedy: str) -> None:
    """Refuse to write audio to a stdout that is closed or the screen."""
    if sys.stdout is None or sys.stdout.closed:
        raise UsageError(f"the audio would go to stdout, which is closed; {remedy}")
    if sys.stdout.isatty():
        raise UsageError(f"the audio would go to stdout, which is the screen; {remedy}")


def check_model(name: str, task: str, option: str) -> None:
    """Refuse an unknown model, or one of another task, before processes start and files are opened."""
    from clearstate.models import find
    from clearstate.runtime.contract import wrong_task

    if Path(name).is_dir() or name.endswith(".onnx"):
        return  # the loader checks it
    try:
        preset = find(name)
    except ValueError as error:
        lists = f"`clearstate models --all` lists all models; {MODEL_FILES} works, too"
        raise UsageError(f"{option} {name}: {error} ({lists})") from error
    if preset.task != task:
        raise UsageError(f"{option} {wrong_task(name, preset.task, task)}")


def lengths(jobs: list[Job]) -> dict[str, float]:
    """Seconds of audio by file, as far as headers tell. Unreadable files fail later, with a message."""
    import soundfile

    from clearstate.audio.info import MOST_SECONDS
    from clearstate.audio.quiet import quiet

    seconds = {}
    for job in jobs:
        if is_stream(job.source) or is_remote(job.source):  # can be opened only once, or far away
            continue
        with suppress(Exception), quiet():
            length = soundfile.info(native_name(job.source)).duration
            if length < MOST_SECONDS:
                seconds[job.source] = length
    return seconds


def backend_for(model: str, wanted: Backend, jobs: list[Job], seconds: dict[str, float]) -> str:
    """The backend for these files: PyTorch takes longer to load than it saves on a short job."""
    from clearstate.runtime import choose_for

    known = sum(seconds.values()) if len(seconds) == len(jobs) else None
    return choose_for(model, wanted.value, known)


def close(outcomes: list[Outcome], model: str | None, as_json: bool) -> None:
    """Print the report and the failures, and set the exit code."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if as_json:
        files = [outcome.as_json() for outcome in outcomes]
        used = {"model": model} if model else {}
        report = {"clearstate": __version__, **used, "done": len(files) - len(failed), "failed": len(failed)}
        print(json.dumps(report | {"files": files}, indent=2))
    if len(outcomes) > 1 and failed:
        note(f"clearstate: {len(failed)} of {len(outcomes)} inputs failed:")
    for outcome in failed:
        note(f"clearstate: {outcome.name}: {outcome.error}")
    if any(outcome.target == STDIO for outcome in failed):
        abandon_stdout()
    if failed:
        raise typer.Exit(1)
