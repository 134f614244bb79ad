"""Which streams are admitted, and what the parts behind them promise."""

import asyncio
import threading
import time

import pytest

from clearstate.serve import admission as admission_module
from clearstate.serve.admission import Admission, Cost
from clearstate.serve.errors import CODES, RefusedError
from clearstate.serve.hops import Hops
from clearstate.serve.metrics import Metrics, Times
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool


class Clock:
    """The clocks that an admission reads."""

    def __init__(self, monkeypatch):
        self.now = self.cpu = self.loop = 100.0
        for name, value in (("monotonic", "now"), ("process_time", "cpu"), ("thread_time", "loop")):
            monkeypatch.setattr(admission_module.time, name, lambda value=value: getattr(self, value))
        monkeypatch.setattr(admission_module, "usable_cores", lambda: 2)

    def run(self, admission, seconds, cores=0.0, loop=0.0):
        for _ in range(round(seconds / 0.25)):
            self.now, self.cpu, self.loop = self.now + 0.25, self.cpu + 0.25 * cores, self.loop + 0.25 * loop
            admission.tick()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def opened(cost=0.01, **settings):
    return Admission(Settings(threads=2, **settings), Cost(cost, 2 * cost, 16_000), Metrics())


def admitted(admission, most=10_000, rate=16_000, channels=1):
    """How many more streams are admitted at once."""
    for count in range(most):
        try:
            admission.admit("somebody", rate, channels)
        except RefusedError:
            return count
    return most


def test_a_burst_is_cut_at_the_capacity_before_anything_is_measured(clock):
    assert admitted(opened(0.01)) == 113  # 2 cores x 85 % / (0.01 for the model + 0.005 for the network)
    assert admitted(opened(0.01), rate=48_000) == 68
    assert admitted(opened(0.01), rate=48_000, channels=2) == 37


def test_what_streams_really_cost_counts(clock):
    cheap, dear = opened(0.01), opened(0.01)
    for admission, cores in ((cheap, 0.5), (dear, 1.8)):
        admitted(admission, 50)
        clock.run(admission, 10, cores)
    assert admitted(cheap) > 60
    assert admitted(dear) == 0


def test_the_event_loop_is_one_core(clock):
    admission = opened(0.001)
    admitted(admission, 10)
    clock.run(admission, 10, cores=0.9, loop=0.9)
    assert admitted(admission) == 0


def test_a_late_service_refuses_until_it_is_in_time_again(clock):
    admission = opened()
    for _ in range(100):
        admission.delivered(0.015)
    assert admitted(admission, 1) == 1
    for _ in range(10):
        admission.delivered(0.030)
    assert admitted(admission, 1) == 0
    clock.run(admission, 10)
    assert admitted(admission, 1) == 1


def test_one_stream_is_always_admitted_on_a_slow_machine(clock):
    assert admitted(opened(5.0), 10) == 1


def test_streams_that_leave_make_room(clock):
    admission = opened(most_streams=1)
    seat = admission.admit("somebody", 16_000, 1)
    assert admitted(admission) == 0
    admission.leave(seat)
    assert admitted(admission) == 1


def test_a_service_that_stays_late_gives_up_its_newest_streams(clock):
    admission = opened()
    seats = []
    for _ in range(20):
        seats.append(admission.admit("somebody", 16_000, 1))
        clock.now += 1
    given_up = []
    assert admission.to_give_up() == []  # in time so far
    for _ in range(4):
        clock.run(admission, 1.0)
        for _ in range(50):
            admission.delivered(0.5)
        given_up.append(admission.to_give_up())
    assert given_up == [[], [], [seats[-1], seats[-2]], []]


def test_a_service_that_was_late_for_a_moment_keeps_its_streams(clock):
    admission = opened()
    admitted(admission, 20)
    for _ in range(100):
        admission.delivered(0.5)
    clock.run(admission, 0.5)
    assert admission.to_give_up() == []


def test_every_code_has_a_status_and_a_close_code_that_exists():
    for code in CODES:
        refused = RefusedError(code, "why")
        assert 400 <= refused.status < 600 and 1007 <= refused.close_code <= 1013
        assert refused.as_json() == {"error": {"code": code, "message": "why"}}


def test_hops_run_in_threads_in_the_order_of_their_stream_and_errors_arrive():
    async def work():
        hops, seen = Hops(3), set()

        def call(value):
            seen.add(threading.get_ident())
            time.sleep(0.001)
            if value == 7:
                raise ValueError("seven")
            return value + 1

        futures = [hops.submit(call, value) for value in range(50)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        hops.close()
        return results, seen

    results, seen = asyncio.run(work())
    assert isinstance(results.pop(7), ValueError)
    assert results == [value + 1 for value in range(50) if value != 7]
    assert len(seen) == 3 and threading.get_ident() not in seen


def test_the_event_loop_goes_on_while_hops_run():
    async def work():
        hops, ticks = Hops(1), 0
        future = hops.submit(time.sleep, 0.3)
        while not future.done():
            await asyncio.sleep(0.01)
            ticks += 1
        hops.close()
        return ticks

    assert asyncio.run(work()) > 5


def test_a_spool_in_use_is_kept_and_an_abandoned_one_is_removed(tmp_path):
    first = Spool(tmp_path)
    (first.new_folder() / "upload").write_bytes(b"sound")
    second = Spool(tmp_path)
    assert first.folder.exists() and second.folder.exists()
    first._lock.close()  # as when its process is killed
    third = Spool(tmp_path)
    assert not first.folder.exists() and second.folder.exists()
    second.close()
    third.close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_folder_that_is_not_ours_is_never_removed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "spool"
    root.mkdir()
    (root / "service-link").symlink_to(outside)
    (root / "holiday").mkdir()
    Spool(root).close()
    assert outside.exists() and (root / "holiday").exists()


def test_times_are_a_histogram_of_prometheus():
    metrics = Metrics()
    times = Times("a_seconds", "A.", metrics.registry)
    times.observe(0.0001, 3)
    times.observe(0.5)
    times.observe(50)
    text = metrics.text().decode()
    assert 'a_seconds_bucket{le="0.0001"} 3.0' in text and 'a_seconds_bucket{le="1.0"} 4.0' in text
    assert 'a_seconds_bucket{le="+Inf"} 5.0' in text and "a_seconds_count 5.0" in text
    assert "a_seconds_sum 50.5003" in text
