"""Compare the selective scan on a GPU with plain PyTorch and with the memory bandwidth, after a check of equality.

    python benchmarks/scan_cuda.py [--patience 200]

`parallel` is `selective_scan_parallel`, the log-depth scan in plain PyTorch on the same device; `ratio` is its median
time over the kernel's. `floor` is the time the device needs to move, at the speed of a plain copy measured in this
run, each input and output once (forward: u, delta, z, B, C, y; in the backward pass also the saved states and the
gradients); `x floor` is the kernel's time over it. A case whose outputs or gradients are off prints no ratio, and the
exit status is 1. Without a GPU, it prints a message and exits with 0.
"""

import argparse
import sys

import torch
from torch import Tensor

from clearstate.kernels.backend import backend, unavailable
from clearstate.ssm import selective_scan
from clearstate.ssm.scan import selective_scan_parallel

CASES = [(8, 161, 256), (100, 200, 128), (400, 101, 128), (1, 4000, 256)]  # batch, time, channels
STATES = 16
TOLERANCE = 2e-5  # relative to the peak of each output or gradient; the order of sums differs
COPIED = 1 << 30  # bytes of the copy that measures the bandwidth


def inputs(case: tuple[int, int, int], device: str) -> dict[str, Tensor]:
    """Random inputs with gradients; z, B and C are slices, as in a model."""
    b, t, d = case
    made = {
        "u": torch.randn(b, t, d), "delta": torch.randn(b, t, d), "A": -torch.rand(d, STATES) * STATES,
        "B": torch.randn(b, t, 2 * STATES)[..., :STATES], "C": torch.randn(b, t, 2 * STATES)[..., STATES:],
        "D": torch.randn(d), "z": torch.randn(b, t, 2 * d)[..., d:], "delta_bias": torch.randn(d),
        "state": torch.randn(b, d, STATES),
    }  # fmt: skip
    return {name: x.to(device).requires_grad_() for name, x in made.items()}


def results(scan, given: dict[str, Tensor], reverse: bool, weight: Tensor) -> list[Tensor]:
    """Output, last state, and the gradients of their weighted sum."""
    y, last = scan(**given, delta_softplus=True, reverse=reverse)
    total = (y * weight).sum() + last.sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(total, list(given.values()))]


def largest_error(case: tuple[int, int, int], device: str) -> float:
    """Error of the kernel against the parallel scan in float64, both directions, relative to each result's peak."""
    given = inputs(case, device)
    exact = {name: x.detach().double().requires_grad_() for name, x in given.items()}
    worst = 0.0
    for reverse in (False, True):
        weight = torch.randn(case, device=device)
        pairs = zip(
            results(selective_scan, given, reverse, weight),
            results(selective_scan_parallel, exact, reverse, weight.double()),
            strict=True,
        )
        worst = max(worst, *(float((ours - truth).abs().max() / truth.abs().max()) for ours, truth in pairs))
    return worst


def copying() -> float:
    """Seconds per byte read or written by a plain copy on the device."""
    from triton.testing import do_bench

    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 1e-3 * do_bench(lambda: target.copy_(source), return_mode="median") / (2 * COPIED)


def bytes_moved(case: tuple[int, int, int], backward: bool) -> int:
    """Bytes that must be read or written once, float32; with `backward`, of both passes."""
    b, t, d = case
    wide, narrow = b * t * d, b * t * STATES
    forward = 4 * wide + 2 * narrow  # u, delta, z, y; B, C
    if not backward:
        return 4 * forward
    kept = b * -(-t // 16) * d * STATES  # written, then read
    return 4 * (forward + 2 * kept + 4 * wide + 2 * narrow + 3 * wide + 2 * narrow)  # u, delta, z, dy; B, C; gradients


def measure(case: tuple[int, int, int], backward: bool, seconds_per_byte: float, patience: int) -> str:
    """One line: median times of the two scans, their ratio, and the floor."""
    from triton.testing import do_bench

    given = inputs(case, "cuda")
    weight = torch.randn(case, device="cuda")
    leaves = list(given.values())

    def run(scan):
        if not backward:
            with torch.no_grad():
                scan(**given, delta_softplus=True)
            return
        torch.autograd.grad(scan(**given, delta_softplus=True)[0], leaves, weight)

    ours = do_bench(lambda: run(selective_scan), rep=patience, return_mode="median")  # milliseconds
    parallel = do_bench(lambda: run(selective_scan_parallel), rep=patience, return_mode="median")
    floor = 1e3 * bytes_moved(case, backward) * seconds_per_byte
    what = "forward + backward" if backward else "forward"
    return (
        f"{case!s:16} {what:18} parallel {parallel:9.3f} ms   kernel {ours:8.3f} ms   ratio {parallel / ours:6.1f}   "
        f"floor {floor:7.3f} ms   x floor {ours / floor:5.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patience", type=int, default=200, help="milliseconds spent on each timing (200)")
    patience = parser.parse_args().patience
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure (the kernels' tests need none)")
        return
    if backend("cuda") != "triton":
        sys.exit(f"the scan on this GPU would not run in triton, but in {backend('cuda')}: {unavailable('triton')}")
    seconds_per_byte = copying()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32, {STATES} states", end="; ")
    print(f"copy {1e-9 / seconds_per_byte:.0f} GB/s")
    failed = False
    for case in CASES:
        error = largest_error(case, "cuda")
        print(f"{case!s:16} largest error of outputs and gradients, both directions: {error:.1e}")
        if not error <= TOLERANCE:  # so that NaN fails too
            print(f"{case!s:16} differs by more than {TOLERANCE:.0e}: no ratio")
            failed = True
            continue
        for backward in (False, True):
            print(measure(case, backward, seconds_per_byte, patience))
    sys.exit(failed)


if __name__ == "__main__":
    main()
