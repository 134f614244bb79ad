"""clearstate enhance: remove noise from recordings of speech. The work itself is in `tasks/enhance.py`."""

import functools
from enum import Enum
from typing import Annotated, Any

import typer

from clearstate.audio.streams import STDIO
from clearstate.cli.batch import Outcome, Progress, Worker
from clearstate.cli.engines import EngineName
from clearstate.cli.engines.contract import InBlocks
from clearstate.cli.extend import FAST as EXTENSION
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


class Quality(str, Enum):
    """Which of our own models: the causal one of live sound, or one that needs the whole recording."""

    fast = "fast"
    best = "best"


class Channels(str, Enum):
    """How to treat the channels of a recording."""

    linked = "linked"
    apart = "apart"


def run(
    inputs: Inputs,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE_OR_FOLDER",
            help="Output file or folder; - writes WAV to stdout. Default: talk.clear.wav next to talk.wav.",
        ),
    ] = None,
    quality: Annotated[
        Quality | None,
        typer.Option(
            help="best: `studio`, which also hears what follows. fast: `live`, the model of live sound, a third of the "
            "time. Default: best."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=f"Another model: a name (see `clearstate models`), {MODEL_FILES}."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DB",
            help="Attenuate noise by at most DB; 0 changes nothing. Speech recognisers do best with 6 to 12. Default: "
            "no limit.",
        ),
    ] = None,
    residual: Annotated[
        bool, typer.Option("--residual", help="Write the removed sound instead (talk.residual.wav).")
    ] = False,
    pcs: Annotated[
        bool,
        typer.Option(
            "--pcs",
            help="Apply perceptual contrast stretching to the output, as SEMamba does for its best PESQ. Speech sounds "
            "crisper and PESQ rises; the waveform moves away from the clean one.",
        ),
    ] = False,
    highs: Annotated[
        bool,
        typer.Option(
            "--highs/--no-highs",
            help="Keep the frequencies above the model's (8 kHz), which follow its gain. --no-highs removes them.",
        ),
    ] = True,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up/--no-warm-up",
            help="A causal model, such as that of --quality fast, first processes the opening 1.5 s of a file to "
            "initialise its state, then starts again from the beginning. --no-warm-up gives the samples of `clearstate "
            "stream`.",
        ),
    ] = True,
    channels: Annotated[
        Channels,
        typer.Option(
            help="linked: all channels share one gain, which keeps the stereo image. apart: every channel is enhanced "
            "separately, for recordings with one speaker per channel."
        ),
    ] = Channels.linked,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Then add the missing high frequencies, as `clearstate extend` does: for noisy telephone calls. The "
            "output is at 48 kHz.",
        ),
    ] = False,
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
    """Remove noise from speech.

    The output has the same length (to the sample), sample rate, channels, bit depth and tags as the input; with
    --extend, its rate is 48 kHz. The input is never overwritten; other files only with --overwrite. If a file fails,
    the others are still processed and the failures are listed at the end.

    **Examples**

    `clearstate enhance talk.mp3` writes talk.clear.mp3

    `clearstate enhance talk.wav -o clean.flac`

    `clearstate enhance interviews/ "extra/*.wav" -o clean/ --jobs 4` keeps the folder structure

    `clearstate enhance podcast.wav --quality fast` takes a sixth of the time

    `clearstate enhance lecture.wav --strength 12` keeps some room tone

    `clearstate enhance call.wav --channels apart` for a call with one speaker per channel

    `clearstate enhance old-call.wav --extend` also adds the high frequencies that a telephone removes

    `ffmpeg -i call.mkv -f wav - | clearstate enhance - > call.wav`

    Exit codes: 0 success, 1 some files failed, 2 wrong use, 130 interrupted.
    """
    if model and quality:
        raise UsageError(f"--quality {quality.value} chooses a model, and so does --model {model}: give one of them")
    from clearstate.runtime.contract import QUALITY  # imports NumPy

    if extend and residual:
        raise UsageError("--extend adds to the enhanced speech, and --residual writes the noise: give one of them")
    model = model or QUALITY[(quality or Quality.best).value]
    batch = Batch(output, overwrite, as_json, jobs, engine, address, workers, resume)
    todo = plan(inputs, output, tag="residual" if residual else "clear", overwrite=batch.may_exist)
    outcomes = [Outcome(source, None, error=why) for source, why in todo.failures]
    check_pipes(todo.jobs, as_json)

    if todo.jobs:
        check_model(model, "enhance", "--model")
        if extend:
            from clearstate.models import tell_licence

            tell_licence(EXTENSION)
        seconds = lengths(todo.jobs)
        runtime = backend_for(model, backend, todo.jobs, seconds)
        opener = functools.partial(
            open_worker, model, runtime, strength, residual, pcs, highs, warm_up, channels.value, extend, overwrite,
            track,
        )  # fmt: skip
        settings = {
            "verb": "enhance", "model": model, "backend": backend.value, "strength": strength, "residual": residual,
            "pcs": pcs, "highs": highs, "warm_up": warm_up, "channels": channels.value, "extend": extend,
            "track": track,
        }  # fmt: skip
        outcomes += batch.run(todo.jobs, opener, seconds, settings)
    close(outcomes, model, as_json)


def open_worker(
    model: str,
    backend: str,
    strength: float | None,
    residual: bool,
    pcs: bool,
    highs: bool,
    warm_up: bool,
    channels: str,
    extend: bool,
    overwrite: bool,
    track: int | None = None,
) -> Worker:
    """Load the model and return a worker that enhances one file per call."""
    import clearstate

    try:
        enhancer, extender = clearstate.load(model, backend), None
        if extend:
            from clearstate.tasks.extend import load_extender

            extender = load_extender(EXTENSION, backend=backend)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--model {model}: {explain(error)}") from error

    def work(job: Job, progress: Progress) -> dict[str, Any]:
        if job.target != STDIO:
            make_room(job.target)
        report = enhancer.enhance_file(
            job.source,
            job.target,
            strength=strength,
            residual=residual,
            pcs=pcs,
            highs=highs,
            warm_up=warm_up,
            channels=channels,
            extender=extender,
            track=track,
            overwrite=overwrite or job.replace,
            progress=progress,
        )
        result: dict[str, Any] = {
            "seconds": report.seconds, "sample_rate": report.sample_rate, "channels": report.channels,
        }  # fmt: skip
        if report.bandwidth_hz is not None:
            result["bandwidth_hz"] = report.bandwidth_hz
            result["note"] = f"the speech reached {report.bandwidth_hz / 1000:.3g} kHz"
        return result

    return work if enhancer.model.causal and not extender else InBlocks(work)
