"""Threads: few for small models, the caller's own number afterwards, and the same results from any number of them."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import clearstate
from clearstate.kernels import threads
from clearstate.kernels.spinning import limit_spinning
from clearstate.kernels.threads import in_parts, inference, threads_for

RATE = 16_000
ROUNDING = 1e-6  # PyTorch's products round by where their arrays lie in memory, on AMD's processors


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model_of(parameters: int) -> nn.Module:
    return nn.Linear(parameters, 1, bias=False)


@pytest.mark.parametrize(
    ("size", "limited", "expected"),
    [(threads.SMALL_MODEL - 1, False, 1), (threads.SMALL_MODEL - 1, True, 2), (threads.SMALL_MODEL, False, 2)],
)
def test_a_small_model_runs_on_one_thread_where_threads_spin(monkeypatch, size, limited, expected):
    """And the caller's number comes back."""
    monkeypatch.setattr(threads.spinning, "LIMITED", limited)
    with inference(model_of(size)):
        assert torch.get_num_threads() == expected
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == 2


def test_the_callers_number_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError), inference(model_of(1)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_the_callers_number_is_never_raised():
    torch.set_num_threads(1)
    with inference(model_of(threads.SMALL_MODEL)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_every_part_is_done_once(parts):
    done = []
    in_parts(lambda part, count, factor: done.append((part, count, factor)), parts, 7)
    assert sorted(done) == [(part, parts, 7) for part in range(parts)]


def test_an_error_in_any_part_is_raised():
    def kernel(part, parts):
        if part == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parts(kernel, 2)


def test_small_work_is_not_shared_out():
    assert threads_for(8, threads.SMALL) == 2
    assert threads_for(8, threads.SMALL - 1) == 1
    assert threads_for(1, 1 << 30) == 1


# ------------------------------------------------------------------------------------- whole models in threads, forks


def noise(seed: int, seconds: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


@pytest.fixture(params=[threads.SMALL_MODEL, 0], ids=["one-thread", "two-threads"])
def enhancer(request, monkeypatch):
    monkeypatch.setattr(threads.spinning, "LIMITED", False)
    monkeypatch.setattr(threads, "SMALL_MODEL", request.param)
    return clearstate.Enhancer(clearstate.build("live"))


def streamed(model, x):
    stream = clearstate.Stream(model, RATE)
    return np.concatenate([*(stream.process(chunk) for chunk in np.split(x, 8)), stream.flush()])


def enhanced(model, x):
    return clearstate.Enhancer(model).enhance(x, RATE)


@pytest.mark.parametrize("run", [enhanced, streamed])
def test_four_threads_at_once_give_what_each_gives_alone(enhancer, run):
    signals = [noise(seed) for seed in range(4)]
    alone = [run(enhancer.model, x) for x in signals]
    found = [None] * 4

    def work(i):
        for _ in range(2):
            found[i] = run(enhancer.model, signals[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for expected, y in zip(alone, found, strict=True):
        np.testing.assert_allclose(y, expected, rtol=0, atol=ROUNDING)
    assert torch.get_num_threads() == 2


def put_result(enhancer, x, queue):
    queue.put(enhancer.enhance(x, RATE))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_gives_the_same_after_the_parent_used_threads(enhancer):
    x = noise(0)
    expected = enhancer.enhance(x, RATE)
    torch.randn(512, 512) @ torch.randn(512, 512)  # PyTorch's own threads are there, too
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=put_result, args=(enhancer, x, queue), daemon=True)
    child.start()
    np.testing.assert_allclose(queue.get(timeout=60), expected, rtol=0, atol=ROUNDING)
    child.join(60)


class Enhanced(torch.utils.data.Dataset):
    def __init__(self, enhancer):
        self.enhancer = enhancer

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return self.enhancer.enhance(noise(i), RATE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_data_loader_workers_enhance(enhancer):
    items = Enhanced(enhancer)
    expected = [items[i] for i in range(2)]
    loader = torch.utils.data.DataLoader(
        items, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for y, right in zip(loader, expected, strict=True):
        np.testing.assert_allclose(y, right, rtol=0, atol=ROUNDING)


# ------------------------------------------------------------------------------------------------- the command line


WAITING = "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"


@pytest.mark.parametrize("variable", WAITING)
def test_what_the_user_says_of_waiting_threads_stays(monkeypatch, variable):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv(variable, "7")
    before = dict(os.environ)
    limit_spinning()
    assert dict(os.environ) == before


def test_spinning_is_limited_where_torch_is_not_loaded_yet():
    code = "import os, sys; {}; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    }

    def said(statement):
        command = [sys.executable, "-c", code.format(statement)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert said("import clearstate") == ["False", "10000"]
    assert said("import torch, clearstate") == ["True", "None"]
