"""The report of `clearstate inspect` in words: text on a terminal, and the facts that the page shows."""

import shlex
from typing import TYPE_CHECKING

from clearstate.audio.paths import shown
from clearstate.audio.streams import STDIO
from clearstate.cli.terminal import clock

if TYPE_CHECKING:
    from clearstate.tasks.inspect import Inspection


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
        restore = f"clearstate restore {shlex.quote(found.input)}"
        return [restore, *(command for command in commands if command.startswith("clearstate separate"))]
    return commands


def rows(found: "Inspection") -> list[tuple[str, str]]:
    """The report in words: heading and text."""
    from clearstate.audio.info import in_words
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
        listed.append(
            ("clipping", f"{percent(found.clipped_share)} of the samples, at {level(found.clipping_dbfs, 'dBFS')}")
        )
    if any(abs(offset) >= 1e-4 for offset in found.dc_offset):
        listed.append(("offset", ", ".join(f"{100 * offset:.2g} %" for offset in found.dc_offset) + " of full scale"))
    if found.hum_hz:
        count = len(found.hum_harmonics)
        tones = f"{count} tone{'s' * (count > 1)}"
        listed.append(
            ("hum", f"{found.hum_hz} Hz ({found.hum_exact_hz:.2f}), {tones}, {level(found.hum_dbfs, 'dBFS')}")
        )
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
