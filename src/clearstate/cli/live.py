"""clearstate live: remove noise between a microphone and a loudspeaker or virtual cable."""

import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearstate.cli.terminal import CommandError, UsageError, clock, explain, note
from clearstate.cli.verbs import MODEL_FILES, Backend, Overwrite, Runtime, check_model

if TYPE_CHECKING:
    from rich.text import Text

    from clearstate.live.cable import Cable, Meter
    from clearstate.live.recorder import Recorder
    from clearstate.live.session import Session
    from clearstate.tasks.stream import Stream

KEYS = "b: bypass   q: quit"
LOWEST_DB = -60.0  # the left end of a level meter
WARM_UP_SECONDS = 0.1
PATIENCE_SECONDS = 2.0  # before a second Ctrl-C ends the program at once


def run(
    list_devices: Annotated[bool, typer.Option("--list", help="List the devices and exit.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", metavar="DEVICE", help="Microphone: number, name or part of it. Default: the system's."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DEVICE", help="Loudspeaker or virtual cable. Default: the system's."),
    ] = None,
    rate: Annotated[
        int | None, typer.Option(min=1, metavar="HZ", help="Sample rate. Default: that of the microphone.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Number of channels of the microphone.")] = 1,
    strength: Annotated[
        float | None, typer.Option(min=0, metavar="DB", help="Attenuate noise by at most DB. Default: no limit.")
    ] = None,
    block: Annotated[
        float,
        typer.Option(
            min=1, max=1000, metavar="MS", help="Duration of a block. Longer: fewer dropouts. Shorter: less latency."
        ),
    ] = 10,
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Record to FILE, once before and once after (call.before.wav, call.after.wav)."
        ),
    ] = None,
    overwrite: Overwrite = False,
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"Name of a causal model (see `clearstate models`), {MODEL_FILES}.")
    ] = "live",
    backend: Runtime = Backend.auto,
) -> None:
    """Remove noise from a microphone while you speak, and play the result to a loudspeaker or a virtual cable.

    The status line shows the levels, the measured latency, the load and the number of dropouts. Press `b` to hear the
    unprocessed sound, and `q` or Ctrl-C to stop. If a device disappears, the command waits until it returns.

    To use it in a call, let the output be a virtual cable, and choose the cable as the microphone of the call.

    **Examples**

    `clearstate live --list`

    `clearstate live --input "USB Microphone" --output BlackHole --record call.wav`
    """
    from clearstate.live import devices

    try:
        devices.portaudio()
        if list_devices:
            print_devices()
            return
        check_model(model, "enhance", "--model")
        microphone = devices.find(source, "input")
        devices.find(target, "output")
    except (ValueError, ImportError) as error:
        raise UsageError(explain(error)) from error
    import clearstate
    from clearstate.live.cable import Cable
    from clearstate.live.session import Session

    rate = rate or microphone.rate
    try:
        stream = clearstate.Stream(model, rate, channels=channels, strength=strength, backend=backend.value)
        recorder = open_recorder(record, stream, overwrite)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(explain(error)) from error
    warm_up(stream)
    cable = Cable(stream, max(1, round(rate * block / 1000)), recorder.put if recorder else None)
    with Stop() as stop:
        complete = False
        try:
            watch(Session(cable, source, target, note), cable, stop)
            complete = True
        except (ValueError, ImportError) as error:
            raise UsageError(explain(error)) from error
        finally:
            if recorder and complete:
                cable.finish()
            if recorder:
                recorder.close(complete)
    conclude(cable, recorder)


def print_devices() -> None:
    """Print a table of all devices to stdout."""
    from rich.console import Console
    from rich.table import Table

    from clearstate.live.devices import devices

    table = Table(box=None, pad_edge=False)
    for column in ("", "number", "name", "channels", "rate"):
        table.add_column(column, justify="left" if column in ("", "name") else "right", no_wrap=column != "name")
    for kind in ("input", "output"):
        for device in devices(kind):
            number = "" if device.number is None else str(device.number)
            default = "  (default)" if device.default else ""
            table.add_row(kind, number, device.name + default, str(device.channels), f"{device.rate} Hz")
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def open_recorder(record: str | None, stream: "Stream", overwrite: bool) -> "Recorder | None":
    """The recorder that --record asks for."""
    if record is None:
        return None
    from clearstate.live.recorder import Recorder

    return Recorder(record, stream.sample_rate, stream.channels, stream.latency_samples, overwrite)


def warm_up(stream: "Stream") -> None:
    """Compile and allocate everything before the microphone opens."""
    import numpy as np

    stream.process(np.zeros((stream.channels, round(WARM_UP_SECONDS * stream.sample_rate)), np.float32))
    stream.reset()


def watch(session: "Session", cable: "Cable", stop: "Stop") -> None:
    """Run the session until the user or the system asks for its end. On a terminal, show a status line."""
    from rich.console import Console
    from rich.live import Live

    stream = cable.stream
    block, late = (1000 * samples / stream.sample_rate for samples in (cable.block, stream.latency_samples))
    note(
        f"clearstate: {session.source.name} to {session.target.name}, {stream.sample_rate} Hz, {stream.channels} ch, "
        f"blocks of {block:.0f} ms; latency of the model {late:.1f} ms"
    )
    console = Console(stderr=True)
    session.tell = lambda line: console.print(f"clearstate: {line}", markup=False, highlight=False, soft_wrap=True)
    with Keys() as keys, Live(console=console, auto_refresh=False, transient=True) as live:

        def tick() -> None:
            for key in keys.pressed():
                if key in "bB":
                    cable.switch.bypass = not cable.switch.bypass
                elif key in "qQ\x03\x04":
                    stop.asked = True
            if console.is_terminal:
                live.update(status(cable.meter(), session.waiting, KEYS if keys.working else ""), refresh=True)

        session.run(lambda: stop.asked, tick)


def status(meter: "Meter", waiting: str, keys: str) -> "Text":
    """One line for the terminal."""
    from rich.text import Text

    latency = "  - " if meter.latency is None else f"{1000 * meter.latency:4.0f}"
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(
        waiting or ("bypass" if meter.bypass else "live"), "yellow" if waiting or meter.bypass else "bold green"
    )
    line.append(
        f"  in {bar(meter.level_in)} {meter.level_in:4.0f} dB  out {bar(meter.level_out)} {meter.level_out:4.0f} dB"
    )
    line.append(f"  latency {latency} ms  load {meter.load:4.0%}  ", "red" if meter.load > 1 else "")
    line.append(f"dropouts {meter.dropouts}", "red" if meter.dropouts else "")
    line.append(f"   {keys}", "dim")
    return line


def bar(decibels: float, width: int = 8) -> str:
    """A level meter from LOWEST_DB to 0 dBFS.

    >>> bar(0), bar(-30), bar(-99)
    ('████████', '████    ', '        ')
    """
    steps = round(width * 8 * min(1.0, max(0.0, 1 - decibels / LOWEST_DB)))
    full, rest = divmod(steps, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if full < width else "")).ljust(width)


def conclude(cable: "Cable", recorder: "Recorder | None") -> None:
    """Print the report, and fail if the recording did."""
    meter = cable.meter()
    latency = "" if meter.latency is None else f"; latency {1000 * meter.latency:.0f} ms (measured)"
    plural = "" if meter.dropouts == 1 else "s"
    note(
        f"clearstate: {clock(meter.seconds)} of sound{latency}; load {meter.load:.0%}; {meter.dropouts} dropout{plural}"
    )
    if recorder and recorder.error:
        raise CommandError(f"nothing was recorded: {explain(recorder.error)}")
    if recorder:
        note(f"clearstate: recorded {recorder.names[0]} and {recorder.names[1]}")


class Stop:
    """Whether the user or the system has asked for the end, by a key, Ctrl-C or SIGTERM.

    Scripts and terminals often send a signal twice. Only one that comes after PATIENCE_SECONDS acts as usual. A plain
    attribute holds the answer: a signal handler must not wait for the lock of a `threading.Event`.
    """

    def __init__(self) -> None:
        self.asked = False
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, frame: Any) -> None:
        self.asked, now = True, time.monotonic()
        self._first = now if self._first is None else self._first
        if now - self._first > PATIENCE_SECONDS:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)


class Keys:
    """The keys pressed on the terminal, without waiting for Enter. `working` is False if stdin is not a terminal."""

    def __init__(self) -> None:
        self.working = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
        self._restore: Any = None

    def __enter__(self) -> "Keys":
        if self.working and sys.platform != "win32":
            import termios
            import tty

            self._restore = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *error: object) -> None:
        if self._restore and sys.platform != "win32":
            import termios

            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._restore)

    def pressed(self) -> str:
        """The keys since the last call."""
        keys = ""
        if not self.working:
            return keys
        if sys.platform == "win32":
            import msvcrt

            while msvcrt.kbhit():
                keys += msvcrt.getwch()
            return keys
        import os
        import select

        while select.select([sys.stdin], [], [], 0)[0]:
            fresh = os.read(sys.stdin.fileno(), 64)
            if not fresh:
                self.working = False  # the terminal is gone
                break
            keys += fresh.decode(errors="replace")
        return keys
