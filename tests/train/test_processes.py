"""Several processes: training under torchrun, and scoring beside the training."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import finished, losses, tiny_model

from clearstate.train import checkpoint
from clearstate.train.pool import ScorePool
from clearstate.train.scoring import pesq_target, scores

PROGRAM = Path(__file__).with_name("tiny.py")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")


def start(folder: Path, dropout: str, *overrides: str, delay: str = "0") -> subprocess.Popen:
    """Two processes on this machine's CPU (gloo)."""
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*arguments, str(PROGRAM), str(folder), delay, dropout, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(*runs: subprocess.Popen) -> None:
    """Kill what is left of each torchrun, then its processes: those are sessions of their own, and hold its pipes."""
    for run in runs:
        left = [run.pid, *workers_of(run)] if run.poll() is None else []
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        run.communicate(timeout=60)


def workers_of(run: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")  # Linux alone has it
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def wait_until(condition: Callable[[], bool], run: subprocess.Popen, seconds: float = 120.0) -> None:
    """Raises AssertionError if the run ends before, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, run.communicate(timeout=60)[1]
        assert time.monotonic() < deadline, f"still waiting after {seconds:.0f} s"
        time.sleep(0.05)


def torchrun(folder: Path, dropout: str, *overrides: str, timeout: float = 400) -> None:
    run = start(folder, dropout, *overrides)
    try:
        _, errors = run.communicate(timeout=timeout)
    finally:
        end(run)
    assert run.returncode == 0, errors


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """A run of two processes in `whole`, and in `parts` what a kill after step 4 would have left of it."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(folder / "whole", "0", "data.batch=4", f"copy_at=4:{folder / 'parts'}")
    return folder


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_with_twice_the_batch(two_processes, tmp_path):
    """Equal up to the order of float32 sums: 1e-5 on weights of the order of 0.1 after twelve steps of Adam."""
    finished(tmp_path, "data.batch=8", model=tiny_model(dropout=0.0))
    one, two = (load_file(folder / "best" / "model.safetensors") for folder in (tmp_path, two_processes / "whole"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    for (step, a, at), (step_, b, at_) in zip(losses(tmp_path), losses(two_processes / "whole"), strict=True):
        assert (step, at) == (step_, at_) and math.isclose(a, b, rel_tol=1e-4)


@pytest.mark.slow
def test_two_processes_resume_with_a_random_state_each(two_processes):
    whole, parts = two_processes / "whole", two_processes / "parts"
    state = checkpoint.load(parts)
    assert state["counters"]["step"] == 4 and len(state["random"]) == 2
    assert not torch.equal(state["random"][0]["torch"], state["random"][1]["torch"])
    torchrun(parts, "0", "data.batch=4")
    assert losses(parts) == losses(whole)
    for one, other in zip(checkpoint.load(whole)["random"], checkpoint.load(parts)["random"], strict=True):
        assert torch.equal(one["torch"], other["torch"])


@pytest.mark.slow
def test_processes_write_their_checkpoints_at_the_same_step(tmp_path):
    """The second process has a clock that runs fast; by it, it would wait in a checkpoint for the other's step."""
    torchrun(tmp_path, "0", "checkpoint_minutes=0.001", "schedule.max_steps=60", timeout=120)
    assert checkpoint.load(tmp_path)["counters"]["step"] == 60


@LINUX
@pytest.mark.slow
def test_leaving_the_group_neither_hangs_nor_leaves_a_thread(tmp_path):
    """A process that let the model go last waited forever, on about one occasion in ten, for a thread of the group."""
    program = [sys.executable, str(PROGRAM.with_name("leaving.py"))]
    runs = [
        subprocess.Popen([*program, str(rank), str(tmp_path), "60"], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        told = [run.communicate(timeout=200)[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], told
    finally:
        end(*runs)


@LINUX
@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    run = start(tmp_path, "0", "schedule.max_steps=100000", delay="0.01")
    try:
        wait_until((tmp_path / "log.jsonl").exists, run)
        of_rank_1 = [c for c in workers_of(run) if b"RANK=1" in Path(f"/proc/{c}/environ").read_bytes().split(b"\0")]
        os.kill(of_rank_1[0], signal.SIGTERM)
        run.communicate(timeout=60)
    finally:
        end(run)
    steps = checkpoint.load(tmp_path)["counters"]["step"]
    assert 0 < steps < 100_000 and losses(tmp_path)[-1][0] <= steps


ELASTIC = ("data.batch=4", "schedule.max_steps=40", "checkpoint_minutes=0.002")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    torchrun(folder, "0.1", *ELASTIC)
    return folder


def node(folder: Path, port: int) -> subprocess.Popen:
    """One of two nodes with a process each, as in docs/training.md; both are on this machine."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "tiny", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", "127.0.0.1"]
    program = [str(PROGRAM), str(folder), "0.03", "0.1", *ELASTIC]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *command, *rendezvous, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@LINUX
@pytest.mark.slow
@pytest.mark.alone  # beside other tests, a process was aborted twice ("terminate called without an active exception")
@pytest.mark.parametrize("what", ["process", "node"])
def test_a_killed_process_or_node_is_replaced_and_the_losses_continue(uninterrupted, tmp_path, what):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [node(tmp_path, port)]
    try:
        wait_until(lambda: listens(port), nodes[0])  # the first one has the rendezvous
        nodes.append(node(tmp_path, port))
        wait_until(lambda: (tmp_path / "checkpoint.pt").exists() and len(losses(tmp_path)) >= 9, nodes[1])
        lost = workers_of(nodes[1])
        if what == "node":
            lost.append(nodes[1].pid)
        for process in lost:
            os.kill(process, signal.SIGKILL)
        if what == "node":
            end(nodes.pop())
            nodes.append(node(tmp_path, port))
        reached = checkpoint.load(tmp_path)["counters"]["step"]
        told = [run.communicate(timeout=300)[1] for run in nodes]
        assert [run.returncode for run in nodes] == [0, 0], told
    finally:
        end(*nodes)
    assert 0 < reached < 40
    assert losses(tmp_path) == losses(uninterrupted)


def noise(seconds: float = 0.5) -> torch.Tensor:
    return 0.1 * torch.randn(int(16_000 * seconds))


def test_scores_come_back_in_order():
    clean = [noise() for _ in range(4)]
    estimate = [c + 10 ** (-k / 20) * 0.1 * torch.randn_like(c) for k, c in zip((0, 5, 10, 15), clean, strict=True)]
    pool = ScorePool("clearstate.train.scoring:scores", workers=2)
    try:
        found = pool.collect(pool.submit(clean, estimate, 16_000))
    finally:
        pool.close()
    assert [round(row["snr"] / 5) for row in found] == [0, 1, 2, 3]
    assert found[0] == scores(clean[0].numpy(), estimate[0].numpy(), 16_000)


def test_one_item_that_raises_hangs_or_crashes_loses_no_other():
    pool = ScorePool("scorers:score", workers=2, timeout=5.0)
    os.environ["PYTHONPATH"], before = str(PROGRAM.parent), os.environ.get("PYTHONPATH")
    try:
        cases = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 0.0, 0.0])  # 1 raises, 2 hangs, 3 crashes
        start = time.monotonic()
        found = pool.collect(pool.submit(list(cases[:, None]), list(cases[:, None]), 16_000))
    finally:
        pool.close()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert found == [0.5, None, 0.5, None, None, 0.5, 0.5]
    assert pool.failures == 3
    assert time.monotonic() - start < 30


@LINUX
def test_scoring_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = (
        "import os, signal, torch\n"
        "from clearstate.train.pool import ScorePool\n"
        "pool = ScorePool('clearstate.train.scoring:scores', 1)\n"
        "x = torch.randn(8000)\n"
        "pool.collect(pool.submit([x], [x], 16000))\n"
        "print(pool._processes[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    child = int(killed.stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    raise AssertionError("the scoring process outlived its parent")


def test_pesq_targets_lie_on_the_discriminators_scale():
    silence = torch.zeros(16_000).numpy()
    voice = noise(1.0).numpy()
    assert math.isnan(pesq_target(silence, voice, 16_000))
    assert 0 <= pesq_target(voice, silence, 16_000) < 0.02
