"""Decide whether the machine can serve one more stream in time.

A stream is refused if the processor time that all streams need would exceed the capacity, or while the service is
already late. The cost of a stream is measured before the start (`calibrate`) and corrected by what the streams in
progress really cost, with everything around the model. So a burst of new streams is refused in time, before any
measurement shows it.

Only monotonic clocks are used: a change of the system's time has no effect.
"""

import time
from dataclasses import dataclass, field

import numpy as np

from clearstate.runtime.contract import EnhancementModel
from clearstate.serve.errors import RefusedError
from clearstate.serve.metrics import Metrics
from clearstate.serve.settings import Settings, usable_cores
from clearstate.tasks.stream import Stream

FULL = 0.85  # share of the capacity; above it, queues grow at random
TICK_SECONDS = 0.25  # between two measurements
MEMORY_SECONDS = 2.0  # of the averages, and until the cost of a new stream is part of them
LATE_SHARE = 0.01  # of the chunks
LEAST_FACTOR = 0.7  # however little the streams in progress seem to cost
HOPELESS_SHARE = 0.5  # of the chunks late
GIVE_UP_SECONDS = 3.0
NETWORK = 0.005  # processor seconds per second of a stream, for its 50 messages, before anything is measured
CHUNK_SECONDS = 0.02
OTHER_RATE = 48_000  # Hz; stands for every rate that is not the model's


@dataclass(frozen=True)
class Cost:
    """Processor seconds per second of audio of one channel."""

    plain: float  # at the model's rate
    resampled: float  # at another rate
    model_rate: int

    def of(self, rate: int, channels: int) -> float:
        """The cost of a stream, with its messages."""
        return channels * (self.plain if rate == self.model_rate else self.resampled) + NETWORK


def calibrate(model: EnhancementModel, seconds: float = 1.0) -> Cost:
    """Measure the cost of a stream on this machine; also compiles what is not compiled yet."""

    def measure(rate: int) -> float:
        stream, rng = Stream(model, rate), np.random.default_rng(0)
        chunk = (0.1 * rng.standard_normal(int(CHUNK_SECONDS * rate))).astype(np.float32)
        for _ in range(10):
            stream.process(chunk)
        started = time.thread_time()
        for _ in range(round(seconds / CHUNK_SECONDS)):
            stream.process(chunk)
        return (time.thread_time() - started) / seconds

    return Cost(measure(model.sample_rate), measure(OTHER_RATE), model.sample_rate)


@dataclass(eq=False)
class Seat:
    """The place of one admitted stream."""

    owner: str
    cost: float
    since: float


@dataclass
class Admission:
    """The streams in progress and what they cost."""

    settings: Settings
    cost: Cost
    metrics: Metrics
    seats: set[Seat] = field(default_factory=set)
    draining: bool = False

    def __post_init__(self) -> None:
        self.cores = min(usable_cores(), self.settings.threads + 1)  # the loop has a thread, too
        self.factor = 1.0  # real cost of streams relative to `Cost`
        self.used = self.loop_used = 0.0  # cores of processor time in use; by the event loop alone
        self.chunks = self.late = 0.0  # recent chunks, and those that took longer than `lag_seconds`
        self.in_time = time.monotonic()
        self._before = (time.monotonic(), time.process_time(), time.thread_time())

    def admit(self, owner: str, rate: int, channels: int) -> Seat:
        """Reserve a seat.

        Raises:
            RefusedError: with the reason.
        """
        if self.draining:
            raise RefusedError("draining", "the service is shutting down; connect again in some seconds")
        if sum(seat.owner == owner for seat in self.seats) >= self.settings.streams_per_key:
            raise RefusedError("limit", f"{self.settings.streams_per_key} streams are open, the most for one client")
        if self.settings.most_streams is not None and len(self.seats) >= self.settings.most_streams:
            raise RefusedError("busy", f"{len(self.seats)} streams are open, the most of this service; try again later")
        if self.is_late:
            raise RefusedError("busy", "the service is late with the streams in progress; try again later")
        now, cost = time.monotonic(), self.cost.of(rate, channels)
        new = sum(seat.cost for seat in self.seats if now - seat.since < MEMORY_SECONDS)
        if self.load + self.factor * (new + cost) / self.cores > FULL and self.seats:
            raise RefusedError("busy", f"all capacity is in use by {len(self.seats)} streams; try again later")
        seat = Seat(owner, cost, now)
        self.seats.add(seat)
        self.metrics.streams.set(len(self.seats))
        self.metrics.streams_total.inc()
        return seat

    def leave(self, seat: Seat) -> None:
        """Give a seat back."""
        self.seats.discard(seat)
        self.metrics.streams.set(len(self.seats))

    def delivered(self, lag: float) -> None:
        """Count a chunk that took `lag` seconds."""
        self.chunks += 1
        self.late += lag > self.settings.lag_seconds
        self.metrics.lag.observe(lag)

    @property
    def is_late(self) -> bool:
        """Whether more than LATE_SHARE of the recent chunks were late."""
        return self.late > max(1.0, LATE_SHARE * self.chunks)

    @property
    def load(self) -> float:
        """Share of the capacity in use. The event loop is one thread, so its limit is one core."""
        return max(self.used / self.cores, self.loop_used)

    def to_give_up(self) -> list[Seat]:
        """The newest streams, a tenth of all, if the service has been late for GIVE_UP_SECONDS; then it waits again.

        Something else may have taken the processor. Without this, every stream would be late for as long as it lasts.
        """
        now = time.monotonic()
        if self.late < HOPELESS_SHARE * self.chunks or not self.chunks:
            self.in_time = now
        if now - self.in_time < GIVE_UP_SECONDS or len(self.seats) < 2:
            return []
        self.in_time = now
        newest = sorted(self.seats, key=lambda seat: seat.since, reverse=True)
        return newest[: max(1, len(newest) // 10)]

    def tick(self) -> None:
        """Measure. Call it in the event loop every TICK_SECONDS."""
        now = (time.monotonic(), time.process_time(), time.thread_time())
        elapsed, used, loop_used = (new - old for new, old in zip(now, self._before, strict=True))
        self._before = now
        share = min(1.0, elapsed / MEMORY_SECONDS)
        self.used += share * (used / elapsed - self.used)
        self.loop_used += share * (loop_used / elapsed - self.loop_used)
        self.chunks *= 1 - share
        self.late *= 1 - share
        settled = [seat.cost for seat in self.seats if now[0] - seat.since > 2 * MEMORY_SECONDS]
        if len(settled) >= 10 and len(settled) > 0.8 * len(self.seats):
            real = max(self.used, self.loop_used * self.cores) / sum(seat.cost for seat in self.seats)
            self.factor += 0.1 * share * (max(LEAST_FACTOR, real) - self.factor)
        self.metrics.load.set(self.load)
