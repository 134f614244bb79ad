"""Threads that wait for each other soon sleep instead of spinning, set before PyTorch loads OpenMP.

Spinning takes the processor from the threads that are waited for. On a machine with other work, or with a limit on
processor time, a program that spins is many times slower; one that never spins is a third slower on an idle machine.
"""

import os
import sys

SETTINGS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}  # GNU: some 20 us; LLVM and Intel: 1 ms


def limit_spinning() -> bool:
    """Limit spinning, unless the user has set something or PyTorch is loaded already; whether it is limited now."""
    if any(name in os.environ for name in SETTINGS) or "OMP_WAIT_POLICY" in os.environ:
        return os.environ.get("OMP_WAIT_POLICY", "passive").lower() == "passive"
    if "torch" in sys.modules:
        return False
    os.environ.update(SETTINGS)
    return True


LIMITED = limit_spinning()
