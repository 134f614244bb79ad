"""Training losses: functions of tensors that return one value per item of a batch.

    s clean, x noisy, y estimate: waveforms (b, n); S, X, Y their spectra (b, t, f)
    c compression exponent;  g level: 1 / RMS of the noisy signal

Every function returns (b,) and never averages over the batch; the training loop does. So a batch that is split over two
processes has the same gradient, and single items can be masked.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clearstate.models.parts.dense_codec import centred_spectrum
from clearstate.models.parts.stft import measured_bandwidth

FLOOR = 1e-6  # power below which compression becomes linear, 60 dB below a bin of unit power
PREDICTED_FLOOR = 1e-10  # the same for spectra that a network predicts, as SEMamba's code has it
ANY_PHASE = 1e-30  # power: a predicted bin has a phase, however quiet it is; its gradient does not grow with 1 / |Y|


# ------------------------------------------------------------------------------------------------ waveforms


def level(noisy: Tensor) -> Tensor:
    """The gain (b, 1) that brings each noisy signal (b, n) to an RMS of 1; digital silence keeps its level.

    Losses on compressed spectra depend on level: without this a loud item weighs more than a quiet one.
    """
    rms = noisy.square().mean(-1, keepdim=True).sqrt()
    return torch.where(rms > 1e-6, 1 / rms.clamp_min(1e-6), torch.ones_like(rms))


def l1(estimate: Tensor, clean: Tensor) -> Tensor:
    """mean |y - s|, (b, n) to (b,)."""
    return (estimate - clean).abs().mean(-1)


def negative_snr(estimate: Tensor, clean: Tensor, ceiling: float = 60.0, mixture: Tensor | None = None) -> Tensor:
    """-10 log10( |s|² / (|s - y|² + tau |s|²) ) in dB, (..., n) to (...).

    The error is floored at `ceiling` dB under the target (tau = 10^(-ceiling/10)) as in Wisdom et al. 2020
    (arXiv:2006.12701, eq. 2): without it the best items of a batch pull hardest.

    Args:
        mixture: (..., n), that the error is measured against where the target is silent, as in Wisdom et al. 2021
            (arXiv:2011.00803, eq. 3): a separator may have more outputs than there are voices.
    """
    tau = 10 ** (-ceiling / 10)
    target = clean.square().sum(-1)
    error = (clean - estimate).square().sum(-1)
    if mixture is not None:
        target = torch.where(target > 0, target, mixture.square().sum(-1))
    return 10 * torch.log10((error + tau * target + 1e-10) / (target + 1e-10))


def negative_si_sdr(estimate: Tensor, clean: Tensor) -> Tensor:
    """-10 log10( |a s|² / |y - a s|² ), a = <y, s> / |s|², both without their mean; (..., n) to (...).

    Le Roux et al. 2019 (arXiv:1811.02508, eq. 3). It leaves the level of the output free: alone it is no loss for a
    model whose output somebody listens to.
    """
    estimate = estimate - estimate.mean(-1, keepdim=True)
    clean = clean - clean.mean(-1, keepdim=True)
    scale = (estimate * clean).sum(-1, keepdim=True) / (clean.square().sum(-1, keepdim=True) + 1e-10)
    target = (scale * clean).square().sum(-1)
    error = (estimate - scale * clean).square().sum(-1)
    return 10 * torch.log10((error + 1e-10) / (target + 1e-10))


def log_error(estimate: Tensor, clean: Tensor, noisy: Tensor, ceiling: float = 30.0) -> Tensor:
    """Logarithmic error to target ratio, not scale invariant and defined for a silent target; dB, (b, n) to (b,).

        10 log10( (|s - y|² + tau (|s|² + |x|²)) / (|s|² + tau |x|²) ),   tau = 10^(-ceiling/10)

    For speech it is the negative SNR, floored at `ceiling` dB. For a noise-only item (s = 0) it is the output's
    energy under the input's, from 0 dB at silence to `ceiling` dB when everything passes: the zero-target form of
    Wisdom et al. 2021 (arXiv:2011.00803, section 2), here joined with their floor in one formula so that very quiet
    targets lie between the two.
    """
    tau = 10 ** (-ceiling / 10)
    target = clean.square().sum(-1)
    mixture = noisy.square().sum(-1)
    error = (clean - estimate).square().sum(-1)
    return 10 * torch.log10((error + tau * (target + mixture) + 1e-10) / (target + tau * mixture + 1e-10))


class Assigned(NamedTuple):
    """The best assignment of estimates to targets."""

    loss: Tensor  # (b,) mean over the sources at the best assignment
    order: Tensor  # (b, sources): estimate order[i] belongs to target i


def permutation_invariant(
    pair_loss: Callable[[Tensor, Tensor], Tensor], estimates: Tensor, targets: Tensor
) -> Assigned:
    """The loss of the best assignment of estimates to targets, both (b, sources, n).

    Utterance-level permutation invariant training, Kolbaek et al. 2017 (arXiv:1703.06284). All s! assignments are
    tried over the s x s matrix of pair losses, which is computed once.

    Args:
        pair_loss: from (b, s, s, n), (b, s, s, n) to (b, s, s), for instance `negative_snr`.
    Raises:
        ValueError: if the numbers of sources differ, or exceed 4 (s! assignments).
    """
    sources = targets.shape[1]
    if estimates.shape != targets.shape or sources > 4:
        raise ValueError(
            f"permutation_invariant got estimates {tuple(estimates.shape)} and targets {tuple(targets.shape)}: "
            "both must be (batch, sources, samples) with 1 to 4 sources"
        )
    pairs = pair_loss(
        estimates[:, None].expand(-1, sources, -1, -1), targets[:, :, None].expand(-1, -1, sources, -1)
    )  # (b, target, estimate)
    orders = torch.tensor(list(permutations(range(sources))), device=pairs.device)  # (s!, s)
    rows = torch.arange(sources, device=pairs.device)
    losses = pairs[:, rows, orders].mean(-1)  # (b, s!)
    best = losses.argmin(-1)
    return Assigned(losses.gather(1, best[:, None])[:, 0], orders[best])


# -------------------------------------------------------------------------------------------------- spectra


@lru_cache(maxsize=32)
def _window(n_fft: int, device: torch.device) -> Tensor:
    window = torch.hann_window(n_fft, device=device)
    return window / window.square().sum().sqrt()  # white noise of RMS 1 has bins of power 1 at every n_fft


def spectrum(x: Tensor, n_fft: int, hop: int) -> Tensor:
    """STFT (b, n) to (b, t, f) complex, Hann window of unit energy, mirrored ends; any n >= 1 (samples)."""
    return centred_spectrum(x.float(), _window(n_fft, x.device), hop)


class Compressed(NamedTuple):
    """A compressed spectrum."""

    magnitude: Tensor  # (b, t, f): |S|^c
    spectrum: Tensor  # (b, t, f, 2): |S|^c exp(j arg S), real and imaginary part


def compress(spec: Tensor, exponent: float = 0.3, floor: float = FLOOR) -> Compressed:
    """|S|^c and |S|^c e^(j arg S) of a complex spectrum (b, t, f), with finite gradients at S = 0.

    |S|² is raised by `floor` first; the gradient of |S|^c then stays under floor^((c-1)/2).
    """
    parts = torch.view_as_real(spec)  # (b, t, f, 2)
    power = parts.square().sum(-1) + floor
    magnitude = power.pow(exponent / 2)
    return Compressed(magnitude, parts * (magnitude * power.rsqrt())[..., None])


def magnitude_loss(estimate: Compressed, clean: Compressed) -> Tensor:
    """mean (|Y|^c - |S|^c)², to (b,). Ephrat et al. 2018 (arXiv:1804.03619) with c = 0.3."""
    return (estimate.magnitude - clean.magnitude).square().mean((1, 2))


def complex_loss(estimate: Compressed, clean: Compressed) -> Tensor:
    """mean | |Y|^c e^(j arg Y) - |S|^c e^(j arg S) |², to (b,): the squared error of a complex bin."""
    return (estimate.spectrum - clean.spectrum).square().sum(-1).mean((1, 2))


def log_magnitude_loss(estimate: Tensor, clean: Tensor, floor: float = FLOOR) -> Tensor:
    """mean | log(1 + |Y|) - log(1 + |S|) | of complex spectra (b, t, f), to (b,).

    What the basic models of SEMamba (arXiv:2405.06573) are trained with; the domain of their L1 is our reading.
    """
    ours, theirs = (torch.sqrt(spec.real.square() + spec.imag.square() + floor) for spec in (estimate, clean))
    return (torch.log1p(ours) - torch.log1p(theirs)).abs().mean((1, 2))


RESOLUTIONS = ((256, 128), (1024, 512))  # (n_fft, hop) in samples


def multi_resolution_loss(
    estimate: Tensor, clean: Tensor, resolutions: tuple[tuple[int, int], ...] = RESOLUTIONS, exponent: float = 0.3
) -> Tensor:
    """mean over resolutions of mean | |Y|^c - |S|^c |, (b, n) to (b,).

    Several window lengths, after Yamamoto et al. 2020 (arXiv:1910.11480); the compressed magnitude stands in for
    their logarithm, whose gradient is largest where nobody hears anything.
    """
    total = estimate.new_zeros(len(estimate))
    for n_fft, hop in resolutions:
        ours = compress(spectrum(estimate, n_fft, hop), exponent).magnitude
        theirs = compress(spectrum(clean, n_fft, hop), exponent).magnitude
        total = total + (ours - theirs).abs().mean((1, 2))
    return total / len(resolutions)


# ------------------------------------------------------------------------------------------------ perception

# Of the 49 bands of ITU-T P.862 (PESQ) at 16 kHz: how many bins of 31.25 Hz each takes, centre and width in Bark, what
# corrects its power, and the power at which it becomes audible.
# fmt: off
_BAND_BINS = (
    1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 3, 4, 5, 4, 5, 6, 6, 7,
    8, 9, 9, 12, 12, 15, 16, 18, 21, 25, 20,
)
_BAND_CENTRE = (
    0.078672, 0.316341, 0.636559, 0.961246, 1.290450, 1.624217, 1.962597, 2.305636, 2.653383, 3.005889, 3.363201,
    3.725371, 4.092449, 4.464486, 4.841533, 5.223642, 5.610866, 6.003256, 6.400869, 6.803755, 7.211971, 7.625571,
    8.044611, 8.469146, 8.899232, 9.334927, 9.776288, 10.223374, 10.676242, 11.134952, 11.599563, 12.070135, 12.546731,
    13.029408, 13.518232, 14.013264, 14.514566, 15.022202, 15.536238, 16.056736, 16.583761, 17.117382, 17.657663,
    18.204674, 18.758478, 19.319147, 19.886751, 20.461355, 21.043034,
)
_BAND_WIDTH = (
    0.157344, 0.317994, 0.322441, 0.326934, 0.331474, 0.336061, 0.340697, 0.345381, 0.350114, 0.354897, 0.359729,
    0.364611, 0.369544, 0.374529, 0.379565, 0.384653, 0.389794, 0.394989, 0.400236, 0.405538, 0.410894, 0.416306,
    0.421773, 0.427297, 0.432877, 0.438514, 0.444209, 0.449962, 0.455774, 0.461645, 0.467577, 0.473569, 0.479621,
    0.485736, 0.491912, 0.498151, 0.504454, 0.510819, 0.517250, 0.523745, 0.530308, 0.536934, 0.543629, 0.550390,
    0.557220, 0.564119, 0.571085, 0.578125, 0.585232,
)
_BAND_CORRECTION = (
    100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 50.0, 100.0, 100.0, 100.0, 100.0, 100.0, 53.047077,
    110.000046, 117.991989, 65.0, 68.760147, 69.999931, 71.428818, 75.000038, 76.843384, 80.968781, 88.646126,
    63.864388, 68.155350, 72.547775, 75.584831, 58.379192, 80.950836, 64.135651, 54.384785, 73.821884, 64.437073,
    59.176456, 65.521278, 61.399822, 58.144047, 57.004543, 64.126297, 54.311001, 61.114979, 55.077751, 56.849335,
    55.628868, 53.137054, 54.985844, 79.546974,
)
_BAND_THRESHOLD = (
    51286152.0, 2454709.5, 70794.59375, 4897.788574, 1174.897705, 389.045166, 104.71286, 45.70882, 17.782795, 9.772372,
    4.897789, 3.090296, 1.905461, 1.258925, 0.977237, 0.724436, 0.562341, 0.457088, 0.389045, 0.331131, 0.295121,
    0.269153, 0.257040, 0.251189, 0.251189, 0.251189, 0.251189, 0.263027, 0.288403, 0.309030, 0.338844, 0.371535,
    0.398107, 0.436516, 0.467735, 0.489779, 0.501187, 0.501187, 0.512861, 0.524807, 0.524807, 0.524807, 0.512861,
    0.478630, 0.426580, 0.371535, 0.363078, 0.416869, 0.537032,
)
# fmt: on


class _Ear(NamedTuple):
    gather: Tensor  # (257, bands): power of the bins, through P.862.2's input filter and corrected
    heard: Tensor  # (257,): the bins whose power sets the level, 325 to 3250 Hz
    threshold: Tensor  # (bands,)
    exponent: Tensor  # (bands,)
    width: Tensor  # (bands,)


@lru_cache(maxsize=4)
def _ear(device: torch.device) -> _Ear:
    turn = torch.exp(-2j * torch.pi * torch.arange(257) / 512)
    filtered = (2.740826 - 5.4816519 * turn + 2.740826 * turn**2) / (1 - 1.9444777 * turn + 0.94597794 * turn**2)
    gather, first = torch.zeros(257, len(_BAND_BINS)), 0
    for band, count in enumerate(_BAND_BINS):
        gather[first : first + count, band] = 6.910853e-6 * _BAND_CORRECTION[band]
        first += count
    gather *= filtered.abs().square()[:, None]
    gather[0] = 0
    frequency = torch.arange(257) * 31.25  # Hz
    exponent = 0.23 * (6 / (torch.tensor(_BAND_CENTRE) + 2)).clamp(1, 2) ** 0.15
    parts = (gather, ((frequency > 325) & (frequency < 3250)).float(), torch.tensor(_BAND_THRESHOLD), exponent)
    return _Ear(*(part.to(device) for part in (*parts, torch.tensor(_BAND_WIDTH))))


def perceptual_loss(estimate: Tensor, clean: Tensor) -> Tensor:
    """By how much the raw score of PESQ would fall, from 0 for the same signal to about 3.5; 16 kHz, (b, n) to (b,).

        0.1 D + 0.0309 A,   D symmetric and A asymmetric disturbance of the loudness in 49 bands

    ITU-T P.862 with the input filter of P.862.2, without its search for delays, all in the domain of power spectra;
    after torch-pesq (MIT, github.com/audiolabs/torch-pesq). Deaf to level, as PESQ is: no loss on its own. A silent
    target has no loudness to compare with, and costs nothing.
    """
    ear = _ear(estimate.device)
    bands, powers = [], []
    for x in (estimate, clean):
        spec = spectrum(x, 512, 256)
        power = spec.real.square() + spec.imag.square()  # of the window of unit energy
        mean = (power @ ear.heard).mean(1)[:, None, None] / 256  # mean square of the band that sets the level
        powers.append(mean)
        bands.append(power * (1.05e7 * 192 / (mean + 1e-7)) @ ear.gather)  # 192: energy of a Hann window of 512
    ours, theirs = bands

    def audible(x: Tensor, factor: float = 1.0) -> Tensor:
        return x * (x > ear.threshold * factor)

    def loudness(x: Tensor) -> Tensor:
        raised = (0.5 + 0.5 * x / ear.threshold).clamp_min(1) ** ear.exponent - 1
        return 0.1866055 * (2 * ear.threshold) ** ear.exponent * raised

    def over_time(x: Tensor) -> Tensor:  # (b, t): worst moments of a third of a second, mean square of those
        x = F.pad(x, (0, max(0, 20 - x.shape[1]))).clamp(max=45)
        return ((x.unfold(1, 20, 10) ** 6).mean(-1) + 1e-6).pow(1 / 3).mean(1).sqrt() - 0.1

    # What a filter would do to all of the signal is forgiven in part, and so is the level of each frame.
    speaking = (audible(theirs, 100).sum(-1) >= 1e7)[..., None]  # (b, t, 1)
    ratio = [(audible(x, 100) * speaking).mean(1, keepdim=True) + 1000 for x in (ours, theirs)]
    theirs = theirs * (ratio[0] / ratio[1]).clamp(0.01, 100)
    gain = (audible(theirs).sum(-1) + 5e3) / (audible(ours).sum(-1) + 5e3)
    gain = torch.cat([gain[:, :1], 0.8 * gain[:, 1:] + 0.2 * gain[:, :-1]], dim=1).clamp(3e-4, 5)
    ours = ours * gain[..., None]
    a, b = loudness(ours), loudness(theirs)
    difference = (a - b).abs()
    disturbance = F.relu(difference - 0.25 * torch.minimum(a, b)) * ear.width
    disturbance = torch.cat([torch.zeros_like(disturbance[..., :1]), disturbance[..., 1:]], dim=-1)
    added = ((ours + 50) / (theirs + 50)).pow(1.2)
    added = (added * (added >= 3)).clamp(max=12)  # what was not in the target disturbs more than what is missing
    weight = ((audible(theirs).sum(-1) + 1e5) / 1e7) ** 0.04
    total = ear.width[1:].sum()
    symmetric = (disturbance.square().sum(-1) + 1e-8).sqrt() * total.sqrt() / weight
    asymmetric = (disturbance * added).sum(-1) / weight
    loss = 0.1 * over_time(symmetric) + 0.0309 * over_time(asymmetric)
    return torch.where(powers[1][:, 0, 0] > 1e-6, loss, torch.zeros_like(loss))


# ---------------------------------------------------------------------------------------- bandwidth extension


LOG_FLOOR = 1e-9  # power of a bin, against white noise of the narrow signal's level: 90 dB down, inaudible
MISSING_RESOLUTIONS = ((2048, 512), (512, 256))  # (n_fft, hop) in samples


def missing_band(narrow: Tensor, wide: Tensor, bins: int) -> Tensor:
    """Which of so many bins, evenly up to half the rate, the narrow signal (b, n) lacks and the wide one has, (b, f).

    Both edges are measured (`clearstate.audio.bandwidth`): a wide signal that was itself cut off, by a codec say, must
    not teach that there is silence. A wide signal that reaches no further than the narrow one does teach it: all bins
    above the edge count. It is a noise, to which nothing is to be added.
    """
    share = torch.linspace(0, 1, bins, device=narrow.device)
    low, high = (measured_bandwidth(x, 2.0)[:, None] for x in (narrow, wide))
    high = torch.where(high < 1.05 * low, torch.ones_like(high), high)
    return ((share >= low) & (share < torch.where(high < 1, 0.985 * high, 2.0))).float()  # 1.5 %: a codec's slope


def log_spectral_loss(
    estimate: Tensor, wide: Tensor, narrow: Tensor, resolutions: tuple[tuple[int, int], ...] = MISSING_RESOLUTIONS
) -> Tensor:
    """Log-spectral distance over the missing band, mean over frames and resolutions; (b, n) to (b,).

        sqrt( mean over bins of (log10 |Y|² - log10 |S|²)² ),   both powers floored by addition of LOG_FLOOR

    The metric LSD itself at its own window length, and at a shorter one, without which time is free to smear.
    """
    total = estimate.new_zeros(len(estimate))
    for n_fft, hop in resolutions:
        missing = missing_band(narrow, wide, n_fft // 2 + 1)[:, None]  # (b, 1, f)
        ours, theirs = (spectrum(x, n_fft, hop) for x in (estimate, wide))
        powers = (spec.real.square() + spec.imag.square() + LOG_FLOOR for spec in (ours, theirs))
        a, b = (torch.log10(power) for power in powers)
        mean = ((a - b).square() * missing).sum(-1) / missing.sum(-1).clamp_min(1)  # (b, t)
        total = total + (mean + 1e-4).sqrt().mean(-1)  # the root's gradient at zero stays finite
    return total / len(resolutions)


def added_error(estimate: Tensor, wide: Tensor, narrow: Tensor, allowance: float = 1.0) -> Tensor:
    """By how many dB beyond `allowance` the SNR of the estimate is worse than the narrow signal's, (b, n) to (b,).

    A missing band of the right level and no resemblance costs 3 dB; this is what keeps the loud parts from costing more
    than they must.
    """
    ours, theirs = ((x - wide).square().mean(-1) + 1e-9 for x in (estimate, narrow))
    return F.relu(10 * torch.log10(ours / theirs) - allowance)


# ---------------------------------------------------------------------------------------------------- phase


def phase(spec: Tensor, floor: float = FLOOR) -> Tensor:
    """arg S in (-pi, pi]; a bin with a power below `floor` gets phase 0 and no gradient.

    The gradient of arg S is 1 / |S|, which the floor bounds.
    """
    loud = spec.real.square() + spec.imag.square() > floor
    return torch.where(loud, torch.where(loud, spec, torch.ones_like(spec)).angle(), torch.zeros_like(spec.real))


def anti_wrap(x: Tensor) -> Tensor:
    """|x - 2 pi round(x / 2 pi)|: the distance of an angle from the nearest multiple of 2 pi, in [0, pi].

    >>> anti_wrap(torch.tensor([0.0, 3.0, 6.2831855, -9.0])).round(decimals=3)
    tensor([0.0000, 3.0000, 0.0000, 2.7170])
    """
    return (x - 2 * torch.pi * torch.round(x / (2 * torch.pi))).abs()


class PhaseLosses(NamedTuple):
    """The three phase terms."""

    instantaneous: Tensor  # (b,) each
    group_delay: Tensor
    frequency: Tensor


def phase_losses(estimate: Tensor, clean: Tensor, edges: bool = False) -> PhaseLosses:
    """Anti-wrapped errors of phase, of its difference along frequency and along time; phases (b, t, f) to (b,).

    Instantaneous phase, group delay and instantaneous angular frequency, Ai & Ling 2023 (arXiv:2211.15974, eqs.
    5-7), as MP-SENet uses them (arXiv:2305.13686). A signal of a single frame has no difference along time: that term
    is 0.

    Args:
        edges: the differences begin with the first bin and the first frame themselves, as SEMamba's code has it.
    """
    error = estimate - clean
    along_frequency, along_time = (F.pad(error, pad) if edges else error for pad in ((1, 0), (0, 0, 1, 0)))
    steps = anti_wrap(along_time.diff(dim=1))
    return PhaseLosses(
        anti_wrap(error).mean((1, 2)),
        anti_wrap(along_frequency.diff(dim=2)).mean((1, 2)),
        steps.mean((1, 2)) if steps.shape[1] else error.new_zeros(len(error)),
    )


def consistency_loss(predicted: Tensor, again: Tensor, exponent: float = 0.3) -> Tensor:
    """mean | Y_c - STFT(iSTFT(Y))_c |² of a predicted spectrum Y and that of its signal (b, t, f), compressed; to (b,).

    Zero for the spectrum of a real signal. As in MP-SENet 2024 (arXiv:2308.08926); Zadorozhnyy et al. 2022
    (arXiv:2210.14474) for the idea.
    """
    return complex_loss(*(compress(spec, exponent, PREDICTED_FLOOR) for spec in (predicted, again)))


# ------------------------------------------------------------------------------------------------ distillation


def output_distillation(
    student: Tensor, teacher: Tensor, *, floor: float = FLOOR, phase_floor: float = FLOOR
) -> Tensor:
    """MSE of magnitude + 0.3 phase + 0.5 complex spectrum, compressed, to a teacher's; spectra (b, t, f) to (b,).

    The weights of RT-SEMamba (arXiv:2608.12099). Departure: the phase error is wrapped before it is squared; theirs
    is not, and counts an angle of 2 pi as an error.
    """
    a, b = (compress(spec, floor=floor) for spec in (student, teacher))
    turned = anti_wrap(phase(student, phase_floor) - phase(teacher, phase_floor)).square().mean((1, 2))
    return magnitude_loss(a, b) + 0.3 * turned + 0.5 * complex_loss(a, b) / 2  # their complex term is per component


def feature_distillation(student: Tensor, teachers: list[Tensor]) -> Tensor:
    """MSE between a student's block output and the mean of its teacher's blocks, (b, ...) to (b,).

    Each teacher block and the student are brought to zero mean and unit deviation over everything but the batch
    (RT-SEMamba, arXiv:2608.12099).
    """

    def normal(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:])

    target = torch.stack([normal(t) for t in teachers]).mean(0)
    return (normal(student) - target).square().flatten(1).mean(1)
