"""What every verb says and how: errors in one line, notes on stderr, never a surprise on stdout."""

import logging
import os
import sys
import traceback
from typing import NoReturn


class CommandError(Exception):
    """Something that was asked for could not be done; the message is one line and names the remedy."""

    exit_code = 1


class UsageError(CommandError):
    """The command line itself is wrong: no work was begun."""

    exit_code = 2


def note(message: str) -> None:
    """Print a line on stderr."""
    print(message, file=sys.stderr, flush=True)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"clearstate: {record.getMessage()}")


def show_log() -> None:
    """Print what the package logs as notes."""
    logger = logging.getLogger("clearstate")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Notes()]


def fail(message: str, exit_code: int) -> NoReturn:
    """Print `clearstate: message` on stderr and leave with `exit_code`."""
    note(f"clearstate: {message}")
    sys.exit(exit_code)


def abandon_stdout() -> None:
    """Let what is still buffered for stdout vanish: its reader left or its disk is full, which has been reported."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # not a real file: nothing will be flushed at exit
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def explain(error: BaseException) -> str:
    """One line for an exception. A kind that nobody raises on purpose is our bug: its traceback is printed as well.

    >>> explain(ValueError("strength is -3 dB, expected 0 or more"))
    'strength is -3 dB, expected 0 or more'
    >>> explain(PermissionError(13, "Permission denied", "out.wav"))
    'out.wav: Permission denied'
    """
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = "out of memory: use fewer --jobs, or close other programs"
    else:
        text = str(error) or type(error).__name__
    if not isinstance(error, (ValueError, OSError, ImportError, MemoryError, RuntimeError)):
        traceback.print_exception(error, file=sys.stderr)
        text = f"{type(error).__name__}: {text} (this is a bug in clearstate; please report the lines above)"
    return " ".join(text.split())


def clock(seconds: float) -> str:
    """A duration as people read it.

    >>> clock(4.96), clock(75), clock(36_000)
    ('5.0 s', '1:15', '10:00:00')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
