"""Measure the speed and the peak memory of `inspect` for different file lengths. Memory must not depend on the length.

    python benchmarks/inspection.py [--minutes 5 20] [--rate 48000] [--channels 1] [--quick] [--folder FOLDER]

Each length runs in a new process on one thread and reports its peak resident memory and its processor time. The file is
speech from examples/clips in noise. The reference is the first length in the same run. Limits: 200 times real time for
the longest, by processor time, and the memory of the longest within 64 MiB of the first. For 10 hours use
`--minutes 5 600`.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

ROOT = Path(__file__).resolve().parents[1]
LEAST_SPEED, MOST_GROWTH = 200.0, 64 * 2**20


def write(path: Path, minutes: float, rate: int, channels: int) -> None:
    """Clips of speech one after the other, with noise."""
    rng = np.random.default_rng(0)
    clips = [soundfile.read(clip)[0] for clip in sorted((ROOT / "examples/clips").glob("*.clean.flac"))]
    speech = soxr.resample(np.concatenate(clips), 16_000, rate)
    speech = np.tile(speech, 5)[:, None] + 0.002 * rng.standard_normal((5 * len(speech), channels))
    frames = round(minutes * 60 * rate)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", format="RF64" if frames > 2**29 else "WAV") as file:
        for start in range(0, frames, len(speech)):
            file.write(speech[: frames - start])


def inspect_one(path: str, quick: bool) -> None:
    """In a process of its own: inspect, then print what it took as JSON."""
    from clearstate.tasks.inspect import Inspector

    inspector = Inspector(models=not quick)
    if not quick:  # load the models, and compile what is not yet in the cache
        inspector.inspect_file(ROOT / "examples/clips/fire_10db.clean.flac")
    worked, started = time.process_time(), time.perf_counter()
    found = inspector.inspect_file(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    row = {"seconds": found.seconds, "cpu": time.process_time() - worked, "wall": time.perf_counter() - started}
    print(json.dumps(row | {"peak": peak, "verdict": found.verdict}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 20])
    parser.add_argument("--rate", type=int, default=48_000)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="without models")
    parser.add_argument("--folder", help="where to put the files (they are large); a temporary folder if not given")
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        inspect_one(wanted.one, wanted.quick)
        return

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread used")
    print(
        f"{wanted.rate} Hz, {wanted.channels} channel(s), 16 bits, {'no models' if wanted.quick else 'with models'}\n"
    )
    print(f"{'minutes':>8}{'peak MiB':>10}{'x real time':>13}{'by cpu':>9}   verdict")
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    rows = []
    for minutes in wanted.minutes:
        with tempfile.TemporaryDirectory(dir=wanted.folder) as folder:
            path = Path(folder) / "in.wav"
            write(path, minutes, wanted.rate, wanted.channels)
            command = [sys.executable, __file__, "--one", str(path), *(["--quick"] if wanted.quick else [])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | one_thread)
            row = json.loads(done.stdout)
        rows.append(row)
        speeds = f"{row['seconds'] / row['wall']:13.0f}{row['seconds'] / row['cpu']:9.0f}"
        print(f"{minutes:8g}{row['peak'] / 2**20:10.0f}{speeds}   {row['verdict']}", flush=True)
    fast = rows[-1]["seconds"] / rows[-1]["cpu"] >= LEAST_SPEED
    flat = rows[-1]["peak"] - rows[0]["peak"] <= MOST_GROWTH
    print(
        f"\nat least {LEAST_SPEED:g} times real time: {'yes' if fast else 'NO'}; flat memory: {'yes' if flat else 'NO'}"
    )
    sys.exit(not (fast and flat))


if __name__ == "__main__":
    main()
