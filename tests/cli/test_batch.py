"""Many files: the others are finished, the order of events does not matter, and stopping cleans up."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from as_typed import in_this_process
from engine_doubles import open_block_worker

from clearstate.cli.batch import Outcome, run_batch
from clearstate.cli.inputs import Job

JOBS = [Job(name, f"{name}.out") for name in ("a", "bad", "c", "d")]


def open_worker(word="", broken=False):
    if broken:
        raise ValueError("this model does not open")

    def work(job, progress):
        progress(0.5, 1.0)
        if job.source == "bad":
            raise ValueError("it is bad")
        if job.source == "dies":
            os._exit(9)
        return {"seconds": 1.0, "word": word, "threads": os.environ.get("OMP_NUM_THREADS")}

    return work


@pytest.mark.parametrize("processes", [1, 2])
def test_one_failure_leaves_the_others_done(processes, capsys):
    outcomes = run_batch(JOBS, functools.partial(open_worker, "hello"), processes=processes, lengths={"a": 1.0})
    assert sorted((o.source, o.error) for o in outcomes) == [
        ("a", None),
        ("bad", "it is bad"),
        ("c", None),
        ("d", None),
    ]
    assert all(o.report["word"] == "hello" and o.wall > 0 and o.speed > 0 for o in outcomes if not o.error)
    shown = capsys.readouterr()
    assert "bad: failed: it is bad" in shown.err
    assert "a -> a.out  1.0 s of audio" in shown.err
    assert not shown.out


def test_processes_share_the_cores():
    outcomes = run_batch(JOBS[2:], open_worker, processes=2, lengths={})
    assert {o.report["threads"] for o in outcomes} == {str(max(1, (os.cpu_count() or 1) // 2))}


def test_a_model_that_does_not_open_is_named_once_a_file_not_as_a_crash():
    outcomes = run_batch(JOBS[2:], functools.partial(open_worker, broken=True), processes=2, lengths={})
    assert [o.error for o in outcomes] == ["this model does not open"] * 2


def test_a_process_that_dies_is_a_failure_with_a_remedy():
    outcomes = run_batch([Job("dies", "x"), Job("dies", "y")], open_worker, processes=2, lengths={})
    assert all("fewer --jobs" in o.error for o in outcomes)


@pytest.mark.parametrize("wanted", [False, True])
def test_a_bug_is_one_failure_in_one_line_and_shows_its_traceback_on_demand(capsys, monkeypatch, wanted):
    def broken():
        return lambda job, progress: {}["no such key"]

    monkeypatch.delenv("CLEARSTATE_TRACEBACK", raising=False)
    if wanted:
        monkeypatch.setenv("CLEARSTATE_TRACEBACK", "1")
    [outcome] = run_batch(JOBS[:1], broken, lengths={})
    assert "KeyError" in outcome.error and "bug" in outcome.error
    assert ("Traceback" in capsys.readouterr().err) == wanted


def test_an_outcome_as_json_says_what_was_written_or_why_not():
    good = Outcome("a.wav", "b.wav", wall=0.5, report={"seconds": 5.0}).as_json()
    assert good == {"input": "a.wav", "output": "b.wav", "ok": True, "seconds": 5.0, "wall_seconds": 0.5, "speed": 10.0}
    assert Outcome("a.wav", "b.wav", error="no").as_json() == {
        "input": "a.wav",
        "output": None,
        "ok": False,
        "error": "no",
    }


def test_a_terminal_sees_a_bar_with_percent_time_left_and_speed(monkeypatch, capsys):
    """Ten seconds of audio, half of it done after a little more than a second of work."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes a pipe for a terminal
    monkeypatch.setenv("COLUMNS", "120")

    def open_slow():
        def work(job, progress):
            for done in (1.0, 5.0, 5.0):
                progress(done, 10.0)
                time.sleep(0.6)
            return {"seconds": 10.0}

        return work

    run_batch([Job("talk.wav", "out.wav")], open_slow, lengths={"talk.wav": 10.0})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "talk.wav" in shown and " 50%" in shown and "time left" in shown
    assert re.search(r"[\d.]+ x real time", shown)
    assert "talk.wav -> out.wav" in shown


SLOW = """
import functools, sys, time
from pathlib import Path
from clearstate.cli.batch import run_batch
from clearstate.cli.inputs import Job

def open_worker():
    def work(job, progress):
        partial = Path(job.target + ".partial")
        partial.touch()
        try:
            for tick in range(600):
                progress(tick, 600)
                time.sleep(0.1)
        finally:
            partial.unlink()
        return {"seconds": 600.0}
    return work

if __name__ == "__main__":
    jobs = [Job(f"in{i}", f"out{i}") for i in range(3)]
    try:
        run_batch(jobs, open_worker, processes=int(sys.argv[1]), lengths={})
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_stops_soon_and_lets_every_worker_clean_up(tmp_path, processes):
    (tmp_path / "slow.py").write_text(SLOW)
    child = subprocess.Popen(
        [sys.executable, "slow.py", str(processes)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    deadline = time.monotonic() + 600
    while len(list(tmp_path.glob("*.partial"))) < processes and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(tmp_path.glob("*.partial"))) == processes
    os.killpg(child.pid, signal.SIGINT)  # the whole group, as a terminal does
    _, complaint = child.communicate(timeout=600)
    assert child.returncode == 130, complaint
    assert not complaint, complaint
    assert [path.name for path in Path(tmp_path).iterdir()] == ["slow.py"]


@pytest.mark.slow
@pytest.mark.parametrize("deadly", [False, True], ids=["helpers work", "helpers die"])
def test_other_processes_compute_blocks_of_a_single_long_file(tmp_path, deadly):
    job = Job(str(tmp_path / "long.wav"), str(tmp_path / "out.wav"))
    opener = functools.partial(open_block_worker, str(tmp_path), deadly)
    (outcome,) = run_batch([job], opener, processes=2, lengths={job.source: 600.0})
    assert outcome.error is None and Path(job.target).read_text() == "half whole"
    blocks = [line.split() for line in (tmp_path / "blocks").read_text().splitlines()]
    assert len({process for _, process in blocks}) == 2 and len({position for position, _ in blocks}) == 13


@pytest.mark.slow
def test_a_long_file_has_the_same_bytes_with_any_number_of_processes(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.05, 61 * 8_000), 8_000)
    written = []
    for processes in (1, 2):
        done = in_this_process(
            "extend", tmp_path / "long.wav", "--jobs", processes, "-o", tmp_path / f"{processes}.wav"
        )
        assert done.returncode == 0, done.stderr
        written.append((tmp_path / f"{processes}.wav").read_bytes())
    assert written[0] == written[1]
