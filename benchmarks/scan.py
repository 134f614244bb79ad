"""Compare the selective scan on the CPU with plain PyTorch in one run: time, memory, error.

    python benchmarks/scan.py [--json FILE] [--repeat 5] [--quick]

(a) parallel: a log-depth scan in PyTorch, `selective_scan_parallel`; (b) loop: step by step, storing only the state,
the fastest eager form. `ratio` is their median time divided by the kernel's, with equal inputs and the forms in turn.
Memory is the peak above the inputs, each form in a new process (Linux only). If results differ, no ratio is printed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clearstate.ssm import selective_scan, use_backend
from clearstate.ssm.scan import selective_scan_parallel

CASES = [(100, 200, 128), (400, 101, 128), (8, 161, 256), (1, 4000, 256)]  # batch, time, channels
STATES = 16
TOLERANCE = 2e-5  # relative to the largest output or gradient; the order of sums differs
FORMS = ("kernel", "parallel", "loop")


def lean_loop(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> tuple[Tensor, Tensor]:
    """The recurrence step by step, without tensors of size (b, t, d, n)."""
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    dt = F.softplus(delta + delta_bias)
    outputs = []
    for dt_t, u_t, b_t, c_t in zip(dt.unbind(1), (dt * u).unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + u_t[..., None] * b_t[:, None]
        outputs.append(torch.matmul(h, c_t[..., None])[..., 0])
    return (torch.stack(outputs, 1) + D * u) * F.silu(z), h


def inputs(case: tuple[int, int, int], gradient: bool) -> dict[str, Tensor]:
    b, t, d = case
    torch.manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, requires_grad=gradient)

    A = (-torch.rand(d, STATES) * STATES).requires_grad_(gradient)
    return {
        "u": leaf(b, t, d), "delta": leaf(b, t, d), "A": A, "B": leaf(b, t, STATES), "C": leaf(b, t, STATES),
        "D": leaf(d), "z": leaf(b, t, d), "delta_bias": leaf(d),
    }  # fmt: skip


def run(form: str, given: dict[str, Tensor], weight: Tensor | None) -> list[Tensor]:
    """The output; with a weight, also the gradients of the weighted sum of outputs."""
    call: Callable[..., tuple[Tensor, Tensor]]
    call = {"kernel": selective_scan, "parallel": selective_scan_parallel, "loop": lean_loop}[form]
    if weight is None:
        with torch.no_grad():
            return [call(**given, delta_softplus=True)[0]]
    y, _ = call(**given, delta_softplus=True)
    return [y.detach(), *torch.autograd.grad(y, list(given.values()), weight)]


def measure_time(case: tuple[int, int, int], backward: bool, repeat: int) -> tuple[dict[str, float], float]:
    """Median seconds of each form, and the largest relative difference from the loop."""
    given = inputs(case, backward)
    weight = torch.randn(case) if backward else None
    results = {form: run(form, given, weight) for form in FORMS}  # also compiles
    error = max(
        float((ours - loop).abs().max() / loop.abs().max())
        for ours, loop in zip(results["kernel"], results["loop"], strict=True)
    )
    del results
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeat):
        for form in FORMS:
            began = time.perf_counter()
            run(form, given, weight)
            times[form].append(time.perf_counter() - began)
    return {form: statistics.median(values) for form, values in times.items()}, error


def measure_memory(form: str, case: tuple[int, int, int], backward: bool) -> int:
    """Peak bytes above the inputs of one run, in a new process."""
    arguments = [sys.executable, __file__, "--memory-of", form, *map(str, case), str(int(backward))]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def peak_of(form: str, case: tuple[int, int, int], backward: bool) -> int:
    small = (2, 33, case[2])
    run(form, inputs(small, backward), torch.randn(small) if backward else None)  # compiled code and thread pools
    given, weight = inputs(case, backward), torch.randn(case) if backward else None
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmHWM")
    run(form, given, weight)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def allocator() -> str:
    names = [name for name in os.environ if name.startswith("MALLOC_") or name == "THP_MEM_ALLOC_ENABLE"]
    preload = os.environ.get("LD_PRELOAD")
    settings = [f"{name}={os.environ[name]}" for name in names] + ([f"LD_PRELOAD={preload}"] if preload else [])
    return ", ".join(settings) or "default"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the first case only")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        form, *numbers, backward = arguments.memory_of
        print(peak_of(form, tuple(map(int, numbers)), backward == "1"))
        return
    with use_backend("numba"):
        rows = compare(CASES[:1] if arguments.quick else CASES, arguments.repeat)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(cases: list[tuple[int, int, int]], repeat: int) -> list[dict]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}; {torch.get_num_threads()} threads, float32, "
        f"{STATES} states, allocator {allocator()}, median of {repeat}"
    )
    rows = []
    for case in cases:
        for backward in (False, True):
            times, error = measure_time(case, backward, repeat)
            memory = {form: measure_memory(form, case, backward) for form in FORMS}
            name, which = "x".join(map(str, case)), "fwd+bwd" if backward else "fwd"
            row = {
                "case": name,
                "pass": which,
                "ratio_parallel": times["parallel"] / times["kernel"],
                "ratio_loop": times["loop"] / times["kernel"],
                "memory_ratio": memory["parallel"] / max(memory["kernel"], 1),
                "max_error": error,
            }
            rows.append(row)
            same = error < TOLERANCE
            ratios = (
                f"{row['ratio_parallel']:6.1f}x parallel {row['ratio_loop']:6.1f}x loop"
                if same
                else "no ratio: differs"
            )
            ns = 1e9 * times["kernel"] / (case[0] * case[1] * case[2] * STATES)
            print(
                f"{name:14} {which:8} kernel {1e3 * times['kernel']:8.1f} ms ({ns:.3f} ns an element-state)   "
                f"parallel {1e3 * times['parallel']:8.1f} ms   loop {1e3 * times['loop']:8.1f} ms   {ratios}   "
                f"memory {memory['kernel'] / 2**20:.0f} MiB, parallel {memory['parallel'] / 2**20:.0f} MiB "
                f"(1/{row['memory_ratio']:.0f})   max error {error:.1e}"
            )
    return rows


if __name__ == "__main__":
    main()
