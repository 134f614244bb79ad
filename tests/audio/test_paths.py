"""One rule for searching folders: links are followed, cycles end, and what cannot be used is listed."""

import os
import socket

import pytest
import soundfile

from clearstate.audio.paths import drawn, native_name, shown, walk, why_no_file

SUFFIXES = frozenset({".wav"})


@pytest.fixture
def tree(tmp_path):
    for name in ("d/a.wav", "d/sub/b.WAV", "d/.hidden/c.wav", "d/.d.wav", "d/notes.txt", "elsewhere/e.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listed(folder, **options):
    return [path.relative_to(folder).as_posix() for path in walk(folder, SUFFIXES, **options).files]


def test_links_to_files_and_folders_are_followed(tree):
    (tree / "d/album").symlink_to(tree / "elsewhere")
    (tree / "d/f.wav").symlink_to(tree / "elsewhere/e.wav")
    assert listed(tree / "d") == ["a.wav", "album/e.wav", "f.wav", "sub/b.WAV"]


@pytest.mark.parametrize(
    ("link", "to"), [("d/loop", "."), ("d/sub/loop", ".."), ("d/sub/loop", "../../d/sub"), ("d/a-twin", "sub")]
)
def test_a_folder_that_is_reached_twice_is_searched_once_under_its_own_path(tree, link, to):
    (tree / link).symlink_to(to)
    assert walk(tree / "d", SUFFIXES).unusable == []
    assert listed(tree / "d") == ["a.wav", "sub/b.WAV"]


def test_two_folders_that_link_to_each_other_end(tree):
    (tree / "d/sub/there").symlink_to(tree / "elsewhere")
    (tree / "elsewhere/back").symlink_to(tree / "d/sub")
    assert listed(tree / "d") == ["a.wav", "sub/b.WAV", "sub/there/e.wav"]


def link_to_nothing(path):
    path.symlink_to("/nowhere/x.wav")


def link_to_itself(path):
    path.symlink_to(path.name)


def bound_socket(path):
    os.chdir(path.parent)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (link_to_nothing, "is a link to /nowhere/x.wav, which does not exist"),
        (link_to_itself, "cannot be reached"),
        (os.mkfifo, "is a named pipe"),
        (bound_socket, "is a socket"),
    ],
)
def test_an_entry_that_is_no_file_is_listed_and_the_rest_found(tree, monkeypatch, make, word):
    monkeypatch.chdir(tree)
    make(tree / "d/x.wav")
    found = walk(tree / "d", SUFFIXES)
    assert [path.name for path in found.files] == ["a.wav", "b.WAV"]
    [(path, reason)] = found.unusable
    assert path == tree / "d/x.wav"
    assert word in reason


def test_a_folder_on_a_lost_disk_and_one_that_may_not_be_searched_are_listed(tree, monkeypatch):
    (tree / "d/album").symlink_to("/nowhere")
    (tree / "d/dead.txt").symlink_to("/nowhere")  # would not be read anyway
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) == "sub":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = walk(tree / "d", SUFFIXES)
    assert [path.name for path in found.files] == ["a.wav"]
    assert [path.name for path, _ in found.unusable] == ["album", "sub"]
    assert "check its permissions" in found.unusable[1][1]


def test_the_folder_of_results_is_left_out_unless_it_is_the_one_to_be_searched(tree):
    assert listed(tree / "d", leave_out=tree / "d/sub") == ["a.wav"]
    assert listed(tree / "d", leave_out=tree / "d") == listed(tree / "d", leave_out=tree) == ["a.wav", "sub/b.WAV"]


def test_what_is_wrong_with_a_path_is_said(tree):
    assert why_no_file(tree / "d/a.wav") is None
    assert "no such file" in why_no_file(tree / "gone.wav")
    assert "is a folder" in why_no_file(tree / "d")
    assert "too long" in why_no_file(tree / ("x" * 300))
    assert "null" in why_no_file("a\0b")


def test_a_name_that_is_no_text_is_found_and_read(tree):
    path = os.fsencode(tree) + b"/d/caf\xe9.wav"
    soundfile.write(path, [0.0] * 10, 16_000)
    [found] = [name for name in walk(tree / "d", SUFFIXES).files if "caf" in name.name]
    assert soundfile.info(native_name(found)).frames == 10
    assert drawn(found.name) == r"caf\xe9.wav"


def test_control_characters_of_names_are_spelled_out():
    assert shown("a\nb\x1b[31m\u202e é.wav") == r"a\nb\x1b[31m\u202e é.wav"
