"""Which streams are admitted, and what the parts behind them promise."""

import asyncio
import time
from collections import Counter

import pytest

from clearstate.runtime import open_model
from clearstate.serve import admission as admission_module
from clearstate.serve.admission import Admission, Cost
from clearstate.serve.errors import CODES, RefusedError
from clearstate.serve.metrics import Metrics, Tally
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool
from clearstate.serve.streams import Streams


class Clock:
    """The clocks that an admission reads."""

    def __init__(self, monkeypatch):
        self.now = self.cpu = 100.0
        for name, value in (("monotonic", "now"), ("process_time", "cpu"), ("thread_time", "cpu")):
            monkeypatch.setattr(admission_module.time, name, lambda value=value: getattr(self, value))
        monkeypatch.setattr(admission_module, "usable_cores", lambda: 2)

    def run(self, admission, seconds, *cores):
        """Let time pass, in which the processes for streams use these shares of a core."""
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            for place, used in enumerate(cores):
                admission.count(Tally(), place, 0.25 * used)
            admission.tick()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def opened(cost=0.01, processes=2, **settings):
    return Admission(Settings(**settings), Cost(cost, 2 * cost, 16_000), Metrics(), processes)


def admitted(admission, most=10_000, rate=16_000, channels=1, places=(0, 1)):
    """How many more streams are admitted at once, in these processes in turn."""
    for count in range(most):
        try:
            admission.admit("somebody", rate, channels, places[count % len(places)])
        except RefusedError:
            return count
    return most


def delivered(admission, chunks, lag):
    """Count chunks with this lag."""
    tally = Tally(late=chunks * (lag > admission.settings.lag_seconds))
    tally.lags.observe(lag, chunks)
    admission.count(tally)


def test_a_burst_is_cut_at_the_capacity_before_anything_is_measured(clock):
    assert admitted(opened(0.01)) == 92  # 2 cores x 78 % / (0.01 for the model + 0.0067 for the network)
    assert admitted(opened(0.01), rate=48_000) == 58
    assert admitted(opened(0.01), rate=48_000, channels=2) == 32
    assert admitted(opened(0.01, processes=0), places=(0,)) == 46  # the service itself has one core


def test_what_streams_really_cost_counts(clock):
    cheap, dear = opened(0.01), opened(0.01)
    for admission, cores in ((cheap, 0.25), (dear, 0.95)):
        admitted(admission, 50)
        clock.run(admission, 10, cores, cores)
    assert admitted(cheap) > 60
    assert admitted(dear) == 0


def test_a_process_that_is_full_takes_no_more_and_the_other_does(clock):
    admission = opened(0.001)
    admitted(admission, 10)
    clock.run(admission, 10, 0.9, 0.1)
    assert admitted(admission, places=(0,)) == 0
    assert admitted(admission, 10, places=(1,)) == 10


def test_the_seats_of_a_process_that_died_are_free(clock):
    admission = opened(most_streams=4)
    assert admitted(admission) == 4
    admission.evacuate(0)
    assert [seat.place for seat in admission.seats.values()] == [1, 1]
    assert admitted(admission) == 2


def test_a_late_service_refuses_until_it_is_in_time_again(clock):
    admission = opened()
    delivered(admission, 100, 0.015)
    assert admitted(admission, 1) == 1
    delivered(admission, 10, 0.030)
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
        delivered(admission, 50, 0.5)
        given_up.append(admission.to_give_up())
    assert given_up == [[], [], [seats[-1], seats[-2]], []]


def test_a_service_that_was_late_for_a_moment_keeps_its_streams(clock):
    admission = opened()
    admitted(admission, 20)
    delivered(admission, 100, 0.5)
    clock.run(admission, 0.5)
    assert admission.to_give_up() == []


def test_every_code_has_a_status_and_a_close_code_that_exists():
    for code in CODES:
        refused = RefusedError(code, "why")
        assert 400 <= refused.status < 600 and 1007 <= refused.close_code <= 1013
        assert refused.as_json() == {"error": {"code": code, "message": "why"}}


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
    for _ in range(2):  # what streams have counted adds up
        tally = Tally(rejected=Counter(busy=2), failed=1, audio_seconds=0.5)
        tally.hops.observe(0.0001, 3)
        tally.hops.observe(0.5)
        tally.hops.observe(50)
        metrics.add(tally)
    text = metrics.text().decode()
    name = "clearstate_hop_seconds"
    assert f'{name}_bucket{{le="0.0001"}} 6.0' in text and f'{name}_bucket{{le="1.0"}} 8.0' in text
    assert f'{name}_bucket{{le="+Inf"}} 10.0' in text and f"{name}_count 10.0" in text
    assert f"{name}_sum 101.0006" in text
    assert 'clearstate_rejected_total{code="busy"} 4.0' in text and "clearstate_audio_seconds_total" in text
    assert 'clearstate_errors_total{where="stream"} 2.0' in text


def test_the_lag_of_a_message_contains_that_of_the_event_loop(tiny):
    async def work():
        streams = Streams(Settings(), open_model(tiny, "enhance"), None, None)
        watch = asyncio.create_task(streams.watch())
        await asyncio.sleep(0.03)
        in_time, seen = streams.behind, []
        time.sleep(0.2)  # others have the processor
        for _ in range(20):  # whichever turn of the loop is the one in which the watch looks
            await asyncio.sleep(0)
            seen.append(streams.behind)
        watch.cancel()
        return in_time, max(seen)

    in_time, behind = asyncio.run(work())
    assert behind > 0.15 and in_time < behind
