"""What a service measures about itself, in the text format of Prometheus."""

from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily

FINE = (0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds


class Times:
    """How many values fell into each bucket, and their sum. Without the locks of `Histogram`: it counts every chunk."""

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(FINE) + 1), 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count `times` equal values."""
        self.counts[bisect_left(FINE, seconds)] += times
        self.sum += times * seconds

    def add(self, other: "Times") -> None:
        """Count the values of another one."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class TimesCollector:
    """Shows `Times` as a histogram of Prometheus."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self.name, self.text, self.times = name, text, Times()
        registry.register(self)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Called by the registry."""
        bounds = [*map(str, FINE), "+Inf"]
        pairs = list(zip(bounds, accumulate(self.times.counts), strict=True))
        yield HistogramMetricFamily(self.name, self.text, buckets=pairs, sum_value=self.times.sum)


@dataclass
class Tally:
    """What the streams of one process count between two ticks of its clock."""

    hops: Times = field(default_factory=Times)
    lags: Times = field(default_factory=Times)
    late: int = 0  # chunks
    audio_seconds: float = 0.0
    rejected: Counted[str] = field(default_factory=Counted)  # by code
    failed: int = 0  # streams


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.streams = Gauge("clearstate_streams", "Open streams.", registry=registry)
        self.streams_total = Counter("clearstate_streams_opened", "Streams admitted.", registry=registry)
        self.hop = TimesCollector("clearstate_hop_seconds", "Processing time per hop of a stream.", registry)
        self.lag = TimesCollector(
            "clearstate_lag_seconds", "Time from the arrival of a message until its output is ready.", registry
        )
        self.load = Gauge("clearstate_load", "Share of the capacity for streams in use.", registry=registry)
        self.rejected = Counter("clearstate_rejected", "Refused requests and streams.", ["code"], registry=registry)
        self.errors = Counter("clearstate_errors", "Streams and jobs that failed.", ["where"], registry=registry)
        self.jobs = Gauge("clearstate_jobs", "Jobs, by state.", ["state"], registry=registry)
        self.job_seconds = Histogram(
            "clearstate_job_seconds", "Processing time per file.", ["task"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600), registry=registry,
        )  # fmt: skip
        self.audio = Counter("clearstate_audio_seconds", "Audio processed.", ["task"], registry=registry)

    def add(self, tally: Tally) -> None:
        """Add what streams have counted."""
        self.hop.times.add(tally.hops)
        self.lag.times.add(tally.lags)
        self.audio.labels("stream").inc(tally.audio_seconds)
        for code, count in tally.rejected.items():
            self.rejected.labels(code).inc(count)
        self.errors.labels("stream").inc(tally.failed)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)
