"""PyTorch's own matrix products on a CPU, by the faster of the libraries that it comes with."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from llvmlite.binding import get_host_cpu_name


@contextmanager
def quick_products() -> Iterator[None]:
    """Let oneDNN do PyTorch's float32 products on AMD processors, where that costs no precision.

    There it takes half of MKL's time; on Intel's it is as fast on large products and up to three times slower on small
    ones. PyTorch hands products to it in its "medium" precision, which allows bfloat16; whether this machine makes use
    of that is measured once, and then the setting is left alone.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest" or not get_host_cpu_name().startswith("znver") or not medium_is_exact():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def medium_is_exact() -> bool:
    """Whether products in "medium" precision are those of float32 on this machine."""
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        product = x @ x[:64].T
    finally:
        torch.set_float32_matmul_precision(before)
    exact = x.double() @ x[:64].double().T
    return bool((product - exact).abs().max() <= 5e-6 * exact.abs().max())  # bfloat16 errs by 1e-3, float32 by 1e-6
