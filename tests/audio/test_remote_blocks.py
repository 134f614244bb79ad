"""WAV and similar files at a URL are read block by block: only what is wanted, and hardly a byte twice."""

import subprocess
import sys
from itertools import chain, islice

import numpy as np
import pytest
import soundfile

from clearstate.audio import tags
from clearstate.audio.info import AudioError
from clearstate.audio.io import open_reader
from clearstate.audio.length import inspect_url
from clearstate.audio.remote import BLOCK, HEAD_BLOCK

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'clearstate[remote]'")
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem  # noqa: E402

RATE = 16_000


class CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        if end > self.fs.breaks_at:
            raise OSError("the storage is gone")
        self.fs.fetched.append((start, end))
        return self.fs.files[self.path][start:end]


class Counted(AbstractFileSystem):
    """A storage that notes what is fetched, and may break."""

    protocol = "counted"
    cachable = False
    files: dict = {}  # noqa: RUF012 - for all its objects
    fetched: list = []  # noqa: RUF012
    breaks_at = float("inf")

    def info(self, path, **more):
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def _open(self, path, mode="rb", **more):
        more = {key: more[key] for key in ("block_size", "cache_type", "cache_options")}
        return CountedFile(self, path, mode, size=len(self.files[path]), **more)


@pytest.fixture
def storage(monkeypatch):
    fsspec.register_implementation("counted", Counted, clobber=True)
    monkeypatch.setattr(Counted, "files", {})
    monkeypatch.setattr(Counted, "fetched", [])
    monkeypatch.setattr(Counted, "breaks_at", float("inf"))
    return Counted


def fetched():
    return sum(end - start for start, end in Counted.fetched)


def put(storage, path):
    storage.files[path.name] = path.read_bytes()
    return f"counted://{path.name}"


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    x = np.random.default_rng(0).integers(-(2**12), 2**12, 600 * RATE, dtype=np.int16)
    for name, form in (("a.wav", "WAV"), ("a.aiff", "AIFF"), ("a.caf", "CAF"), ("a.w64", "W64"), ("a.rf64", "RF64")):
        soundfile.write(folder / name, x, RATE, format=form)
    return folder


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.caf", "a.w64", "a.rf64"])
def test_the_first_seconds_of_a_long_file_fetch_only_its_beginning(storage, ten_minutes, name):
    url = put(storage, ten_minutes / name)
    with open_reader(url) as source:
        assert (source.info.sample_rate, source.info.frames) == (RATE, 600 * RATE)
        x = np.concatenate(list(islice(source.blocks(), 5)), axis=1)
        tags.of(source.info)
    assert x.shape == (1, 10 * RATE)
    assert fetched() <= BLOCK + 12 * HEAD_BLOCK < len(storage.files[name]) / 3


@pytest.mark.parametrize("name", ["a.wav", "a.caf"])
def test_the_whole_file_is_fetched_about_once_and_has_the_same_samples(storage, ten_minutes, name):
    url = put(storage, ten_minutes / name)
    with open_reader(url) as there, open_reader(ten_minutes / name) as here:
        for x, y in zip(there.blocks(), here.blocks(), strict=True):
            np.testing.assert_array_equal(x, y)
    assert fetched() <= len(storage.files[name]) + BLOCK + 12 * HEAD_BLOCK  # the last block also when it is opened


def test_tags_and_chunks_behind_the_sound_arrive(storage, tmp_path):
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        file.title, file.comment = "A talk", "in May"
        file.write(np.zeros(100 * RATE))
    url = put(storage, path)
    with open_reader(url) as there, open_reader(path) as here:
        assert tags.of(there.info) == tags.of(here.info) and ("TITLE", "A talk") in tags.of(here.info).comments


@pytest.mark.parametrize("kind", ["flac", "mp3", "cut off", "joined", "no sound"])
def test_other_files_are_not_read_in_blocks(storage, tmp_path, kind):
    path = tmp_path / ("a.mp3" if kind == "mp3" else "a.flac" if kind == "flac" else "a.wav")
    soundfile.write(path, np.zeros(RATE), RATE)
    data = path.read_bytes()
    changed = {"cut off": data[:-1_000], "joined": data + data, "no sound": b"no sound"}
    path.write_bytes(changed.get(kind, data))
    url = put(storage, path)
    assert inspect_url(url) is None
    with pytest.raises(AudioError, match=r"no complete WAV.*copy it here first"):
        open_reader(url)


def test_a_storage_that_breaks_is_an_error_not_a_short_file(storage, ten_minutes):
    url = put(storage, ten_minutes / "a.wav")
    with open_reader(url) as source:
        storage.breaks_at = BLOCK
        with pytest.raises(OSError, match="the storage is gone"):
            list(chain(source.blocks()))


def test_reading_local_files_does_not_import_fsspec(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    script = "import sys; from clearstate.audio.io import *; read_audio(sys.argv[1]); print('fsspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.wav"], capture_output=True, check=True)
    assert done.stdout.split() == [b"False"]
