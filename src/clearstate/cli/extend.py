"""clearstate extend: a narrow recording in (telephone, old archive, 16 kHz), a wide one out."""

import functools
from typing import Annotated, Any

import typer

from clearstate.audio.streams import STDIO
from clearstate.cli.batch import Outcome, Progress, Worker, run_batch
from clearstate.cli.inputs import Job, make_room, plan
from clearstate.cli.terminal import UsageError, explain
from clearstate.cli.verbs import (
    AsJson,
    Inputs,
    Jobs,
    Overwrite,
    Track,
    check_model,
    check_pipes,
    close,
    lengths,
)

FAST = "extend-fast"  # the default, as in clearstate.extension, which imports torch


def run(
    inputs: Inputs,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE_OR_FOLDER",
            help="Where to write; - is stdout (WAV). Without it, old.wav becomes old.wide.wav beside it.",
        ),
    ] = None,
    to: Annotated[int, typer.Option("--to", metavar="HZ", help="Sample rate of the output, at most 48000.")] = 48_000,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=f"A name that `clearstate models` lists, or a folder. Default: {FAST}."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help=f"Take {FAST}: one step, real time on a CPU. The default.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of a diffusion model: more take longer. Without it, its own number."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of a diffusion model: another seed, another guess at what is missing.")
    ] = None,
    track: Track = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Extend the bandwidth of narrow speech: make up the treble that it lacks.

    What the recording holds comes back unchanged; above its bandwidth, which is measured (a file at 48 kHz may hold no
    more than 8), a band is added that was never recorded: plausible, not true. The output has the channels, bit
    depth and tags of the input, and its length at the new rate. An input is never overwritten, and no other file
    without --overwrite. A file that fails is named at the end and the others are done.

    **Examples**

    `clearstate extend old.wav --to 48000` writes old.wide.wav beside it

    `clearstate extend call.mp3 -o call.flac`

    `clearstate extend archive/ -o wide/ --jobs 2 --json` keeps the folders' structure, and reports the bandwidths

    `clearstate enhance call.wav -o - | clearstate extend - > clear.wav` without the noise first

    Exit code: 0 all done, 1 some file failed, 2 wrong use, 130 interrupted.
    """
    name = _choose(model, fast)
    todo = plan(inputs, output, tag="wide", overwrite=overwrite)
    outcomes = [Outcome(source, None, error=why) for source, why in todo.failures]
    check_pipes(todo.jobs, as_json)
    if todo.jobs:
        from clearstate.models import tell_licence

        check_model(name, "extend", "--model")
        _check_settings(name, to, steps, seed)
        tell_licence(name)
        opener = functools.partial(open_worker, name, to, steps, seed, overwrite, track)
        outcomes += run_batch(todo.jobs, opener, processes=jobs, lengths=lengths(todo.jobs))
    close(outcomes, name, as_json)


def open_worker(
    model: str, to: int, steps: int | None, seed: int | None, overwrite: bool, track: int | None = None
) -> Worker:
    """Load the model once; the worker it gives extends one file at a time."""
    from clearstate.tasks.extend import load_extender

    try:
        extender = load_extender(model, steps=steps, seed=seed)
    except (ValueError, OSError) as error:
        raise UsageError(f"--model {model}: {explain(error)}") from error

    def work(job: Job, progress: Progress) -> dict[str, Any]:
        if job.target != STDIO:
            make_room(job.target)
        done = extender.extend_file(job.source, job.target, to=to, track=track, overwrite=overwrite, progress=progress)
        reach = f"up to {done.bandwidth_hz / 1000:.3g} kHz"
        silent = done.bandwidth_hz > 1.1 * done.from_rate / 2  # silence is measured as reaching to the top
        why_not = "it is silent" if silent else f"it holds {reach}"
        return {
            "seconds": done.seconds, "from_rate": done.from_rate, "sample_rate": done.sample_rate,
            "channels": done.channels, "bandwidth_hz": done.bandwidth_hz, "extended": done.extended,
            "note": f"it held {reach}" if done.extended else f"{why_not}: nothing was added",
        }  # fmt: skip

    return work


def _choose(model: str | None, fast: bool) -> str:
    if fast and model not in (None, FAST):
        raise UsageError(f"--fast takes {FAST}, and --model says {model}: leave one of them out")
    return model or FAST


def _check_settings(model: str, to: int, steps: int | None, seed: int | None) -> None:
    """What is wrong whatever the file is told before any is opened."""
    if not 8_000 <= to <= 48_000:
        raise UsageError(f"--to {to}: expected 8000 to 48000 Hz (the models' own rate), such as 48000 or 44100")
    given = [name for name, value in (("--steps", steps), ("--seed", seed)) if value is not None]
    if model == FAST and given:
        raise UsageError(f"{' and '.join(given)}: {FAST} works in one step; it is for diffusion models (see --model)")
