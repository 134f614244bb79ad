"""The process: start, signals, faults, keys, and what it says about itself."""

import asyncio
import io
import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import soundfile
from serving import in_a_process, in_a_thread, noise, pids_below, sound, wait_for_end
from websockets.exceptions import ConnectionClosed, InvalidStatus

from clearstate.cli import main
from clearstate.serve import keys as keys_module
from clearstate.serve.keys import read_keys
from clearstate.serve.service import Service

KEY, OTHER = "a-key-of-32-characters-0123456789", "another-key-0123456789"


@pytest.fixture
def verb(capsys):
    """The command line in this process: exit code and stderr."""

    def run(*args):
        with pytest.raises(SystemExit) as leave:
            main(["serve", "--port", "0", *map(str, args)])
        return leave.value.code, capsys.readouterr().err

    return run


def test_sigterm_lets_a_stream_finish_and_refuses_new_ones(tmp_path):
    with in_a_process("live", tmp_path, "--drain", 30) as served:
        with served.stream() as (socket, _):
            served.process.send_signal(signal.SIGTERM)
            served.wait_until(lambda: served.ask("GET", "/readyz")[0] == 503)
            assert served.ask("GET", "/healthz")[0] == 200
            with served.stream() as (_, refused):
                assert refused["code"] == "draining"
            assert served.error("POST", "/v1/enhance", b"x") == (503, "draining")
            socket.send(sound(320))
            assert len(socket.recv(timeout=60)) == 640
        assert served.process.wait(60) == 0
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_drain_waits_for_a_stream_that_its_process_has_not_reported_yet():
    ended = []

    async def work():
        service = object.__new__(Service)
        service.streams = SimpleNamespace(open=0, end_all=ended.append)
        service.admission = SimpleNamespace(draining=False, seats={1: "a stream"})
        service.jobs = SimpleNamespace(draining=False, unfinished=[])
        drain = asyncio.create_task(service.drain(60))
        await asyncio.sleep(0.3)
        assert service.admission.draining and not ended
        service.admission.seats.clear()
        await asyncio.wait_for(drain, 30)

    asyncio.run(work())
    assert len(ended) == 1


def test_a_file_in_work_is_finished_although_sigterm_reaches_every_process(tmp_path):
    sound = io.BytesIO()
    soundfile.write(sound, noise(60 * 48_000), 48_000, format="WAV", subtype="PCM_16")
    answers = []
    with in_a_process("live", tmp_path, "--drain", 60, "--processes", 0) as served:
        client = threading.Thread(target=lambda: answers.append(served.ask("POST", "/v1/enhance", sound.getvalue())))
        client.start()
        served.wait_until(lambda: served.metric("clearstate_jobs") == 1)
        for pid in [served.process.pid, *pids_below(served.process.pid)]:  # as systemd does
            os.kill(pid, signal.SIGTERM)
        client.join(120)
        assert served.process.wait(60) == 0
    [(status, _, body)] = answers
    assert status == 200 and len(body) == len(sound.getvalue())


def test_streams_that_do_not_finish_are_closed_in_the_stated_time(tmp_path):
    with in_a_process("live", tmp_path, "--drain", 1) as served, served.stream() as (socket, _):
        started = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert json.loads(socket.recv(timeout=60))["code"] == "draining"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
        assert closed.value.rcvd.code == 1012
        assert served.process.wait(60) == 0
        assert time.monotonic() - started < 15


def test_ctrl_c_leaves_with_130_and_no_key_is_in_the_log(tmp_path):
    with in_a_process("live", tmp_path, env={"CLEARSTATE_API_KEYS": KEY, "CLEARSTATE_VERBOSE": "1"}) as served:
        assert served.ask("GET", "/v1/models", key=KEY)[0] == 200
        assert served.ask("GET", "/v1/models", key=OTHER)[0] == 401
        with served.stream(key=OTHER) as (_, refused):
            assert refused["code"] == "unauthorized"
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 130
    told = served.told()
    assert "Traceback" not in told
    assert KEY not in told and OTHER not in told


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits of file sizes")
def test_a_disk_that_fills_up_while_a_result_is_written_fails_that_file(tmp_path, clip):
    import resource

    def limited():  # files cannot grow further, as on a full disk; processes for files inherit it
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    loud, quiet = io.BytesIO(), io.BytesIO()
    soundfile.write(loud, noise(100_000), 16_000, format="OGG")  # a result of 200 kB
    soundfile.write(quiet, noise(8_000), 16_000, format="OGG")
    with in_a_process("live", tmp_path, preexec_fn=limited) as served:
        assert served.error("POST", "/v1/enhance", loud.getvalue()) == (507, "storage")
        assert served.error("POST", "/v1/enhance", bytes(200_000)) == (507, "storage")
        assert served.ask("POST", "/v1/enhance", quiet.getvalue())[0] == 200
        assert not list(tmp_path.rglob("upload"))


def test_what_a_killed_service_left_is_removed_by_the_next_one_and_nothing_else(tmp_path, clip):
    with in_a_process("live", tmp_path) as killed:
        job = json.loads(killed.ask("POST", "/v1/enhance?background=true", clip.read_bytes())[2])
        assert job["state"] in ("queued", "running")
        inside = pids_below(killed.process.pid)
        killed.process.kill()
        killed.process.wait()
    [left] = [path for path in tmp_path.iterdir() if path.is_dir()]
    (tmp_path / "mine").mkdir()
    with in_a_thread("live", tmp_path) as first, in_a_thread("live", tmp_path) as second:
        assert not left.exists()
        for served in (first, second):  # two services at the same time leave each other alone
            assert served.service.jobs.spool.folder.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["mine"]
    wait_for_end(inside)


def test_a_damaged_model_is_one_line_at_the_start(tiny, tmp_path, verb):
    damaged = tmp_path / "model"
    damaged.mkdir()
    for file in tiny.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: 200 if file.suffix == ".safetensors" else None])
    code, said = verb("--model", damaged, "--spool", tmp_path / "spool")
    assert (code, said.count("\n")) == (1, 1), said


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--model", "lvie"], 1, "'live'"),
        (["--model", "saf"], 1, "needs the whole signal"),
        (["--model", "separate-fast"], 1, "enhancement model"),
        (["--host", "256.1.1.1"], 1, "--host"),
        (["--keys", "no-such-file"], 2, "no-such-file"),
    ],
)
def test_wrong_use_is_one_line(args, code, expected, tmp_path, verb):
    got, said = verb(*args, "--spool", tmp_path)
    assert (got, said.count("\n")) == (code, 1), said
    assert expected in said


def test_a_port_in_use_is_one_line(served, tmp_path, verb):
    code, said = verb("--port", served.address[1], "--spool", tmp_path)
    assert (code, said.count("\n")) == (1, 1) and "--port" in said, said


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service with keys."""
    with in_a_thread("live", tmp_path_factory.mktemp("spool"), keys=(KEY, OTHER)) as service:
        yield service


@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper(), "\udcff", "x" * 10_000])
def test_a_wrong_key_gets_no_answer(guarded, key):
    header = {} if key is None else {"Authorization": f"Bearer {key}".encode(errors="surrogateescape")}
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/enhance"), ("GET", "/v1/jobs/x")):
        assert guarded.error(method, path, b"x" if method == "POST" else None, **header) == (401, "unauthorized")
    if key is not None and key.isprintable() and len(key) < 1000:
        with pytest.raises(InvalidStatus) as refused:
            guarded.socket(additional_headers={"Authorization": f"Bearer {key}"})
        assert refused.value.response.status_code == 401
    if key is None or key.isprintable():
        with guarded.stream(**({} if key is None else {"key": key[:512]})) as (socket, answer):
            assert answer["code"] == "unauthorized"
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=60)
            assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_right_key_is_served_in_the_header_of_http_or_of_the_stream(guarded, key):
    assert guarded.ask("GET", "/v1/models", key=key)[0] == 200
    with guarded.stream(key=key) as (_, ready):
        assert ready["type"] == "ready"
    with guarded.socket(additional_headers={"Authorization": f"Bearer {key}"}) as socket:
        socket.send("{}")
        assert json.loads(socket.recv(timeout=60))["type"] == "ready"
    assert guarded.ask("GET", "/healthz")[0] == guarded.ask("GET", "/readyz")[0] == 200  # without a key


def test_every_key_is_compared(monkeypatch):
    """However early one matches: the time must not tell."""
    compared = []
    real = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append(1) or real(a, b))
    keys = keys_module.Keys((KEY, OTHER))
    assert (keys.owner(KEY, ""), keys.owner(OTHER, "")) == ("key 1", "key 2")
    assert len(compared) == 4


@pytest.mark.parametrize(("text", "said"), [("", "no keys"), ("# only this\n", "no keys"), ("short\n", "5 characters")])
def test_a_bad_file_of_keys_is_said_without_the_key(tmp_path, text, said):
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_keys(str(path))
    assert "short" not in str(error.value)


def test_a_file_of_keys_may_have_comments(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# team A\n{KEY}\n\n  {OTHER}  \n")
    assert read_keys(str(path)) == (KEY, OTHER)


def test_the_metrics_count_what_happens(served):
    before = served.metric("clearstate_audio_seconds_total"), served.metric("clearstate_lag_seconds_count")
    with served.stream() as (socket, _):
        assert served.metric("clearstate_streams") == 1
        for _ in range(10):
            socket.send(sound(1600))
            socket.recv(timeout=60)
        served.wait_until(lambda: served.metric("clearstate_audio_seconds_total") - before[0] >= 0.99)
    assert served.metric("clearstate_lag_seconds_count") - before[1] == 10
    assert served.metric("clearstate_hop_seconds_count") > 0
    text = served.ask("GET", "/metrics")[2].decode()
    for name in ("rejected_total", "errors_total", "jobs", "load", "job_seconds_bucket", "lag_seconds_bucket"):
        assert f"# TYPE clearstate_{name.removesuffix('_total').removesuffix('_bucket')}" in text
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("clearstate_lag_seconds_bucket")]
    counts = [float(count) for _, count in rows]
    assert counts == sorted(counts) and 'le="+Inf"' in rows[-1][0]


def test_the_description_has_an_example_of_every_answer(served):
    described = json.loads(served.ask("GET", "/openapi.json")[2])
    assert set(described["paths"]) == {
        "/v1/enhance", "/v1/separate", "/v1/extend", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/result", "/v1/models",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    for path, methods in described["paths"].items():
        for method in methods.values():
            for status, answer in method["responses"].items():
                for media, content in answer.get("content", {}).items():
                    if not media.startswith("audio/") and media != "application/zip":
                        assert "example" in content, (path, status)
    assert "/v1/stream" in described["info"]["description"]


def test_the_models_name_the_default_of_every_task(served):
    models = json.loads(served.ask("GET", "/v1/models")[2])
    assert {model["task"]: model["name"] for model in models if model["default"]} == {
        "enhance": "live", "separate": "separate-fast", "extend": "extend-fast",
    }  # fmt: skip
    assert [model["name"] for model in models if model["streams"]] == ["live"]


def test_a_model_in_a_folder_keeps_its_path_for_itself(tiny, tmp_path):
    with in_a_thread(tiny, tmp_path) as served:
        models = json.loads(served.ask("GET", "/v1/models")[2])
        assert [model["name"] for model in models if model["streams"]] == ["custom"]
        with served.stream() as (_, ready):
            assert ready["model"] == "custom"
        _, _, body = served.ask("POST", "/v1/enhance?model=x", b"x")
        assert str(tiny) not in body.decode()


def test_a_jump_of_the_clock_changes_nothing(served, clip, monkeypatch):
    real = time.time
    with served.stream() as (socket, _):
        for jump in (86_400, -86_400):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            time.sleep(1.2)  # a round of everything that looks at the time
            socket.send(sound(320))
            assert len(socket.recv(timeout=60)) == 640
            job = json.loads(served.ask("POST", "/v1/enhance?background=true", clip.read_bytes())[2])
            time.sleep(1.2)
            assert served.ask("GET", f"/v1/jobs/{job['id']}")[0] == 200


def test_a_page_of_an_allowed_origin_may_call_and_no_other(tmp_path):
    with in_a_thread("live", tmp_path, origins=("https://mine.example",)) as served:
        for origin, allowed in (("https://mine.example", "https://mine.example"), ("https://other.example", None)):
            _, headers, _ = served.ask("GET", "/v1/models", Origin=origin)
            assert headers["Access-Control-Allow-Origin"] == allowed


def test_memory_stays_flat_while_clients_come_and_go(served):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def visits(count):
        for i in range(count):
            with served.raw_stream(None if i % 3 == 0 else "{}") as sock:
                sock.sendall(os.urandom(50) if i % 2 else b"\x82\x84\0\0\0\0\0\0\0\0")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    visits(100)
    served.wait_until(lambda: not served.service.streams.connections)
    before = resident()
    visits(300)
    served.wait_until(lambda: not served.service.streams.connections)
    assert resident() - before < 8 << 20  # 300 leaked streams would be more than that
