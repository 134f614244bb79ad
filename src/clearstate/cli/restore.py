"""clearstate restore: find out what a recording needs, and do it. The work itself is in `tasks/restore.py`."""

import functools
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearstate.audio.paths import shown
from clearstate.audio.streams import STDIO
from clearstate.cli.batch import Outcome, Progress, Worker
from clearstate.cli.engines import EngineName
from clearstate.cli.engines.contract import InBlocks
from clearstate.cli.inputs import Job, make_room, plan
from clearstate.cli.verbs import (
    Address,
    AsJson,
    Batch,
    Engines,
    Inputs,
    Jobs,
    Overwrite,
    Resume,
    Track,
    Workers,
    check_pipes,
    close,
    lengths,
)

if TYPE_CHECKING:
    from clearstate.tasks.restore import Restoration

EXTENDER = "extend-fast"


class Steps(str, Enum):
    """The steps, in order."""

    clipping = "clipping"
    offset = "offset"
    channel = "channel"
    hum = "hum"
    noise = "noise"
    band = "band"


def run(
    inputs: Inputs,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE_OR_FOLDER",
            help="Output file or folder; - writes WAV to stdout. Default: talk.restored.wav next to talk.wav.",
        ),
    ] = None,
    skip: Annotated[
        list[Steps] | None, typer.Option("--skip", help="Never do this step. Repeat the option for several steps.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print what was done to each file, and why.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done to each file, and why; write nothing.")
    ] = False,
    track: Track = None,
    jobs: Jobs = 1,
    engine: Engines = EngineName.local,
    address: Address = None,
    workers: Workers = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find out what each recording needs, and do it.

    Each file is inspected (see `clearstate inspect`). Then, in one pass and only where needed: clipped peaks are
    restored, a constant offset is removed, a dead channel is filled with the other one, hum is removed, noise is
    removed, and missing high frequencies are added. A recording without a problem is copied byte for byte. Voices are
    never separated.

    The output has the length, channels, bit depth and tags of the input; a comment in the tags lists the steps. The
    rate changes only if the band is extended and the rate is below 16 kHz (then to 48 kHz).

    **Examples**

    `clearstate restore talk.wav` writes talk.restored.wav

    `clearstate restore archive/ -o restored/ --jobs 4 --json > report.json`

    `clearstate restore archive/ --dry-run` shows what each file needs

    `clearstate restore call.wav --explain --skip band`

    Exit codes: 0 success, 1 some files failed, 2 wrong use, 130 interrupted.
    """
    batch = Batch(output, overwrite, as_json, jobs, engine, address, workers, False if dry_run else resume)
    todo = plan(inputs, output, tag="restored", overwrite=batch.may_exist or dry_run)
    outcomes = [Outcome(source, None, error=why) for source, why in todo.failures]
    check_pipes([Job(job.source, "") for job in todo.jobs] if dry_run else todo.jobs, as_json)
    if todo.jobs:
        opener = functools.partial(open_worker, [step.value for step in skip or ()], dry_run, overwrite, track)
        settings = {"verb": "restore", "skip": sorted(step.value for step in skip or ()), "track": track}
        done = batch.run(todo.jobs, opener, lengths(todo.jobs), settings)
        outcomes += done
        if any("band" in outcome.report.get("kinds", ()) for outcome in done) and not dry_run:
            from clearstate.models import tell_licence

            tell_licence(EXTENDER)
        if (explain or dry_run) and not as_json:
            for outcome in done:
                if not outcome.error:
                    print_one(outcome, to_stdout=dry_run or outcome.target != STDIO)
    close(outcomes, None, as_json)


def open_worker(skip: list[str], dry_run: bool, overwrite: bool, track: int | None = None) -> Worker:
    """Return a worker that restores one file per call."""
    from clearstate.tasks.restore import Restorer

    restorer = Restorer(skip)

    def work(job: Job, progress: Progress) -> dict[str, Any]:
        if job.target != STDIO and not dry_run:
            make_room(job.target)
        done = restorer.restore_file(
            job.source, job.target, dry_run=dry_run, track=track, overwrite=overwrite or job.replace, progress=progress
        )
        return in_json(done)

    return work if "band" in skip else InBlocks(work)


def in_json(done: "Restoration") -> dict[str, Any]:
    """The entries of the JSON report."""
    return {
        "seconds": done.seconds, "sample_rate": done.sample_rate, "channels": done.channels,
        "steps": [{"kind": step.kind, "what": step.what, "why": step.why} for step in done.steps],
        "kinds": [step.kind for step in done.steps], "left": done.left, "note": done.summary,
        "inspection": done.inspection.as_json(),
    }  # fmt: skip


def print_one(outcome: Outcome, to_stdout: bool) -> None:
    """Print what was done to one file, and why."""
    from clearstate.cli.terminal import note

    lines = [f"{outcome.name}: {outcome.report['note']}"]
    lines += [f"  {step['what']}: {step['why']}" for step in outcome.report["steps"]]
    lines += [f"  left as it is: {text}" for text in outcome.report["left"]]
    if to_stdout:
        print("\n".join(map(shown, lines)))
    else:
        note("\n".join(lines))
