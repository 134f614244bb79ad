"""How long `clearstate --help` takes, against starting Python alone and against importing torch, in the same run.

    python benchmarks/cold_start.py [--json FILE]

Must: 0.5 s. The median of several runs, each in a fresh process; the files are warm in the page cache.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

MUST = 0.5  # seconds
RUNS = 7
CASES = {
    "python alone": "pass",
    "import torch": "import torch",
    "clearstate --help": "from clearstate.cli import main; main(['--help'])",
    "clearstate enhance --help": "from clearstate.cli import main; main(['enhance', '--help'])",
}


def seconds(code: str) -> float:
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    wanted = parser.parse_args()

    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"median of {RUNS} fresh processes; ratio: time of `import torch` over this one\n")
    times = {case: seconds(code) for case, code in CASES.items()}
    reference = times["import torch"]
    for case, spent in times.items():
        print(f"{case:28}{spent:8.3f} s{reference / spent:8.1f}x")
    if wanted.json:
        rows = [{"case": case, "seconds": t, "ratio_torch": reference / t} for case, t in times.items()]
        with open(wanted.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)
    slowest = max(times["clearstate --help"], times["clearstate enhance --help"])
    print(f"\nhelp within {MUST} s: {'yes' if slowest <= MUST else 'NO'}")
    sys.exit(slowest > MUST)


if __name__ == "__main__":
    main()
