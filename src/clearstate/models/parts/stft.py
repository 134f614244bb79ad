"""Short-time Fourier transform and its inverse, offline and streaming, and power compression of spectra.

Frames are causal: frame k ends with hop k. The signal is silent before its start, so frame 0 contains `n_fft - hop`
zeros and the first hop. Offline and streaming use the same arithmetic: offline is the stream without its latency of
`n_fft - hop` samples.

b batch, n samples, t frames, f = n_fft / 2 + 1 bins.

ONNX has no fast transform: while a network is exported, both directions are products with constant matrices instead.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clearstate.audio.bandwidth import bandwidth


def sqrt_hann(n_fft: int) -> Tensor:
    """Square root of the periodic Hann window: analysis times synthesis adds up to one at half overlap."""
    return torch.hann_window(n_fft, periodic=True).sqrt()


def dual_window(window: Tensor, hop: int) -> Tensor:
    """The synthesis window for any analysis window: w / sum over frames of w**2.

    >>> window = torch.hamming_window(64)
    >>> x = torch.randn(1, 640)
    >>> y, _ = synthesise(analyse(F.pad(x, (48, 48)), window, 16), dual_window(window, 16), 16)
    >>> torch.testing.assert_close(y[:, 48:], x)
    """
    return window / window.square().view(-1, hop).sum(0).repeat(window.shape[0] // hop)


def analyse(x: Tensor, window: Tensor, hop: int) -> Tensor:
    """Spectra (b, t, f) of the frames of x (b, n_fft - hop + t * hop) that start at every hop."""
    if torch.compiler.is_exporting():
        n_fft = window.shape[0]
        return _rfft(_frames(x, n_fft, hop) * window, n_fft)
    return torch.fft.rfft(x.unfold(-1, window.shape[0], hop) * window)


def synthesise(spec: Tensor, window: Tensor, hop: int, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Overlap-add spectra (b, t, f) to samples (b, t * hop), and the unfinished tail (b, n_fft - hop).

    Args:
        tail: the unfinished samples of the previous frames; zeros if None.
    """
    n_fft = window.shape[0]
    inverse = _irfft if torch.compiler.is_exporting() else torch.fft.irfft
    frames = inverse(spec, n=n_fft) * window  # (b, t, n_fft)
    b, t, _ = frames.shape
    pieces = frames.reshape(b, t, n_fft // hop, hop)
    out = frames.new_zeros(b, t + n_fft // hop - 1, hop)
    for k in range(n_fft // hop):  # piece k of frame i lands on hop i + k
        out = out + F.pad(pieces[:, :, k], (0, 0, k, n_fft // hop - 1 - k))
    out = out.reshape(b, -1)
    if tail is not None:
        out = out + F.pad(tail, (0, out.shape[1] - tail.shape[1]))
    return out[:, : t * hop], out[:, t * hop :]


def stft(x: Tensor, window: Tensor, hop: int) -> Tensor:
    """Spectra (b, t, f) of a whole signal (b, n), silent before and after; t = ceil(n / hop) + n_fft / hop - 1."""
    overlap = window.shape[0] - hop
    return analyse(F.pad(x, (overlap, overlap + -x.shape[-1] % hop)), window, hop)


def istft(spec: Tensor, window: Tensor, hop: int, samples: int) -> Tensor:
    """The signal (b, samples) whose `stft` is `spec`, if the windows add up to one.

    >>> x, window = torch.randn(2, 1000), sqrt_hann(64)
    >>> torch.testing.assert_close(istft(stft(x, window, 32), window, 32, 1000), x)
    """
    out, _ = synthesise(spec, window, hop)
    overlap = window.shape[0] - hop
    return out[:, overlap : overlap + samples]


def compress(spec: Tensor, exponent: float, floor: float = 1e-12) -> Tensor:
    """|S|**exponent with the phase of S, as (..., 2) real and imaginary part; finite gradient at zero.

    Args:
        floor: power added before the root.
    """
    parts = torch.view_as_real(spec)
    power = parts.square().sum(-1, keepdim=True) + floor
    return parts * power.pow((exponent - 1) / 2)


def expand(parts: Tensor, exponent: float, floor: float = 1e-12) -> Tensor:
    """The inverse of `compress`: (..., 2) to complex."""
    power = parts.square().sum(-1, keepdim=True) + floor
    return torch.view_as_complex(parts * power.pow((1 / exponent - 1) / 2))


def phase(spec: Tensor) -> Tensor:
    """The angle of a complex spectrum. Exported explicitly: of a negative number it is pi, not -pi."""
    if torch.compiler.is_exporting():
        parts = torch.view_as_real(spec)
        return torch.atan2(parts[..., 1], parts[..., 0])
    return spec.angle()


def measured_bandwidth(x: Tensor, sample_rate: float) -> Tensor:
    """`clearstate.audio.bandwidth.bandwidth` of tensors (b, n): the bandwidth in Hz (b,), without a gradient."""
    return torch.from_numpy(bandwidth(x.detach().float().cpu().numpy(), sample_rate)).to(x)


# -- the transform as products of matrices, for export: a quarter of the work of one large product -------------------


def _frames(x: Tensor, n: int, hop: int) -> Tensor:
    """x.unfold(-1, n, hop) of (b, n - hop + t hop), from slices that start at a hop: (b, t, n)."""
    hops = x.unflatten(1, (-1, hop))
    count, overlap = hops.shape[1], n // hop - 1
    return torch.cat([hops[:, k : count - overlap + k] for k in range(overlap + 1)], dim=-1)


def _rfft(x: Tensor, n: int) -> Tensor:
    """`torch.fft.rfft` of (b, t, n), n a multiple of 4.

    The samples i, n - i, n / 2 - i and n / 2 + i meet the same cosine and sine up to the sign: for the even bins with
    one pattern of signs, for the odd bins with another. So sums and differences of the four come first, then a product
    for each of the four: even and odd bins, real and imaginary part.
    """
    b, t, _ = x.shape
    folds = _folds(n)
    quarters = folds.signs @ x.index_select(-1, folds.order).unflatten(-1, (4, -1))  # (b, t, 4, n / 4 + 1)
    bins = quarters.flatten(0, 1).transpose(0, 1) @ folds.forward  # (4, b t, n / 4 + 1)
    parts = bins.unflatten(0, (2, 2)).permute(2, 3, 1, 0).reshape(b, t, n // 2 + 2, 2)[:, :, : n // 2 + 1]
    return torch.view_as_complex(parts)


def _irfft(spec: Tensor, n: int) -> Tensor:
    """`torch.fft.irfft` of (b, t, n / 2 + 1): the same steps in the opposite order."""
    b, t, _ = spec.shape
    folds = _folds(n)
    parts = F.pad(torch.view_as_real(spec), (0, 0, 0, 1))  # (b, t, n / 2 + 2, 2)
    bins = parts.reshape(b * t, n // 4 + 1, 2, 2).permute(3, 2, 0, 1).flatten(0, 1)  # (4, b t, n / 4 + 1)
    quarters = (bins @ folds.inverse).transpose(0, 1).reshape(b, t, 4, n // 4 + 1)
    return (folds.signs.T @ quarters).flatten(2).index_select(-1, folds.back)


class Folds(NamedTuple):
    """The constants of `_rfft` and `_irfft` for one length n; q = n / 4 + 1."""

    order: Tensor  # which sample is read for each of the four quarters (4 q,)
    back: Tensor  # where in the four quarters each sample is found (n,)
    signs: Tensor  # (4, 4)
    forward: Tensor  # (4, q, q): even and odd bins of the real part, then of the imaginary part
    inverse: Tensor  # (4, q, q)


@lru_cache
def fold_arrays(n: int) -> tuple[np.ndarray, ...]:
    """The arrays of `Folds`."""
    if n % 4:
        raise ValueError(f"n_fft={n} cannot be exported: it must be a multiple of 4")
    i = np.arange(n // 4 + 1)
    order = np.stack([i, n - i, n // 2 - i, n // 2 + i]) % n
    back = np.zeros(n, np.int64)
    for k in range(4):
        back[order[k]] = k * len(i) + i
    signs = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]], np.float32)
    even, odd = (2 * np.pi / n * i[:, None] * (2 * i + k) for k in (0, 1))
    waves = np.stack([np.cos(even), np.cos(odd), -np.sin(even), -np.sin(odd)])
    waves[1::2, :, -1] = 0  # there is no such odd bin
    waves[2, :, [0, -1]] = 0  # the bins 0 and n / 2 are real: not by rounding, which would turn their phase around
    twice = np.ones(len(i))
    twice[[0, -1]] = 0.5  # these samples are read twice
    pairs = np.full((4, len(i)), 2.0)
    pairs[::2, [0, -1]] = 1.0  # the bins 0 and n / 2 have no twin with negative frequency
    forward = (waves * twice[:, None]).astype(np.float32)
    inverse = (waves * pairs[:, None] / n).transpose(0, 2, 1).astype(np.float32)
    return order.reshape(-1), back, signs, forward, np.ascontiguousarray(inverse)


def _folds(n: int) -> Folds:
    return Folds(*(torch.from_numpy(array) for array in fold_arrays(n)))
