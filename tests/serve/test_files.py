"""POST /v1/enhance, /v1/separate and /v1/extend: files in, files out, and what goes wrong."""

import asyncio
import contextlib
import errno
import io
import json
import os
import signal
import socket
import time
import zipfile

import numpy as np
import pytest
import soundfile
from serving import in_a_thread, noise
from starlette.requests import ClientDisconnect

import clearstate
from clearstate.serve import jobs as jobs_module
from clearstate.serve.app import Result


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def finished(served, id_, **how):
    """The status of a job when it has ended."""
    deadline = time.monotonic() + 120
    while (status := json.loads(served.ask("GET", f"/v1/jobs/{id_}", **how)[2]))["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return status


def test_a_file_comes_back_as_enhance_writes_it(served, clip, tmp_path):
    status, headers, body = served.ask("POST", "/v1/enhance?format=flac&strength=12", clip.read_bytes())
    assert (status, headers["content-type"]) == (200, "audio/flac"), body
    clearstate.enhance(clip, tmp_path / "here.flac", model="live", strength=12, backend="onnx")
    got, rate = soundfile.read(io.BytesIO(body))
    expected, _ = soundfile.read(tmp_path / "here.flac")
    assert rate == 44_100
    np.testing.assert_array_equal(got, expected)
    assert not np.allclose(got, soundfile.read(clip)[0], atol=1e-3)  # so that an untouched file would show
    served.wait_until(lambda: not files_in(served.service.jobs.spool.folder))


@pytest.mark.parametrize(
    ("result", "head"), [("wav", b"RIFF"), ("ogg", b"OggS"), ("opus", b"OggS"), ("mp3", b""), ("flac", b"fLaC")]
)
def test_the_format_of_the_result_can_be_chosen(served, result, head):
    file = io.BytesIO()
    soundfile.write(file, noise(8_000), 16_000, format="OGG")
    status, _, body = served.ask("POST", f"/v1/enhance?format={result}", file.getvalue())
    assert status == 200, body
    assert body.startswith(head)
    samples, rate = soundfile.read(io.BytesIO(body))
    assert abs(len(samples) / rate - 0.5) < 0.1  # MP3 adds silence


def test_separate_returns_a_voice_each_and_a_timeline(served):
    file = io.BytesIO()
    soundfile.write(file, noise(8_000), 16_000, format="WAV", subtype="PCM_16")
    status, headers, body = served.ask("POST", "/v1/separate", file.getvalue())
    assert (status, headers["content-type"]) == (200, "application/zip"), body
    archive = zipfile.ZipFile(io.BytesIO(body))
    assert archive.namelist() == ["speaker1.wav", "speaker2.wav", "timeline.json"]
    voices = [soundfile.read(io.BytesIO(archive.read(name)))[0] for name in archive.namelist()[:2]]
    np.testing.assert_allclose(sum(voices), soundfile.read(io.BytesIO(file.getvalue()))[0], atol=2 / 32768)
    timeline = json.loads(archive.read("timeline.json"))
    assert [speaker["file"] for speaker in timeline["speakers"]] == archive.namelist()[:2]
    assert timeline["input"] == "upload"  # not the path of our file


def test_extend_returns_the_rate_that_was_asked_for(served):
    file = io.BytesIO()
    soundfile.write(file, noise(4_000), 8_000, format="WAV")
    status, _, body = served.ask("POST", "/v1/extend?to=24000", file.getvalue())
    assert status == 200, body
    samples, rate = soundfile.read(io.BytesIO(body))
    assert (rate, len(samples)) == (24_000, 12_000)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/enhance", b"", (422, "bad_request")),
        ("/v1/enhance", b"no sound at all", (422, "bad_audio")),
        ("/v1/enhance", b"#EXTM3U\n/etc/passwd\n", (422, "bad_audio")),
        ("/v1/enhance", b"ffconcat version 1.0\nfile /etc/passwd\n", (422, "bad_audio")),
        ("/v1/enhance?format=exe", b"x", (422, "bad_request")),
        ("/v1/enhance?strength=-1", b"x", (422, "bad_request")),
        ("/v1/enhance?strength=nan", b"x", (422, "bad_request")),
        ("/v1/enhance?model=separate-fast", b"x", (422, "bad_request")),
        ("/v1/enhance?model=../../etc", b"x", (422, "bad_request")),
        ("/v1/enhance?track=7", None, (422, "bad_audio")),
        ("/v1/extend?to=96000", b"x", (422, "bad_request")),
        ("/v1/extend?to=8000", None, (422, "bad_audio")),
        ("/v1/nothing", b"x", (404, "not_found")),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(served, clip, path, body, expected):
    status, _, answer = served.ask("POST", path, clip.read_bytes() if body is None else body)
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == expected, error
    assert "\n" not in error["message"]
    assert str(served.service.jobs.spool.root) not in error["message"]
    served.wait_until(lambda: not files_in(served.service.jobs.spool.folder))


def test_a_file_that_breaks_off_comes_back_with_a_note(served, clip):
    status, headers, body = served.ask("POST", "/v1/enhance", clip.read_bytes()[:-40_000])
    assert status == 200, body
    assert "broken after" in headers["X-Clearstate-Note"]
    assert 0 < len(soundfile.read(io.BytesIO(body))[0]) < 22_050


def test_a_long_file_is_a_job_with_progress_and_result(served):
    file = io.BytesIO()
    soundfile.write(file, noise(16_000 * 20), 16_000, format="WAV")
    status, headers, body = served.ask("POST", "/v1/enhance?background=true&format=flac", file.getvalue())
    job = json.loads(body)
    assert (status, headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert job["state"] in ("queued", "running")
    if job["state"] != "done":
        assert served.error("GET", f"/v1/jobs/{job['id']}/result") == (409, "not_ready")
    done = finished(served, job["id"])
    assert (done["state"], done["progress"], done["audio_seconds"], done["error"]) == ("done", 1.0, 20.0, None)
    for _ in range(2):  # it can be fetched again
        status, _, body = served.ask("GET", done["result"])
        assert status == 200 and body.startswith(b"fLaC")
    assert served.ask("DELETE", f"/v1/jobs/{job['id']}")[0] == 204
    assert served.error("GET", f"/v1/jobs/{job['id']}") == (404, "not_found")
    served.wait_until(lambda: not files_in(served.service.jobs.spool.folder))


def test_a_finished_job_expires(served, clip):
    job = json.loads(served.ask("POST", "/v1/enhance?background=true", clip.read_bytes())[2])
    assert finished(served, job["id"])["state"] == "done"
    found = served.service.jobs.jobs[job["id"]]
    assert files_in(found.folder)
    found.started -= served.service.settings.keep_seconds
    served.wait_until(lambda: not found.folder.exists())
    assert served.error("GET", f"/v1/jobs/{job['id']}") == (404, "not_found")


def test_a_job_belongs_to_its_key(tmp_path, clip):
    keys = ("first-key-0123456789", "second-key-0123456789")
    with in_a_thread("live", tmp_path, keys=keys, jobs_per_key=1) as served:
        job = json.loads(served.ask("POST", "/v1/enhance?background=true", clip.read_bytes(), key=keys[0])[2])
        path = f"/v1/jobs/{job['id']}"
        assert served.error("GET", path, key=keys[1]) == (404, "not_found")
        assert served.error("DELETE", path, key=keys[1]) == (404, "not_found")
        assert served.error("GET", path, key="third-key-0123456789") == (401, "unauthorized")
        assert served.error("POST", "/v1/enhance", clip.read_bytes(), key=keys[0]) == (429, "limit")
        assert served.ask("GET", path, key=keys[0])[0] == 200


def test_a_large_or_long_or_empty_handed_upload_is_refused_and_leaves_nothing(tmp_path, clip):
    with in_a_thread("live", tmp_path, most_bytes=200_000, most_seconds=1.0, idle_seconds=0.5) as served:
        assert served.error("POST", "/v1/enhance", bytes(200_001)) == (413, "too_large")
        with socket.create_connection(served.address, timeout=30) as sock:  # does not say how large it is
            sock.sendall(b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                sock.sendall(b"19000\r\n" + bytes(0x19000) + b"\r\n")
            assert b" 413 " in sock.recv(1000)
        long = io.BytesIO()
        soundfile.write(long, noise(16_000 * 2), 16_000, format="WAV")
        assert served.error("POST", "/v1/enhance", long.getvalue()) == (413, "too_long")
        with socket.create_connection(served.address, timeout=30) as sock:  # never ends
            sock.sendall(b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nRIFF")
            assert b" 408 " in sock.recv(1000)
        served.wait_until(lambda: not files_in(tmp_path))
        assert not served.service.jobs.jobs


def test_a_silent_connection_is_closed(tmp_path):
    with in_a_thread("live", tmp_path, header_seconds=0.3) as served:
        for opening in (b"", b"GET /healthz HTTP/1.1\r\nHost"):
            with socket.create_connection(served.address, timeout=30) as sock:
                sock.sendall(opening)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(10) == b""


def test_the_job_of_a_client_that_leaves_is_deleted(served):
    body = io.BytesIO()
    soundfile.write(body, noise(16_000 * 60), 16_000, format="WAV")
    with socket.create_connection(served.address, timeout=30) as sock:
        size = len(body.getvalue())
        sock.sendall(b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + body.getvalue())
        served.wait_until(lambda: served.service.jobs.jobs)
    served.wait_until(lambda: not served.service.jobs.jobs)
    served.wait_until(lambda: not files_in(served.service.jobs.spool.folder))


@pytest.mark.parametrize("how", ["sent", "left", "does not read"])
def test_a_result_is_deleted_when_it_has_been_sent_or_cannot_be(tmp_path, how):
    (tmp_path / "result.wav").write_bytes(bytes(200_000))
    deleted, sent = [], []

    async def send(message):
        if how == "left" and sent:
            raise OSError("connection lost")
        if how == "does not read" and sent:
            await asyncio.sleep(60)
        sent.append(message)

    async def receive():
        await asyncio.sleep(60)

    async def after():
        deleted.append(True)

    async def work():
        result = Result(tmp_path / "result.wav", seconds=0.2, after=after)
        await result({"type": "http", "method": "GET", "headers": []}, receive, send)

    if how == "sent":
        asyncio.run(work())
        assert sum(len(message.get("body", b"")) for message in sent) == 200_000
    else:
        with pytest.raises(ClientDisconnect):
            asyncio.run(work())
    assert deleted == [True]


def test_a_full_disk_is_said_and_the_service_goes_on(served, clip, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(served.service.jobs.spool, "new_folder", full)
        assert served.error("POST", "/v1/enhance", clip.read_bytes()) == (507, "storage")
    with monkeypatch.context() as patch:
        patch.setattr(jobs_module, "write", full)
        assert served.error("POST", "/v1/enhance", clip.read_bytes()) == (507, "storage")
    with monkeypatch.context() as patch:
        patch.setattr(served.service.jobs.spool, "free_bytes", lambda: 0)
        assert served.error("POST", "/v1/enhance", clip.read_bytes()) == (507, "storage")
    assert not files_in(served.service.jobs.spool.folder)
    assert served.ask("POST", "/v1/enhance", clip.read_bytes())[0] == 200


def test_a_killed_worker_fails_its_file_and_the_next_one_is_done(served, clip):
    file = io.BytesIO()
    soundfile.write(file, noise(16_000 * 120), 16_000, format="WAV")
    job = json.loads(served.ask("POST", "/v1/enhance?background=true", file.getvalue())[2])
    served.wait_until(lambda: served.service.jobs.find(job["id"], "host 127.0.0.1").state == "running", 60)
    os.kill(served.service.workers.processes[0].pid, signal.SIGKILL)
    status = finished(served, job["id"])
    assert status["state"] == "failed"
    assert status["error"]["code"] == "failed" and "died" in status["error"]["message"]
    assert served.error("GET", f"/v1/jobs/{job['id']}/result") == (500, "failed")
    assert served.ask("POST", "/v1/enhance", clip.read_bytes())[0] == 200
    served.ask("DELETE", f"/v1/jobs/{job['id']}")


def test_work_that_takes_too_long_is_stopped(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, noise(16_000 * 300), 16_000, format="WAV")
    with in_a_thread("live", tmp_path, work_seconds=0.5) as served:
        assert served.error("POST", "/v1/enhance", file.getvalue()) == (504, "work_timeout")
        served.wait_until(lambda: not files_in(tmp_path))
