"""Perceptual contrast stretching: amplify the bins that matter for intelligibility, loud bins more than quiet ones.

Chao et al. 2022 (arXiv:2203.17152). For bin k of a spectrum X, with I the importance of its critical band,

    log(1 + |Y[k]|) = g[k] log(1 + |X[k]|),   g = 1 + 0.4 min(I / 0.057, 1),   phase kept

It raises PESQ and lowers scores of the background. It can follow any enhancement model, or change the training target.
It is logarithmic in 1 + |X|, so it depends on the level: quiet bins keep their level, loud bins gain.

b batch, n samples, t frames, f bins.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.level import rms

Floats = NDArray[np.floating]
Makeup = Literal["rms", "peak", "none"]

IMPORTANCE = (0.0, 0.010, 0.026, 0.041, 0.057, 0.046, 0.034, 0.023, 0.011)  # by band, low to high
FIRST_BINS = {  # n_fft to the first bin of each band, at 16 kHz
    400: (0, 3, 5, 8, 10, 110, 130, 160, 190),
    512: (0, 3, 6, 9, 12, 138, 166, 200, 241),
}
HOPS = {400: 100, 512: 256}  # n_fft to the hop of the published programs, in samples
REFERENCE_RMS = 10 ** (-26 / 20)  # of full scale; makeup "rms" stretches speech at this level
LEVEL_SECONDS = 5.0  # time constant of the running level of a stream
SILENCE = 1e-12  # mean square; quieter hops do not count towards the level


def gains(n_fft: int = 400) -> Floats:
    """The exponent of each bin at 16 kHz, (f,) float64.

    Raises:
        ValueError: for an n_fft without published bands.

    >>> gains(400)[[0, 4, 60, 200]].round(4)
    array([1.    , 1.0702, 1.4   , 1.0772])
    """
    if n_fft not in FIRST_BINS:
        raise ValueError(f"no bands are published for n_fft={n_fft}; expected {' or '.join(map(str, FIRST_BINS))}")
    first = FIRST_BINS[n_fft]
    g = np.ones(n_fft // 2 + 1)
    last = n_fft // 2 + (n_fft == 400)  # the published 512-point table excludes the highest bin
    for begin, end, importance in zip(first, (*first[1:], last), IMPORTANCE, strict=True):
        g[begin:end] = 1 + 0.4 * min(importance / 0.057, 1.0)
    return g


def stretch_contrast(x: Floats, makeup: Makeup = "rms", n_fft: int = 400) -> Floats:
    """Stretch the contrast of signals (..., n) at 16 kHz, in frames of n_fft samples with the hop of HOPS.

    Args:
        x: full scale 1.
        makeup: how to treat the level. "rms": stretch at -26 dB RMS, then restore the RMS of the input, so the output
            scales with the input. "peak": as published, stretch without scaling, then divide by the peak. "none":
            stretch without scaling.
    Raises:
        ValueError: for an n_fft without published bands, or an unknown makeup.
    """
    if makeup not in ("rms", "peak", "none"):
        raise ValueError(f"makeup {makeup!r}: expected 'rms', 'peak' or 'none'")
    flat = x.reshape(-1, x.shape[-1])  # (b, n)
    level = rms(flat)
    if makeup == "rms":
        flat = np.where(level > 0, flat * (REFERENCE_RMS / np.maximum(level, 1e-30)), flat)
    y = _stretch(flat, n_fft)
    if makeup == "rms":
        y = y * (level / np.maximum(rms(y), 1e-30))
    elif makeup == "peak":
        y = y / np.maximum(np.abs(y).max(-1, keepdims=True), 1e-30)
    return y.reshape(x.shape).astype(x.dtype, copy=False)


def _stretch(x: Floats, n_fft: int) -> Floats:
    samples, hop = x.shape[-1], HOPS[n_fft]
    window = np.hamming(n_fft)  # symmetric, as published
    padded = np.pad(x, ((0, 0), (n_fft // 2, n_fft + -samples % hop)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[:, ::hop]  # (b, t, n_fft)
    spec = np.fft.rfft(frames * window)  # (b, t, f)
    magnitude = np.abs(spec)
    # ((1 + |X|)^g - 1) / |X|; at |X| = 0 its limit is g, and the product is 0.
    spec *= np.expm1(gains(n_fft) * np.log1p(magnitude)) / np.maximum(magnitude, 1e-20)
    pieces = (np.fft.irfft(spec, n_fft) * window).reshape(*frames.shape[:2], -1, hop)
    y = np.zeros((len(x), frames.shape[1] + n_fft // hop - 1, hop))
    weight = np.zeros_like(y[0])
    for k, squares in enumerate((window**2).reshape(-1, hop)):
        y[:, k : k + frames.shape[1]] += pieces[:, :, k]
        weight[k : k + frames.shape[1]] += squares
    return (y / weight).reshape(len(x), -1)[:, n_fft // 2 : n_fft // 2 + samples]


class ContrastStretcher:
    """`stretch_contrast` with makeup "rms" for a stream.

    The level and the makeup gain are running means (time constant LEVEL_SECONDS, without silence), shared by all
    channels. Arrays are NumPy, (2, channels, m): the first signal is only delayed, the second is stretched, too. Both
    are delayed by `delay` samples. The output comes in multiples of `hop` samples.

    Raises:
        ValueError: for a sample rate other than 16 kHz, which has no published bands, or a grid that no n_fft fits.
    """

    def __init__(self, channels: int, sample_rate: int, grid: int) -> None:
        if sample_rate != 16_000:
            raise ValueError(f"contrast stretching needs a model at 16000 Hz; this one works at {sample_rate} Hz")
        fitting = [n_fft for n_fft in FIRST_BINS if grid % HOPS[n_fft] == 0]
        if not fitting:
            raise ValueError(
                f"contrast stretching needs a grid of a multiple of {' or '.join(map(str, HOPS.values()))} samples; "
                f"this model's is {grid}"
            )
        n_fft = fitting[0]
        self.hop, self.delay = HOPS[n_fft], n_fft - HOPS[n_fft]
        self.gains = gains(n_fft)
        self.window = np.hamming(n_fft)
        self.keep = float(np.exp(-self.hop / (LEVEL_SECONDS * sample_rate)))
        self._pieces = n_fft // self.hop  # frames that overlap
        self._overlap = (self.window**2).reshape(-1, self.hop).sum(0)  # sum of their windows
        self._powers = np.zeros(3)  # running sums of power before and after, and of the weights
        self._held = np.zeros((2, channels, self.delay), dtype=np.float32)
        self._tail = np.zeros((channels, self._pieces - 1, self.hop))  # hops that overlap with later frames

    def push(self, pair: NDArray[Any]) -> NDArray[Any]:
        """Take the next samples of both signals (2, c, n) and return the finished ones (2, c, m)."""
        held = np.concatenate([self._held, pair], axis=2)
        pieces = self._pieces
        count = held.shape[2] // self.hop - pieces + 1  # frames
        self._held = held[:, :, count * self.hop :].copy()
        if not count:
            return np.zeros((*pair.shape[:2], 0), dtype=np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(held[1], pieces * self.hop, axis=1)[
            :, :: self.hop
        ]  # (c, t, n)
        spectra = np.fft.rfft(frames * self.window)
        stretched = np.stack([self._stretched(spectra[:, t]) for t in range(count)], axis=1)
        frames = (np.fft.irfft(stretched) * self.window).reshape(len(stretched), count, pieces, self.hop)
        summed = np.concatenate([self._tail, np.zeros((len(frames), count, self.hop))], axis=1)
        for piece in range(pieces):
            summed[:, piece : piece + count] += frames[:, :, piece]
        self._tail = summed[:, count:].copy()
        out = (summed[:, :count] / self._overlap).reshape(len(summed), -1)
        return np.stack([held[0, :, : count * self.hop], out.astype(np.float32)])

    def finish(self) -> NDArray[Any]:
        """Return the remaining samples; the last ones come from padding."""
        return self.push(np.zeros((2, self._held.shape[1], self.delay + self.hop - 1), dtype=np.float32))

    def _stretched(self, spectrum: NDArray[Any]) -> NDArray[Any]:
        """One frame of all channels, (c, f)."""
        power = np.mean(np.abs(spectrum) ** 2) / (self.window**2).mean() / len(self.window)
        if power <= SILENCE:
            return spectrum
        before, after, weight = self.keep * self._powers
        before, weight = before + power, weight + 1.0
        scale = REFERENCE_RMS / np.sqrt(before / weight)
        magnitude = scale * np.abs(spectrum)
        y = spectrum * (np.expm1(self.gains * np.log1p(magnitude)) / np.maximum(magnitude, 1e-20))
        after += np.mean(np.abs(y) ** 2) / (self.window**2).mean() / len(self.window)
        self._powers[:] = before, after, weight
        return y * np.sqrt(before / after)
