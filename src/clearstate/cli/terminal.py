"""Output of all verbs: one-line error messages, notes on stderr, file names and text that any terminal can show."""

import codecs
import errno
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

from clearstate.audio.paths import escaped, shown
from clearstate.audio.remote import without_secrets

LIKENESS = {"–": "-", "…": "...", "→": "->", "×": "x", "’": "'"}  # replacements for terminals without these characters
REMEDIES = {
    errno.EACCES: "check its permissions and those of its folder, or choose another place",
    errno.EPERM: "check its permissions and those of its folder, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.ENAMETOOLONG: "give it a shorter name",
}
# A path that starts with ~, alone or after `--option=`, `key=` or `NAME=`. Shells expand only the first form.
HOME = re.compile(r"(-*[\w.-]+=)?(~[\w.-]*[/\\].*)", re.DOTALL)


class CommandError(Exception):
    """A request failed. The message is one line and names the remedy."""

    exit_code = 1


class UsageError(CommandError):
    """The command line is wrong. No work has started."""

    exit_code = 2


def note(message: str) -> None:
    """Print lines to stderr, without the passwords and signatures of URLs."""
    print("\n".join(map(shown, without_secrets(message).split("\n"))), file=sys.stderr, flush=True)


def print_anything() -> None:
    """Make stdout and stderr accept any text: characters that their encoding lacks are escaped.

    Terminals and pipes may use ASCII, Latin-1 or a Windows code page, and file names need not be valid text.
    Each warning becomes one line.
    """
    codecs.register_error("clearstate", _spelled_out)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="clearstate")
    warnings.formatwarning = lambda message, *_, **__: f"clearstate: {shown(' '.join(str(message).split()))}\n"


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(LIKENESS.get(c) or escaped(c) for c in text), error.end


def home_expanded(words: Sequence[str]) -> list[str]:
    """Replace `~` in the paths on the command line by the home folder, unless a file of that name exists."""

    def expanded(word: str) -> str:
        found = HOME.fullmatch(word)
        return (found[1] or "") + os.path.expanduser(found[2]) if found and not os.path.lexists(word) else word

    return [expanded(word) for word in words]


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"clearstate: {record.getMessage().removeprefix('clearstate: ')}")


def show_log() -> None:
    """Print what the package logs as notes."""
    logger = logging.getLogger("clearstate")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Notes()]


def fail(message: str, exit_code: int) -> NoReturn:
    """Print `clearstate: message` to stderr and exit with `exit_code`."""
    note(f"clearstate: {message}")
    sys.exit(exit_code)


def occupy_closed_streams() -> None:
    """Open the null device in place of a closed stdin, stdout or stderr.

    Otherwise the next opened file gets the number of stdout or stderr, and libraries print into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:  # print(..., file=None) would go to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stays open until exit


def abandon_stdout() -> None:
    """Discard the buffered part of stdout: its reader has exited or its disk is full. The error has been reported."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return  # closed, or not a real file: Python flushes nothing at exit
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def explain(error: BaseException) -> str:
    """Describe an exception in one line. A type that the library never raises on purpose is reported as a bug.

    With CLEARSTATE_TRACEBACK=1 in the environment, the traceback is printed, too.

    >>> explain(ValueError("strength is -3 dB, expected 0 or more"))
    'strength is -3 dB, expected 0 or more'
    >>> explain(PermissionError(13, "Permission denied", "out.wav"))
    'out.wav: Permission denied; check its permissions and those of its folder, or choose another place'
    """
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, (bytes, str)) else ""
        text = f"{name}: {error.strerror}" if name else error.strerror
        text += f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    elif isinstance(error, MemoryError):
        text = "out of memory: use fewer --jobs, or close other programs"
    else:
        text = str(error) or type(error).__name__
    if not isinstance(error, (ValueError, OSError, ImportError, MemoryError, RuntimeError)):
        text = f"{type(error).__name__}: {text} (a bug; please report it with the output of CLEARSTATE_TRACEBACK=1)"
    if os.environ.get("CLEARSTATE_TRACEBACK"):
        traceback.print_exception(error, file=sys.stderr)
    return shortened(shown(" ".join(text.split())))


def shortened(text: str, most: int = 600) -> str:
    """Cut a text to `most` characters: the errors of some libraries contain whole listings."""
    return text if len(text) <= most else text[: most - 2] + " …"


def clock(seconds: float) -> str:
    """Format a duration for people.

    >>> clock(4.96), clock(75), clock(36_000)
    ('5.0 s', '1:15', '10:00:00')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
