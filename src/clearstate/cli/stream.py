"""clearstate stream: remove noise from live audio, raw samples on stdin to raw samples on stdout."""

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from clearstate.cli.terminal import UsageError, explain, note
from clearstate.cli.verbs import MODEL_FILES, Backend, Runtime, check_stdin, check_stdout

if TYPE_CHECKING:
    from clearstate.tasks.stream import Stream


class Format(str, Enum):
    """Sample format: little-endian 16-bit integers, or 32-bit floats in [-1, 1]."""

    s16le = "s16le"
    f32le = "f32le"


def run(
    rate: Annotated[int, typer.Option(min=1, metavar="HZ", help="Sample rate of the stream.")] = 16_000,
    channels: Annotated[int, typer.Option(min=1, help="Number of interleaved channels.")] = 1,
    sample_format: Annotated[
        Format, typer.Option("--format", help="Sample format of input and output.")
    ] = Format.s16le,
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"Name of a causal model (see `clearstate models`), {MODEL_FILES}.")
    ] = "live",
    strength: Annotated[
        float | None, typer.Option(min=0, metavar="DB", help="Attenuate noise by at most DB. Default: no limit.")
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="Enhance every channel separately instead of with one shared gain.")
    ] = False,
    backend: Runtime = Backend.auto,
) -> None:
    """Remove noise from raw PCM audio in real time, from stdin to stdout.

    The latency is constant and printed to stderr. The output starts with that much silence. At the end of the input the
    remaining samples follow, so the output is longer than the input by the latency.

    **Examples**

    `arecord -t raw -f S16_LE -r 16000 | clearstate stream | aplay -t raw -f S16_LE -r 16000`

    `ffmpeg -i in.mkv -f f32le -ar 48000 -ac 2 - | clearstate stream --rate 48000 --channels 2 --format f32le > out.f32`
    """
    check_stdin("pipe raw samples in (see clearstate stream --help)")
    check_stdout("pipe the output to a program, or add '> out.pcm'")
    import clearstate

    try:
        stream = clearstate.Stream(
            model,
            rate,
            channels=channels,
            strength=strength,
            channels_mode="apart" if apart else "linked",
            backend=backend.value,
        )
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(explain(error)) from error
    latency = f"{1000 * stream.latency_seconds:.1f} ms ({stream.latency_samples} samples)"
    note(f"clearstate: {model}, {rate} Hz, {channels} ch, {sample_format.value}; latency {latency}")
    pump(stream, sys.stdin.buffer, sys.stdout.buffer, channels, sample_format)
    if stream.bad_samples:
        note(f"clearstate: {stream.bad_samples} samples were NaN or infinite and were replaced by silence")


def pump(stream: "Stream", source: BinaryIO, sink: BinaryIO, channels: int, sample_format: Format) -> None:
    """Pass all of `source` through `stream` to `sink`; an incomplete sample waits for its other bytes.

    Raises:
        ValueError: if the input ends inside a sample.
    """
    from clearstate.audio import pcm

    kind: pcm.SampleType = "<i2" if sample_format is Format.s16le else "<f4"
    width = channels * int(kind[-1])  # bytes of one sample of all channels
    held = b""
    while fresh := source.read1(1 << 16):  # type: ignore[attr-defined]  # a buffered pipe has it
        held += fresh
        whole = len(held) - len(held) % width
        sink.write(pcm.encode(stream.process(pcm.decode(held[:whole], channels, kind)), kind))
        sink.flush()
        held = held[whole:]
    sink.write(pcm.encode(stream.flush(), kind))
    sink.flush()
    if held:
        raise ValueError(
            f"the input ended after {len(held)} of the {width} bytes of a sample; check --channels and --format"
        )
