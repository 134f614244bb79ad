"""Measure streaming: the time per hop, memory growth, and the cost of many streams.

    python benchmarks/streaming.py [--model NAME_OR_FOLDER] [--minutes 5] [--streams 100] [--json FILE]

One thread. Limits: p99 of a hop through `Stream` is a twentieth of its duration, and a whole file takes a fiftieth of
its duration. Times are wall time, which includes other programs on a busy machine, and processor time of the thread,
which does not. The reference in the same run is the model with its recurrences as a plain PyTorch loop. The outputs are
compared first. A model without weights is timed with random ones.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clearstate.kernels.backend import backend, use_backend
from clearstate.kernels.live import open_stream, supports
from clearstate.models import build, load_model
from clearstate.runtime import exported_file
from clearstate.runtime.onnx import OnnxEnhancer
from clearstate.tasks.stream import Stream

MUST = 1 / 20  # share of the hop's duration
MUST_RTF = 0.02  # share of a file's duration
TOLERANCE = 2e-5


def get_model(name: str) -> Any:
    try:
        return load_model(name)
    except ValueError:
        torch.manual_seed(0)
        return build(name).eval()


def noise(channels: int, samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((channels, samples)).astype(np.float32)


def hops(call: Callable[[], Any], count: int) -> dict[str, float]:
    """Seconds per call: median and p99 of wall time, p99 of the thread's processor time."""
    for _ in range(50):
        call()
    wall, thread = np.empty(count), np.empty(count)
    for i in range(count):
        started, worked = time.perf_counter(), time.thread_time()
        call()
        wall[i], thread[i] = time.perf_counter() - started, time.thread_time() - worked
    return {
        "p50": float(np.median(wall)),
        "p99": float(np.quantile(wall, 0.99)),
        "cpu99": float(np.quantile(thread, 0.99)),
    }


def stepper(model: Any, batch: int, compiled: bool = True) -> Callable[[], Any]:
    """The model alone, hop by hop on noise, with its compiled step if it has one."""
    if compiled and supports(model):
        stream, hop = open_stream(model, batch), noise(batch, model.hop)
        return lambda: stream(hop)
    advance = model.step
    x = torch.from_numpy(noise(batch, model.hop))
    state = [model.init_state(batch)]

    def step() -> None:
        with torch.inference_mode():
            _, state[0] = advance(x, state[0])

    return step


def offline(model: Any, exported: Path | None, seconds: float = 10.0) -> list[tuple[str, float, float, float]]:
    """Forms of the model on a whole signal: name, RTF by wall time and by processor time, largest difference."""
    x = torch.from_numpy(noise(1, int(seconds * model.sample_rate) // model.hop * model.hop))
    forms: dict[str, Callable[[], torch.Tensor]] = {"layer by layer": lambda: model(x)}
    late = {}  # forms that are streams
    if supports(model):
        late["compiled"] = lambda: torch.from_numpy(open_stream(model, 1)(x.numpy()))
    if exported:
        late["ONNX Runtime"] = lambda: torch.from_numpy(OnnxEnhancer(exported).open_stream(1)(x.numpy()))
    forms |= late

    def timed(form: Callable[[], torch.Tensor], times: int) -> tuple[float, float, torch.Tensor]:
        wall, cpu = [], []
        for _ in range(times):
            started, worked = time.perf_counter(), time.thread_time()
            y = form()
            wall.append((time.perf_counter() - started) / seconds)
            cpu.append((time.thread_time() - worked) / seconds)
        return float(np.median(wall)), float(np.median(cpu)), y

    with torch.inference_mode():
        with use_backend("reference"):
            *spent, expected = timed(forms["layer by layer"], 1)
        rows = [("plain PyTorch (reference)", *spent, 0.0)]
        for name, form in forms.items():
            form()
            *spent, y = timed(form, 5)
            aligned = expected[:, : -model.latency] if name in late else expected
            y = y[:, model.latency :] if name in late else y
            rows.append((name, *spent, (y - aligned).abs().max().item()))
    return rows


def resident() -> int:
    """Resident bytes of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the peak, which also shows growth
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def growth(model: Any, minutes: float) -> list[int]:
    """Resident bytes at the start and after each fifth of the minutes: stereo at 44.1 kHz, 10 ms per chunk."""
    stream, chunk = Stream(model, 44_100, channels=2), noise(2, 441)
    for _ in range(200):
        stream.process(chunk)
    sizes = [resident()]
    for _ in range(5):
        for _ in range(int(minutes * 60 * 100 / 5)):
            stream.process(chunk)
        sizes.append(resident())
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="live")
    parser.add_argument("--hops", type=int, default=3_000, help="hops timed in each case")
    parser.add_argument("--minutes", type=float, default=2, help="minutes of audio for the memory test")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    wanted = parser.parse_args()

    torch.set_num_threads(1)
    model = get_model(wanted.model)
    hop = model.hop / model.sample_rate
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread used, load {load()}")
    print(f"{wanted.model}: hop {model.hop} samples = {1000 * hop:.1f} ms, recurrences by {backend()}\n")

    x = torch.from_numpy(noise(1, 60 * model.hop))
    with torch.inference_mode():
        fast = model(x)
        with use_backend("reference"):
            error = (model(x) - fast).abs().max().item()
    if error > TOLERANCE:
        sys.exit(f"the outputs differ by {error:.2g} (more than {TOLERANCE}): nothing to compare")

    rows: list[dict[str, Any]] = []

    def row(case: str, call: Callable[[], Any], duration: float, count: int) -> None:
        spent = hops(call, count)
        rows.append({"case": case, "hop": duration, **spent, "ratio": spent["p99"] / duration})
        shown = "  ".join(f"{1e6 * spent[key]:8.0f}" for key in ("p50", "p99", "cpu99"))
        print(f"{case:44}{shown}   {duration / spent['p99']:7.1f}x  {duration / spent['cpu99']:7.1f}x")

    print(f"{'one hop, microseconds':44}{'p50':>8}{'p99':>10}{'p99 cpu':>10}   real time at p99, wall and cpu")
    with use_backend("reference"):
        row("step, plain PyTorch (reference)", stepper(model, 1, compiled=False), hop, max(200, wanted.hops // 10))
    row("step, layer by layer", stepper(model, 1, compiled=False), hop, wanted.hops)
    if supports(model):
        row("step, compiled", stepper(model, 1), hop, wanted.hops)
    exported = exported_file(wanted.model)
    if exported:
        advance, samples = OnnxEnhancer(exported).open_stream(1), noise(1, model.hop)
        row("step, ONNX Runtime", lambda: advance(samples), hop, wanted.hops)
        stream = Stream(str(exported), model.sample_rate)
        row("Stream, ONNX Runtime", lambda: stream.process(samples), hop, wanted.hops)
    for rate, channels in ((model.sample_rate, 1), (48_000, 1), (44_100, 2)):
        chunk = noise(channels, round(rate * hop))
        stream = Stream(model, rate, channels)
        case = f"Stream, {rate} Hz, {channels} ch, {1000 * stream.latency_seconds:.1f} ms late"
        row(case, lambda stream=stream, chunk=chunk: stream.process(chunk), chunk.shape[1] / rate, wanted.hops)

    print(f"\n{'a whole signal of 10 s, RTF':44}{'wall':>8}{'cpu':>10}")
    for form, wall, cpu, error in offline(model, exported):
        if error > TOLERANCE:
            sys.exit(f"the outputs differ by {error:.2g} (more than {TOLERANCE}): nothing to compare")
        rows.append({"case": f"offline, {form}", "rtf": wall, "rtf_cpu": cpu, "error": error})
        print(f"{form:44}{wall:8.4f}{cpu:10.4f}   {rows_rtf(rows) / cpu:7.1f}x by cpu   max |diff| {error:.1e}")

    count = wanted.streams
    streams, chunk = [Stream(model, model.sample_rate) for _ in range(count)], noise(1, model.hop)[0]
    turns = max(50, wanted.hops // count)
    alone = hops(lambda: [stream.process(chunk) for stream in streams], turns)["p50"]
    together = hops(stepper(model, count), turns)["p50"]
    print(f"\n{count} streams, a hop of each: {1e3 * together:.2f} ms as one batch of the model's step, ", end="")
    print(f"{1e3 * alone:.2f} ms as so many Streams one by one: {alone / together:.2f}x; ", end="")
    print(f"the batch is {hop / together:.1f}x real time")
    rows.append({"case": f"{count} streams", "hop": hop, "p50": together, "ratio_one_by_one": alone / together})

    sizes = growth(model, wanted.minutes)
    grown = max(sizes[2:]) - sizes[1]
    shown = ", ".join(f"{size / 1e6:.1f}" for size in sizes)
    print(f"memory over {wanted.minutes:g} minutes of stereo: {shown} MB; grown by {grown / 1e6:.2f} MB")
    rows.append({"case": f"memory over {wanted.minutes:g} minutes", "bytes": sizes, "grown": grown})

    if wanted.json:
        with open(wanted.json, "w", encoding="utf-8") as file:
            machine = (
                f"{wanted.model}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread"
            )
            json.dump({"machine": machine, "rows": rows}, file, indent=2)
    at_rate = next(r for r in rows if r["case"].startswith(f"Stream, {model.sample_rate} Hz"))
    file = next(r for r in rows if r["case"] == "offline, layer by layer")
    passed = at_rate["ratio"] <= MUST, file["rtf"] <= MUST_RTF
    by_cpu = at_rate["cpu99"] / at_rate["hop"]
    print(
        f"\np99 of a hop within 1/{1 / MUST:.0f} of it: {'yes' if passed[0] else 'NO'} (1/{1 / at_rate['ratio']:.1f}",
        end="",
    )
    print(f", by processor time 1/{1 / by_cpu:.1f}); a file within {MUST_RTF} of it: ", end="")
    print(f"{'yes' if passed[1] else 'NO'} ({file['rtf']:.4f}, by processor time {file['rtf_cpu']:.4f})")
    sys.exit(not all(passed))


def rows_rtf(rows: list[dict[str, Any]]) -> float:
    """Processor time of the reference on a whole signal."""
    return next(row["rtf_cpu"] for row in rows if row["case"].startswith("offline, plain"))


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    main()
