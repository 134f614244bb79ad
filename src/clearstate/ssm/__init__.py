"""Recurrences with explicit state. Nothing here knows about audio."""

from clearstate.kernels.backend import backend, use_backend

from .conv import causal_conv1d_silu
from .mamba import BiMamba, Mamba, MambaBlock, MambaState, RMSNorm
from .scan import selective_scan

__all__ = [
    "BiMamba", "Mamba", "MambaBlock", "MambaState", "RMSNorm", "backend", "causal_conv1d_silu", "selective_scan",
    "use_backend",
]  # fmt: skip
