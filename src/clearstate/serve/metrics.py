"""What a service measures about itself, in the text format of Prometheus."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily

FINE = (0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds


class Times:
    """A histogram that only one thread writes to, without the locks of `Histogram`: it counts every chunk."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self.name, self.text, self.sum = name, text, 0.0
        self.counts = [0] * (len(FINE) + 1)
        registry.register(self)

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count `times` equal values."""
        self.counts[bisect_left(FINE, seconds)] += times
        self.sum += times * seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Called by the registry."""
        bounds = [*map(str, FINE), "+Inf"]
        pairs = list(zip(bounds, accumulate(self.counts), strict=True))
        yield HistogramMetricFamily(self.name, self.text, buckets=pairs, sum_value=self.sum)


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.streams = Gauge("clearstate_streams", "Open streams.", registry=registry)
        self.streams_total = Counter("clearstate_streams_opened", "Streams admitted.", registry=registry)
        self.hop = Times("clearstate_hop_seconds", "Processing time per hop of a stream.", registry)
        self.lag = Times(
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

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)
