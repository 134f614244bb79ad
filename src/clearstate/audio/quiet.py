"""Suppress the messages of the libraries behind soundfile and PyAV; clearstate's own errors are one line each.

mpg123, inside libsndfile, always writes to file descriptor 2. `quiet` redirects the descriptor to a temporary file
during a call, and then passes on the lines of other writers. CLEARSTATE_VERBOSE=1 (`--verbose`) shows everything.
"""

import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

CHATTER = re.compile(rb"\s*(\[[^\]\n]*mpg123[^\]\n]*\]|Note: |Warning: |Error: |main: |mpg123|[A-Za-z ]*ID3)")

_lock = threading.Lock()
_inside = 0  # running calls
_saved: tuple[int, Any] | None = None  # the real descriptor, and the file that replaces it

_log = logging.getLogger("clearstate")


def verbose() -> bool:
    """Whether to show library messages."""
    return os.environ.get("CLEARSTATE_VERBOSE", "0") not in ("", "0")


@lru_cache(maxsize=1024)
def tell(line: str) -> None:
    """Log a line once: on stderr, unless the program has configured the logger "clearstate"."""
    _log.warning("clearstate: %s", line)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages of C libraries inside the block; several threads may use it."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _saved
    with _lock:
        _inside += 1
        if _inside > 1 or verbose():
            return
        with suppress(OSError):  # stderr is closed, so nothing can be printed
            real = os.dup(2)
            stand_in = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _leave
            os.dup2(stand_in.fileno(), 2)
            _saved = (real, stand_in)


def _leave() -> None:
    global _inside, _saved
    with _lock:
        _inside -= 1
        if _inside or _saved is None:
            return
        (real, stand_in), _saved = _saved, None
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(real, 2)
        size = os.lseek(stand_in.fileno(), 0, os.SEEK_CUR)
        if size:
            os.lseek(stand_in.fileno(), 0, os.SEEK_SET)
            kept = [line for line in os.read(stand_in.fileno(), size).splitlines(True) if not CHATTER.match(line)]
            with suppress(OSError):
                os.write(real, b"".join(kept))
        os.close(real)
        stand_in.close()
