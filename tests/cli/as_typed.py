"""The command line as people type it, in this process: that saves the seconds in which a new one imports torch."""

import contextlib
import io
from subprocess import CompletedProcess
from unittest import mock

import pytest

from clearstate.cli import main


def in_this_process(*args, stdin: bytes = b"") -> CompletedProcess:
    """Run `clearstate ARGS`; stdout is bytes, stderr is text."""
    out, told = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with (
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
        pytest.raises(SystemExit) as leave,
    ):
        main([str(arg) for arg in args])
    out.flush()
    return CompletedProcess(args, leave.value.code or 0, out.buffer.getvalue(), told.getvalue())
