"""Decide whether the machine can serve one more stream in time.

A stream is refused if the processor time that all streams need would exceed the capacity, or while the service is
already late. The cost of a stream is measured before the start (`calibrate`) and corrected by what the streams in
progress really cost, with everything around the model. So a burst of new streams is refused in time, before any
measurement shows it.

Only monotonic clocks are used: a change of the system's time has no effect.
"""

import time
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from clearstate.runtime.contract import EnhancementModel
from clearstate.serve.errors import RefusedError
from clearstate.serve.metrics import Metrics, Tally
from clearstate.serve.settings import Settings, usable_cores
from clearstate.tasks.stream import Stream

FULL = 0.78  # share of the capacity; above it, queues grow at random, and clients on this machine need some, too
TICK_SECONDS = 0.25  # between two measurements
MEMORY_SECONDS = 2.0  # of the averages, and until the cost of a new stream is part of them
LATE_SHARE = 0.01  # of the chunks
LEAST_FACTOR = 0.7  # however little the streams in progress seem to cost
HOPELESS_SHARE = 0.5  # of the chunks late
GIVE_UP_SECONDS = 3.0
NETWORK = 0.0067  # processor seconds per second of a stream, for its 50 messages; so with 100 streams on two cores
CHUNK_SECONDS = 0.02
IN_TURN = 32  # streams of a measurement: the caches hold as little of each as in service
ROUNDS = 4
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


def calibrate(model: EnhancementModel) -> Cost:
    """Measure the cost of a stream on this machine; also compiles what is not compiled yet."""

    def measure(rate: int) -> float:
        streams, rng = [Stream(model, rate) for _ in range(IN_TURN)], np.random.default_rng(0)
        chunk = (0.1 * rng.standard_normal(int(CHUNK_SECONDS * rate))).astype(np.float32)
        for stream in streams:
            stream.process(chunk)
        started = time.thread_time()
        for _ in range(ROUNDS):
            for stream in streams:
                stream.process(chunk)
        return (time.thread_time() - started) / (ROUNDS * IN_TURN * CHUNK_SECONDS)

    return Cost(measure(model.sample_rate), measure(OTHER_RATE), model.sample_rate)


@dataclass
class Place:
    """An event loop that serves streams: that of this process, or one of its own process. It can use one core."""

    clock: float = 0.0  # processor seconds so far
    used: float = 0.0  # share of a core, averaged


@dataclass
class Seat:
    """What one admitted stream takes."""

    owner: str
    place: int
    cost: float
    since: float


@dataclass
class Admission:
    """The streams in progress and what they cost.

    Args:
        processes: that serve streams; 0: this process does.
    """

    settings: Settings
    cost: Cost
    metrics: Metrics
    processes: int = 0
    seats: dict[int, Seat] = field(default_factory=dict)
    draining: bool = False

    def __post_init__(self) -> None:
        self.places = [Place() for _ in range(self.processes or 1)]
        self.cores = min(usable_cores(), len(self.places))
        self.factor = 1.0  # real cost of streams relative to `Cost`
        self.used = 0.0  # cores in use, averaged
        self.chunks = self.late = 0.0  # recent chunks, and those that took longer than `lag_seconds`
        self.in_time = time.monotonic()
        self._numbers = count(1)
        self._before = time.monotonic(), self._clocks()

    def admit(self, owner: str, rate: int, channels: int, place: int = 0) -> int:
        """Reserve a seat and return its number.

        Raises:
            RefusedError: with the reason.
        """
        if self.draining:
            raise RefusedError("draining", "the service is shutting down; connect again in some seconds")
        seats = self.seats.values()
        if sum(seat.owner == owner for seat in seats) >= self.settings.streams_per_key:
            raise RefusedError("limit", f"{self.settings.streams_per_key} streams are open, the most for one client")
        if self.settings.most_streams is not None and len(seats) >= self.settings.most_streams:
            raise RefusedError("busy", f"{len(seats)} streams are open, the most of this service; try again later")
        if self.is_late:
            raise RefusedError("busy", "the service is late with the streams in progress; try again later")
        now, cost = time.monotonic(), self.cost.of(rate, channels)
        new = [seat for seat in seats if now - seat.since < MEMORY_SECONDS]
        everywhere = self.used + self.factor * (cost + sum(seat.cost for seat in new))
        here = self.places[place].used + self.factor * (cost + sum(seat.cost for seat in new if seat.place == place))
        if seats and max(everywhere / self.cores, here) > FULL:
            raise RefusedError("busy", f"all capacity is in use by {len(seats)} streams; try again later")
        number = next(self._numbers)
        self.seats[number] = Seat(owner, place, cost, now)
        self.metrics.streams.set(len(self.seats))
        self.metrics.streams_total.inc()
        return number

    def leave(self, number: int) -> None:
        """Give a seat back."""
        self.seats.pop(number, None)
        self.metrics.streams.set(len(self.seats))

    def evacuate(self, place: int) -> None:
        """Give all seats of a place back, because its process has died."""
        for number in [number for number, seat in self.seats.items() if seat.place == place]:
            self.leave(number)

    def count(self, tally: Tally, place: int = 0, spent: float = 0.0) -> None:
        """Add what the streams of a place have counted, and the processor seconds that its process spent meanwhile."""
        self.metrics.add(tally)
        self.chunks += sum(tally.lags.counts)
        self.late += tally.late
        self.places[place].clock += spent

    @property
    def is_late(self) -> bool:
        """Whether more than LATE_SHARE of the recent chunks were late."""
        return self.late > max(1.0, LATE_SHARE * self.chunks)

    @property
    def load(self) -> float:
        """Share of the capacity in use."""
        return max(self.used / self.cores, *(place.used for place in self.places))

    def to_give_up(self) -> list[int]:
        """The newest streams, a tenth of all, if the service has been late for GIVE_UP_SECONDS; then it waits again.

        Something else may have taken the processor. Without this, every stream would be late for as long as it lasts.
        """
        now = time.monotonic()
        if self.late < HOPELESS_SHARE * self.chunks or not self.chunks:
            self.in_time = now
        if now - self.in_time < GIVE_UP_SECONDS or len(self.seats) < 2:
            return []
        self.in_time = now
        newest = sorted(self.seats, key=lambda number: self.seats[number].since, reverse=True)
        return newest[: max(1, len(newest) // 10)]

    def tick(self) -> None:
        """Measure. Call it in the event loop every TICK_SECONDS."""
        now, clocks = time.monotonic(), self._clocks()
        elapsed, spent = now - self._before[0], [new - old for new, old in zip(clocks, self._before[1], strict=True)]
        self._before = now, clocks
        share = min(1.0, elapsed / MEMORY_SECONDS)
        self.used += share * (spent[0] / elapsed - self.used)
        for place, own in zip(self.places, spent[1:], strict=True):
            place.used += share * (own / elapsed - place.used)
        self.chunks *= 1 - share
        self.late *= 1 - share
        settled = [seat.cost for seat in self.seats.values() if now - seat.since > 2 * MEMORY_SECONDS]
        if len(settled) >= 10 and len(settled) > 0.8 * len(self.seats):
            real = self.used / sum(seat.cost for seat in self.seats.values())
            self.factor += 0.1 * share * (max(LEAST_FACTOR, real) - self.factor)
        self.metrics.load.set(self.load)

    def _clocks(self) -> list[float]:
        """Processor seconds so far: of all, and of each place."""
        if not self.processes:
            return [time.process_time(), time.thread_time()]
        clocks = [place.clock for place in self.places]
        return [time.process_time() + sum(clocks), *clocks]
