"""Compute scores in separate processes with a time limit, so that no item can stop a training run."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

Score = TypeVar("Score")


class Driven(threading.local):
    """The process of a thread, if it has started one."""

    process: subprocess.Popen[bytes] | None = None


class ScorePool(Generic[Score]):
    """Runs a function of (clean, estimate, sample_rate) over pairs of waveforms in `workers` processes.

    Scores are returned in order. If the scoring of an item raises, takes longer than `timeout` seconds or crashes its
    process, the score is None and counts in `failures`; the other items are not affected. The processes start at the
    first call and end with this process, even if it is killed.

    They are plain programs connected by pipes. Processes of `multiprocessing` import the main script again, which fails
    in a notebook or a script without a guard, and they survive when their parent is killed.

    Args:
        function: "package.module:name". The module should import quickly.
    """

    def __init__(self, function: str, workers: int, timeout: float = 60.0):
        self.function, self.workers, self.timeout = function, workers, timeout
        self.failures = 0
        self._threads: ThreadPoolExecutor | None = None
        self._own = Driven()
        self._processes: list[subprocess.Popen[bytes]] = []

    def submit(self, clean: Sequence[Tensor], estimate: Sequence[Tensor], rate: int) -> list[Future[Score | None]]:
        """Queue pairs of (n,) waveforms; they are copied."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="scores")
        pairs = [(_copy(c), _copy(e), rate) for c, e in zip(clean, estimate, strict=True)]
        return [self._threads.submit(self._ask, pair) for pair in pairs]

    def collect(self, futures: Sequence[Future[Score | None]]) -> list[Score | None]:
        """The scores of `submit`'s futures, None where one failed."""
        scores = [future.result() for future in futures]
        self.failures += sum(score is None for score in scores)
        return scores

    def close(self) -> None:
        """Stop the processes at once."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes = []
        self._own = Driven()

    def _ask(self, pair: tuple[np.ndarray, np.ndarray, int]) -> Score | None:
        """Score one pair in this thread's process. A process that hangs or has died is replaced at the next call."""
        process = self._process()
        assert process.stdin is not None and process.stdout is not None
        clock = threading.Timer(self.timeout, process.kill)
        clock.start()
        try:
            pickle.dump(pair, process.stdin)
            process.stdin.flush()
            score: Score | None = pickle.load(process.stdout)
            return score
        except (EOFError, OSError, pickle.UnpicklingError):
            process.kill()
            process.wait()  # otherwise the next call may still see it as running
            return None
        finally:
            clock.cancel()

    def _process(self) -> subprocess.Popen[bytes]:
        process = self._own.process
        if process is None or process.poll() is not None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "clearstate.train.scoring", self.function],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
            self._own.process = process
            self._processes.append(process)
        return process


def _copy(x: Tensor) -> np.ndarray:
    return np.array(x.detach().float().cpu().numpy())
