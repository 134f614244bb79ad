"""clearstate enhance: noisy speech in, clean speech out."""

import functools
from enum import Enum
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


class Channels(str, Enum):
    """How the channels of a recording go together."""

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
            help="Where to write; - is stdout (WAV). Without it, talk.wav becomes talk.clear.wav beside it.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name that `clearstate models` lists, or a folder with weights.")
    ] = "live",
    strength: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="DB", help="Take noise down by at most this many dB; 0 changes nothing. Without it: all."
        ),
    ] = None,
    residual: Annotated[
        bool, typer.Option("--residual", help="Write what was taken away instead (talk.residual.wav).")
    ] = False,
    pcs: Annotated[
        bool,
        typer.Option(
            "--pcs",
            help="Stretch the perceptual contrast of the result, as SEMamba's best PESQ was reached: crisper to a "
            "listener and to PESQ, further from the clean waveform.",
        ),
    ] = False,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up/--no-warm-up",
            help="Let a causal model hear the first 1.5 s of a file once before they count. Without it the result is "
            "that of `clearstate stream`, sample by sample.",
        ),
    ] = True,
    channels: Annotated[
        Channels,
        typer.Option(
            help="linked: all channels share one gain, so the stereo image stays. apart: each is enhanced by itself, "
            "for recordings with one speaker per channel."
        ),
    ] = Channels.linked,
    track: Track = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Clean up noisy speech.

    The output has the length (to the sample), sample rate, channels, bit depth and tags of the input. An input is never
    overwritten, and no other file without --overwrite. A file that fails is named at the end and the others are done.

    **Examples**

    `clearstate enhance talk.mp3` writes talk.clear.mp3 beside it

    `clearstate enhance talk.wav -o clean.flac`

    `clearstate enhance interviews/ "extra/*.wav" -o clean/ --jobs 4` keeps the folders' structure

    `clearstate enhance lecture.wav --strength 12` leaves some room tone

    `clearstate enhance call.wav --channels apart` for a call with one party per channel

    `ffmpeg -i call.mkv -f wav - | clearstate enhance - > call.wav`

    Exit code: 0 all done, 1 some file failed, 2 wrong use, 130 interrupted.
    """
    todo = plan(inputs, output, tag="residual" if residual else "clear", overwrite=overwrite)
    outcomes = [Outcome(source, None, error=why) for source, why in todo.failures]
    check_pipes(todo.jobs, as_json)

    if todo.jobs:
        check_model(model, "enhance", "--model")
        opener = functools.partial(
            open_worker, model, strength, residual, pcs, warm_up, channels.value, overwrite, track
        )
        outcomes += run_batch(todo.jobs, opener, processes=jobs, lengths=lengths(todo.jobs))
    close(outcomes, model, as_json)


def open_worker(
    model: str,
    strength: float | None,
    residual: bool,
    pcs: bool,
    warm_up: bool,
    channels: str,
    overwrite: bool,
    track: int | None = None,
) -> Worker:
    """Load the model once; the worker it gives enhances one file at a time."""
    import clearstate

    try:
        enhancer = clearstate.load(model)
    except (ValueError, OSError) as error:
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
            warm_up=warm_up,
            channels=channels,
            track=track,
            overwrite=overwrite,
            progress=progress,
        )
        return {"seconds": report.seconds, "sample_rate": report.sample_rate, "channels": report.channels}

    return work
