"""Workers for the tests of engines: they write half a file, wait, may die, and write the rest."""

import functools
import os
import signal
import time

import numpy as np

from clearstate.audio.atomic import replacing
from clearstate.cli.engines.contract import InBlocks
from clearstate.tasks.blocks import Layout, Overlapping


def open_worker(folder, seconds=0.1, deadly=None, times=1, failing=None, slow=()):
    """A worker that notes each attempt in `folder`/attempts; at most `times` attempts at a job die or fail.

    Jobs in `slow` take 6 seconds.
    """

    def work(job, progress):
        with open(os.path.join(folder, "attempts"), "a") as notes:
            notes.write(f"{job.source} {os.getpid()}\n")
        with open(os.path.join(folder, "attempts")) as notes:
            attempts = sum(line.split()[0] == job.source for line in notes)
        with replacing(job.target) as temporary, open(temporary, "w") as file:
            file.write("half ")
            file.flush()
            started = time.monotonic()
            while time.monotonic() - started < (6.0 if job.source in slow else seconds):
                progress(0.5, 1.0)
                time.sleep(0.02)
            if job.source == deadly and attempts <= times:
                os.kill(os.getpid(), signal.SIGKILL)
            if job.source == failing and attempts <= times:
                raise OSError("the storage is busy")
            file.write("whole")
        return {"seconds": 1.0}

    return work


def slow_block(folder, owner, deadly, x, position):
    """Double a block, and note which process did it; `deadly`: other processes than the owner die."""
    with open(os.path.join(folder, "blocks"), "a") as notes:
        notes.write(f"{position} {os.getpid()}\n")
    time.sleep(0.5)
    if deadly and os.getpid() != owner:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * x


def open_block_worker(folder, deadly=False):
    """A worker that doubles noise in 13 blocks and writes whether it is doubled."""

    def work(job, progress):
        run = functools.partial(slow_block, folder, os.getpid(), deadly)
        blocks = Overlapping(run, 1, 1, Layout(1_000, 200, 100), elsewhere=run)
        x = np.random.default_rng(0).standard_normal((1, 10_000)).astype(np.float32)
        y = np.concatenate([blocks.push(x)[1], blocks.finish()[1]], axis=1)
        with replacing(job.target) as temporary, open(temporary, "w") as file:
            file.write("half whole" if np.array_equal(y, 2 * x) else "wrong")
        return {"seconds": 600.0}

    return InBlocks(work)
