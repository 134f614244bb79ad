"""Which code runs the recurrences, and why.

    numba      compiled kernels for the CPU: forward, backward and single step (scan.py, causal_conv.py)
    triton     compiled kernels for a CUDA device (scan_triton.py)
    reference  the equation as a PyTorch loop: any device and dtype, slow
    parallel   a log-depth scan in plain PyTorch: traceable, hungry for memory

The choice is explicit. ``auto`` takes the kernel of the tensor's device; the environment variable
``CLEARSTATE_SCAN`` or `use_backend` names another. If the kernel cannot be had, ``auto`` warns once, with the
reason, and takes the reference.
"""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "CLEARSTATE_SCAN"
NAMES = ("auto", "numba", "triton", "reference", "parallel")

_chosen: ContextVar[str | None] = ContextVar("clearstate_scan", default=None)


def backend(device: str = "cpu") -> str:
    """Name of the code that runs a recurrence on `device` ("cpu", "cuda", ...) from here.

    Raises:
        ValueError: if the environment variable names an unknown backend.
        RuntimeError: if a backend was asked for by name and cannot run here.
    """
    asked = requested()
    if asked in ("reference", "parallel"):
        return asked
    kernel = {"cpu": "numba", "cuda": "triton"}.get(device)
    if asked not in ("auto", kernel):
        raise RuntimeError(f"backend {asked!r} was asked for, but the tensors are on {device!r}: use backend 'auto'")
    if kernel is None:
        return "reference"
    reason = unavailable(kernel)
    if reason is None:
        return kernel
    if asked == kernel:
        raise RuntimeError(f"backend {kernel!r} was asked for and cannot run: {reason}")
    _warn_slow(kernel, reason)
    return "reference"


def fast(x: "Tensor", *, gradient: bool = False) -> bool:
    """Whether a compiled kernel takes this tensor: float32, on the CPU, no gradient asked for unless it has one."""
    import torch

    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and not gradient):
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and backend("cpu") == "numba"


def requested() -> str:
    """The backend asked for: by `use_backend`, else by the environment variable, else "auto"."""
    asked = _chosen.get() or os.environ.get(VARIABLE) or "auto"
    if asked not in NAMES:
        raise ValueError(f"{VARIABLE}={asked!r} is not a scan backend: expected one of {', '.join(NAMES)}")
    return asked


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend inside a ``with`` block.

    >>> with use_backend("reference"):
    ...     backend()
    'reference'
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a scan backend: expected one of {', '.join(NAMES)}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@cache
def unavailable(kernel: str) -> str | None:
    """Why a compiled backend cannot be used here, in one line with its remedy, or None if it can."""
    package = {"numba": "numba", "triton": "triton"}[kernel]
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{package} cannot be imported ({error}): pip install {package}"
    return None


@cache
def _warn_slow(kernel: str, reason: str) -> None:
    warnings.warn(f"the recurrence runs in its slow reference form, not in {kernel}: {reason}", RuntimeWarning)
