"""How many threads a kernel may use: PyTorch's number, and one in a forked child."""

import os
from typing import Any

import torch

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
