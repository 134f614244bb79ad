"""What C libraries print is kept off the terminal; what others print is not."""

import os
import threading

import pytest

from clearstate.audio.quiet import quiet, tell

MPG123 = b"[src/libmpg123/parse.c:do_readahead():1099] warning: Cannot read next header\nNote: Illegal header\n"


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.delenv("CLEARSTATE_VERBOSE", raising=False)


def test_chatter_is_dropped_and_other_lines_come_through(capfd):
    with quiet():
        os.write(2, MPG123 + b"a progress bar\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a progress bar\nafterwards\n"


def test_verbose_shows_it(capfd, monkeypatch):
    monkeypatch.setenv("CLEARSTATE_VERBOSE", "1")
    with quiet():
        os.write(2, MPG123)
    assert capfd.readouterr().err == MPG123.decode()


def test_many_threads_leave_stderr_as_it_was(capfd):
    def work():
        for _ in range(50):
            with quiet():
                os.write(2, MPG123)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


def test_an_error_inside_gives_stderr_back(capfd):
    with pytest.raises(ValueError), quiet():
        raise ValueError
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


def test_a_line_for_people_is_said_once(caplog):
    for _ in range(3):
        tell("a.wav: unlike any other line")
    assert [record.getMessage() for record in caplog.records] == ["clearstate: a.wav: unlike any other line"]
