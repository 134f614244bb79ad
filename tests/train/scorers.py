"""A scoring function that raises, hangs or takes its process down when told to."""

import os
import time


def score(clean, estimate, sample_rate):
    if clean[0] == 1:
        raise RuntimeError("cannot judge this one")
    if clean[0] == 2:
        time.sleep(60)
    if clean[0] == 3:
        os._exit(3)
    return 0.5
