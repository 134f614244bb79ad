"""Files appear complete or not at all, and what the system refuses is said with the remedy."""

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest

from clearstate.audio.atomic import replacing, write_text


@pytest.fixture
def small_files():
    """A system that refuses to let any file grow beyond 200 kB, as a full disk would."""
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_the_old_file_is_unchanged_and_nothing_else_is_left(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted():
        with replacing(target) as temporary, open(temporary, "w") as file:
            file.write("half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_gets_its_name_at_the_end_with_the_usual_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            assert not (tmp_path / "a.txt").exists() and os.path.dirname(temporary) == str(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["x" * 255, "日" * 85, "x"])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text" and os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x" * 256, "日" * 86])
def test_a_longer_name_is_refused_before_the_work(tmp_path, name):
    with (
        pytest.raises(OSError, match=rf"the name is {len(name.encode())} bytes long.*shorten it"),
        replacing(tmp_path / name),
    ):
        pytest.fail("the work was begun")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "place, says", [("gone/a", "the folder .* does not exist; create it first"), ("file/a", "is not a folder")]
)
def test_a_place_that_is_no_folder_is_named(tmp_path, place, says):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=says):
        write_text(tmp_path / place, "text")


def test_a_full_disk_is_said_by_whatever_kind_of_error_a_library_hides_it(tmp_path, small_files):
    def by_python(name):
        with open(name, "wb") as file:
            file.write(bytes(300_000))

    def by_torch(name):
        torch = pytest.importorskip("torch")
        with open(name, "wb") as file:
            torch.save(torch.zeros(100_000), file)

    for write in (by_python, by_torch):
        with (
            pytest.raises(OSError, match=r"a\.bin: .*the disk is full") as caught,
            replacing(tmp_path / "a.bin") as temporary,
        ):
            write(temporary)
        assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


def test_an_error_that_has_nothing_to_do_with_the_disk_is_not_blamed_on_it(tmp_path):
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "a"):
        raise ValueError("mine")
    with pytest.raises(FileNotFoundError, match="other"), replacing(tmp_path / "a"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/other")


FORBIDDEN = """
import os, sys
from clearstate.audio.atomic import write_text
os.setuid(65534)
try:
    write_text(sys.argv[1], "text")
except PermissionError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_may_not_be_written_to_is_named_with_the_remedy(tmp_path):
    # Only the last folder is closed to others: the ones above it are opened for the test.
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    command = [sys.executable, "-c", FORBIDDEN, str(tmp_path / "a.txt")]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    assert "cannot write into" in said and "permissions, or choose another place" in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
def test_a_pipe_receives_text_and_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "text")
    reader.join()
    assert got == ["text"] and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    with pytest.raises(OSError, match="is a pipe or a device"), replacing(tmp_path / "pipe"):
        pytest.fail("the work was begun")
    assert os.listdir(tmp_path) == ["pipe"]
