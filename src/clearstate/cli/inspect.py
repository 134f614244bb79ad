"""clearstate inspect: what a recording holds and what is wrong with it. The work itself is in `tasks/inspect.py`."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearstate.audio.paths import shown, why_no_file
from clearstate.audio.streams import STDIO
from clearstate.cli.batch import Outcome, Progress, Worker, run_batch
from clearstate.cli.inputs import Job, only_read
from clearstate.cli.terminal import UsageError, clock, note
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

    `clearstate inspect archive/ --quick --jobs 4` measures at several hundred times real time

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
        show = (lambda outcome: None) if as_json else (lambda outcome: print_one(outcome.report["inspection"]))
        outcomes += run_batch(todo.jobs, opener, processes=jobs, lengths=lengths(todo.jobs), show=show)
    found = [outcome.report["inspection"] for outcome in outcomes if not outcome.error]
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
    return outcome if outcome.error else replace(outcome, report=outcome.report["inspection"].as_json())


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


# --------------------------------------------------------------------------------------------------------------- text


def print_one(found: "Inspection") -> None:
    """Print one file to stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    name = "stdin" if found.input == STDIO else shown(found.input)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for heading, text in rows(found):
        table.add_row(f"  {heading}", Text(text))
    style = "green" if not found.findings else "yellow"
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # pipes have no width; keep each row on one line
    console.print(Text.assemble((name, "bold"), ": ", (found.verdict, style)), soft_wrap=True)
    console.print(table)
    for line in advice(found):
        console.print(Text(f"  > {line}", style="cyan"), soft_wrap=True)
    console.print()


def advice(found: "Inspection") -> list[str]:
    """The commands that help, each once. One command that does several things replaces them."""
    commands = list(dict.fromkeys(one.command for one in found.findings if one.command))
    kinds = {one.kind for one in found.findings if one.command}
    if len(kinds - {"speakers"}) > 1:
        from clearstate.tasks.findings import quoted

        restore = f"clearstate restore {quoted(found.input)}"
        return [restore, *(command for command in commands if command.startswith("clearstate separate"))]
    return commands


def rows(found: "Inspection") -> list[tuple[str, str]]:
    """The report in words: heading and text."""
    from clearstate.audio.io import in_words
    from clearstate.tasks.findings import percent

    channels = {1: "mono", 2: "2 channels"}.get(found.channels, f"{found.channels} channels")
    coding = "" if found.codec == found.container else f", {in_words(found.codec)}"
    listed = [
        ("file", f"{found.container}{coding}, {found.sample_rate / 1000:g} kHz, {channels}, {clock(found.seconds)}"),
        ("bandwidth", f"{found.bandwidth_hz / 1000:.3g} kHz"),
        ("level", f"{level(found.loudness_lufs, 'LUFS')}, peak {level(found.peak_dbfs, 'dBFS')}, "
                  f"true peak {level(found.true_peak_dbfs, 'dBTP')}"),
    ]  # fmt: skip
    if found.clipped_share:
        listed.append(("clipping", f"{percent(found.clipped_share)} of the samples, at {level(found.clipping_dbfs, 'dBFS')}"))
    if any(abs(offset) >= 1e-4 for offset in found.dc_offset):
        listed.append(("offset", ", ".join(f"{100 * offset:.2g} %" for offset in found.dc_offset) + " of full scale"))
    if found.hum_hz:
        count = len(found.hum_harmonics)
        tones = f"{count} tone{'s' * (count > 1)}"
        listed.append(("hum", f"{found.hum_hz} Hz ({found.hum_exact_hz:.2f}), {tones}, {level(found.hum_dbfs, 'dBFS')}"))
    noise = f"signal-to-noise ratio {round(found.snr_db)} dB, " if found.snr_db is not None else ""
    listed.append(("noise", f"{noise}steady noise at {level(found.noise_floor_dbfs, 'dBFS')}"))
    speakers = {None: "", 0: "", 1: ", 1 speaker at a time", 2: ", 2 or more speakers at a time"}[found.speakers]
    voice = f", pitch {found.pitch_hz:.0f} Hz" if found.pitch_hz else ""
    music = f", music {percent(found.music_share)}" if found.music_share else ""
    listed.append(("speech", f"{percent(found.speech_share)} of the time, silence {percent(found.silence_share)}"
                             f"{music}{speakers}{voice}"))  # fmt: skip
    if found.reverberation_seconds is not None:
        least = "under 0.2" if not found.reverberation_seconds else f"about {found.reverberation_seconds:.1f}"
        listed.append(("room", f"reverberation time {least} s"))
    if found.channels > 1:
        related = f", correlation {found.correlation:.2f}" if found.correlation is not None else ""
        listed.append(("channels", f"{found.stereo}{related}"))
    if found.score is not None:
        listed.append(("score", f"{found.score:.2f} of 5 (DNSMOS, predicted)"))
    if found.broken:
        listed.append(("damage", found.broken))
    return listed


def level(value: float | None, unit: str) -> str:
    """A level in words.

    >>> level(-23.456, "LUFS"), level(None, "dBFS")
    ('-23.5 LUFS', 'silence')
    """
    return "silence" if value is None else f"{value:.1f} {unit}"
