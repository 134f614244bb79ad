"""clearstate inspect: what a recording holds and what is wrong with it. The work itself is in `tasks/inspect.py`."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearstate.audio.paths import why_no_file
from clearstate.audio.remote import is_remote, without_secrets
from clearstate.audio.streams import STDIO
from clearstate.cli.batch import Outcome, Progress, Worker, run_batch
from clearstate.cli.inputs import Job, only_read
from clearstate.cli.inspect_text import print_one
from clearstate.cli.terminal import UsageError, note
from clearstate.cli.verbs import AsJson, Inputs, Jobs, Track, check_stdin, close, lengths

if TYPE_CHECKING:
    from clearstate.tasks.inspect import Inspection


def run(
    inputs: Inputs,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with pictures, in one file.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Only measure; run no model. The signal-to-noise ratio is then that to the steady noise, and the "
            "number of speakers is unknown.",
        ),
    ] = False,
    track: Track = None,
    jobs: Jobs = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a recording holds, what is wrong with it, and the command that helps.

    It reports format, bandwidth, loudness, peaks, clipping, offset, hum, noise, speech and pauses, music, speakers,
    reverberation and the relation of the channels. Each file is read once, in bounded memory. Models run on up to a
    minute of excerpts. With `clearstate[metrics]`, the report includes a predicted opinion score (DNSMOS).

    **Examples**

    `clearstate inspect talk.wav`

    `clearstate inspect archive/ --json > archive.json`

    `clearstate inspect interviews/*.wav --html interviews.html`

    `clearstate inspect archive/ --quick --jobs 4` measures at about 200 times real time per process

    Exit codes: 0 success, 1 some files failed, 2 wrong use, 130 interrupted.
    """
    todo = only_read(inputs)
    if any(job.source == STDIO for job in todo.jobs):
        check_stdin("pipe a file in, or name one")
    if html:
        check_page(html, overwrite)
    outcomes = [Outcome(source, None, error=why) for source, why in todo.failures]
    if todo.jobs:
        opener = functools.partial(open_worker, quick, track)
        show = (lambda outcome: None) if as_json else (lambda outcome: print_one(inspection(outcome)))
        outcomes += run_batch(todo.jobs, opener, processes=jobs, lengths=lengths(todo.jobs), show=show)
    found = [inspection(outcome) for outcome in outcomes if not outcome.error]
    if html and found:
        from clearstate.audio.atomic import write_text
        from clearstate.cli.inspect_page import page

        write_text(html, page(found))
        note(f"{html}")
    close([in_json(outcome) for outcome in outcomes], None, as_json)


def check_page(html: Path, overwrite: bool) -> None:
    """Refuse a page that cannot be written before the work starts."""
    if html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {html} ends in {html.suffix!r}; expected .html")
    if html.exists() and not html.is_file():  # never replace a device
        raise UsageError(f"--html {html} {why_no_file(html)}")
    if html.exists() and not overwrite:
        raise UsageError(f"{html} already exists; add --overwrite, or choose another name")


def in_json(outcome: Outcome) -> Outcome:
    """The outcome with the entries of the JSON report."""
    return outcome if outcome.error else replace(outcome, report=inspection(outcome).as_json())


def inspection(outcome: Outcome) -> "Inspection":
    """What was found in a file, under its own name: a file at a URL may have been read as a local copy."""
    from clearstate.tasks.findings import find

    found: Inspection = outcome.report["inspection"]
    if not is_remote(outcome.source):
        return found
    found = replace(found, input=without_secrets(outcome.source))
    return replace(found, findings=find(found))


def open_worker(quick: bool, track: int | None = None) -> Worker:
    """Return a worker that inspects one file per call."""
    from clearstate.tasks.inspect import Inspector

    inspector = Inspector(not quick, None if quick else opinion())

    def work(job: Job, progress: Progress) -> dict[str, Any]:
        found = inspector.inspect_file(job.source, track=track, progress=progress)
        return {"seconds": found.seconds, "inspection": found}

    return work


def opinion() -> Callable[[Any, int], float] | None:
    """A function that predicts an opinion score; None without the packages that it needs."""
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        return None
    from clearstate.metrics.learned import MissingWeights, dnsmos, find_weights

    try:
        weights = find_weights("dnsmos")
    except MissingWeights:
        return None
    return lambda x, rate: dnsmos(x, rate, weights).ovrl
