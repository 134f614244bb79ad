"""Threads that process the chunks of live streams, so that the event loop never waits for a model.

A chunk takes a tenth of a millisecond or more, which is too short for an executor's future per call: results that are
ready at the same time wake the event loop once. Compiled models release the interpreter's lock while they compute.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Hops:
    """A pool of threads. Create it in the event loop that receives its results."""

    def __init__(self, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False
        self._threads = [
            threading.Thread(target=self._work, name=f"clearstate-hops-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[Any], Any], argument: Any) -> "asyncio.Future[Any]":
        """Run `call(argument)` in a thread. Only the event loop may call this."""
        future = self._loop.create_future()
        self._waiting.put((future, call, argument))
        return future

    def close(self) -> None:
        """End the threads when they have done what waits."""
        for _ in self._threads:
            self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, call, argument = item
            result, problem = None, None
            try:
                result = call(argument)
            except Exception as error:
                problem = error
            self._done.append((future, result, problem))
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _deliver(self) -> None:
        self._woken = False  # before the results are read: what a thread adds from now on wakes the loop again
        while self._done:
            future, result, problem = self._done.popleft()
            if future.done():  # its connection is gone
                continue
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)
