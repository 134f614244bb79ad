"""Compiled code is kept under the digest of its sources, checked when it is read, and never needed."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clearstate.kernels import cache


@pytest.fixture
def places(monkeypatch, tmp_path):
    """A first place for compiled code and one that stands in for it; nothing has been said of either."""
    folders = tmp_path / "first" / "kernels" / "now", tmp_path / "second" / "kernels" / "now"
    monkeypatch.setattr(cache, "cache_folders", lambda: folders)
    monkeypatch.setattr(cache, "_told", set())
    cache._announce.cache_clear()
    cache.reason_unwritable.cache_clear()
    return folders


def twice():
    """A function to compile, as a new process would see it."""

    @cache.njit(cache=True)
    def double(x):
        return 2 * x

    return double


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def from_cache(function) -> bool:
    assert function(3) == 6
    return sum(function.stats.cache_hits.values()) == 1


def test_a_change_in_any_compiled_file_gives_another_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "kernel.py").write_text("@njit(cache=True)\ndef f(x): return g(x)\n")
    (tmp_path / "sub" / "helper.py").write_text("@njit\ndef g(x): return x\n")
    (tmp_path / "prose.py").write_text("x = 1\n")
    first = cache.digest(tmp_path)
    (tmp_path / "prose.py").write_text("x = 2\n")
    assert cache.digest(tmp_path) == first
    (tmp_path / "sub" / "helper.py").write_text("@njit\ndef g(x): return -x\n")
    assert cache.digest(tmp_path) != first


def test_code_is_kept_once_for_each_signature_and_found_again(places, caplog):
    caplog.set_level(logging.INFO)
    assert not from_cache(twice())
    assert [record.message for record in caplog.records] == ["compiling kernels, once per machine ..."]
    assert from_cache(twice())
    assert len(kept(places[0])) == 1 and not kept(places[1])
    assert twice()(1.5) == 3.0
    assert len(kept(places[0])) == 2


def emptied(path):
    path.write_bytes(b"")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def one_bit_off(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def foreign(path):
    """Whole, but not what Numba would have written."""
    path.unlink()
    cache._write(path.parent, path.name, b"\x80\x04cno_such_module\nname\n.")


def of_another_type(path):
    path.unlink()
    cache._write(path.parent, path.name, b"\x80\x04N.")


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_loop(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("harm", [emptied, cut_short, one_bit_off, foreign, of_another_type, a_pipe, a_loop])
def test_a_damaged_file_is_compiled_again_and_replaced(places, caplog, harm):
    from_cache(twice())
    [path] = kept(places[0])
    harm(path)
    assert not from_cache(twice())
    [said] = [record.message for record in caplog.records]
    assert str(path) in said and "compiled again" in said
    assert from_cache(twice())


def test_a_folder_in_the_place_of_a_file_is_left_and_named(places, caplog):
    from_cache(twice())
    [path] = kept(places[0])
    path.unlink()
    (path / "something").mkdir(parents=True)
    assert not from_cache(twice())
    assert len(caplog.records) == 1
    assert (path / "something").is_dir()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner here")
def test_code_of_another_user_is_not_run(places, monkeypatch, caplog):
    from_cache(twice())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(cache, "TRUSTED", ())
    assert not from_cache(twice())
    assert "another user" in caplog.text


def a_file(folder):
    folder.parent.parent.mkdir(parents=True)
    folder.parent.write_text("")


def a_dangling_link(folder):
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder.parent / "missing" / "folder")


@pytest.mark.parametrize("harm", [a_file, a_dangling_link])
def test_a_place_that_cannot_be_written_to_is_named_once_and_the_next_one_used(places, caplog, harm):
    harm(places[0])
    first, second = twice(), twice()
    assert not from_cache(first)
    assert second(1.5) == 3.0
    [said] = [record.message for record in caplog.records]
    assert str(places[0]) in said and "doctor" in said
    assert len(kept(places[1])) == 2
    assert from_cache(twice())


def test_the_second_place_is_not_read_while_the_first_can_be_written_to(places):
    cache._write(places[1], "any.nbc", b"")
    from_cache(twice())
    [path] = kept(places[0])
    path.replace(places[1] / path.name)
    assert not from_cache(twice())


def test_a_filled_cache_that_is_read_only_is_used(places, monkeypatch, caplog):
    from_cache(twice())
    monkeypatch.setattr(cache, "reason_unwritable", lambda folder: "Read-only file system")
    assert from_cache(twice())
    assert not caplog.records


def test_without_any_place_the_code_stays_in_memory(places, caplog):
    for folder in places:
        a_file(folder)
    function = twice()
    assert not from_cache(function)
    assert function(4) == 8
    assert len(caplog.records) == 2


def test_a_full_disk_leaves_nothing_behind(places, monkeypatch, caplog):
    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert not from_cache(twice())
    assert "No space left" in caplog.text
    assert [path.name for folder in places for path in folder.iterdir()] == [cache.OWNER] * 2


def test_a_new_folder_replaces_those_of_earlier_versions_only(places, tmp_path):
    beside = places[0].parent
    for name, owner in (("mine", str(cache.PACKAGE)), ("gone", str(tmp_path / "missing")), ("other", str(tmp_path))):
        (beside / name).mkdir(parents=True)
        (beside / name / cache.OWNER).write_text(owner)
    (beside / "unmarked").mkdir()
    from_cache(twice())
    assert {path.name for path in beside.iterdir()} == {"now", "other"}


def test_many_threads_compile_the_same_function(places):
    functions = [twice() for _ in range(4)]
    results = []
    threads = [threading.Thread(target=lambda f=f: results.append(f(3))) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [6] * 4
    assert len(kept(places[0])) == 1


SHOW = "from clearstate.kernels.cache import cache_folders; print(*cache_folders(), sep='\\n')"


def folders_with(**environment):
    kept_variables = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    run = subprocess.run(
        [sys.executable, "-c", SHOW], env={**kept_variables, **environment}, capture_output=True, text=True, check=True
    )
    return [Path(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/clearstate/kernels"),
        ({"HOME": "/h"}, "/h/.cache/clearstate/kernels"),
        ({"HOME": "/h", "NUMBA_CACHE_DIR": "/n"}, "/n/kernels"),
    ],
)
def test_the_environment_chooses_the_first_place(environment, first):
    assert folders_with(**environment)[0].parent == Path(first)


def test_numbas_own_setting_is_left_alone(places):
    import numba

    before = numba.config.CACHE_DIR
    from_cache(twice())
    assert before == numba.config.CACHE_DIR
