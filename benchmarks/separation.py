"""Compare the compiled norms and convolutions of S4M with plain PyTorch, in the forward pass and with gradients.

python benchmarks/separation.py [--seconds 2] [--threads 2] [--passes 16] [--recompute]

Times are wall time, which includes other programs on a busy machine, and processor time of all threads, which does
not.
"""

import argparse
import platform
import time

import torch

from clearstate.models import build
from clearstate.ssm import use_backend
from clearstate.train.losses import negative_snr, permutation_invariant


def best_of(runs: int, function) -> tuple[float, float]:
    """Wall and processor seconds of the fastest run, after an untimed one."""
    function()
    wall, work = [], []
    for _ in range(runs):
        started, worked = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - started)
        work.append(time.process_time() - worked)
    return min(wall), min(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="s4m-tiny-4ms")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--only-compiled", action="store_true", help="skip the slow form")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = build(given.model, passes=given.passes, hidden=given.hidden, recompute=given.recompute)
    size = sum(p.numel() for p in model.parameters())
    audio = given.batch * given.seconds
    print(
        f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}; {given.model}, "
        f"{given.passes} passes, hidden {given.hidden}, {size:,} parameters, {given.batch} x {given.seconds:g} s"
    )
    sources = 0.1 * torch.randn(given.batch, 2, int(given.seconds * model.sample_rate))
    mixture = sources.sum(1)

    def forward():
        with torch.no_grad():
            return model(mixture)

    def step():
        model.zero_grad(set_to_none=True)
        permutation_invariant(negative_snr, model(mixture), sources).loss.mean().backward()
        return model.block.widen.weight.grad

    names = {"reference": "PyTorch", "auto": "compiled"}
    backends = ("auto",) if given.only_compiled else ("reference", "auto")
    for name, work in (("forward", forward), ("forward + backward", step)):
        model.train(work is step)
        seconds, results = {}, {}
        for backend in backends:
            with use_backend(backend):
                results[backend] = work().clone()
                seconds[backend] = best_of(given.runs, work)
        line = "  ".join(
            f"{names[b]} {wall:.2f} s ({audio / wall:.2f} x real time), processor {work:.2f} s"
            for b, (wall, work) in seconds.items()
        )
        if not given.only_compiled:
            error = (results["auto"] - results["reference"]).norm() / results["reference"].norm()
            assert error < 1e-2, f"the two forms differ by {error:.1e}: no ratio is given"
            ratios = [slow / fast for slow, fast in zip(seconds["reference"], seconds["auto"], strict=True)]
            line += f"  ratio {ratios[0]:.1f} (processor {ratios[1]:.1f})  relative error {error:.0e}"
        print(f"{name:20} {line}")


if __name__ == "__main__":
    main()
