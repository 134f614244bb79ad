"""Paths that can be opened only once: stdin, stdout, pipes, sockets, devices."""

import os
import re
import socket
import stat
import sys
from typing import Any

STDIO = "-"
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/(?:fd/(\d+)|stdin|stdout)")
NUMBERS = {"/dev/stdin": 0, "/dev/stdout": 1}
STREAMS = (stat.S_ISFIFO, stat.S_ISSOCK, stat.S_ISCHR)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path can be opened only once. Does not open it.

    >>> is_stream("-"), is_stream("/dev/fd/63"), is_stream("talk.wav")
    (True, True, False)
    """
    name = os.fspath(path)
    if name == STDIO or _descriptor(name) is not None:
        return True
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return False
    return any(kind(mode) for kind in STREAMS)


def as_stdio(name: str, number: int) -> str:
    """Replace the other names of stdin (number 0) or stdout (1) by "-"; return another name unchanged.

    >>> as_stdio("/dev/fd/0", 0), as_stdio("/dev/stdout", 1), as_stdio("talk.wav", 0)
    ('-', '-', 'talk.wav')
    """
    return STDIO if _descriptor(name) == number else name


def open_stream(path: str | os.PathLike[str], mode: str) -> Any:
    """Open a stream to read ("rb") or write ("wb") bytes; "-" is stdin or stdout.

    Raises:
        OSError: if it is closed or cannot be opened.
    """
    standard, label = (sys.stdin, "stdin") if mode == "rb" else (sys.stdout, "stdout")
    name = as_stdio(os.fspath(path), 0 if mode == "rb" else 1)
    if name == STDIO:
        if standard is None or getattr(standard, "closed", False):
            remedy = "name an input file" if mode == "rb" else "name an output file with -o"
            raise OSError(f"{label} is closed; {remedy}")
        return standard.buffer
    number = _descriptor(name)
    try:
        if number is not None:  # a socket cannot be opened by name
            return os.fdopen(os.dup(number), mode)
        if stat.S_ISSOCK(os.stat(name).st_mode):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(name)
                return connection.makefile(mode)  # type: ignore[call-overload]
        return open(name, mode)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{name}: cannot be opened ({reason}); expected an open pipe, socket or device") from None


def close_stream(stream: Any) -> None:
    """Close a stream; stdin and stdout stay open."""
    if not any(standard and stream is getattr(standard, "buffer", None) for standard in (sys.stdin, sys.stdout)):
        stream.close()


def _descriptor(name: str) -> int | None:
    """The file descriptor of a path such as /dev/fd/63; None for other paths."""
    if found := DESCRIPTOR.fullmatch(name):
        return int(found[1]) if found[1] else NUMBERS["/dev/" + name.rsplit("/", 1)[1]]
    return None
