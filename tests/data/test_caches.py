"""What training keeps in its cache folder is checked before it is used, and can be done without."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from corpora_in_miniature import RATE, make_shards, voice, write

from clearstate.data.folders import scan
from clearstate.data.shards import open_shards


@pytest.fixture
def index(tmp_path):
    rows = [({"file": f"{i}.flac"}, voice(100 * i, 0.5)) for i in (1, 2)]
    return make_shards(tmp_path / "shards", "speech16k", rows)


def decoded(index, cache):
    """The audio of a set, and whether it was decoded just now."""
    seen = []
    opened = open_shards(index, RATE, cache=cache, progress=lambda *state: seen.append(state))
    return np.concatenate([opened.read(i) for i in range(2)]), bool(seen)


def edited(**values):
    """Write other values into the index."""

    def harm(folder):
        path = folder / "index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return harm


def audio_of(size):
    return lambda folder: os.truncate(folder / "audio.i16", size)


def folder_as_index(folder):
    (folder / "index.json").unlink()
    (folder / "index.json").mkdir()


def file_as_folder(folder):
    folder.rename(folder.with_name("away"))
    folder.write_text("")


HARMS = {
    "empty index": lambda folder: (folder / "index.json").write_text(""),
    "half an index": lambda folder: os.truncate(folder / "index.json", 200),
    "bytes": lambda folder: (folder / "index.json").write_bytes(b"\xff\xfe\0garbage"),
    "other JSON": lambda folder: (folder / "index.json").write_text("[1, 2]"),
    "missing key": lambda folder: (folder / "index.json").write_text('{"name": "speech16k"}'),
    "clip of another version": edited(clips=[{"key": "a", "colour": "red"}] * 2),
    "starts": edited(starts=[0, 10**9]),
    "too few scales": edited(scales=[1.0]),
    "scale not finite": edited(scales=[1.0, float("nan")]),
    "no clips": edited(clips=[], starts=[], scales=[]),
    "empty audio": audio_of(0),
    "short audio": audio_of(16_000),
    "odd audio": audio_of(31_999),
    "no audio": lambda folder: (folder / "audio.i16").unlink(),
    "no index": lambda folder: (folder / "index.json").unlink(),
    "folder as index": folder_as_index,
    "file as folder": file_as_folder,
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_damaged_set_is_decoded_again_and_replaced(index, tmp_path, harm):
    cache = tmp_path / "c"
    audio, fresh = decoded(index, cache)
    assert fresh
    [folder] = cache.iterdir()
    harm(folder)
    again, fresh = decoded(index, cache)
    assert fresh
    np.testing.assert_array_equal(again, audio)
    assert not decoded(index, cache)[1]


def a_file(cache: Path):
    cache.write_text("")


def a_dangling_link(cache: Path):
    cache.symlink_to(cache.parent / "missing" / "folder")


@pytest.mark.parametrize("harm", [a_file, a_dangling_link])
def test_without_a_cache_a_set_is_decoded_for_this_run_and_it_is_said(index, tmp_path, monkeypatch, caplog, harm):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    harm(tmp_path / "c")
    audio, fresh = decoded(index, tmp_path / "c")
    assert fresh and len(audio) == RATE
    [said] = [record.message for record in caplog.records]
    assert str(tmp_path / "c") in said and "this run only" in said


def test_a_full_cache_leaves_nothing_behind(index, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_text = Path.write_text

    def full(self, *arguments, **options):
        if tmp_path / "c" in self.parents:
            raise OSError(28, "No space left on device")
        return write_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert len(decoded(index, tmp_path / "c")[0]) == RATE
    assert "No space left" in caplog.text
    assert not list((tmp_path / "c").iterdir())


@pytest.mark.parametrize(
    "content",
    ["", "[[8000, 16000]", "garbage", "{}", "[]", "[[8000]]", "[[8000, 0]]", '[["8000", 16000]]', "[1]", "null"],
)
def test_a_damaged_scan_is_made_again(tmp_path, caplog, content):
    path = write(tmp_path / "a.wav", voice(100, 0.5))
    scan([path], "x", tmp_path / "c")
    [kept] = (tmp_path / "c").iterdir()
    kept.write_text(content)
    assert scan([path], "x", tmp_path / "c") == [(8000, RATE)]
    assert str(kept) in caplog.text
    assert json.loads(kept.read_text()) == [[8000, RATE]]


@pytest.mark.parametrize("harm", [a_file, a_dangling_link])
def test_a_scan_that_cannot_be_kept_is_used_all_the_same(tmp_path, caplog, harm):
    path = write(tmp_path / "a.wav", voice(100, 0.5))
    harm(tmp_path / "c")
    assert scan([path], "x", tmp_path / "c") == [(8000, RATE)]
    assert len(caplog.records) == 1


def test_a_folder_in_the_place_of_a_scan_is_left(tmp_path, caplog):
    path = write(tmp_path / "a.wav", voice(100, 0.5))
    scan([path], "x", tmp_path / "c")
    [kept] = (tmp_path / "c").iterdir()
    kept.unlink()
    kept.mkdir()
    assert scan([path], "x", tmp_path / "c") == [(8000, RATE)]
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == [kept.name]


def test_without_a_home_there_is_a_cache_among_the_temporary_files(monkeypatch):
    from clearstate.data.shards import default_cache

    monkeypatch.delenv("CLEARSTATE_CACHE")
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    assert default_cache().parent == Path(tempfile.gettempdir())
