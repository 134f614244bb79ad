"""What SEMamba and MP-SENet have around their networks: level, spectrum, mask and phase, and blocks of long signals.

    noisy -- level -- STFT -- X -- estimate: mask M, phase p --  Y = |X| M^(1/c) exp(j p)  -- iSTFT -- level back

b batch, n samples, t frames, f bins, p pieces.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clearstate.models.parts import dense_codec as codec
from clearstate.models.parts.dense_codec import Moments, MomentsOf


class Overview(NamedTuple):
    """What a block of a long signal needs to know of the whole of it."""

    gain: Tensor  # (b, 1): brings the whole signal to an RMS of 1
    moments: tuple[Moments, ...]  # of each instance norm, in the order of the forward pass


class Estimate(NamedTuple):
    """What the network says of a signal at an RMS of 1."""

    mask: Tensor  # (b, t, f), gain of the compressed magnitude
    real: Tensor  # (b, t, f), of a number whose angle is the phase
    imaginary: Tensor


class MagnitudePhase(nn.Module):
    """Maps noisy (b, n) to enhanced (b, n); every output depends on the whole signal. A model adds `estimate`.

    Args:
        config: with `sample_rate` and `hop` in Hz and samples, `n_fft`, and the `exponent` c of the magnitudes.
    """

    causal = False
    predicts_spectrum = True  # forward knows `with_spectrum`
    normalises = True  # forward knows `gain`
    window: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def estimate(self, spec: Tensor, moments_of: MomentsOf = codec.own_moments) -> Estimate:
        """The network itself: noisy spectra (b, t, f) to what is to be done with them."""
        raise NotImplementedError

    def forward(
        self,
        noisy: Tensor,
        overview: Overview | None = None,
        with_spectrum: bool = False,
        gain: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Enhance signals (b, n), n >= 1.

        Args:
            overview: of the signals that these are blocks of (see `overview`); None if they are whole.
            with_spectrum: return the predicted spectrum (b, t, f) too, which need not be that of any signal.
            gain: (b, 1), 1 / RMS of the signals that these are cut from; None: of these, or of the overview.
        """
        if gain is None:
            gain = codec.level_gain(noisy) if overview is None else overview.gain
        spec = self.spectrum(noisy * gain)  # (b, t, f) complex
        moments_of = codec.own_moments if overview is None else codec.given_moments(overview.moments)
        spec = self.enhanced(spec, self.estimate(spec, moments_of))
        y = codec.centred_waveform(spec, self.window, self.config.hop, noisy.shape[-1]) / gain
        return (y, spec / gain[..., None]) if with_spectrum else y

    def spectrum(self, x: Tensor) -> Tensor:
        """The spectra (b, t, f) of signals (b, n), in the frames and window of the predicted spectrum."""
        return codec.centred_spectrum(x, self.window, self.config.hop)

    def enhanced(self, spec: Tensor, estimate: Estimate) -> Tensor:
        """The enhanced spectrum (b, t, f).

        |Y| = (M |X|^c)^(1/c) is M^(1/c) |X|, so that silence stays silent; r / |r + j i| is cos atan2(i, r) without
        the detour.
        """
        magnitude = spec.abs() * estimate.mask ** (1 / self.config.exponent)
        return magnitude * direction(estimate.real, estimate.imaginary)

    @torch.no_grad()
    def overview(self, pieces: Tensor, gain: Tensor) -> Overview:
        """What blocks of a long signal need to know of it, from pieces spread over all of it.

        The pieces go through the network as one batch whose instance norms see all of them together.

        Args:
            pieces: (b, p, n), p pieces of n samples of each of b signals.
            gain: (b, 1), 1 / RMS of each whole signal.
        """
        pooled = codec.PooledMoments(pieces.shape[1])
        self.estimate(self.spectrum((pieces * gain[..., None]).flatten(0, 1)), pooled)
        return Overview(gain, tuple(pooled.seen))


def direction(real: Tensor, imaginary: Tensor) -> Tensor:
    """exp(j atan2(imaginary, real)), complex; 1 where both are zero, as atan2 has it."""
    length = torch.sqrt(real.square() + imaginary.square() + 1e-20)
    return torch.complex(real / length, imaginary / length)
