"""Keep freed memory in the process while a model trains."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
MOST = 2**31 - 1  # bytes, the largest number it takes


def keep_freed_memory() -> bool:
    """Ask the C library not to return freed memory to the system. Returns whether it agreed (glibc on Linux does).

    Every step frees and allocates the same large arrays. glibc returns each to the system and gets it back as empty
    pages, which took 7 to 13 % of a step on a CPU (docs/LOG.md). The process stays as large as it once was.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: MOST, M_TOP_PAD: 64 * 2**20}
    agreed = [mallopt(option, size) == 1 for option, size in wanted.items()]
    return all(agreed)
