"""Measure the speed-up of each compiled kernel and of its model over PyTorch, in one run.

    python benchmarks/kernels.py [--threads 1] [--repeat 7] [--only NAME ...] [--json FILE]

Each case runs its two forms in turn on the same inputs, after one untimed call of each; times are medians. The
PyTorch form of a kernel is its readable twin. The PyTorch form of a model is the same model with all kernels off except
the scan and the convolution. `must` is the smallest ratio that justifies the kernels of a model: 1.5 for a model that a
verb uses by default, 2.5 for a published system. If outputs differ by more than 1e-4 of the peak, no ratio is printed
and the exit code is 1.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from models import processor
from torch import Tensor

from clearstate.kernels.live import open_stream
from clearstate.models import build
from clearstate.models.parts import dense_codec, dual_path, s4m_ops
from clearstate.ssm import causal_conv1d_silu, selective_scan, use_backend
from clearstate.ssm.s4 import S4, diagonal_scan, discretise

CLOSE = 1e-4
Form = Callable[[], Tensor]


class Case(NamedTuple):
    """Two forms of one function, and the smallest ratio of their times that justifies the first."""

    kernel: Form
    twin: Form
    must: float = 0.0


@contextmanager
def without(*modules: Any) -> Iterator[None]:
    """Run parts of networks in plain PyTorch; the scan keeps its kernel."""
    patches = [patch.object(module, "fast", lambda x, gradient=False: False) for module in modules]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def by_reference(form: Form) -> Form:
    def twin() -> Tensor:
        with use_backend("reference"):
            return form()

    return twin


def in_pytorch(form: Form, *modules: Any) -> Form:
    def twin() -> Tensor:
        with without(*modules):
            return form()

    return twin


def scan() -> Case:
    u, delta, z = (torch.randn(100, 400, 128) for _ in range(3))
    B, C = (torch.randn(100, 400, 16) for _ in range(2))
    A, D = -torch.rand(128, 16) * 16, torch.randn(128)

    def form() -> Tensor:
        return selective_scan(u, delta, A, B, C, D, z, delta_softplus=True)[0]

    return Case(form, by_reference(form))


def causal_conv() -> Case:
    x, weight, bias = torch.randn(100, 400, 128), torch.randn(128, 4), torch.randn(128)

    def form() -> Tensor:
        return causal_conv1d_silu(x, weight, bias)[0]

    return Case(form, by_reference(form))


def s4_scan() -> Case:
    layer = S4(512, 16, bidirectional=False)
    u, dynamics = torch.randn(1, 1000, 512), layer.dynamics()
    A, B = discretise(dynamics.A, dynamics.B, dynamics.step)

    def form() -> Tensor:
        return diagonal_scan(u, A, B, dynamics.C[0], layer.init_state(1))[0]

    return Case(form, by_reference(form))


def mamba_pair() -> Case:
    mix, x = dual_path.BiMix(64).eval(), torch.randn(101, 320, 64)
    return Case(lambda: mix(x), in_pytorch(lambda: mix(x), dual_path))


def winograd() -> Case:
    """Includes the instance norm between the convolutions, because both work on the same maps."""
    block, x = dense_codec.DenseBlock(64).eval(), torch.randn(1, 160, 201, 64)
    return Case(lambda: block(x), in_pytorch(lambda: block(x), dense_codec))


def instance_norm() -> Case:
    norm, x = dense_codec.NormPReLU(64).eval(), torch.randn(1, 320, 201, 64)
    return Case(lambda: norm(x), in_pytorch(lambda: norm(x), dense_codec))


def upsample() -> Case:
    x, weight, bias = torch.randn(1, 320, 100, 64), torch.randn(64, 64, 1, 3), torch.randn(64)
    return Case(
        lambda: dense_codec.upsample(x, weight, bias),
        in_pytorch(lambda: dense_codec.upsample(x, weight, bias), dense_codec),
    )


def s4m_convolution() -> Case:
    layer, x = s4m_ops.Depthwise(512, 5, stride=2), torch.randn(1, 4000, 512)
    return Case(lambda: layer(x), in_pytorch(lambda: layer(x), s4m_ops))


def s4m_norm() -> Case:
    norm, x, slope = s4m_ops.GlobalNorm(512), torch.randn(1, 4000, 512), torch.full((1,), 0.25)
    return Case(lambda: norm(x, slope), in_pytorch(lambda: norm(x, slope), s4m_ops))


def s4m_modulation() -> Case:
    norm, x, gate, shift = s4m_ops.GlobalNorm(512), *(torch.randn(1, n, 512) for n in (4000, 1000, 1000))
    return Case(lambda: norm.modulate(x, gate, shift), in_pytorch(lambda: norm.modulate(x, gate, shift), s4m_ops))


def live_stream() -> Case:
    """The default model of `enhance` and `stream`, hop by hop."""
    model = build("live").eval()
    x = 0.1 * torch.randn(1, 60 * model.hop)  # type: ignore[operator]
    hops = x.split(model.hop, dim=-1)  # type: ignore[arg-type]

    def fused() -> Tensor:
        stream = open_stream(model, 1)
        return torch.cat([torch.from_numpy(stream(hop.numpy())) for hop in hops], dim=-1)

    def layer_by_layer() -> Tensor:
        state, out = model.init_state(1), []  # type: ignore[operator]
        for hop in hops:
            y, state = model.step(hop, state)  # type: ignore[operator]
            out.append(y)
        return torch.cat(out, dim=-1)

    return Case(fused, layer_by_layer, must=1.5)


def whole_model(name: str, seconds: float, must: float, *modules: Any) -> Case:
    model = build(name).eval()
    x = 0.1 * torch.randn(1, int(seconds * model.sample_rate))  # type: ignore[operator]
    return Case(lambda: model(x), in_pytorch(lambda: model(x), *modules), must)


CASES: dict[str, Callable[[], Case]] = {
    "scan": scan,
    "causal_conv": causal_conv,
    "s4": s4_scan,
    "mamba_pair": mamba_pair,
    "winograd": winograd,
    "instance_norm": instance_norm,
    "instance_norm.upsample": upsample,
    "s4m.Depthwise": s4m_convolution,
    "s4m.GlobalNorm": s4m_norm,
    "s4m.GlobalModulate": s4m_modulation,
    "live, hop by hop": live_stream,
    "semamba-advanced": lambda: whole_model("semamba-advanced", 2.0, 2.5, dual_path, dense_codec),
    "s4m-tiny": lambda: whole_model("s4m-tiny", 4.0, 2.5, s4m_ops),
}


def measure(case: Case, repeat: int) -> dict[str, Any]:
    """Time both forms in turn, after a first call of each, which compiles."""
    y, expected = case.kernel(), case.twin()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for form, taken in zip((case.kernel, case.twin), times, strict=True):
            started = time.perf_counter()
            form()
            taken.append(time.perf_counter() - started)
    kernel, twin = map(statistics.median, times)
    error = float((y - expected).abs().max() / expected.abs().max())
    return {"kernel": kernel, "twin": twin, "ratio": twin / kernel if error <= CLOSE else None, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{processor()}, {os.cpu_count()} cores{load}; {args.threads} threads, float32, median of {args.repeat}\n")
    print(f"{'':24}{'kernel':>12}{'PyTorch':>12}{'ratio':>9}{'must':>7}   max |diff| / peak")
    rows = {}
    with torch.inference_mode():
        for name in args.only or CASES:
            torch.manual_seed(0)
            case = CASES[name]()
            row = rows[name] = measure(case, args.repeat)
            ratio = f"{row['ratio']:.2f}x" if row["ratio"] else "-"
            must = f"{case.must:.1f}" if case.must else ""
            print(
                f"{name:24}{1e3 * row['kernel']:9.2f} ms{1e3 * row['twin']:9.2f} ms{ratio:>9}{must:>7}   "
                f"{row['error']:.1e}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    if any(row["ratio"] is None for row in rows.values()):
        sys.exit("some outputs differ: nothing to compare")


if __name__ == "__main__":
    main()
