"""Processes for live streams: where a stream runs, and what the death of one costs."""

import contextlib
import json
import os
import signal

import pytest
from serving import in_a_process, in_a_thread, pids_below, sound, wait_for_end
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from clearstate.serve import processes as processes_module

if os.name != "posix":
    pytest.skip("sockets are passed between processes on POSIX systems only", allow_module_level=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A service with two processes for streams, in this process."""
    with in_a_thread("live", tmp_path_factory.mktemp("spool"), processes=2, streams_per_key=6) as service:
        yield service


def answers(socket):
    """Whether a stream still works."""
    try:
        socket.send(sound(320))
        return len(socket.recv(timeout=60)) == 640
    except ConnectionClosed:
        return False


def children(served):
    return served.service.streams.children


def all_start(served):
    """Every process is ready and has none of the last test's streams, which would count when new ones are spread."""
    served.wait_until(lambda: all(child.ready for child in children(served)), 120)
    served.wait_until(lambda: not served.service.streams.open and served.metric("clearstate_streams") == 0)


@contextlib.contextmanager
def streams(served, count):
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(served.stream()) for _ in range(count)]
        assert [ready["type"] for _, ready in opened] == ["ready"] * count
        yield [socket for socket, _ in opened]


def test_streams_are_spread_and_counted(pair):
    before = pair.metric("clearstate_lag_seconds_count")
    with streams(pair, 4) as sockets:
        assert all(map(answers, sockets))
        pair.wait_until(lambda: [child.open for child in children(pair)] == [2, 2])
        assert pair.metric("clearstate_streams") == 4
        pair.wait_until(lambda: pair.metric("clearstate_lag_seconds_count") - before == 4)
    pair.wait_until(lambda: pair.metric("clearstate_streams") == 0 and pair.service.streams.open == 0)


def test_limits_hold_over_all_processes(pair):
    with streams(pair, 6):
        for _ in range(2):
            with pair.stream() as (_, refused):
                assert refused["code"] == "limit"
    pair.wait_until(lambda: pair.metric("clearstate_streams") == 0)
    pair.wait_until(lambda: pair.metric("clearstate_rejected_total") >= 2)


def test_another_path_is_no_stream(pair):
    host, port = pair.address
    with pytest.raises(InvalidHandshake):
        type(pair)(f"http://{host}:{port}/nothing").socket()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_process_that_fails_costs_its_own_streams_and_is_replaced(pair, monkeypatch, caplog, fault):
    monkeypatch.setattr(processes_module, "SILENT_SECONDS", 12.0)  # a healthy process on a busy machine may need five
    all_start(pair)
    failed = pair.metric("clearstate_errors_total")
    with streams(pair, 4) as sockets:
        victim = children(pair)[0].process
        os.kill(victim.pid, fault)
        pair.wait_until(lambda: not victim.is_alive(), 60)
        assert sorted(map(answers, sockets)) == [False, False, True, True]
        pair.wait_until(lambda: pair.metric("clearstate_streams") == 2)
    assert pair.metric("clearstate_errors_total") == failed + 1 and "died" in caplog.text
    all_start(pair)
    with streams(pair, 4) as sockets:
        assert all(map(answers, sockets))
        pair.wait_until(lambda: [child.open for child in children(pair)] == [2, 2])


def test_a_service_without_a_process_refuses_streams_until_one_has_started(pair):
    all_start(pair)
    for child in children(pair):
        os.kill(child.process.pid, signal.SIGKILL)
    pair.wait_until(lambda: not pair.service.streams.ready)
    assert pair.error("GET", "/readyz") == (503, "busy") and pair.ask("GET", "/healthz")[0] == 200
    with pytest.raises(InvalidHandshake) as refused:
        pair.socket()
    assert refused.value.response.status_code == 503
    assert json.loads(refused.value.response.body)["error"]["code"] == "busy"
    all_start(pair)
    with streams(pair, 2) as sockets:
        assert all(map(answers, sockets))


def test_a_drain_reaches_the_processes_and_they_end_with_the_service(tmp_path):
    with in_a_process("live", tmp_path, "--drain", 2, "--processes", 1) as served, served.stream() as (socket, _):
        inside = pids_below(served.process.pid)
        for pid in [served.process.pid, *inside]:  # as systemd does
            os.kill(pid, signal.SIGTERM)
        assert answers(socket)
        assert json.loads(socket.recv(timeout=60))["code"] == "draining"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
        assert closed.value.rcvd.code == 1012
        assert served.process.wait(60) == 0
        wait_for_end(inside)


def test_the_processes_of_a_killed_service_end(tmp_path):
    with in_a_process("live", tmp_path, "--processes", 1) as served, served.stream():
        inside = pids_below(served.process.pid)
        assert len(inside) >= 2  # one for streams, one for files
        served.process.kill()
        wait_for_end(inside)
