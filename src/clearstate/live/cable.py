"""What is between a microphone and a loudspeaker: the model, and a buffer between two sound cards.

The microphone's thread calls `captured`, the loudspeaker's thread calls `play`. Two sound cards have two clocks, and
both threads may be late. The buffer therefore keeps a reserve: the samples that remain after `play` took its own. Every
few seconds, its mean since the last time is compared with the wanted one. A large difference is corrected by playing a
little faster or slower, which is inaudible.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clearstate.tasks.bypass import Block, LiveStream, Switch

FIRST_RESERVE = 2  # blocks; a thread may be late by one
MOST_RESERVE = 8  # blocks; every dropout adds one block to the wanted reserve, up to this
START_SECONDS = 1.0  # after this, the wanted reserve is made at once
MOST_STRETCH = 0.001  # of a block that is skipped or inserted; changes the pitch by 2 cents
WATCH_SECONDS = 4.0  # between two corrections after that
MOST_EXCESS = 10  # blocks; more than this after a standstill is skipped at once
LEVEL_SECONDS = 0.1  # time constant of the level meters
LOAD_SECONDS = 1.0  # time constant of load and latency
SILENT = 1e-6  # -120 dBFS, the lowest level shown


@dataclass(frozen=True)
class Meter:
    """What the status line shows."""

    level_in: float  # dBFS
    level_out: float  # dBFS
    latency: float | None  # seconds from microphone to loudspeaker, measured; None before the first sound
    load: float  # processing time as a share of the block
    dropouts: int
    seconds: float  # of sound played
    bypass: bool


class Cable:
    """Pass sound from a microphone through `stream` to a loudspeaker.

    Args:
        stream: the model.
        block: samples per call of `captured` and `play`; the unit of the reserve.
        record: receives every block before and after the model. The blocks after are late by `stream.latency_samples`.
    """

    def __init__(self, stream: LiveStream, block: int, record: Callable[[Block, Block], None] | None = None) -> None:
        self.stream, self.block, self.record = stream, block, record
        self.switch = Switch(stream)
        self.dropouts = 0
        self._lock = threading.Lock()
        self._wanted = FIRST_RESERVE * block  # samples
        self._levels = [0.0, 0.0]  # RMS of input and output
        self._load = 0.0
        self._latency: float | None = None
        self._pushed = 0  # samples that entered the buffer since the start
        self._played = 0  # samples that left it
        self.restart()

    def restart(self) -> None:
        """Empty the buffer, because a device was away. The model keeps its state."""
        with self._lock:
            self._held = np.zeros((self.stream.channels, 0), np.float32)
            self._running = False
            self._since = 0  # samples played since the restart
            self._counted = 0  # samples played since the last correction
            self._sum = 0  # of the reserve, over these samples
            self._slip = 0  # samples to skip, or to insert if negative
            self._anchor: tuple[int, float] | None = None  # a sample's number in the input, and when it was captured

    def captured(self, block: Block, when: float | None = None) -> None:
        """Take the next samples of the microphone.

        Args:
            when: time of the first sample in seconds; None if unknown.
        """
        start, count = time.perf_counter(), block.shape[1]
        out = self.switch.process(block)
        if self.record:
            self.record(block, out)
        with self._lock:
            self._anchor = None if when is None else (self._pushed, when)
            self._held = np.concatenate([self._held, out], axis=1)
            self._pushed += count
            if not self._running:  # the loudspeaker has not started
                self._held = self._held[:, -(self._wanted + self.block) :]
        seconds = count / self.stream.sample_rate
        for i, samples in enumerate((block, out)):
            fallen = self._levels[i] * np.exp(-seconds / LEVEL_SECONDS)
            self._levels[i] = max(float(np.sqrt(np.mean(np.square(samples)))) if count else 0.0, float(fallen))
        keep = np.exp(-seconds / LOAD_SECONDS)
        self._load = float(keep * self._load + (1 - keep) * (time.perf_counter() - start) / max(seconds, 1e-9))

    def finish(self) -> None:
        """Pass the last samples, which the model holds back, to `record`."""
        rest = self.switch.flush()
        if self.record:
            self.record(rest[:, :0], rest)

    def play(self, count: int, when: float | None = None) -> Block:
        """Return the next `count` samples for the loudspeaker; silence if there are none.

        Args:
            when: time at which the first of them sounds, in seconds of the same clock; None if unknown.
        """
        with self._lock:
            held = self._held.shape[1]
            if not self._running:
                self._running = held >= self._wanted + count
            if not self._running:
                return np.zeros((self.stream.channels, count), np.float32)
            if held < count:
                return self._dropout(count)
            most = max(1, round(MOST_STRETCH * count))
            take = min(count + int(np.clip(self._slip, -most, most)), held) if count > 1 else count
            self._slip -= take - count
            self._measure(held, count, when)
            out, self._held = self._held[:, :take], self._held[:, take:]
            self._played += count
            self._since += count
            self._correct(held - take, count)
        return out if take == count else stretched(out, count)

    def lost(self) -> None:
        """Count samples that the system lost."""
        if self._settled():
            self.dropouts += 1

    def meter(self) -> Meter:
        """The present values."""
        low, high = (20 * float(np.log10(max(level, SILENT))) for level in self._levels)
        seconds = self._played / self.stream.sample_rate
        return Meter(low, high, self._latency, self._load, self.dropouts, seconds, self.switch.bypass)

    def _dropout(self, count: int) -> Block:
        """Play the rest and silence; wait until the reserve is there again, which becomes longer."""
        self.lost()
        out = np.zeros((self.stream.channels, count), np.float32)
        out[:, : self._held.shape[1]] = self._held[:, :count]
        self._held, self._running, self._sum, self._counted, self._slip = self._held[:, count:], False, 0, 0, 0
        self._wanted = min(self._wanted + self.block, MOST_RESERVE * self.block)
        return out

    def _settled(self) -> bool:
        """Devices start unevenly, so the first seconds do not count."""
        return self._since > (1 + START_SECONDS) * self.stream.sample_rate

    def _measure(self, held: int, count: int, when: float | None) -> None:
        """The time from capturing to playing the sample at the front of the buffer."""
        if when is None or self._anchor is None:
            return
        number, captured = self._anchor
        front = self._pushed - held - self.stream.latency_samples
        latency = when - captured - (front - number) / self.stream.sample_rate
        keep = np.exp(-count / self.stream.sample_rate / LOAD_SECONDS) if self._latency is not None else 0.0
        self._latency = float(keep * (self._latency or 0.0) + (1 - keep) * latency)

    def _correct(self, reserve: int, count: int) -> None:
        """After the first second and then every WATCH_SECONDS, decide how many samples to skip or to insert."""
        self._sum += reserve * count
        self._counted += count
        starting = self._since <= (1 + START_SECONDS) * self.stream.sample_rate
        if self._counted < (START_SECONDS if starting else WATCH_SECONDS) * self.stream.sample_rate:
            return
        excess = self._sum // self._counted - self._wanted
        self._sum, self._counted, self._slip = 0, 0, 0
        if starting and excess < -self.block // 2:
            self._running = False  # until the reserve is there
        elif starting or excess > MOST_EXCESS * self.block:
            self.lost()
            self._held = self._held[:, max(0, reserve - self._wanted) :]
        elif not -self.block // 2 <= excess <= 2 * self.block:  # late threads, not clocks, cause less than this
            self._slip = excess


def stretched(block: Block, count: int) -> Block:
    """Interpolate a block to `count` samples.

    >>> stretched(np.array([[0.0, 1.0, 2.0]]), 5)
    array([[0. , 0.5, 1. , 1.5, 2. ]], dtype=float32)
    """
    size = block.shape[1]
    places = np.linspace(0, size - 1, count)
    return np.stack([np.interp(places, np.arange(size), row) for row in block]).astype(np.float32)
