"""Freed memory stays in a process that trains."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
if sys.argv[1] == "kept":
    from clearstate.train.memory import keep_freed_memory
    assert keep_freed_memory()
def step():
    torch.ones(10_000_000)  # 40 MB: more than glibc ever keeps by itself
for _ in range(12):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """New pages that ten steps ask the system for."""
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_no_step_asks_for_new_pages():
    assert faults("kept") < 500 < 10_000 < faults("returned")  # ten times 9,800 pages of 4 KB
