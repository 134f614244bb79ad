"""Microphones and loudspeakers: PortAudio's devices and, on Linux, the sources and sinks of PulseAudio or PipeWire.

On Linux, PortAudio sees the whole sound server as one device, "pulse". The server's own devices are listed by `pactl`.
The environment variables PULSE_SOURCE and PULSE_SINK select one of them when a stream opens.
"""

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from clearstate.audio.quiet import verbose

Kind = Literal["input", "output"]

SERVER = "pulse"  # PortAudio's name for the sound server
SELECTS = {"input": "PULSE_SOURCE", "output": "PULSE_SINK"}
LISTS = {"input": "sources", "output": "sinks"}
PATIENCE_SECONDS = 5.0  # for an answer of the sound server
MOST_SHOWN = 6  # names in an error message


class DeviceError(ValueError):
    """There is no such device. The message names the remedy."""


@dataclass(frozen=True)
class Device:
    """A device that can be opened.

    Attributes:
        number: PortAudio's; None for a device of the sound server.
    """

    name: str
    kind: Kind
    channels: int
    rate: int  # Hz, its default
    number: int | None = None
    default: bool = False


def portaudio() -> Any:
    """The module `sounddevice`.

    Raises:
        ImportError: with the remedy, if it or PortAudio is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise ImportError("live audio needs the package sounddevice: pip install 'clearstate[live]'") from error
    except OSError as error:
        raise ImportError(
            "live audio needs the library PortAudio; on Debian and Ubuntu: apt install libportaudio2"
        ) from error
    _silence_alsa()
    return sounddevice


@cache
def _silence_alsa() -> object:
    """Make ALSA report nothing to stderr: the errors that matter arrive through PortAudio."""
    if verbose() or not (sys.platform == "linux" and (library := ctypes.util.find_library("asound"))):
        return None
    handler = ctypes.CFUNCTYPE(None)(lambda: None)  # ALSA's arguments are not looked at
    ctypes.CDLL(library).snd_lib_error_set_handler(handler)
    return handler  # the cache keeps it alive


def renew() -> None:
    """Make PortAudio look for devices again. No stream may be open."""
    sounddevice = portaudio()
    sounddevice._terminate()
    sounddevice._initialize()


def devices(kind: Kind) -> list[Device]:
    """All microphones ("input") or loudspeakers ("output")."""
    sounddevice = portaudio()
    apis = [api["name"] for api in sounddevice.query_hostapis()]
    several = sum(bool(api["devices"]) for api in sounddevice.query_hostapis()) > 1
    default = sounddevice.default.device[0 if kind == "input" else 1]
    found = [
        Device(
            f"{entry['name']}, {apis[entry['hostapi']]}" if several else entry["name"],
            kind,
            entry[f"max_{kind}_channels"],
            round(entry["default_samplerate"]),
            number,
            number == default,
        )
        for number, entry in enumerate(sounddevice.query_devices())
        if entry[f"max_{kind}_channels"]
    ]
    return found + (_of_the_server(kind) if any(_is_server(device) for device in found) else [])


def find(word: str | None, kind: Kind) -> Device:
    """The device that `word` names: its number, its name, or a part of its name. None is the default device.

    Raises:
        DeviceError: if there is none, or several.
    """
    every = devices(kind)
    if word is None:
        found = [device for device in every if device.default]
    elif word.isdecimal():
        found = [device for device in every if device.number == int(word)]
    else:
        found = [device for device in every if device.name.lower() == word.lower()] or [
            device for device in every if word.lower() in device.name.lower()
        ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(device.name) for device in (found or every)[:MOST_SHOWN]) or "none"
    if len(found) > 1:
        raise DeviceError(f"several {kind} devices match {word!r}: {names}; give more of the name, or a number")
    missing = f"no {kind} device is called {word!r}" if word else f"there is no default {kind} device"
    raise DeviceError(f"{missing}; there are: {names} (`clearstate live --list` shows all)")


def address(device: Device) -> int | str:
    """What PortAudio opens. For a device of the sound server, the environment selects it."""
    if device.number is not None:
        if _is_server(device):
            os.environ.pop(SELECTS[device.kind], None)
        return device.number
    os.environ[SELECTS[device.kind]] = device.name
    return SERVER


def present(device: Device) -> bool:
    """Whether a device of the sound server still exists; True for all others, which report their end themselves.

    The server moves the streams of a device that disappears to another one, without a word.
    """
    if device.number is not None:
        return True
    names = [other.name for other in _of_the_server(device.kind)]
    return device.name in names or not names  # a server that does not answer says nothing about the device


def _is_server(device: Device) -> bool:
    return device.name.partition(",")[0] == SERVER


def _of_the_server(kind: Kind) -> list[Device]:
    if shutil.which("pactl") is None:
        return []
    try:
        listed = subprocess.run(
            ["pactl", "list", "short", LISTS[kind]],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in listed.stdout.splitlines():  # 1  mic.monitor  module-null-sink.c  s16le 2ch 48000Hz  IDLE
        fields = line.split("\t")
        if len(fields) > 3 and len(form := fields[3].split()) == 3:
            found.append(Device(fields[1], kind, int(form[1].removesuffix("ch")), int(form[2].removesuffix("Hz"))))
    return found
