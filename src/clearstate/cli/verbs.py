"""What the verbs that work on files (enhance, separate, extend) have in common besides inputs and batches."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from clearstate import __version__
from clearstate.audio.paths import native_name
from clearstate.audio.streams import STDIO, is_stream
from clearstate.cli.batch import Outcome
from clearstate.cli.inputs import Job
from clearstate.cli.terminal import UsageError, abandon_stdout, note

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Audio files, folders (searched through), patterns, or - for stdin."),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Files at a time, each in a process of its own.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")]
Track = Annotated[
    int | None,
    typer.Option("--track", min=1, metavar="N", help="Which sound track of a video to read. Without it: the default."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a report of every file to stdout.")]


def check_pipes(jobs: list[Job], as_json: bool) -> None:
    """A pipe that is a terminal is a mistake: nobody types a WAV file, and printing one wrecks the screen."""
    if any(job.source == STDIO for job in jobs):
        check_stdin("pipe a file in, or name one")
    if any(job.target == STDIO for job in jobs):
        if as_json:
            raise UsageError(
                "--json prints its report to stdout, where the audio goes; write the audio to a file with -o"
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
    """An unknown name, or a model of another task, is found before processes are started and files opened."""
    from clearstate.models import PRESETS, find

    if Path(name).is_dir():
        return  # what is in the folder shows when it is loaded
    try:
        preset = find(name)
    except ValueError as error:
        lists = "`clearstate models` lists them all; a folder with weights will also do"
        raise UsageError(f"{option} {name}: {error} ({lists})") from error
    if preset.task != task:
        fitting = ", ".join(p.name for p in PRESETS.values() if p.task == task)
        raise UsageError(
            f"{option} {name} is there to {preset.task}, not to {task}: see clearstate {preset.task}, "
            f"or take one of {fitting}"
        )


def lengths(jobs: list[Job]) -> dict[str, float]:
    """Seconds of audio in each file that says so; what cannot be read fails later, where it is reported."""
    import soundfile

    from clearstate.audio.io import MOST_SECONDS
    from clearstate.audio.quiet import quiet

    seconds = {}
    for job in jobs:
        if is_stream(job.source):  # which can be opened only once
            continue
        with suppress(Exception), quiet():
            length = soundfile.info(native_name(job.source)).duration
            if length < MOST_SECONDS:
                seconds[job.source] = length
    return seconds


def close(outcomes: list[Outcome], model: str, as_json: bool) -> None:
    """The report, the failures, the exit code."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if as_json:
        files = [outcome.as_json() for outcome in outcomes]
        report = {"clearstate": __version__, "model": model, "done": len(files) - len(failed), "failed": len(failed)}
        print(json.dumps(report | {"files": files}, indent=2))
    if len(outcomes) > 1 and failed:
        note(f"clearstate: {len(failed)} of {len(outcomes)} inputs failed:")
    for outcome in failed:
        note(f"clearstate: {outcome.name}: {outcome.error}")
    if any(outcome.target == STDIO for outcome in failed):
        abandon_stdout()
    if failed:
        raise typer.Exit(1)
