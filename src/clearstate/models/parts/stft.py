"""Short-time Fourier transform and its inverse, offline and streaming, and power compression of spectra.

Frames are causal: frame k ends with hop k. The signal is silent before its start, so frame 0 contains `n_fft - hop`
zeros and the first hop. Offline and streaming use the same arithmetic: offline is the stream without its latency of
`n_fft - hop` samples.

b batch, n samples, t frames, f = n_fft / 2 + 1 bins.
"""

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
    return torch.fft.rfft(x.unfold(-1, window.shape[0], hop) * window)


def synthesise(spec: Tensor, window: Tensor, hop: int, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Overlap-add spectra (b, t, f) to samples (b, t * hop), and the unfinished tail (b, n_fft - hop).

    Args:
        tail: the unfinished samples of the previous frames; zeros if None.
    """
    n_fft = window.shape[0]
    frames = torch.fft.irfft(spec, n=n_fft) * window  # (b, t, n_fft)
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


def measured_bandwidth(x: Tensor, sample_rate: float) -> Tensor:
    """`clearstate.audio.bandwidth.bandwidth` of tensors (b, n): the bandwidth in Hz (b,), without a gradient."""
    return torch.from_numpy(bandwidth(x.detach().float().cpu().numpy(), sample_rate)).to(x)
