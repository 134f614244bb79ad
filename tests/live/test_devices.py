"""Devices are found by number, name, or part of the name."""

import subprocess
import sys

import pytest

from clearstate.live import devices
from clearstate.live.devices import DeviceError, find

APIS = ["ALSA", "JACK"]
NAMES = [("pulse", 0, 32, 32), ("USB Microphone", 0, 1, 0), ("Speakers", 0, 0, 2), ("USB Headset", 1, 1, 2)]
SERVER = {
    "sources": "7\talsa.mic\tmodule.c\ts16le 1ch 44100Hz\tIDLE\n"
    "8\tcable.monitor\tPipeWire\tfloat32le 2ch 48000Hz\tSUSPENDED\n",
    "sinks": "9\tcable\tPipeWire\tfloat32le 2ch 48000Hz\tRUNNING\n",
}


class PortAudio:
    class default:  # noqa: N801
        device = (1, 2)

    @staticmethod
    def query_hostapis():
        return [{"name": name, "devices": [0]} for name in APIS]

    @staticmethod
    def query_devices():
        return [
            {
                "name": n,
                "hostapi": api,
                "max_input_channels": i,
                "max_output_channels": o,
                "default_samplerate": 44_100.0,
            }
            for n, api, i, o in NAMES
        ]


@pytest.fixture(autouse=True)
def _two_apis_and_a_sound_server(monkeypatch):
    monkeypatch.setattr(devices, "portaudio", lambda: PortAudio)
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        devices.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, SERVER[command[-1]])
    )
    for name in devices.SELECTS.values():
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("word", "kind", "name"),
    [
        (None, "input", "USB Microphone, ALSA"),
        (None, "output", "Speakers, ALSA"),
        ("3", "output", "USB Headset, JACK"),
        ("microphone", "input", "USB Microphone, ALSA"),
        ("usb headset, jack", "output", "USB Headset, JACK"),
        ("cable.monitor", "input", "cable.monitor"),
        ("alsa.mic", "input", "alsa.mic"),
        ("cable", "output", "cable"),
    ],
)
def test_a_device_is_found(word, kind, name):
    assert find(word, kind).name == name


@pytest.mark.parametrize(
    ("word", "kind", "says"),
    [
        ("usb", "input", "several input devices match 'usb': 'USB Microphone, ALSA', 'USB Headset, JACK'"),
        ("speakers", "input", "no input device is called 'speakers'"),
        ("99", "output", "no output device is called '99'"),
        ("1", "output", "no output device is called '1'"),
    ],
)
def test_a_name_that_does_not_fit_is_said_with_the_ones_that_do(word, kind, says):
    with pytest.raises(DeviceError) as error:
        find(word, kind)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_device_of_the_sound_server_is_opened_through_it(monkeypatch):
    assert devices.address(find("alsa.mic", "input")) == "pulse"
    assert devices.os.environ["PULSE_SOURCE"] == "alsa.mic"
    assert devices.address(find("0", "input")) == 0
    assert "PULSE_SOURCE" not in devices.os.environ


def test_a_device_of_the_sound_server_that_is_gone_is_noticed(monkeypatch):
    found = find("cable", "output")
    assert devices.present(found)
    monkeypatch.setitem(SERVER, "sinks", SERVER["sinks"].replace("cable", "another"))
    assert not devices.present(found)
    monkeypatch.setitem(SERVER, "sinks", "")  # no answer
    assert devices.present(found)
    assert devices.present(find("speakers", "output"))


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ImportError, match=r"pip install 'clearstate\[live\]'"):
        devices.portaudio()
