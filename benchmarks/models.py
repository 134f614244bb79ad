"""Measure every model: parameters, cost, speed, memory, latency, and the speed-up over plain PyTorch.

    python benchmarks/models.py [--models NAME ...] [--seconds 4] [--times 5] [--threads 2] [--compare 1]
                                [--json FILE]

Each model runs in a new process with its shipped config, or the config of its preset, and with fresh weights (speed
does not depend on them). RTF is the median wall time of `forward` divided by the input length, after a warm-up pass.
`by cpu` is the processor time of the fastest pass, divided by threads and length: the RTF on an idle machine, and the
better figure on a busy one. MiB is the peak memory of the process, including 250 for PyTorch. A hop is one `step` of a
causal model; its share is processor time divided by the duration of the hop. The reference `plain` is the same model
with the same weights in PyTorch operators, with the recurrence as a loop over time, on `--compare` seconds. `diff` is
the largest difference of the two outputs, relative to their peak if that is above one. Above 1e-4, no ratio is printed.
Extension models receive noise up to 4 kHz at 48 kHz.

semamba-advanced must reach an RTF of 0.5 with two threads.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CLOSE = 1e-4  # relative to the peak, which can be 10 with fresh weights
BAND = 4_000.0  # Hz, bandwidth of the input of extension models
MUST = {"semamba-advanced": 0.5}  # RTF


class Took(NamedTuple):
    """Time of some passes."""

    wall: float  # seconds, median
    cpu: float  # seconds of all threads, minimum


def timed(call: Callable[[], Any], times: int) -> Took:
    walls, cpus = [], []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Took(statistics.median(walls), min(cpus))


def open_model(name: str) -> Any:
    """A model of any task with fresh weights, as a function of (1, n)."""
    import torch

    from clearstate.models import build, find

    class Widened(torch.nn.Module):
        """An extension model with the bandwidth of its input given, because in noise no band is missing."""

        causal = False

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.sample_rate = model, model.sample_rate

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.model(x, bandwidth_hz=BAND)
            return y

    torch.manual_seed(0)
    preset = find(name)
    model: Any = build(name, **preset.shipped_config).eval()
    return Widened(model) if preset.task == "extend" else model


def noise(seconds: float, rate: int) -> Any:
    import torch

    x = torch.randn(1, round(seconds * rate), generator=torch.Generator().manual_seed(1))
    if rate == 48_000:
        spec = torch.fft.rfft(x)
        spec[:, round(spec.shape[1] * BAND / (rate / 2)) :] = 0
        x = torch.fft.irfft(spec, n=x.shape[1])
    return x


def measure(name: str, seconds: float, times: int, threads: int, compare: float) -> dict[str, Any]:
    """Measure one model; runs in a new process."""
    import torch

    from clearstate.metrics.cost import cost
    from clearstate.ssm import use_backend

    torch.set_num_threads(threads)
    model = open_model(name)
    rate = int(model.sample_rate)
    row: dict[str, Any] = {"model": name}
    with torch.no_grad():
        model(noise(1.0, rate))
        x = noise(seconds, rate)
        took = timed(lambda: model(x), times)
        row["rtf"], row["cpu_rtf"] = took.wall / seconds, took.cpu / seconds / threads
        row["mebibytes"] = peak_rss() / 2**20
        if getattr(model, "causal", False):
            row["latency_ms"] = 1000 * (model.latency + model.hop) / rate
            hop = a_hop(model, noise(1.0, rate)[:, : model.hop])
            row["hop_ms"], row["hop_cpu_ms"] = 1000 * hop.wall, 1000 * hop.cpu / threads
            row["hop_share"] = hop.cpu / threads * rate / model.hop
        if compare:
            x = noise(compare, rate)
            fast = timed(lambda: model(x), 3)
            y = model(x)
            with use_backend("reference"):
                plain = timed(lambda: row.update(expected=model(x)), 1)
            expected = row.pop("expected")
            row["error"] = (y - expected).abs().max().item() / max(1.0, expected.abs().max().item())
            row["plain_rtf"] = plain.wall / compare
            row["ratio"] = plain.wall / fast.wall if row["error"] <= CLOSE else None
    spent = cost(model, 1.0)
    row["parameters"], row["gmacs"] = spent.parameters, spent.macs / 1e9
    row["products_gflops"] = product_rate(threads)
    row["products_rtf"] = 2 * row["gmacs"] / row["products_gflops"]
    return row


def product_rate(threads: int, size: int = 1024) -> float:
    """GFLOP/s of a large float32 matrix product by processor time: an upper limit for models made of products."""
    import torch

    from clearstate.kernels.blas import quick_products

    x = torch.randn(size, size)
    with quick_products():
        return 2 * size**3 / timed(lambda: x @ x, 10).cpu * threads / 1e9


def a_hop(model: Any, hop: Any) -> Took:
    """One step of a stream."""
    state = model.init_state(1)

    def step() -> None:
        nonlocal state
        _, state = model.step(hop, state)

    return timed(step, 60)


def peak_rss() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--times", type=int, default=5, help="number of passes; the median is printed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compare", type=float, default=1.0, help="seconds for the plain form; 0 skips it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.seconds, args.times, args.threads, args.compare)))
        return
    from clearstate.models import PRESETS

    names = args.models or list(PRESETS)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    pages = os.environ.get("THP_MEM_ALLOC_ENABLE", "unset")
    print(f"{processor()}, {os.cpu_count()} cores{load}; THP_MEM_ALLOC_ENABLE {pages}")
    print(
        f"{args.threads} threads, float32; {args.seconds:g} s, median of {args.times}; plain {args.compare:g} s, once\n"
    )
    print(
        "model                      parameters   GMAC/s     RTF   by cpu  plain RTF   ratio        diff    MiB"
        "   latency      a hop   by cpu"
    )
    rows = []
    for name in names:
        options = [f"--{key}={getattr(args, key)}" for key in ("seconds", "times", "threads", "compare")]
        done = subprocess.run([sys.executable, __file__, "--one", name, *options], capture_output=True, text=True)
        if done.returncode:
            print(f"{name:26}  failed: {(done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]}")
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(rows[-1]), flush=True)
    print()
    for row in rows:
        if row["model"] in MUST:
            must, met = MUST[row["model"]], {True: "yes", False: "NO"}
            wall, cpu = (met[row[key] <= must] for key in ("rtf", "cpu_rtf"))
            print(f"{row['model']}: RTF at most {must} on {args.threads} threads: {wall} by the wall, {cpu} by cpu")
            print(
                f"  large products run at {row['products_gflops']:.0f} GFLOP/s here: its own alone would take "
                f"{row['products_rtf']:.2f}"
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    wrong = [row["model"] for row in rows if row.get("error", 0.0) > CLOSE]
    if wrong:
        print(f"more than {CLOSE:g} from the plain form: {', '.join(wrong)}")
    if wrong or len(rows) < len(names):
        raise SystemExit(1)


def line(row: dict[str, Any]) -> str:
    plain = f"{row['plain_rtf']:9.2f}" if "plain_rtf" in row else " " * 9
    ratio = f"{row['ratio']:6.1f}x" if row.get("ratio") else "      –"
    error = f"{row['error']:10.1e}" if "error" in row else " " * 10
    hop = "whole signal"
    if "hop_ms" in row:
        hop = f"{row['latency_ms']:6.1f} ms  {row['hop_ms']:7.2f} ms  {row['hop_cpu_ms']:7.2f} = {row['hop_share']:.2f}"
    return (
        f"{row['model']:26} {row['parameters']:10,} {row['gmacs']:8.2f} {row['rtf']:7.3f} {row['cpu_rtf']:8.3f}"
        f"  {plain} {ratio}  {error} {row['mebibytes']:6.0f}  {hop}"
    )


def processor() -> str:
    """The name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
