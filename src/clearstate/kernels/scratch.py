"""Working memory that a thread keeps from call to call.

Pages that a process gets afresh are cleared by the system at their first use, 2 us each on the machine that this was
measured on: for a network whose maps take 50 MB a second of sound, a fifteenth of all its time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_kept = threading.local()  # so that two threads never meet in it


@contextmanager
def lent(count: int) -> Iterator[Tensor]:
    """`count` float32 numbers with anything in them, until the end of the block; nothing may refer to them after it.

    The memory is the calling thread's until that ends, and grows to the largest that was asked for. A call within the
    block gets memory of its own.
    """
    memory: Tensor | None = getattr(_kept, "memory", None)
    _kept.memory = None
    if memory is None or memory.numel() < count:
        del memory  # first, so that there are never two
        memory = torch.empty(count)
    yield memory[:count]
    _kept.memory = memory  # not after an error: whose traceback may still hold it
