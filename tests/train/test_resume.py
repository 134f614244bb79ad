"""A run that was killed and started again is the run that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import Tones, finished, losses, stop_after, tiny_run

from clearstate.train import checkpoint
from clearstate.train.batches import Positions
from clearstate.train.recipe import RecipeError

PROGRAM = Path(__file__).with_name("tiny.py")
STEPS = "schedule.max_steps=40"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finished(folder, STEPS)
    return folder


def start(folder: Path, delay: float, *overrides: str) -> subprocess.Popen:
    """The tiny run as a program of its own; `delay` seconds an item keep it from ending before it is killed."""
    arguments = [sys.executable, str(PROGRAM), str(folder), str(delay), "0.1", STEPS, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.01)


def same_end(one: Path, other: Path) -> None:
    """Bit for bit: the same process count and threads do the same arithmetic in the same order."""
    a, b = checkpoint.load(one), checkpoint.load(other)
    for part in ("model", "ema"):
        states = [x[part] if part == "model" else x[part]["model"] for x in (a, b)]
        for name in states[0]:
            assert torch.equal(states[0][name], states[1][name]), f"{part}.{name} differs"
    assert a["counters"]["position"] == b["counters"]["position"]
    assert (one / "best" / "model.safetensors").read_bytes() == (other / "best" / "model.safetensors").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_ends_as_if_it_had_not_been(uninterrupted, tmp_path):
    checkpoint_often = "checkpoint_minutes=0.002"
    process = start(tmp_path, 0.01, checkpoint_often)
    # an epoch is 24 items, six steps: past step 9 and before 35 it is somewhere inside
    wait_for(lambda: (tmp_path / "checkpoint.pt").is_file() and len(losses(tmp_path)) >= 9, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = checkpoint.load(tmp_path)["counters"]["step"]
    assert 0 < reached < 40
    finished(tmp_path, STEPS)
    assert losses(tmp_path) == losses(uninterrupted)
    same_end(tmp_path, uninterrupted)


def test_the_comparison_sees_a_lost_random_state(uninterrupted, tmp_path, monkeypatch):
    """The negative control: without the generators' state, dropout is drawn anew and the losses part."""
    assert not stop_after(tiny_run(tmp_path, STEPS), 10).run().finished
    monkeypatch.setattr(checkpoint, "restore_random_state", lambda state: None)
    finished(tmp_path, STEPS)
    assert losses(tmp_path)[:10] == losses(uninterrupted)[:10]
    assert losses(tmp_path)[10:] != losses(uninterrupted)[10:]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_from_there(uninterrupted, tmp_path):
    process = start(tmp_path, 0.005, "data.workers=2")
    wait_for(lambda: (tmp_path / "log.jsonl").is_file() and len(losses(tmp_path)) >= 5, process)
    os.killpg(process.pid, signal.SIGTERM)  # to its workers too, as torchrun and schedulers do
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint.decode()
    reached = checkpoint.load(tmp_path)["counters"]["step"]
    assert reached == len(losses(tmp_path)) < 40  # nothing was lost
    finished(tmp_path, STEPS)
    assert losses(tmp_path) == losses(uninterrupted)
    same_end(tmp_path, uninterrupted)


def test_lines_of_steps_that_a_kill_undid_leave_the_log(uninterrupted, tmp_path):
    assert not stop_after(tiny_run(tmp_path, STEPS), 10).run().finished
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 11, "loss": 9.0, "position": 44}\n{"kind": "train", "st')
    finished(tmp_path, STEPS)
    assert losses(tmp_path) == losses(uninterrupted)


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = finished(tmp_path)
    before = losses(tmp_path)
    assert finished(tmp_path).step == first.step
    assert losses(tmp_path) == before


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path):
    checkpoint.save(tmp_path, {"step": 1})

    def killed(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(tmp_path / checkpoint.NAME, killed)
    assert checkpoint.load(tmp_path) == {"step": 1}


def test_a_checkpoint_that_cannot_be_read_says_so(tmp_path):
    (tmp_path / checkpoint.NAME).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="restore it from a copy, or remove it"):
        checkpoint.load(tmp_path)


def test_a_run_folder_of_another_model_is_not_resumed(tmp_path):
    finished(tmp_path, "schedule.max_steps=2")
    with pytest.raises(RecipeError, match="run=FOLDER"):
        tiny_run(tmp_path, "model.name=other")
    with pytest.raises(RecipeError, match="of the optimiser adamw, but the recipe has muon"):
        tiny_run(tmp_path, "optimiser.name=muon")


def test_every_item_comes_once_an_epoch_and_the_order_does_not_depend_on_where_one_starts():
    def keys(start: int, count: int) -> list:
        batches = iter(Positions(items=10, batch=4, seed=1, start=start))
        return [key for _ in range(count) for key in next(batches)]

    order = keys(0, 5)
    assert sorted(order[:10]) == [(0, i) for i in range(10)]
    assert sorted(order[10:]) == [(1, i) for i in range(10)]
    assert [i for _, i in order[:10]] != [i for _, i in order[10:]]
    assert keys(8, 3) == order[8:]


def test_the_processes_share_out_the_batch_of_one():
    whole = next(iter(Positions(items=10, batch=6, seed=1)))
    parts = [next(iter(Positions(items=10, batch=3, seed=1, rank=rank, world=2))) for rank in (0, 1)]
    assert parts[0] == whole[0::2] and parts[1] == whole[1::2]


def test_an_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="training set is empty"):
        Positions(items=0, batch=4, seed=1)


def test_items_are_functions_of_epoch_and_number():
    assert torch.equal(Tones().example(2, 3)["noisy"], Tones().example(2, 3)["noisy"])
