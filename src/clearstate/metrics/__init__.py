"""Scores. Every function takes NumPy signals (samples,) in [-1, 1], reference first, and returns a float.

Optional libraries (`pesq`, `pystoi`, `scipy`, `onnxruntime`; extra `metrics`) are imported by the function that needs
them. Undefined values are NaN.
"""

from clearstate.metrics.composite import Composite, composite, llr, wss
from clearstate.metrics.extras import MissingExtra
from clearstate.metrics.intrusive import lsd, sdr, segmental_snr, si_sdr, snr
from clearstate.metrics.perceptual import estoi, pesq_nb, pesq_wb, stoi
from clearstate.metrics.separation import best_order

__all__ = [
    "Composite",
    "MissingExtra",
    "best_order",
    "composite",
    "estoi",
    "llr",
    "lsd",
    "pesq_nb",
    "pesq_wb",
    "sdr",
    "segmental_snr",
    "si_sdr",
    "snr",
    "stoi",
    "wss",
]
