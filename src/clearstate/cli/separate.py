"""clearstate separate: split a recording of several speakers into one file per speaker (`tasks/separate.py`)."""

import functools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from clearstate.audio import remote
from clearstate.audio.remote import is_remote
from clearstate.audio.streams import STDIO, as_stdio, is_stream
from clearstate.cli.batch import Outcome, Progress, Worker
from clearstate.cli.engines import EngineName
from clearstate.cli.engines.contract import InBlocks
from clearstate.cli.inputs import Job, Plan, gather, gather_remote, one_name, too_long
from clearstate.cli.terminal import UsageError, explain, note
from clearstate.cli.verbs import (
    MODEL_FILES,
    Address,
    AsJson,
    Backend,
    Batch,
    Engines,
    Inputs,
    Jobs,
    Overwrite,
    Resume,
    Runtime,
    Track,
    Workers,
    backend_for,
    check_model,
    check_pipes,
    close,
    lengths,
)

DEFAULT_MODEL = "separate-fast"  # as in tasks/separate.py, which imports NumPy: too slow for --help
OURS = re.compile(r"\.speaker\d+$")  # the name of an output of an earlier run


def run(
    inputs: Inputs,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Output folder. Default: the folder of the input."),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help=f"Name of a separation model (see `clearstate models`), {MODEL_FILES}."),
    ] = DEFAULT_MODEL,
    enhance: Annotated[
        str | None,
        typer.Option("--enhance", "-e", metavar="MODEL", help="Remove noise first with this model, such as live."),
    ] = None,
    speakers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many people speak. A model separates a fixed number, the shipped ones two; with another number, "
            "nothing is written and a remedy is named. Default: not checked.",
        ),
    ] = None,
    track: Track = None,
    backend: Runtime = Backend.auto,
    jobs: Jobs = 1,
    engine: Engines = EngineName.local,
    address: Address = None,
    workers: Workers = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Separate speakers who talk at the same time.

    `talk.wav` becomes talk.speaker1.wav, talk.speaker2.wav and talk.timeline.json (start and end of each speaker's
    activity in seconds). The outputs have the same length (to the sample), sample rate, channels, bit depth and tags as
    the input, and their sum is the input. Noise goes to the speaker who is loudest at that time and frequency. Each
    speaker stays in one file, in recordings of any length; the shipped models write two, so of three people two share
    one. If a file fails, the others are still processed and the failures are listed at the end.

    **Examples**

    `clearstate separate talk.wav -o voices/`

    `clearstate separate cafe.mp3 --enhance live` removes the noise first

    `clearstate separate meetings/ -o voices/ --jobs 2 --json`

    Exit codes: 0 success, 1 some files failed, 2 wrong use, 130 interrupted.
    """
    batch = Batch(output, overwrite, as_json, jobs, engine, address, workers, resume)
    check_model(model, "separate", "--model")
    if enhance is not None:
        check_model(enhance, "enhance", "--enhance")
    todo, failures = places(inputs, output)
    outcomes = [Outcome(source, None, error=why) for source, why in failures]
    check_pipes(todo, as_json=False)
    if todo:
        seconds = lengths(todo)
        runtime = backend_for(model, backend, todo, seconds)
        opener = functools.partial(open_worker, model, runtime, enhance, overwrite, track, speakers)
        settings = {"verb": "separate", "model": model, "enhance": enhance, "backend": backend.value, "track": track}
        outcomes += batch.run(todo, opener, seconds, settings, into_folders=True)
    close(outcomes, model, as_json)


def open_worker(
    model: str,
    backend: str,
    enhance: str | None,
    overwrite: bool,
    track: int | None = None,
    speakers: int | None = None,
) -> Worker:
    """Load the models and return a worker that separates one file per call."""
    from clearstate.tasks.separate import load_separator

    try:
        separator = load_separator(model, enhance, backend)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--model {model}: {explain(error)}") from error
    check_speakers(speakers, model, separator.model.speakers)

    def work(job: Job, progress: Progress) -> dict[str, Any]:
        done = separator.separate_file(
            job.source, job.target, track=track, overwrite=overwrite or job.replace, progress=progress
        )
        if done.note:
            note(f"clearstate: {job.source}: {done.note}")
        speakers = [
            {"file": speaker.file, "active_seconds": round(speaker.active_seconds, 2)} for speaker in done.speakers
        ]
        return {
            "seconds": done.seconds, "sample_rate": done.sample_rate, "channels": done.channels,
            "timeline": done.timeline, "speakers": speakers,
        }  # fmt: skip

    return work if separator.model.causal else InBlocks(work)


def check_speakers(wanted: int | None, model: str, separated: int) -> None:
    """Refuse a number of speakers that the model does not separate."""
    if wanted in (None, separated):
        return
    if wanted == 1:
        remedy = "`clearstate enhance` keeps one voice and removes what else there is"
    else:
        remedy = (
            f"--model needs one that was trained for {wanted}; without --speakers, {separated} files share the voices"
        )
    raise UsageError(f"--speakers {wanted}: {model} separates {separated} speakers; {remedy}")


def places(inputs: list[str], output: str | None) -> tuple[list[Job], list[tuple[str, str]]]:
    """The files to read with their output folders, and the inputs that cannot be processed, with the reason.

    Raises:
        UsageError: if `output` is a file.
    """
    if output is not None and (output == STDIO or os.path.isfile(output)):
        raise UsageError(f"-o {output} is a file, but each speaker gets a file; name a folder")
    if any(map(is_remote, [*inputs, output or ""])):
        return _remote_places(inputs, output)
    if len(inputs) == 1 and is_stream(inputs[0]):
        return [Job(as_stdio(inputs[0], 0), output or ".")], []
    found = Plan()
    named = {Path(word) for word in inputs}  # a file found in a folder may be an earlier output
    jobs: list[Job] = []
    taken: dict[str, Path] = {}
    for source, _ in gather(inputs, output, "speaker", found)[0]:
        if OURS.search(source.stem) and source not in named:
            continue
        folder = Path(output) if output is not None else source.parent
        name = folder / f"{source.stem}.timeline.json"  # the longest output name
        taker = taken.setdefault(one_name(name), source)
        clash = f"this file and {taker} would both become {folder / source.stem}.speaker1...; use another output folder"
        if reason := too_long(name) or (clash if taker != source else None):
            found.failures.append((str(source), reason))
        else:
            jobs.append(Job(str(source), str(folder)))
    if not jobs and not found.failures:
        note("clearstate: nothing to separate: the folder contains only outputs of an earlier run")
    return jobs, found.failures


def _remote_places(inputs: list[str], output: str | None) -> tuple[list[Job], list[tuple[str, str]]]:
    """Like `places`, if an input or the output is a URL."""
    found = Plan()
    jobs: list[Job] = []
    taken: dict[str, str] = {}
    for job in gather_remote(inputs, output, "speaker", found)[0]:
        stem = Path(job.target).stem
        if OURS.search(stem) and job.source not in inputs:
            continue
        folder = output or (remote.parent(job.source) if is_remote(job.source) else os.path.dirname(job.source))
        folder = folder.rstrip("/") + "/" if is_remote(folder) else folder
        taker = taken.setdefault(remote.join(folder, stem), job.source)
        if taker != job.source:
            clash = f"this file and {taker} would both become {stem}.speaker1...; use another output folder"
            found.failures.append((job.source, clash))
        else:
            jobs.append(replace(job, target=folder))
    return jobs, found.failures
