"""A signal that arrives inside a callback from C is not lost."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")

CALLBACKS = """
import ctypes, sys, time
from clearstate.cli.signals import unwind_when_terminated

{install}
callback = ctypes.CFUNCTYPE(None)(lambda: (print("in", flush=True), time.sleep(0.2)))
try:
    for _ in range(20):
        callback()
        time.sleep(0.2)
finally:
    print("cleaned up", flush=True)
"""
OURS = "unwind_when_terminated()"
BARE = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))"  # what is lost


def run(install, signum):
    """Exit code, stdout and stderr of a loop of 8 s that is told to stop while C is calling it."""
    program = CALLBACKS.format(install=install)
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    try:
        assert child.stdout.readline() == "in\n"
        child.send_signal(signum)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    return child.returncode, out, err


@pytest.mark.parametrize(
    ("signum", "code", "told"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, -2, "KeyboardInterrupt")]
)
def test_a_signal_inside_a_callback_from_c_still_unwinds(signum, code, told):
    returned, out, err = run(OURS, signum)
    assert returned == code
    assert out.count("in\n") < 10 and out.endswith("cleaned up\n")
    assert told in err and "Exception ignored" not in err


def test_without_it_the_signal_is_lost():
    """The negative control: Python alone prints the exception and goes on to the end."""
    returned, out, err = run(BARE, signal.SIGTERM)
    assert returned == 0
    assert out.count("in\n") == 19 and "Exception ignored" in err
