"""How many threads a kernel may use: PyTorch's number, and one in a forked child."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

SMALL = 1 << 14  # element-states (or elements) under which starting threads costs more than it saves

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


# GNU OpenMP cannot be used again in a child made by fork (a data-loader worker, say): Numba would end the process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def threads_for(tasks: int, work: int) -> int:
    """Threads for `tasks` independent tasks of `work` inner operations in all."""
    if _forked or tasks == 1 or work < SMALL:
        return 1
    import numba

    config: Any = numba.config  # its values appear at run time
    count = min(torch.get_num_threads(), config.NUMBA_NUM_THREADS, tasks)
    if count > 1:
        numba.set_num_threads(count)
    return count


def in_parts(kernel: Callable[..., None], parts: int, *arguments: Any) -> None:
    """Call a compiled kernel that releases the interpreter's lock as ``kernel(part, parts, ...)``, each on a thread.

    For kernels that work for a millisecond or longer: Python's own threads cost a tenth of that, and the kernel is
    compiled once, where Numba would compile a parallel form beside the serial one.
    """
    if parts == 1:
        kernel(0, 1, *arguments)
        return
    with ThreadPoolExecutor(parts - 1) as pool:
        others = [pool.submit(kernel, part, parts, *arguments) for part in range(1, parts)]
        kernel(0, parts, *arguments)
        for other in others:
            other.result()


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Shim: replaced by the kernels' own."""
    with torch.inference_mode():
        yield
