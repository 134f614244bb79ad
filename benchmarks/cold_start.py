"""Measure start-up time: `clearstate --help`, and the first `clearstate enhance`, each in a new process.

    python benchmarks/cold_start.py [--runs 5] [--json FILE]

The reference for help is starting Python alone and importing torch, in the same run. Then a noisy file of 4 seconds is
enhanced, and another process does the same work step by step to show where the time goes. Kernels come from their
cache, which an untimed first run fills; files are in the page cache. Times are medians of wall time and processor time,
which differ widely on a busy machine.

Limits in wall time: help 0.5 s, the enhanced file 4 s.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

MUST_HELP, MUST_FILE = 0.5, 4.0  # seconds
COMMAND = "from clearstate.cli import main; main({})"
STEPS = """
import time
times = []
def done(step): times.append((step, time.time(), time.process_time()))
done("python starts")
import torch
done("import torch")
import clearstate.tasks.enhance
done("import clearstate")
enhancer = clearstate.load("live")
done("weights of the model")
import soundfile
x, rate = soundfile.read({noisy!r}, dtype="float32")
done("read the file")
enhancer.enhance(x[:rate // 10], rate)
done("kernels from the cache, first 0.1 s")
y = enhancer.enhance(x, rate)
done("enhance 4 s")
soundfile.write({out!r}, y, rate)
done("write the file")
import json
print(json.dumps(times))
"""


def seconds(code: str, runs: int) -> tuple[float, float]:
    """Median wall time and processor time of a new process."""
    times = []
    for _ in range(runs):
        started, worked = time.perf_counter(), processor()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append((time.perf_counter() - started, processor() - worked))
    return medians(times)


def processor() -> float:
    """Processor time of the child processes in seconds."""
    spent = os.times()
    return spent.children_user + spent.children_system


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    wall, cpu = zip(*times, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def steps(noisy: Path, out: Path, runs: int) -> dict[str, tuple[float, float]]:
    """Median time of each step to the first result."""
    spent: dict[str, list[tuple[float, float]]] = {}
    for _ in range(runs):
        before, worked = time.time(), 0.0
        code = STEPS.format(noisy=str(noisy), out=str(out))
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        for step, when, cpu in json.loads(done.stdout):
            spent.setdefault(step, []).append((when - before, cpu - worked))
            before, worked = when, cpu
    return {step: medians(times) for step, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    wanted = parser.parse_args()
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", end=""
    )
    print(f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "")
    print(f"median of {wanted.runs} fresh processes; ratio: time of `import torch` over this one\n")

    with tempfile.TemporaryDirectory() as folder:
        noisy, out = Path(folder, "noisy.wav"), Path(folder, "out.wav")
        soundfile.write(noisy, 0.1 * np.random.default_rng(0).standard_normal(4 * 16_000), 16_000)
        enhance = COMMAND.format(["enhance", str(noisy), "-o", str(out), "--overwrite"])
        cases = {
            "python alone": "pass",
            "import torch": "import torch",
            "clearstate --help": COMMAND.format(["--help"]),
            "clearstate enhance --help": COMMAND.format(["enhance", "--help"]),
            "clearstate enhance, a 4 s file": enhance,
        }
        seconds(enhance, 1)  # fills the kernel cache
        times = {case: seconds(code, wanted.runs) for case, code in cases.items()}
        torch_wall, _ = times["import torch"]
        print(f"{'seconds':36}{'wall':>8}{'cpu':>8}")
        for case, (wall, cpu) in times.items():
            print(f"{case:36}{wall:8.3f}{cpu:8.3f}{torch_wall / wall:8.1f}x")
        parts = steps(noisy, out, wanted.runs)
    print("\nthe same file, step by step")
    for step, (wall, cpu) in parts.items():
        print(f"  {step:34}{wall:8.3f}{cpu:8.3f}")
    print(f"  {'in all':34}{sum(x for x, _ in parts.values()):8.3f}{sum(x for _, x in parts.values()):8.3f}")

    if wanted.json:
        rows = [
            {"case": case, "seconds": wall, "cpu_seconds": cpu, "ratio_torch": torch_wall / wall}
            for case, (wall, cpu) in times.items()
        ]
        rows += [{"case": f"step: {step}", "seconds": wall, "cpu_seconds": cpu} for step, (wall, cpu) in parts.items()]
        Path(wanted.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    helped = max(times["clearstate --help"][0], times["clearstate enhance --help"][0])
    waited, worked = times["clearstate enhance, a 4 s file"]
    print(f"\nhelp within {MUST_HELP} s: {'yes' if helped <= MUST_HELP else 'NO'}", end="; ")
    print(f"a 4 s file within {MUST_FILE} s: {'yes' if waited <= MUST_FILE else 'NO'} ({waited:.2f} s", end="")
    print(f", {worked:.2f} s of the processor)")
    sys.exit(helped > MUST_HELP or waited > MUST_FILE)


if __name__ == "__main__":
    main()
