"""WS /v1/stream: what goes in, what comes out, and what is refused."""

import contextlib
import json
import threading
import time

import numpy as np
import pytest
from serving import Served, frame, in_a_thread, noise, sound
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

import clearstate
from clearstate.serve import streams as streams_module


def pcm(samples, form):
    return (samples if form == "f32le" else np.rint(samples * 32767).astype("<i2")).tobytes()


def through(socket, data, sizes):
    """Send bytes in messages of these sizes in turn; the outputs, one after another, and those of a flush."""
    out, at, i = [], 0, 0
    while at < len(data):
        piece = data[at : at + sizes[i % len(sizes)]]
        socket.send(piece)
        out.append(socket.recv(timeout=60))
        assert len(out[-1]) == len(piece)
        at, i = at + len(piece), i + 1
    socket.send('{"type": "flush"}')
    out.append(socket.recv(timeout=60))
    assert json.loads(socket.recv(timeout=60)) == {"type": "flushed"}
    return b"".join(out)


def closing(socket):
    """The error message of a stream that the service ends, and the close code."""
    error = None
    try:
        while True:
            message = socket.recv(timeout=60)
            error = json.loads(message) if isinstance(message, str) else error
    except ConnectionClosed as closed:
        return error, closed.rcvd.code if closed.rcvd else None


@pytest.fixture(scope="module", params=[("onnx", 0), ("auto", 0), ("onnx", 2)], ids=["onnx", "auto", "processes"])
def either(request, tmp_path_factory):
    """A service on ONNX Runtime, on what is fastest here, and one with processes for streams."""
    backend, processes = request.param
    with in_a_thread("live", tmp_path_factory.mktemp("spool"), backend=backend, processes=processes) as service:
        yield service


@pytest.mark.parametrize(
    ("rate", "channels", "form", "mode"),
    [
        (16_000, 1, "s16le", "linked"),
        (16_000, 1, "f32le", "linked"),
        (48_000, 2, "f32le", "linked"),
        (44_100, 2, "s16le", "apart"),
        (8_000, 1, "f32le", "linked"),
    ],
)
def test_the_output_is_that_of_a_stream_in_python(either, rate, channels, form, mode):
    samples = noise(rate // 2, channels)
    data, width = pcm(samples, form), (4 if form == "f32le" else 2) * channels
    header = {"rate": rate, "channels": channels, "format": form, "strength": 20.0, "channels_mode": mode}
    with either.stream(**header) as (socket, ready):
        got = through(socket, data, [width * n for n in (rate // 50, 1, 777, rate // 3)])
    backend = either.service.settings.backend
    here = clearstate.Stream("live", rate, channels=channels, strength=20.0, channels_mode=mode, backend=backend)
    heard = samples if form == "f32le" else np.frombuffer(data, "<i2").reshape(samples.shape).astype("f") / 32768
    expected = np.concatenate([here.process(heard.T.copy()), here.flush()], axis=-1).T
    assert ready["type"] == "ready" and ready["latency_samples"] == here.latency_samples
    assert ready["latency_ms"] == pytest.approx(1000 * here.latency_seconds, abs=1e-3)
    if form == "f32le":
        np.testing.assert_allclose(np.frombuffer(got, "<f4").reshape(expected.shape), expected, atol=1e-5)
    else:
        np.testing.assert_allclose(
            np.frombuffer(got, "<i2").reshape(expected.shape), np.rint(expected * 32768), atol=1
        )  # chunks fall otherwise: rounding only


def test_after_a_flush_the_stream_is_new(served):
    data = pcm(noise(4000), "s16le")
    with served.stream(rate=16_000) as (socket, _):
        assert through(socket, data, [640]) == through(socket, data, [640])


def test_a_message_answered_at_once_is_answered_as_in_its_turn(served, monkeypatch):
    answer, found = streams_module.Connection.answer, []
    data = sound(6_400)
    got = {}
    for name, at_once in (("at once", answer), ("in turn", lambda self, data: None)):
        monkeypatch.setattr(
            streams_module.Connection, "answer", lambda *args, way=at_once: found.append(way(*args)) or found[-1]
        )
        with served.stream() as (socket, _):
            got[name] = through(socket, data, [640, 2, 1000])
    assert got["at once"] == got["in turn"]
    assert len([out for out in found if out is not None]) == len(found) / 2 > 10  # both ways were taken


def test_messages_that_arrive_together_are_answered_in_their_order(served):
    """Samples, more of them, a flush, and samples of a new stream, all in one packet."""
    parts = [sound(320), sound(320), sound(77)]
    frames = [frame(2, parts[0]), frame(2, parts[1]), frame(1, b'{"type": "flush"}'), frame(2, parts[2])]
    with served.stream() as (socket, _):
        expected = []
        for part in parts[:2]:
            socket.send(part)
            expected.append(socket.recv(timeout=60))
        socket.send('{"type": "flush"}')
        expected += [socket.recv(timeout=60), socket.recv(timeout=60)]
        socket.send(parts[2])
        expected.append(socket.recv(timeout=60))
    with served.stream() as (socket, _):
        socket.socket.sendall(b"".join(frames))
        assert [socket.recv(timeout=60) for _ in expected] == expected


def test_streams_at_the_same_time_do_not_mix(either):
    """Each has a tone of its own. What comes back is what the tone gives alone, bit for bit."""
    t = np.arange(8_000) / 16_000
    tones = [(0.3 * np.sin(2 * np.pi * f * t)).astype("<f4") for f in np.geomspace(200, 4000, 8)]
    got = [b""] * len(tones)

    def run(i):
        with either.stream(format="f32le") as (socket, _):
            got[i] = through(socket, tones[i].tobytes(), [4 * 320])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(tones))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for tone, output in zip(tones, got, strict=True):
        here = clearstate.Stream("live", backend=either.service.settings.backend)
        chunks = [here.process(tone[start : start + 320]) for start in range(0, len(tone), 320)]
        assert np.concatenate([*chunks, here.flush()]).tobytes() == output
    assert len(set(got)) == len(got)  # so that mixing would show


@pytest.mark.parametrize(
    ("first", "code", "close_code"),
    [
        ("", "bad_request", 1007),
        ("{", "bad_request", 1007),
        ("[1]", "bad_request", 1007),
        ("null", "bad_request", 1007),
        (b"\0\0", "bad_request", 1007),
        ('{"rate": "fast"}', "bad_request", 1007),
        ('{"rate": 16000.5}', "bad_request", 1007),
        ('{"rate": 3999}', "bad_request", 1007),
        ('{"rate": 1e99}', "bad_request", 1007),
        ('{"rate": true}', "bad_request", 1007),
        ('{"channels": 0}', "bad_request", 1007),
        ('{"channels": 9}', "bad_request", 1007),
        ('{"format": "mp3"}', "bad_request", 1007),
        ('{"strength": -1}', "bad_request", 1007),
        ('{"strength": NaN}', "bad_request", 1007),
        ('{"model": "/etc/passwd"}', "bad_request", 1007),
        ("[" * 4000, "bad_request", 1007),
        ("x" * 5000, "too_large", 1009),
    ],
)
def test_a_wrong_header_is_refused_with_its_reason(served, first, code, close_code):
    with served.socket() as socket:
        socket.send(first)
        error, closed = closing(socket)
    assert (error["type"], error["code"], closed) == ("error", code, close_code)
    assert error["message"] and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("message", "code", "close_code"),
    [
        (b"\0\0\0", "bad_request", 1007),  # not whole samples
        (bytes(2 * 16_002), "too_large", 1009),
        ("flush", "bad_request", 1007),
        ('{"type": "stop"}', "bad_request", 1007),
        ("x" * 5000, "too_large", 1009),
    ],
)
def test_a_wrong_message_ends_the_stream_with_its_reason(served, message, code, close_code):
    with served.stream() as (socket, _):
        socket.send(message)
        error, closed = closing(socket)
    assert (error["code"], closed) == (code, close_code)
    served.wait_until(lambda: served.metric("clearstate_streams") == 0)


def test_an_empty_message_is_answered_by_one(served):
    with served.stream() as (socket, _):
        socket.send(b"")
        assert socket.recv(timeout=60) == b""


def test_bad_samples_are_replaced_by_silence(served):
    data = noise(3200)
    data[100:200] = np.nan
    with served.stream(format="f32le") as (socket, _):
        assert np.isfinite(np.frombuffer(through(socket, data.tobytes(), [1280]), "<f4")).all()


def test_a_client_ahead_of_real_time_is_held_back(served):
    with served.stream() as (socket, _):
        started = time.monotonic()
        for _ in range(3):
            socket.send(sound(16_000))
        for _ in range(3):
            socket.recv(timeout=60)
        assert time.monotonic() - started > 0.9  # of 3 s, 2 are a burst


def test_streams_of_one_client_are_limited(tmp_path):
    with in_a_thread("live", tmp_path, streams_per_key=2) as served, served.stream(), served.stream():
        with served.stream() as (socket, refused):
            assert refused["code"] == "limit" and closing(socket)[1] == 1008
        assert served.metric("clearstate_streams") == 2


def test_a_full_service_refuses_and_serves_the_others_on(tmp_path):
    with in_a_thread("live", tmp_path, most_streams=1) as served:
        with served.stream() as (socket, _):
            with served.stream() as (other, refused):
                assert refused["code"] == "busy" and closing(other)[1] == 1013
            socket.send(sound(320))
            assert len(socket.recv(timeout=60)) == 640
        served.wait_until(lambda: served.metric("clearstate_streams") == 0)
        with served.stream() as (_, ready):
            assert ready["type"] == "ready"


def test_silent_and_long_connections_end(tmp_path):
    limits = {"header_seconds": 1.0, "idle_seconds": 0.5, "stream_seconds": 2.0}
    with in_a_thread("live", tmp_path, **limits) as served:
        with served.socket() as socket:
            assert closing(socket)[0]["code"] == "timeout"
        with served.stream() as (socket, _):
            error, code = closing(socket)
            assert "nothing arrived" in error["message"] and code == 1008
        with served.stream() as (socket, _):
            started = time.monotonic()
            with contextlib.suppress(ConnectionClosed):
                while time.monotonic() < started + 20:
                    socket.send(sound(320))
                    socket.recv(timeout=60)
                    time.sleep(0.1)
            assert 1 < time.monotonic() - started < 10


def test_a_client_that_does_not_read_is_disconnected_and_memory_stays_bounded(tmp_path):
    with (
        in_a_thread("live", tmp_path, send_seconds=1.0) as served,
        served.raw_stream('{"rate": 96000, "channels": 8}') as sock,
    ):
        message, sent, deadline = frame(2, bytes(96_000)), 0, time.monotonic() + 60
        sock.settimeout(0.2)
        while served.service.streams.connections and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                sent += sock.send(message)
        assert not served.service.streams.connections
        assert sent < 40e6  # held back by the connection, not stored
        assert served.metric("clearstate_streams") == 0


def test_a_stream_that_takes_long_to_open_keeps_no_other_waiting(served, monkeypatch):
    """As one at 191,999 Hz does, whose filter has millions of entries."""

    class Slow(streams_module.Session):
        def __init__(self, *args):
            time.sleep(1.0)
            super().__init__(*args)

    with served.stream() as (good, _):
        monkeypatch.setattr(streams_module, "Session", Slow)
        with served.socket() as slow:
            slow.send("{}")
            started = time.monotonic()
            for _ in range(5):
                good.send(sound(320))
                assert len(good.recv(timeout=60)) == 640
            assert time.monotonic() - started < 1.0
            assert json.loads(slow.recv(timeout=60))["type"] == "ready"


def test_filters_for_unusual_rates_may_not_take_all_memory(served, monkeypatch):
    monkeypatch.setattr(streams_module, "MOST_FILTERS", 1_000_000)
    with served.stream(rate=48_000), served.stream(rate=44_100), served.stream(rate=8_000) as (_, ready):
        assert ready["type"] == "ready"
        with served.stream(rate=22_051) as (socket, refused):
            assert refused["code"] == "busy" and "22051" in refused["message"] and closing(socket)[1] == 1013
    served.wait_until(lambda: served.metric("clearstate_streams") == 0)


def test_a_failing_model_ends_its_stream_and_no_other(served, monkeypatch):
    with served.stream() as (good, _), served.stream() as (bad, _):
        sessions = [connection.session for connection in served.service.streams.connections]
        broken = min(sessions, key=lambda session: session.worked)
        monkeypatch.setattr(broken.stream, "process", lambda x: 1 / 0)
        answers = []
        for socket in (good, bad):
            socket.send(sound(320))
            try:
                answers.append(len(socket.recv(timeout=60)))
            except ConnectionClosed as closed:
                answers.append(closed.rcvd.code)
        assert 640 in answers and len(answers) == 2
    served.wait_until(lambda: served.metric("clearstate_errors_total") >= 1)


def test_a_plain_request_to_the_stream_is_an_error(served):
    assert served.error("GET", "/v1/stream") == (404, "not_found")
    with pytest.raises(InvalidStatus):
        Served(served.url + "/nothing").socket()


def test_a_request_head_that_is_too_long_closes_the_connection(served):
    with pytest.raises((InvalidMessage, ConnectionClosed)):
        served.socket(additional_headers={"X-Long": "x" * 10_000}).close()
