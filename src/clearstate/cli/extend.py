"""clearstate extend: add the missing high frequencies to narrowband speech. The work itself is in `tasks/extend.py`."""

import functools
from typing import Annotated, Any

import typer

from clearstate.audio.streams import STDIO
from clearstate.cli.batch import Outcome, Progress, Worker
from clearstate.cli.engines import EngineName
from clearstate.cli.engines.contract import InBlocks
from clearstate.cli.inputs import Job, make_room, plan
from clearstate.cli.terminal import UsageError, explain
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

FAST = "extend-fast"  # the default of tasks/extend.py, which imports NumPy: too slow for --help


def run(
    inputs: Inputs,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE_OR_FOLDER",
            help="Output file or folder; - writes WAV to stdout. Default: old.wide.wav next to old.wav.",
        ),
    ] = None,
    to: Annotated[int, typer.Option("--to", metavar="HZ", help="Sample rate of the output, up to 48000.")] = 48_000,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=f"Name of an extension model, {MODEL_FILES}. Default: {FAST}."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help=f"Use {FAST}: one step, real time on a CPU. This is the default.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of steps of a diffusion model; more steps take longer. Default: set by the model."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Random seed of a diffusion model. Each seed gives another plausible result."),
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
    """Add the missing high frequencies to narrowband speech (bandwidth extension).

    The recorded frequencies stay unchanged. The bandwidth of the recording is measured, because a 48 kHz file may
    contain nothing above 8 kHz. The model generates the band above it: the result is plausible, not recorded. The
    output has the same duration, channels, bit depth and tags as the input. The input is never overwritten; other files
    only with --overwrite. If a file fails, the others are still processed and the failures are listed at the end.

    **Examples**

    `clearstate extend old.wav --to 48000` writes old.wide.wav

    `clearstate extend call.mp3 -o call.flac`

    `clearstate extend archive/ -o wide/ --jobs 2 --json` keeps the folder structure and reports the bandwidths

    `clearstate enhance call.wav --extend` removes noise first

    Exit codes: 0 success, 1 some files failed, 2 wrong use, 130 interrupted.
    """
    name = _choose(model, fast)
    batch = Batch(output, overwrite, as_json, jobs, engine, address, workers, resume)
    todo = plan(inputs, output, tag="wide", overwrite=batch.may_exist)
    outcomes = [Outcome(source, None, error=why) for source, why in todo.failures]
    check_pipes(todo.jobs, as_json)
    if todo.jobs:
        from clearstate.models import tell_licence

        check_model(name, "extend", "--model")
        _check_settings(name, to, steps, seed)
        tell_licence(name)
        seconds = lengths(todo.jobs)
        runtime = backend_for(name, backend, todo.jobs, seconds)
        opener = functools.partial(open_worker, name, runtime, to, steps, seed, overwrite, track)
        settings = {
            "verb": "extend", "model": name, "backend": backend.value, "to": to, "steps": steps, "seed": seed,
            "track": track,
        }  # fmt: skip
        outcomes += batch.run(todo.jobs, opener, seconds, settings)
    close(outcomes, name, as_json)


def open_worker(
    model: str,
    backend: str,
    to: int,
    steps: int | None,
    seed: int | None,
    overwrite: bool,
    track: int | None = None,
) -> Worker:
    """Load the model and return a worker that extends one file per call."""
    from clearstate.tasks.extend import load_extender

    try:
        extender = load_extender(model, steps=steps, seed=seed, backend=backend)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--model {model}: {explain(error)}") from error

    def work(job: Job, progress: Progress) -> dict[str, Any]:
        if job.target != STDIO:
            make_room(job.target)
        done = extender.extend_file(
            job.source, job.target, to=to, track=track, overwrite=overwrite or job.replace, progress=progress
        )
        reach = f"up to {done.bandwidth_hz / 1000:.3g} kHz"
        why_not = "it is silent" if done.silent else f"it holds {reach}"
        return {
            "seconds": done.seconds, "from_rate": done.from_rate, "sample_rate": done.sample_rate,
            "channels": done.channels, "bandwidth_hz": done.bandwidth_hz, "extended": done.extended,
            "note": f"it held {reach}" if done.extended else f"{why_not}: nothing was added",
        }  # fmt: skip

    return InBlocks(work)


def _choose(model: str | None, fast: bool) -> str:
    if fast and model not in (None, FAST):
        raise UsageError(f"--fast selects {FAST}, but --model is {model}; give only one of them")
    return model or FAST


def _check_settings(model: str, to: int, steps: int | None, seed: int | None) -> None:
    """Report settings that no file allows before any file is opened."""
    if not 8_000 <= to <= 48_000:
        raise UsageError(f"--to {to}: expected 8000 to 48000 Hz, such as 48000 or 44100")
    given = [name for name, value in (("--steps", steps), ("--seed", seed)) if value is not None]
    if model == FAST and given:
        raise UsageError(
            f"{' and '.join(given)}: {FAST} works in one step; use it with a diffusion model, such as --model mambawave"
        )
