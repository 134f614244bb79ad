"""A Ray cluster of two nodes here: workers, a node and the driver are killed, and every file is done once."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from as_typed import in_this_process
from engine_doubles import open_block_worker, open_worker

from clearstate.audio import remote
from clearstate.cli.batch import run_batch
from clearstate.cli.engines import EngineName, find
from clearstate.cli.inputs import Job
from clearstate.cli.manifest import NAME, Manifest

HERE = Path(__file__).parent


def test_without_ray_one_line_tells_what_to_install(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    monkeypatch.setattr("clearstate.cli.engines.ray.find_spec", lambda name: None)
    done = in_this_process("enhance", tmp_path / "a.wav", "--engine", "ray")
    assert done.returncode == 2
    assert done.stderr == "clearstate: --engine ray needs Ray: pip install 'clearstate[ray]'\n"


@pytest.mark.parametrize(
    "options, complaint",
    [
        (("--workers", 2), "--workers: for --engine ray only"),
        (("--address", "auto"), "--address: for --engine ray only"),
        (("--engine", "ray", "--jobs", 2), "--workers sets the workers"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(tmp_path, options, complaint):
    done = in_this_process("enhance", tmp_path, *options)
    assert done.returncode == 2 and complaint in done.stderr


def test_pipes_stay_on_this_machine():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'clearstate[ray]'")
    done = in_this_process("enhance", "-", "-o", "a.wav", "--engine", "ray")
    assert done.returncode == 2 and "works on files" in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_a_cluster_that_does_not_answer_is_named_at_once(tmp_path, address, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'clearstate[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    done = in_this_process("enhance", tmp_path / "a.wav", "--engine", "ray", "--address", address)
    assert done.returncode == 1
    assert f"--address {address}: no Ray cluster answers" in done.stderr and "ray start --head" in done.stderr


@pytest.fixture(scope="module")
def cluster(s3):  # the workers get its credentials from the environment, as on real machines
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'clearstate[ray]'")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    source = str(Path(sys.modules["clearstate"].__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([source, str(HERE)])
    os.environ["RAY_health_check_period_ms"] = "500"  # noqa: SIM112 - Ray spells it so
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


def jobs_in(folder, count):
    (folder / "out").mkdir()
    made = [Job(str(folder / f"{i}.wav"), str(folder / "out" / f"{i}.wav")) for i in range(count)]
    for job in made:
        Path(job.source).write_text("sound")
    return made


def run(cluster, jobs, opener, **more):
    engine = find(EngineName.ray, cluster.address)
    return run_batch(jobs, opener, processes=2, lengths=more.pop("lengths", {}), engine=engine, **more)


def attempts(folder):
    return Counter(line.split()[0] for line in (folder / "attempts").read_text().splitlines())


def pids(folder):
    return {int(line.split()[1]) for line in (folder / "attempts").read_text().splitlines()}


def check_all_whole(jobs, leave=()):
    for job in jobs:
        assert Path(job.target).read_text() == "half whole"
    folder = Path(jobs[0].target).parent
    assert {path.name for path in folder.iterdir()} == {os.path.basename(job.target) for job in jobs} | set(leave)


@pytest.mark.slow
def test_two_workers_share_the_files_the_longest_first_and_each_is_done_once(cluster, tmp_path):
    jobs = jobs_in(tmp_path, 6)
    lengths = {job.source: float(i) for i, job in enumerate(jobs)}
    outcomes = run(cluster, jobs, functools.partial(open_worker, str(tmp_path), 0.7), lengths=lengths)
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert set(attempts(tmp_path).values()) == {1} and len(pids(tmp_path)) == 2
    first = (tmp_path / "attempts").read_text().split()[0:4:2]
    assert set(first) == {jobs[4].source, jobs[5].source}
    check_all_whole(jobs)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deadly", "failing"])
@pytest.mark.parametrize("times", [2, 3])
def test_a_job_has_three_attempts_and_then_it_alone_has_failed(cluster, tmp_path, how, times):
    jobs = jobs_in(tmp_path, 4)
    opener = functools.partial(open_worker, str(tmp_path), times=times, **{how: jobs[1].source})
    outcomes = {outcome.source: outcome for outcome in run(cluster, jobs, opener)}
    assert attempts(tmp_path)[jobs[1].source] == 3
    error = outcomes.pop(jobs[1].source).error
    assert not any(outcome.error for outcome in outcomes.values())
    if times == 2:
        assert error is None
        check_all_whole(jobs)
    else:
        assert ("its worker died 3 times" if how == "deadly" else "the storage is busy") in error
        assert not os.path.exists(jobs[1].target)


@pytest.mark.slow
def test_among_500_short_files_and_3_long_ones_each_is_done_once(cluster, tmp_path):
    """A worker dies with one file, another file fails in each attempt, and no short file waits for a long one."""
    jobs = jobs_in(tmp_path, 503)
    slow = [job.source for job in jobs[:3]]
    deadly, failing = jobs[100].source, jobs[200].source
    opener = functools.partial(open_worker, str(tmp_path), 0.0, deadly=deadly, failing=failing, times=3, slow=slow)
    outcomes = run(cluster, jobs, opener, lengths={job.source: 60.0 if job.source in slow else 1.0 for job in jobs})
    failed = {outcome.source for outcome in outcomes if outcome.error}
    assert failed == {deadly, failing} and len(outcomes) == 503
    expected = dict.fromkeys((job.source for job in jobs), 1) | {deadly: 3, failing: 3}
    assert attempts(tmp_path) == expected
    check_all_whole([job for job in jobs if job.source not in failed])
    order = [outcome.source for outcome in outcomes]
    assert order.index(slow[2]) > order.index(jobs[3].source)


@pytest.mark.slow
def test_a_node_that_disappears_takes_no_file_with_it(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    jobs = jobs_in(tmp_path, 12)
    notes = tmp_path / "attempts"

    def lose_it():
        while not notes.exists() or len(notes.read_text().splitlines()) < 5:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose_it)
    thread.start()
    engine = find(EngineName.ray, cluster.address)
    opener = functools.partial(open_worker, str(tmp_path), seconds=0.5)
    outcomes = run_batch(jobs, opener, processes=3, lengths={}, engine=engine)
    thread.join()
    assert [outcome.error for outcome in outcomes] == [None] * 12
    assert sum(attempts(tmp_path).values()) == 13  # the node held one file, which was done again elsewhere
    check_all_whole(jobs)


@pytest.mark.slow
@pytest.mark.parametrize("deadly", [False, True], ids=["helpers work", "helpers die"])
def test_idle_workers_compute_blocks_of_a_long_file(cluster, tmp_path, deadly):
    jobs = jobs_in(tmp_path, 1)
    opener = functools.partial(open_block_worker, str(tmp_path), deadly)
    (outcome,) = run(cluster, jobs, opener, lengths={jobs[0].source: 600.0})
    assert outcome.error is None
    check_all_whole(jobs)
    blocks = [line.split() for line in (tmp_path / "blocks").read_text().splitlines()]
    assert len({process for _, process in blocks}) == 2
    assert len({position for position, _ in blocks}) == 13


@pytest.mark.slow
def test_a_short_file_has_no_helpers(cluster, tmp_path):
    jobs = jobs_in(tmp_path, 1)
    opener = functools.partial(open_block_worker, str(tmp_path))
    run(cluster, jobs, opener, lengths={jobs[0].source: 30.0})
    assert len({line.split()[1] for line in (tmp_path / "blocks").read_text().splitlines()}) == 1


DRIVER = """
import functools, sys
from pathlib import Path
from engine_doubles import open_block_worker, open_worker
from clearstate.cli.batch import run_batch
from clearstate.cli.engines import EngineName, find
from clearstate.cli.inputs import Job
from clearstate.cli.manifest import Manifest

folder = Path(sys.argv[1])
jobs = [Job(str(folder / f"{i}.wav"), str(folder / "out" / f"{i}.wav")) for i in range(8)]
try:
    run_batch(
        jobs, functools.partial(open_worker, str(folder), 0.4), processes=2, lengths={},
        engine=find(EngineName.ray, sys.argv[2]), manifest=Manifest(str(folder / "out"), {}),
    )
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_the_next_run_continues_after_the_driver_is_gone(cluster, tmp_path, kind):
    jobs = jobs_in(tmp_path, 8)
    child = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), cluster.address],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "out").glob("*.wav"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        child.send_signal(kind)
        code = child.wait(60)
    assert code == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    time.sleep(2)  # Ray ends the workers of a driver that is gone
    if kind == signal.SIGINT:
        assert not list((tmp_path / "out").glob(".*.part"))
    lines = (tmp_path / "out" / NAME).read_text().splitlines()
    done = {json.loads(line)["input"] for line in lines if json.loads(line)["state"] == "done"}
    assert 2 <= len(done) < 8
    before = attempts(tmp_path)
    outcomes = run(
        cluster, jobs, functools.partial(open_worker, str(tmp_path)), manifest=Manifest(str(tmp_path / "out"), {})
    )
    assert [outcome.error for outcome in outcomes] == [None] * 8
    again = attempts(tmp_path) - before
    assert set(again) == {job.source for job in jobs} - done
    check_all_whole(jobs, leave=[NAME])


@pytest.mark.slow
def test_the_verbs_give_the_same_files_as_local_processes(cluster, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(3):
        soundfile.write(tmp_path / "in" / f"{i}.wav", generator.normal(0, 0.05, 8000), 16_000)
    (tmp_path / "in" / "bad.wav").write_text("no sound")
    args = ("enhance", tmp_path / "in", "--backend", "onnx", "--json", "-o")
    here = in_this_process(*args, tmp_path / "here")
    there = in_this_process(*args, tmp_path / "there", "--engine", "ray", "--address", cluster.address)
    assert here.returncode == there.returncode == 1
    for i in range(3):
        assert (tmp_path / "here" / f"{i}.wav").read_bytes() == (tmp_path / "there" / f"{i}.wav").read_bytes()
    events = [json.loads(line) for line in there.stderr.splitlines() if line.startswith("{")]
    assert [event["finished"] for event in events] == [1, 2, 3, 4]
    assert events[-1]["failed"] == 1 and events[-1]["files"] == 4
    args = tuple(arg for arg in args if arg != "--json")
    told = in_this_process(*args, tmp_path / "third", "--engine", "ray", "--address", cluster.address).stderr
    assert "clearstate: 4 files, 0.000417 hours of audio in" in told and "1 failed" in told
    args = ("--json", *args[1:])
    again = in_this_process("enhance", *args, tmp_path / "there", "--engine", "ray", "--address", cluster.address)
    files = json.loads(again.stdout)["files"]
    assert sum(file.get("resumed", False) for file in files) == 3


@pytest.mark.slow
def test_a_cluster_works_from_storage_to_storage_and_continues_there(cluster, s3):
    fs, _ = remote.file_system(s3)
    s3 = f"{s3}/cluster"
    generator = np.random.default_rng(0)
    for i in range(4):
        file = io.BytesIO()
        soundfile.write(file, generator.normal(0, 0.05, 8000), 16_000, format="WAV")
        remote.write(io.BytesIO(file.getvalue()), f"{s3}/in/{i}.wav")
    args = ("enhance", f"{s3}/in/", "-o", f"{s3}/out/", "--json", "--engine", "ray", "--address", cluster.address)
    done = in_this_process(*args)
    assert done.returncode == 0, done.stderr
    fs.invalidate_cache()
    assert [file for file in fs.find("archive/cluster/out") if file.endswith(".wav")] == [
        f"archive/cluster/out/{i}.wav" for i in range(4)
    ]
    remote.write(io.BytesIO(file.getvalue()), f"{s3}/in/new.wav")
    files = json.loads(in_this_process(*args).stdout)["files"]
    assert {remote.base_name(file["input"]) for file in files if not file.get("resumed")} == {"new.wav"}
    assert len(files) == 5
