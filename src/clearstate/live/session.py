"""Connect a `Cable` to two devices, and connect it again when a device that disappeared returns."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from clearstate.live import devices
from clearstate.live.cable import Cable

TICK_SECONDS = 0.1  # between two looks at the devices' threads
SILENCE_SECONDS = 3.0  # a device that asks nothing for this long has disappeared
LOOK_SECONDS = 1.0  # between two looks at the list of devices
BLOCKS = 2  # of buffer that a device is asked to have


class Session:
    """Live audio from one device to another.

    Args:
        source, target: as `devices.find` takes them.
        cable: what is between them.
        tell: receives a line for the user when a device disappears or returns.
    Attributes:
        waiting: why there is no sound at present; empty if there is.
    """

    def __init__(self, cable: Cable, source: str | None, target: str | None, tell: Callable[[str], None]) -> None:
        self.cable, self.tell = cable, tell
        self.source, self.target = devices.find(source, "input"), devices.find(target, "output")
        self.waiting = ""
        self._error: BaseException | None = None
        self._asked = [0.0, 0.0]  # when the devices' threads last ran

    def run(self, stopped: Callable[[], bool], tick: Callable[[], None]) -> None:
        """Run until `stopped()`; `tick` is called ten times per second.

        Nothing here waits for a lock, so a signal handler may decide that it is time to stop.

        Raises:
            DeviceError: if a device cannot be opened at the start. Later, the session waits for it.
        """
        started = False
        while not stopped():
            try:
                with self._open():
                    if started:
                        self.tell("the device is back")
                    self.waiting, started = "", True
                    self.waiting = self._watch(stopped, tick)
            except devices.DeviceError as error:
                if not started:
                    raise
                self.waiting = self.waiting or str(error)
            if self.waiting and not stopped():
                self._wait(stopped, tick)

    def _watch(self, stopped: Callable[[], bool], tick: Callable[[], None]) -> str:
        """Return when `stopped()`, or when a device has disappeared, with the reason."""
        looked = time.monotonic()
        while not stopped():
            time.sleep(TICK_SECONDS)
            tick()
            if self._error:
                raise self._error
            now = time.monotonic()
            look = now - looked > LOOK_SECONDS
            for device, asked in zip((self.source, self.target), self._asked, strict=True):
                if now - asked > SILENCE_SECONDS or (look and not devices.present(device)):
                    self.tell(f"{device.name} has disappeared; waiting for it")
                    return f"waiting for {device.name}"
            looked = now if look else looked
        return ""

    def _wait(self, stopped: Callable[[], bool], tick: Callable[[], None]) -> None:
        until = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < until and not stopped():
            time.sleep(TICK_SECONDS)
            tick()
        if not stopped():
            devices.renew()

    @contextmanager
    def _open(self) -> Iterator[None]:
        sounddevice, stream, block = devices.portaudio(), self.cable.stream, self.cable.block
        source, target = (devices.find(d.name, d.kind) for d in (self.source, self.target))
        spread = (
            min(2, target.channels) if stream.channels == 1 else stream.channels
        )  # one channel sounds left and right
        settings: dict[str, Any] = {"dtype": "float32", "latency": BLOCKS * block / stream.sample_rate}
        self.cable.restart()
        with ExitStack() as opened:
            # The loudspeaker starts first, because it takes some blocks at once.
            for device, kind, channels, callback in (
                (target, sounddevice.OutputStream, spread, self._play),
                (source, sounddevice.InputStream, stream.channels, self._capture),
            ):
                try:
                    place = devices.address(device)
                    port = kind(stream.sample_rate, block, place, channels, callback=callback, **settings)
                    opened.callback(port.close)
                    port.start()
                    opened.callback(port.abort)
                except sounddevice.PortAudioError as error:
                    raise devices.DeviceError(
                        f"{device.name} cannot be opened with {stream.sample_rate} Hz and {channels} channels "
                        f"({error}); its own rate is {device.rate} Hz: try --rate {device.rate}"
                    ) from error
            self._asked = [time.monotonic()] * 2
            yield

    def _capture(self, data: Any, count: int, when: Any, status: Any) -> None:
        """Called by PortAudio in the microphone's thread."""
        self._asked[0] = time.monotonic()
        if status:
            self.cable.lost()
        try:
            self.cable.captured(np.ascontiguousarray(data.T), _seconds(when.inputBufferAdcTime))
        except Exception as error:
            self._error = error

    def _play(self, data: Any, count: int, when: Any, status: Any) -> None:
        """Called by PortAudio in the loudspeaker's thread."""
        self._asked[1] = time.monotonic()
        if status:
            self.cable.lost()
        try:
            data[:] = self.cable.play(count, _seconds(when.outputBufferDacTime)).T
        except Exception as error:
            data[:] = 0
            self._error = error


def _seconds(time: float) -> float | None:
    """A time of PortAudio; some systems give none."""
    return time if time > 0 and math.isfinite(time) else None
