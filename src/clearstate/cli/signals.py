"""Handle SIGTERM like Ctrl-C, so that partial outputs are removed."""

import signal
import sys
import threading
from typing import Any

AGAIN_SECONDS = 0.05


def unwind_when_terminated() -> None:
    """Make SIGTERM raise `SystemExit` with code 143 in the main thread of this process.

    Python discards an exception that a signal handler raises inside a callback from C, such as Numba's during
    compilation: it prints the exception and continues. Here SIGTERM and Ctrl-C are sent again a moment later instead,
    and nothing is printed.
    """
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _again


def _terminated(*_: Any) -> None:
    sys.exit(143)  # 128 + SIGTERM, as a shell reports it


def _again(lost: "sys.UnraisableHookArgs") -> None:
    for kind, number in ((KeyboardInterrupt, "SIGINT"), (SystemExit, "SIGTERM")):
        if issubclass(lost.exc_type, kind) and hasattr(signal, number):
            # Send it from another thread: sent here, it would arrive before this function returns, and be lost again.
            timer = threading.Timer(AGAIN_SECONDS, signal.raise_signal, [getattr(signal, number)])
            timer.daemon = True
            timer.start()
            return
    sys.__unraisablehook__(lost)
