"""clearstate separate: several voices in one recording in, one recording a voice out."""

import functools
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from clearstate.audio.streams import STDIO, as_stdio, is_stream
from clearstate.cli.batch import Outcome, Progress, Worker, run_batch
from clearstate.cli.inputs import Job, Plan, gather, one_name, too_long
from clearstate.cli.terminal import UsageError, explain, note
from clearstate.cli.verbs import AsJson, Inputs, Jobs, Overwrite, Track, check_model, check_pipes, close, lengths

DEFAULT_MODEL = "separate-fast"  # as in clearstate.separation, which imports torch
OURS = re.compile(r"\.speaker\d+$")  # the end of a name that an earlier run gave


def run(
    inputs: Inputs,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write. Without it, beside the input."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A separator that `clearstate models` lists, or a folder with weights.")
    ] = DEFAULT_MODEL,
    enhance: Annotated[
        str | None,
        typer.Option("--enhance", "-e", metavar="MODEL", help="Remove noise first, with this model (try: live)."),
    ] = None,
    track: Track = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Separate people who speak at the same time.

    `talk.wav` becomes talk.speaker1.wav, talk.speaker2.wav and talk.timeline.json (who is active when, in seconds).
    The outputs have the length (to the sample), sample rate, channels, bit depth and tags of the input, and add up to
    it: levels are true, and what is not speech goes to whoever is loudest there. Each voice stays in its file however
    long the recording. A file that fails is named at the end and the others are done.

    **Examples**

    `clearstate separate talk.wav -o voices/`

    `clearstate separate cafe.mp3 --enhance live` removes the noise first

    `clearstate separate meetings/ -o voices/ --jobs 2 --json`

    Exit code: 0 all done, 1 some file failed, 2 wrong use, 130 interrupted.
    """
    check_model(model, "separate", "--model")
    if enhance is not None:
        check_model(enhance, "enhance", "--enhance")
    todo, failures = places(inputs, output)
    outcomes = [Outcome(source, None, error=why) for source, why in failures]
    check_pipes(todo, as_json=False)
    if todo:
        opener = functools.partial(open_worker, model, enhance, overwrite, track)
        outcomes += run_batch(todo, opener, processes=jobs, lengths=lengths(todo))
    close(outcomes, model, as_json)


def open_worker(model: str, enhance: str | None, overwrite: bool, track: int | None = None) -> Worker:
    """Load the models once; the worker it gives separates one file at a time."""
    from clearstate.tasks.separate import load_separator

    try:
        separator = load_separator(model, enhance)
    except (ValueError, OSError) as error:
        raise UsageError(f"--model {model}: {explain(error)}") from error

    def work(job: Job, progress: Progress) -> dict[str, Any]:
        done = separator.separate_file(job.source, job.target, track=track, overwrite=overwrite, progress=progress)
        if done.note:
            note(f"clearstate: {job.source}: {done.note}")
        speakers = [
            {"file": speaker.file, "active_seconds": round(speaker.active_seconds, 2)} for speaker in done.speakers
        ]
        return {
            "seconds": done.seconds, "sample_rate": done.sample_rate, "channels": done.channels,
            "timeline": done.timeline, "speakers": speakers,
        }  # fmt: skip

    return work


def places(inputs: list[str], output: str | None) -> tuple[list[Job], list[tuple[str, str]]]:
    """What to read, and into which folder each goes; and the inputs that cannot be, with the reason.

    Raises:
        UsageError: for an output that is a file.
    """
    if output is not None and (output == STDIO or os.path.isfile(output)):
        raise UsageError(f"-o {output}: there is a file for each speaker; name a folder")
    if len(inputs) == 1 and is_stream(inputs[0]):
        return [Job(as_stdio(inputs[0], 0), output or ".")], []
    found = Plan()
    named = {Path(word) for word in inputs}  # what was found in a folder may be ours
    jobs: list[Job] = []
    taken: dict[str, Path] = {}
    for source, _ in gather(inputs, output, "speaker", found)[0]:
        if OURS.search(source.stem) and source not in named:
            continue
        folder = Path(output) if output is not None else source.parent
        name = folder / f"{source.stem}.timeline.json"  # the longest of its outputs
        taker = taken.setdefault(one_name(name), source)
        clash = f"it and {taker} would both become {folder / source.stem}.speaker1...; separate it into another folder"
        if reason := too_long(name) or (clash if taker != source else None):
            found.failures.append((str(source), reason))
        else:
            jobs.append(Job(str(source), str(folder)))
    if not jobs and not found.failures:
        note("clearstate: nothing to separate: only results of an earlier run")
    return jobs, found.failures
