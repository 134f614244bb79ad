"""The clients for Python and JavaScript, against a real service."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from serving import in_a_thread, noise

import clearstate
from clearstate.client import Client, ServiceError

KEY = "a-key-of-32-characters-0123456789"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service with keys."""
    spool = tmp_path_factory.mktemp("spool")
    with in_a_thread("live", spool, keys=(KEY,), origins=("*",), most_bytes=4_000_000) as service:
        yield service


@pytest.fixture
def client(guarded):
    return Client(guarded.url, KEY)


def test_files_in_python(client, clip, tmp_path):
    assert client.enhance(clip, tmp_path / "clean.flac", strength=12, residual=False) == ""
    clearstate.enhance(clip, tmp_path / "here.flac", model="live", strength=12, backend="onnx")
    assert np.array_equal(soundfile.read(tmp_path / "clean.flac")[0], soundfile.read(tmp_path / "here.flac")[0])
    (tmp_path / "cut.wav").write_bytes(clip.read_bytes()[:-40_000])
    assert "broken after" in client.enhance(tmp_path / "cut.wav", tmp_path / "rest.wav")
    assert {model["task"] for model in client.models()} == {"enhance", "separate", "extend"}


def test_a_job_in_python(client, clip, tmp_path):
    job = client.submit("enhance", clip, format="flac")
    while not job.finished(0.05):
        assert 0 <= job.progress <= 1
    job.save(tmp_path / "clean.flac")
    assert soundfile.info(tmp_path / "clean.flac").frames == 22_050
    job.delete()
    with pytest.raises(ServiceError) as gone:
        job.finished(0)
    assert (gone.value.code, gone.value.status) == ("not_found", 404)


def test_a_stream_in_python(client):
    samples = noise(16_000)
    with client.stream(rate=48_000, format="f32le") as stream:
        chunks = [stream.process(samples[start : start + 960].tobytes()) for start in range(0, 16_000, 960)]
        got = np.frombuffer(b"".join([*chunks, stream.flush()]), "<f4")
        here = clearstate.Stream(sample_rate=48_000, backend="onnx")
        assert stream.latency_samples == here.latency_samples
    np.testing.assert_allclose(got, np.concatenate([here.process(samples), here.flush()]), atol=1e-5)


@pytest.mark.parametrize("task", ["enhance", "separate", "extend"])
def test_a_refusal_in_python_names_its_code_and_leaves_no_file(client, tmp_path, task):
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ServiceError) as refused:
        getattr(client, task)(tmp_path / "text.wav", tmp_path / "out.wav")
    assert (refused.value.code, refused.value.status) == ("bad_audio", 422)
    (tmp_path / "large.wav").write_bytes(bytes(8_000_000))
    with pytest.raises(ServiceError) as refused:
        getattr(client, task)(tmp_path / "large.wav", tmp_path / "out.wav")
    assert refused.value.code == "too_large"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.wav", "text.wav"]


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(client, clip, tmp_path):
    with pytest.raises(OSError, match="missing does not exist") as error:
        client.enhance(clip, tmp_path / "missing" / "out.wav")
    assert "\n" not in str(error.value)
    (tmp_path / "out.wav").mkdir()
    with pytest.raises(OSError, match=r"out\.wav"):
        client.enhance(clip, tmp_path / "out.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_a_wrong_key_or_header_in_python(guarded, client):
    with pytest.raises(ServiceError) as refused:
        Client(guarded.url, "wrong").models()
    assert refused.value.code == "unauthorized"
    with pytest.raises(ServiceError) as refused:
        Client(guarded.url, "wrong").stream()
    assert (refused.value.code, refused.value.status) == ("unauthorized", 401)
    with pytest.raises(ServiceError) as refused:
        client.stream(rate=1)
    assert refused.value.code == "bad_request"
    with client.stream() as stream, pytest.raises(ServiceError) as refused:
        stream.process(b"\0")
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected a service"):
        Client(url)


SCRIPT = """
import { readFileSync } from "node:fs";
const [url, key, path] = process.argv.slice(2);
const { Client, ServiceError } = await import(process.env.CLIENT);
const client = new Client(url, { key });
const told = {};
const clean = await client.enhance(new Blob([readFileSync(path)]), { format: "flac", strength: 12 });
told.size = clean.size;
const job = await client.submit("enhance", readFileSync(path), { format: "flac" });
told.job = (await (await job.result((share) => (told.share = share), 50)).arrayBuffer()).byteLength;
await job.delete();
told.models = (await client.models()).length;
const stream = await client.stream({ rate: 48000 });
told.latency = stream.latencySamples;
told.samples = [];
stream.onsamples = (samples) => told.samples.push(...samples);
const tone = Float32Array.from({ length: 9600 }, (_, i) => 0.3 * Math.sin(i / 10));
for (let i = 0; i < tone.length; i += 960) stream.send(tone.slice(i, i + 960));
told.rest = [...(await stream.flush())];
stream.close();
told.errors = [];
for (const bad of [
  () => new Client(url, { key: "wrong" }).models(),
  () => new Client(url, { key: "wrong" }).stream(),
  () => client.stream({ rate: 1 }),
  () => client.enhance(new Blob(["no sound"])),
]) await bad().catch((error) => told.errors.push([error.code, error instanceof ServiceError]));
console.log(JSON.stringify(told));
"""


def test_the_client_in_javascript(guarded, clip, tmp_path):
    node = shutil.which("node")
    if not node:
        pytest.skip("needs Node.js")
    script = tmp_path / "script.mjs"
    script.write_text(SCRIPT)
    (tmp_path / "client.mjs").write_bytes(guarded.ask("GET", "/client.js")[2])  # as a page would load it
    command = [node, "--experimental-websocket", script, guarded.url, KEY, clip]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={"CLIENT": str(tmp_path / "client.mjs")}
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    here = clearstate.Stream(sample_rate=48_000, backend="onnx")
    tone = (0.3 * np.sin(np.arange(9600) / 10)).astype(np.float32)
    assert told["latency"] == here.latency_samples == len(told["rest"])
    np.testing.assert_allclose(told["samples"], here.process(tone), atol=1e-5)
    np.testing.assert_allclose(told["rest"], here.flush(), atol=1e-5)
    assert told["size"] > 1000 and told["job"] > 1000 and told["models"] >= 3 and told["share"] == 1
    assert told["errors"] == [
        ["unauthorized", True], ["unauthorized", True], ["bad_request", True], ["bad_audio", True],
    ]  # fmt: skip
