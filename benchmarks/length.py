"""Time and memory of SEMamba and of its Conformer and Transformer twins over the length of the signal.

    python benchmarks/length.py
    python benchmarks/length.py --seconds 1 2 4 8 16 30 60 120 300 --threads 1 --json docs/results/length.json

Every network takes one whole signal, without gradients and with the kernels that it has on this machine, in a process
of its own, so that its peak memory is its own. Short lengths come first. A network is not run on longer signals once it
takes more than --limit seconds, or would need more than --memory GiB by the growth so far. The weights are fresh: time
and memory do not depend on them.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

NETWORKS = {
    "SEMamba advanced": ("semamba-advanced", {}),
    "Conformer in its place": ("semamba-advanced", {"core": "conformer"}),
    "MP-SENet (Transformers)": ("mp-senet", {}),
    "SEMamba basic": ("semamba-basic", {}),
    "Transformer in its place": ("semamba-basic-transformer", {}),
}


def measure(name: str, seconds: float, threads: int, runs: int) -> dict[str, float]:
    """One network on one length, in this process."""
    import torch

    from clearstate.models import build

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    preset, config = NETWORKS[name]
    model = build(preset, **config).eval()
    x = 0.05 * torch.randn(1, round(seconds * model.sample_rate))
    with torch.inference_mode():
        model(x[:, :8_000])  # what is compiled at its first use is not counted
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {"time": min(times), "memory_gib": peak / 2**20, "before_gib": before / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1, help="the fastest counts")
    parser.add_argument("--limit", type=float, default=600, help="seconds of one run")
    parser.add_argument("--memory", type=float, default=16, help="GiB")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], float(arguments.one[1]), arguments.threads, arguments.runs)))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread(s)"
    command = "python benchmarks/length.py --seconds " + " ".join(f"{s:g}" for s in arguments.seconds)
    print(machine)
    rows: list[dict[str, object]] = []
    for name in arguments.networks:
        last: list[tuple[float, float, float]] = []  # length, time, memory beyond what a short signal takes
        for seconds in sorted(arguments.seconds):
            if last and not affordable(last, seconds, arguments.limit, arguments.memory):
                print(f"{name:26} {seconds:6g} s   left out: over --limit or --memory by the growth so far")
                break
            call = [sys.executable, __file__, "--one", name, str(seconds)]
            call += ["--threads", str(arguments.threads), "--runs", str(arguments.runs)]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode:
                print(f"{name:26} {seconds:6g} s   failed: {(done.stderr.splitlines() or ['killed'])[-1]}")
                break
            found = json.loads(done.stdout)
            last.append((seconds, found["time"], found["memory_gib"] - found["before_gib"]))
            rows.append({"network": name, "seconds": seconds, **{k: round(v, 4) for k, v in found.items()}})
            print(f"{name:26} {seconds:6g} s   {found['time']:9.3f} s   {found['memory_gib']:6.2f} GiB", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"title": "Cost over length", "machine": machine, "command": command, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def affordable(last: list[tuple[float, float, float]], seconds: float, limit: float, memory: float) -> bool:
    """Whether the next length stays within both limits: time grows as it did last, memory in proportion."""
    length, spent, used = last[-1]
    ratio, power = seconds / length, 1.0
    if len(last) > 1:
        shorter, less, _ = last[-2]
        power = min(2.0, max(1.0, math.log(spent / less) / math.log(length / shorter)))
    return spent * ratio**power < limit and used * ratio < memory


if __name__ == "__main__":
    main()
