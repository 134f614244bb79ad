"""Inputs and outputs at URLs: in memory, on an S3 server of this machine, and with the errors of a storage."""

import io
import json

import numpy as np
import pytest
import soundfile
from as_typed import in_this_process

from clearstate.audio import remote
from clearstate.audio.length import inspect_url

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'clearstate[remote]'")
pytestmark = pytest.mark.filterwarnings("default")  # those of the storage drivers

SECRET = "a-secret-key-that-is-shown-nowhere"  # as in conftest.py


def sound(seed=0, seconds=0.5, rate=16_000, offset=0.0):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).normal(offset, 0.05, int(seconds * rate)), rate, format="WAV")
    return file.getvalue()


@pytest.fixture(params=["memory", "s3"])
def store(request):
    """A folder in a storage, empty."""
    if request.param == "memory":
        folder = "memory://archive"
    else:
        folder = request.getfixturevalue("s3")
    fs, path = remote.file_system(folder)
    if names := fs.find(path):
        fs.rm(names)
    fs.invalidate_cache()
    return folder


def put(url, data):
    remote.write(io.BytesIO(data), url)


def names(folder):
    fs, _ = remote.file_system(folder)
    fs.invalidate_cache()
    return sorted(remote.under(entry.url, folder) for entry in remote.find(folder))


def run(*args):
    done = in_this_process(*args)
    assert SECRET not in done.stderr + done.stdout.decode()
    return done


def test_a_folder_is_enhanced_into_another_as_local_files_are(store, tmp_path):
    for name in ("in/a.wav", "in/deep/b.wav"):
        put(f"{store}/{name}", sound())
    put(f"{store}/in/notes.txt", b"no sound")
    done = run("enhance", f"{store}/in", "-o", f"{store}/out/", "--json")
    assert done.returncode == 0, done.stderr
    assert names(f"{store}/out") == ["a.wav", "deep/b.wav"]
    (tmp_path / "a.wav").write_bytes(sound())
    run("enhance", tmp_path / "a.wav", "-o", tmp_path / "b.wav")
    assert remote.read(f"{store}/out/deep/b.wav") == (tmp_path / "b.wav").read_bytes()
    files = json.loads(done.stdout)["files"]
    assert [(file["input"], file["output"]) for file in files] == [
        (f"{store}/in/a.wav", f"{store}/out/a.wav"),
        (f"{store}/in/deep/b.wav", f"{store}/out/deep/b.wav"),
    ]


@pytest.mark.parametrize("kind", ["file", "pattern", "to local", "from local"])
def test_sources_and_targets_are_mixed_freely(store, tmp_path, kind):
    put(f"{store}/a.wav", sound())
    (tmp_path / "here.wav").write_bytes(sound())
    if kind == "file":
        assert run("enhance", f"{store}/a.wav").returncode == 0
        assert names(store) == ["a.clear.wav", "a.wav"]
    elif kind == "pattern":
        put(f"{store}/b.flac", sound())
        assert run("enhance", f"{store}/*.wav", "-o", f"{store}/out").returncode == 0
        assert names(f"{store}/out") == ["a.wav"]
    elif kind == "to local":
        assert run("enhance", f"{store}/a.wav", "-o", tmp_path / "a.flac").returncode == 0
        assert soundfile.info(tmp_path / "a.flac").frames == 8000
    else:
        assert run("enhance", tmp_path / "here.wav", "-o", f"{store}/there.wav").returncode == 0
        assert names(store) == ["a.wav", "there.wav"]


def test_separate_uploads_all_files_of_a_recording_with_their_names(store):
    put(f"{store}/talk.wav", sound(seconds=1))
    done = run("separate", f"{store}/talk.wav", "-o", f"{store}/voices", "--json")
    assert done.returncode == 0, done.stderr
    assert names(f"{store}/voices") == ["talk.speaker1.wav", "talk.speaker2.wav", "talk.timeline.json"]
    [file] = json.loads(done.stdout)["files"]
    assert file["timeline"] == f"{store}/voices/talk.timeline.json"
    assert json.loads(remote.read(file["timeline"]))["input"] == f"{store}/talk.wav"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_batch_continues_and_existing_files_are_refused(store, slash):
    for name in ("a", "b", "taken"):
        put(f"{store}/in/{name}.wav", sound())
    put(f"{store}/out/taken.wav", b"of somebody else")
    put(f"{store}/in/bad.wav", b"no sound")
    args = ("enhance", f"{store}/in", "-o", f"{store}/out{slash}", "--resume", "--json")
    done = run(*args)
    files = {remote.base_name(file["input"]): file for file in json.loads(done.stdout)["files"]}
    assert done.returncode == 1
    assert {name for name, file in files.items() if file["ok"]} == {"a.wav", "b.wav"}
    assert "already exists" in files["taken.wav"]["error"]
    assert "clearstate-" not in files["bad.wav"]["error"]  # no name of a temporary folder
    put(f"{store}/in/a.wav", sound(seed=1, seconds=0.7))
    again = {remote.base_name(file["input"]): file for file in json.loads(run(*args).stdout)["files"]}
    assert again["b.wav"]["resumed"] and "resumed" not in again["a.wav"]
    assert again["a.wav"]["seconds"] == pytest.approx(0.7)
    assert remote.read(f"{store}/out/taken.wav") == b"of somebody else"


def test_an_upload_that_fails_leaves_nothing(store):
    class Breaks(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 6_000_000:
                raise OSError("the source is gone")
            return super().read(size)

    with pytest.raises(OSError, match="gone"):
        remote.write(Breaks(bytes(20_000_000)), f"{store}/a.wav")
    assert names(store) == []


def test_an_existing_target_and_an_input_that_does_not_exist_are_named(store):
    put(f"{store}/a.wav", sound())
    done = run("enhance", f"{store}/none.wav")
    assert done.returncode == 1 and f"{store}/none.wav: no audio at this URL" in done.stderr
    done = run("enhance", f"{store}/a.wav", "-o", f"{store}/a.wav", "--overwrite")
    assert done.returncode == 1 and "never overwritten" in done.stderr


@pytest.mark.parametrize("url, needs", [("gs://bucket/a.wav", "gcsfs"), ("nowhere://a.wav", "nowhere")])
def test_a_missing_driver_is_named(url, needs):
    done = run("enhance", url)
    assert done.returncode != 0 and needs in done.stderr and done.stderr.count("\n") == 1


def test_without_fsspec_one_line_tells_what_to_install(monkeypatch):
    monkeypatch.setattr("clearstate.audio.remote.find_spec", lambda name: None)
    done = run("enhance", "s3://bucket/a.wav")
    assert done.returncode == 2
    assert done.stderr == "clearstate: s3:// needs fsspec: pip install 'clearstate[remote]'\n"


@pytest.mark.parametrize(
    "text, clean",
    [
        ("ftp://me:pass@host/a.wav: failed", "ftp://host/a.wav: failed"),
        ("GET https://host/a.wav?X-Amz-Signature=ab%2F&x=y refused", "GET https://host/a.wav refused"),
        ("what is wrong? no URL here", "what is wrong? no URL here"),
    ],
)
def test_passwords_and_signatures_are_removed(text, clean):
    assert remote.without_secrets(text) == clean


def test_inspect_reads_urls_and_names_them(store):
    put(f"{store}/in/a.wav", sound(offset=0.1))
    put(f"{store}/in/b.clear.flac", sound())
    done = run("inspect", f"{store}/in", "--json", "--quick")
    files = json.loads(done.stdout)["files"]
    assert [remote.base_name(file["input"]) for file in files] == ["a.wav", "b.clear.flac"]
    assert files[0]["findings"][0]["command"] == f"clearstate restore {store}/in/a.wav"


@pytest.mark.parametrize("verb", ["enhance", "separate", "extend", "restore"])
def test_a_large_wav_is_read_where_it_is_with_the_same_result(s3, tmp_path, monkeypatch, verb):
    put(f"{s3}/large.wav", sound(rate=8_000, seconds=1))
    results, opened = [], []
    monkeypatch.setattr("clearstate.audio.io.inspect_url", lambda url: opened.append(url) or inspect_url(url))
    for least in (1, 1 << 30):
        monkeypatch.setattr("clearstate.cli.engines.contract.LEAST_BYTES", least)
        opened.clear()
        done = run(verb, f"{s3}/large.wav", "-o", f"{tmp_path}/{least}/", "--json")
        assert done.returncode == 0, done.stderr
        assert bool(opened) == (least == 1)
        results.append({path.name: path.read_bytes() for path in (tmp_path / f"{least}").iterdir()})
    assert results[0] == results[1] and results[0]
