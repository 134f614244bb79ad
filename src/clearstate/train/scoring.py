"""Score one pair of waveforms. This file is also the program of the scoring processes, so its imports are light."""

import importlib
import math
import os
import pickle
import signal
import sys
from itertools import permutations

import numpy as np

METRICS = ("pesq", "stoi", "si_sdr", "snr")
EXTENSION_METRICS = ("lsd", "lsd_high", "snr")
LOWER_IS_BETTER = ("lsd", "lsd_high")
HIGH_HZ = 12_000.0  # lower edge of `lsd_high`; missing in recordings at all usual narrow rates


def scores(clean: np.ndarray, estimate: np.ndarray, sample_rate: int) -> dict[str, float]:
    """PESQ (wide band at 16 kHz, narrow at 8, none at other rates), STOI, SI-SDR and SNR of one pair, (n,) each.

    SNR complements SI-SDR, because it is sensitive to level: if the two diverge, the output level drifts. Several
    sources (k, n) are scored in the order with the highest SI-SDR, and each score is the mean over them.
    """
    from clearstate.metrics.intrusive import si_sdr, snr
    from clearstate.metrics.perceptual import pesq_nb, pesq_wb, stoi

    if clean.ndim == 2:
        pairs = [[si_sdr(c, e) for e in estimate] for c in clean]
        order = max(permutations(range(len(clean))), key=lambda p: sum(row[j] for row, j in zip(pairs, p, strict=True)))
        rows = [scores(c, estimate[j], sample_rate) for c, j in zip(clean, order, strict=True)]
        return {name: sum(row[name] for row in rows) / len(rows) for name in METRICS}
    pesq = {16_000: pesq_wb, 8_000: pesq_nb}.get(sample_rate)
    return {
        "pesq": pesq(clean, estimate, sample_rate) if pesq else math.nan,
        "stoi": stoi(clean, estimate, sample_rate),
        "si_sdr": si_sdr(clean, estimate),
        "snr": snr(clean, estimate),
    }


def extension_scores(wide: np.ndarray, estimate: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Log-spectral distance, the same above HIGH_HZ, and SNR of one extended signal, (n,) each."""
    from clearstate.metrics.intrusive import lsd, snr

    return {
        "lsd": lsd(wide, estimate, sample_rate),
        "lsd_high": lsd(wide, estimate, sample_rate, above=HIGH_HZ),
        "snr": snr(wide, estimate),
    }


def metrics_of(task: str) -> tuple[tuple[str, ...], str]:
    """The validation metrics of a task, and the function that computes them."""
    kinds = {"extend": (EXTENSION_METRICS, "extension_scores")}
    names, function = kinds.get(task, (METRICS, "scores"))
    return names, f"clearstate.train.scoring:{function}"


def pesq_target(clean: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """(PESQ - 1) / 3.5, about 0 to 1: the target of the metric discriminator."""
    from clearstate.metrics.perceptual import pesq_wb

    return (pesq_wb(clean, estimate, sample_rate) - 1) / 3.5


def serve(function: str) -> None:
    """Answer pickled argument tuples on stdin with pickled results on stdout, None for one that raised.

    Ends when stdin closes, which happens whenever the parent process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this ends, also when the whole
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # group of processes is told to
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # library output must not mix with the answers
    module, _, name = function.partition(":")
    score = getattr(importlib.import_module(module), name)
    while True:
        try:
            arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = score(*arguments)
        except Exception as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            answer = None
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
