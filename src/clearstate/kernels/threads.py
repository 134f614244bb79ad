"""How many threads work at once: PyTorch's number on a large task, one on a small model and in a forked child."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from clearstate.kernels import spinning
from clearstate.kernels.blas import quick_products

SMALL = 1 << 20  # element-states (or elements) under which a second thread costs more than it saves: 0.5 ms of work
SMALL_MODEL = 400_000  # parameters; threads that wait for each other after every layer gain little on a model below

_forked = False
_parameters: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()  # counting takes longer than a short chunk


def _mark_forked() -> None:
    global _forked
    _forked = True


# A child made by fork (a data-loader worker, say) has none of its parent's threads: GNU OpenMP would wait for them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def threads_for(tasks: int, work: int) -> int:
    """Threads for `tasks` independent tasks of `work` inner operations in all."""
    if _forked or tasks == 1 or work < SMALL:
        return 1
    return min(torch.get_num_threads(), tasks)


def in_parts(kernel: Callable[..., None], parts: int, *arguments: Any) -> None:
    """Call a compiled kernel that releases the interpreter's lock as ``kernel(part, parts, ...)``, each on a thread.

    Python's own threads: Numba's need a second, parallel form of each kernel to be compiled, cannot be used after a
    fork, and depending on its threading layer not from two threads either.
    """
    others = [_pool().submit(kernel, part, parts, *arguments) for part in range(1, parts)]
    kernel(0, parts, *arguments)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay, since starting one takes 0.1 ms. No kernel waits for another, so any number of callers may."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="clearstate")


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """`torch.inference_mode` with the threads and the library for products that suit; the caller's settings afterwards.

    A small model runs on one thread where threads spin while they wait (`spinning.py`): they wait for each other after
    every layer, which beside other work makes a small model up to 70 times slower than one thread is. Where spinning is
    limited, all threads are faster on an idle machine and hardly slower on a busy one.
    """
    if model not in _parameters:
        _parameters[model] = sum(parameter.numel() for parameter in model.parameters())
    before = torch.get_num_threads()
    alone = before > 1 and (_forked or (_parameters[model] < SMALL_MODEL and not spinning.LIMITED))
    if alone:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode(), quick_products():
            yield
    finally:
        if alone:
            torch.set_num_threads(before)
