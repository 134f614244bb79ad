"""PESQ and STOI from the reference libraries, with defined values for inputs that crash them.

Undefined scores are NaN (a silent reference, a clip that is too short). Callers exclude them from means and count them.
An all-zero output is not undefined: it gets the lowest score of the scale, so a system cannot gain by losing a file.
"""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
from numpy.typing import ArrayLike

from clearstate.audio.rates import whole_rate
from clearstate.metrics.extras import need
from clearstate.metrics.pairs import as_pair

# The bottom of the opinion scale. The mappings of P.862.1 and P.862.2 approach 0.999 and real outputs come as low as
# 1.02 (their raw score is not held at -0.5), so no audible output scores lower.
PESQ_FLOOR = 1.0

# The C code has room for 50 utterances and dies of more (a segmentation fault from about 60 on). An utterance and the
# gap after it take 0.2 s each at least, so nothing shorter than this can hold too many.
SAFE_SECONDS = 20


def pesq_wb(reference: ArrayLike, estimate: ArrayLike, sample_rate: int) -> float:
    """Wide-band PESQ as MOS-LQO, up to 4.64 (ITU-T P.862.2, the `pesq` package).

    Insensitive to level and to delays of some tens of milliseconds: read it together with SI-SDR. The C code of the
    package is the one the field's tables use; it lacks Corrigendum 2 of P.862.2, whose scores are higher
    (arXiv:2505.19760).

    Args:
        reference, estimate: (samples,) at 16 kHz.
    Returns:
        The score; NaN when the reference is silent, when the clip is under a quarter of a second, or when it is so long
        that it holds more utterances than the C code can (P.862 is meant for 8 to 30 s); the floor of the scale, 1,
        when the estimate is silent.
    Raises:
        ValueError: for another rate than 16000 Hz.
        MissingExtra: without `clearstate[metrics]`.
    """
    sample_rate = whole_rate(sample_rate)
    if sample_rate != 16_000:
        raise ValueError(f"wide-band PESQ is defined at 16000 Hz, got {sample_rate} Hz: resample both signals first")
    return _pesq(reference, estimate, sample_rate, "wb")


def pesq_nb(reference: ArrayLike, estimate: ArrayLike, sample_rate: int) -> float:
    """Narrow-band PESQ as MOS-LQO, up to 4.55 (ITU-T P.862.1), at 8 or 16 kHz; otherwise as `pesq_wb`."""
    sample_rate = whole_rate(sample_rate)
    if sample_rate not in (8_000, 16_000):
        raise ValueError(
            f"narrow-band PESQ is defined at 8000 or 16000 Hz, got {sample_rate} Hz: resample both signals first"
        )
    return _pesq(reference, estimate, sample_rate, "nb")


def _pesq(reference: ArrayLike, estimate: ArrayLike, sample_rate: int, mode: str) -> float:
    library = need("pesq", "metrics", "PESQ")
    r, d = as_pair(reference, estimate)
    if not r.any() or len(r) < sample_rate // 4:
        return float("nan")
    if not d.any():
        return PESQ_FLOOR
    if len(r) > SAFE_SECONDS * sample_rate:
        return _pesq_in_a_child(r, d, sample_rate, mode)
    try:
        return float(library.pesq(sample_rate, r.astype(np.float32), d.astype(np.float32), mode))
    except (library.NoUtterancesError, library.BufferTooShortError):
        return float("nan")


def _pesq_in_a_child(r: np.ndarray, d: np.ndarray, sample_rate: int, mode: str) -> float:
    """The same in a process of its own, so that a segmentation fault is a NaN here."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(sample_rate), mode],
        input=np.stack([r, d]).astype(np.float32).tobytes(),
        capture_output=True,
        check=False,
    )
    return float(child.stdout) if child.returncode == 0 else float("nan")


_CHILD = """
import sys, numpy, pesq
r, d = numpy.frombuffer(sys.stdin.buffer.read(), numpy.float32).reshape(2, -1)
print(pesq.pesq(int(sys.argv[1]), r, d, sys.argv[2]))
"""


def stoi(reference: ArrayLike, estimate: ArrayLike, sample_rate: int) -> float:
    """Short-time objective intelligibility, 0 to 1 (Taal et al. 2011, the `pystoi` package), at any rate.

    NaN when the reference holds less than about 0.4 s of speech, where the measure is undefined; 0 for a silent
    estimate.
    """
    return _stoi(reference, estimate, sample_rate, extended=False)


def estoi(reference: ArrayLike, estimate: ArrayLike, sample_rate: int) -> float:
    """Extended STOI (Jensen & Taal 2016), for noise that fluctuates; otherwise as `stoi`."""
    return _stoi(reference, estimate, sample_rate, extended=True)


def _stoi(reference: ArrayLike, estimate: ArrayLike, sample_rate: int, extended: bool) -> float:
    sample_rate = whole_rate(sample_rate)
    library = need("pystoi", "metrics", "STOI")
    r, d = as_pair(reference, estimate)
    if not r.any():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            score = float(library.stoi(r, d, sample_rate, extended=extended))
        except RuntimeWarning:
            return float("nan")
        except ValueError:  # fewer samples than one frame: the package indexes past the end
            return float("nan")
    return score if d.any() else 0.0
