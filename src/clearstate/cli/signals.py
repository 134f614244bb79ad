"""A polite kill (SIGTERM) unwinds as Ctrl-C does, so that what is half-written is cleaned up."""

import signal
import sys
import threading
from typing import Any

AGAIN_SECONDS = 0.05


def unwind_when_terminated() -> None:
    """SIGTERM raises `SystemExit` with code 143 in the main thread of this process.

    An exception that a signal raises inside a callback from C, as Numba has them while it compiles, goes nowhere:
    Python prints it and goes on. Here the signal is given once more a moment later, and nothing is printed. So is
    Ctrl-C.
    """
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _again


def _terminated(*_: Any) -> None:
    sys.exit(143)  # 128 + SIGTERM, as a shell reports it


def _again(lost: "sys.UnraisableHookArgs") -> None:
    for kind, number in ((KeyboardInterrupt, "SIGINT"), (SystemExit, "SIGTERM")):
        if issubclass(lost.exc_type, kind) and hasattr(signal, number):
            # From another thread: raised here it would be heard before this function is left, and lost again.
            timer = threading.Timer(AGAIN_SECONDS, signal.raise_signal, [getattr(signal, number)])
            timer.daemon = True
            timer.start()
            return
    sys.__unraisablehook__(lost)
