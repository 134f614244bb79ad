"""Scoring in processes of its own: bounded, and no single item can stop a training run."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
from torch import Tensor


class ScorePool:
    """Runs `score(clean, estimate, sample_rate)` over pairs of waveforms in `workers` processes.

    Scores come back in order. An item whose scoring raised, took longer than `timeout` seconds or took its process
    down is None, and `failures` counts it: the others are not lost. The processes start at the first call, and end
    with this one even if it is killed.
    """

    def __init__(self, score: Callable[..., Any], workers: int, timeout: float = 60.0):
        self.score, self.workers, self.timeout = score, workers, timeout
        self.failures = 0
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, clean: Sequence[Tensor], estimate: Sequence[Tensor], sample_rate: int) -> list[Future]:
        """Queue pairs of (n,) waveforms; they are copied."""
        if self._pool is None:
            # spawn: a fork of a process with running threads may deadlock
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_start)
        try:
            return [
                self._pool.submit(self.score, _array(c), _array(e), sample_rate)
                for c, e in zip(clean, estimate, strict=True)
            ]
        except BrokenProcessPool:
            self.close()
            return self.submit(clean, estimate, sample_rate)

    def collect(self, futures: Sequence[Future]) -> list[Any]:
        """The scores of `submit`'s futures, None where one failed."""
        scores = [self._result(future) for future in futures]
        self.failures += sum(score is None for score in scores)
        return scores

    def _result(self, future: Future) -> Any:
        try:
            return future.result(timeout=self.timeout)
        except (FutureTimeout, BrokenProcessPool):
            self.close()  # a process hangs or died: the next call starts fresh ones
            return None
        except Exception:
            return None

    def close(self) -> None:
        """End the processes at once, whatever they are doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _start() -> None:
    """In a fresh scoring process: leave signals to the parent, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parent = parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
