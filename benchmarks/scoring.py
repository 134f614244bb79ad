"""Measure the speed-up of `clearstate score` with several jobs, on pairs of 4 s.

    python benchmarks/scoring.py [--pairs 1000] [--jobs 2]

Each job is one process with one thread, so the ratio is close to the number of free cores; on a busy machine it is
lower. Both runs must give equal scores, or no ratio is printed. (ESTOI is equal to 1e-9 only: pystoi adds a trace of
random noise of its own.)
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from clearstate.metrics.files import match
from clearstate.metrics.scoring import FileScores, Options, score_pairs
from clearstate.metrics.table import choose

RATE, SECONDS = 16_000, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {load}; {arguments.pairs} pairs of {SECONDS} s")
    options = Options(tuple(choose(["default"], noisy=False)))
    with tempfile.TemporaryDirectory() as folder:
        pairs = match(*write_pairs(Path(folder), arguments.pairs)).pairs
        list(score_pairs(pairs[:2], options))  # imports and tables, once
        results, times = {}, {}
        for jobs in (1, arguments.jobs):
            began = time.perf_counter()
            results[jobs] = {file.name: file for file in score_pairs(pairs, options, jobs)}
            times[jobs] = time.perf_counter() - began
    if not all(same(results[1][name], results[arguments.jobs][name]) for name in results[1]):
        raise SystemExit("the scores differ between one job and several: no ratio")
    one, several = times[1], times[arguments.jobs]
    print(
        f"scoring {len(options.keys)} scores   1 job {one:.1f} s ({1000 * one / arguments.pairs:.0f} ms a pair)   "
        f"{arguments.jobs} jobs {several:.1f} s   {one / several:.2f}x   equal scores"
    )


def write_pairs(folder: Path, count: int) -> tuple[Path, Path]:
    """Write speech-like tones in noise, 16-bit: voiced parts and pauses, another pitch and noise in each pair."""
    (folder / "clean").mkdir()
    (folder / "enhanced").mkdir()
    t = np.arange(RATE * SECONDS) / RATE
    for i in range(count):
        rng = np.random.default_rng(i)
        pitch = 100 + 60 * np.interp(t, np.arange(SECONDS * 4 + 1) / 4, rng.uniform(0, 1, SECONDS * 4 + 1))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        loud = np.clip(3 * np.interp(t, np.arange(SECONDS * 6 + 1) / 6, rng.uniform(0, 1, SECONDS * 6 + 1)) - 1.2, 0, 1)
        clean = 0.1 * loud * sum(np.sin(k * phase) / k for k in range(1, 13))
        soundfile.write(folder / "clean" / f"{i:04d}.wav", clean, RATE)
        soundfile.write(folder / "enhanced" / f"{i:04d}.wav", clean + 0.02 * rng.standard_normal(len(t)), RATE)
    return folder / "clean", folder / "enhanced"


def same(a: FileScores, b: FileScores) -> bool:
    values = list(a.scores.values()), list(b.scores.values())
    return np.allclose(*values, rtol=0, atol=1e-9, equal_nan=True) and a.notes == b.notes


if __name__ == "__main__":
    main()
