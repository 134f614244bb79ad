"""A batch continues where it stopped, after an interruption at any byte, and never does a file twice."""

import json
import os

import numpy as np
import pytest
import soundfile
from as_typed import in_this_process

from clearstate.cli.engines.contract import Outcome
from clearstate.cli.inputs import Job
from clearstate.cli.manifest import NAME, Manifest

SETTINGS = {"verb": "enhance", "strength": None}


@pytest.fixture
def jobs(tmp_path):
    (tmp_path / "out").mkdir()
    made = []
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.wav").write_bytes(name.encode() * 10)
        made.append(Job(str(tmp_path / f"{name}.wav"), str(tmp_path / "out" / f"{name}.wav")))
    return made


def work(manifest, job, error=None):
    if not error:
        with open(job.target, "w") as file:
            file.write("done")
    manifest.record(job, Outcome(job.source, job.target, error=error, outputs={job.target: 4}, report={"seconds": 1.0}))


def left(jobs, tmp_path, settings=SETTINGS, **more):
    manifest = Manifest(str(tmp_path / "out"), settings, **more)
    todo, known = manifest.begin(jobs)
    manifest.close()
    return [os.path.basename(job.source) for job in todo], [outcome.error for outcome in known]


def test_done_files_are_skipped_with_their_report_failed_and_planned_ones_are_not(jobs, tmp_path, capsys):
    manifest = Manifest(str(tmp_path / "out"), SETTINGS)
    assert manifest.begin(jobs) == (jobs, [])
    work(manifest, jobs[0])
    work(manifest, jobs[1], error="no memory")
    manifest.close()
    todo, known = Manifest(str(tmp_path / "out"), SETTINGS).begin(jobs)
    assert [(job.source, job.replace) for job in todo] == [(jobs[1].source, True), (jobs[2].source, True)]
    assert [outcome.report for outcome in known] == [{"seconds": 1.0, "resumed": True}]
    assert "1 of 3 files are done already" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["input", "settings", "output shorter", "output gone"])
def test_a_change_makes_a_file_due_again(jobs, tmp_path, change):
    manifest = Manifest(str(tmp_path / "out"), SETTINGS)
    manifest.begin(jobs)
    for job in jobs:
        work(manifest, job)
    settings = SETTINGS | {"strength": 6.0} if change == "settings" else SETTINGS
    if change == "input":
        (tmp_path / "a.wav").write_bytes(b"another recording")
    elif change == "output gone":
        (tmp_path / "out" / "a.wav").unlink()
    elif change == "output shorter":
        (tmp_path / "out" / "a.wav").write_text("x")
    todo, errors = left(jobs, tmp_path, settings, overwrite=change == "output shorter")
    assert todo == (["a.wav", "b.wav", "c.wav"] if change == "settings" else ["a.wav"])
    assert errors == [None] * (3 - len(todo))


@pytest.mark.parametrize("changed_since", [False, True])
def test_a_file_that_somebody_else_wrote_is_refused(jobs, tmp_path, changed_since):
    target = tmp_path / "out" / "a.wav"
    if changed_since:
        manifest = Manifest(str(tmp_path / "out"), SETTINGS)
        manifest.begin(jobs)
        work(manifest, jobs[0])
    target.write_text("edited by hand")
    todo, errors = left(jobs, tmp_path)
    assert todo == ["b.wav", "c.wav"]
    assert "already exists; add --overwrite" in errors[0]
    assert left(jobs, tmp_path, overwrite=True)[0] == ["a.wav", "b.wav", "c.wav"]


def test_a_cut_at_any_byte_loses_at_most_the_last_line_and_nothing_that_is_written_later(jobs, tmp_path):
    manifest = Manifest(str(tmp_path / "out"), SETTINGS)
    manifest.begin(jobs)
    for job in jobs:
        work(manifest, job)
    manifest.close()
    path = tmp_path / "out" / NAME
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted(
        {*range(0, len(whole), 97), *(end + d for end in ends for d in (-2, -1, 0) if end + d < len(whole))}
    ):
        path.write_bytes(whole[:cut])
        for job in jobs:  # an output without an entry would be somebody else's
            if sum(end <= cut + 1 for end in ends) < len(jobs) and os.path.exists(job.target):
                os.unlink(job.target)
            elif sum(end <= cut + 1 for end in ends) >= len(jobs):
                with open(job.target, "w") as file:
                    file.write("done")
        finished = max(0, sum(end <= cut + 1 for end in ends) - len(jobs))
        again = Manifest(str(tmp_path / "out"), SETTINGS)
        todo, known = again.begin(jobs)
        assert len(known) == finished and not any(outcome.error for outcome in known), cut
        for job in todo:
            work(again, job)
        again.close()
        assert left(jobs, tmp_path) == ([], [None] * 3), cut
        for line in path.read_text().splitlines():
            if line not in whole[:cut].decode():
                json.loads(line)


def test_without_an_output_folder_the_manifest_is_in_the_folder_of_each_output(tmp_path):
    jobs = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").write_bytes(b"sound")
        jobs.append(Job(str(tmp_path / folder / "a.wav"), str(tmp_path / folder / "a.clear.wav")))
    manifest = Manifest(None, SETTINGS)
    manifest.begin(jobs)
    for job in jobs:
        work(manifest, job)
    manifest.close()
    assert [(tmp_path / folder / NAME).exists() for folder in ("x", "y")] == [True, True]
    assert Manifest(None, SETTINGS).begin(jobs[1:])[0] == []


@pytest.mark.parametrize("verb", ["enhance", "separate", "extend", "restore"])
@pytest.mark.parametrize("output", ["out", "out/", None])
def test_every_verb_continues_on_request(tmp_path, monkeypatch, verb, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        soundfile.write(f"in/{name}.wav", np.random.default_rng(0).normal(0, 0.05, 4000), 16_000)
    args = [verb, "in", "--json", "--resume", *(["-o", output] if output else [])]
    first = in_this_process(*args)
    assert first.returncode == 0, first.stderr
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    assert [path.parent.name for path in tmp_path.rglob(NAME)] == [(output or "in").strip("/")]
    os.utime("in/b.wav", (1, 1))
    again = in_this_process(*args)
    assert again.returncode == 0, again.stderr
    files = {file["input"]: file for file in json.loads(again.stdout)["files"]}
    assert files[os.path.join("in", "a.wav")].pop("resumed") and "resumed" not in files[os.path.join("in", "b.wav")]
    before = {file["input"]: file for file in json.loads(first.stdout)["files"]}
    assert files[os.path.join("in", "a.wav")].keys() == before[os.path.join("in", "a.wav")].keys()
    redone = {
        path.name[0] for path, time in made.items() if path.parent.name != "in" and path.stat().st_mtime_ns != time
    }
    assert redone <= {"b"}


def test_without_resume_no_manifest_is_written(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    assert in_this_process("enhance", tmp_path / "a.wav").returncode == 0
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_voice_that_somebody_edited_is_not_replaced(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.05, 4000), 16_000)
    args = ("separate", tmp_path / "a.wav", "-o", tmp_path / "out", "--resume")
    assert in_this_process(*args).returncode == 0
    (tmp_path / "out" / "a.speaker1.wav").write_text("edited by hand")
    done = in_this_process(*args)
    assert done.returncode == 1 and "already exists" in done.stderr
    assert (tmp_path / "out" / "a.speaker1.wav").read_text() == "edited by hand"
