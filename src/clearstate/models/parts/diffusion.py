"""Diffusion of waveforms: noise levels, samplers, and noise that has a place in time.

    x = α y + σ ε,   α² + σ² = 1,   λ = log(α² / σ²)

A noise level is named by its log signal-to-noise ratio λ (natural logarithm), whatever schedule it comes from; samplers
go through decreasing noise, i.e. rising λ. What a network predicts is brought to an estimate of y first: from noise
(ε), or from the velocity v = α ε - σ y (Salimans & Ho 2022, arXiv:2202.00512), which is well scaled at both ends.

b batch, n samples.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

LEAST_LOG_SNR, MOST_LOG_SNR = -15.0, 20.0
PAGE = 16_384  # samples: noise is drawn page by page
SAMPLERS = ("ddim", "ddpm", "fast")

Progress = Callable[[int, int], None]  # called with the steps done and all steps
Predict = Callable[[Tensor, float], Tensor]  # x (b, n) at log-SNR λ to an estimate of y


# ------------------------------------------------------------------------------------------------------- noise levels


def scales(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of noise levels, each of the shape of `log_snr`."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def cosine_log_snr(t: Tensor, shift: float = 0.0, stretch: float = 1.0) -> Tensor:
    """λ at t in [0, 1] of the schedule α = cos(π t / 2), σ = sin(π t / 2) (Nichol & Dhariwal 2021, arXiv:2102.09672).

    `shift` moves its middle (Hoogeboom et al. 2023, arXiv:2301.11093), `stretch` widens the range of λ over which t
    spends its time; the result is kept between -15 and 20.
    """
    log_snr = -2 * torch.log(torch.tan(t.clamp(1e-6, 1 - 1e-6) * (math.pi / 2)))
    return (shift + stretch * log_snr).clamp(LEAST_LOG_SNR, MOST_LOG_SNR)


def log_snr_of(betas: Tensor) -> Tensor:
    """λ after each step of a chain that adds noise of variance β_t: ᾱ_t = Π (1 - β_i), λ_t = log(ᾱ_t / (1 - ᾱ_t))."""
    log_kept = torch.log1p(-betas.double()).cumsum(0)
    return log_kept - torch.log(-torch.expm1(log_kept))


def linear_log_snr(steps: int = 1000, first: float = 1e-6, last: float = 6e-3) -> Tensor:
    """λ of the linear schedule, (steps,), falling; the defaults are those of NU-Wave (arXiv:2104.02321)."""
    return log_snr_of(torch.linspace(first, last, steps, dtype=torch.float64))


def fast_levels() -> list[float]:
    """The eight levels of NU-Wave's fast sampling, from noise to signal."""
    return log_snr_of(torch.tensor([1e-6, 2e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 9e-1])).flip(0).tolist()


def levels(sampler: str, steps: int | None, lowest: float, highest: float) -> list[float]:
    """The λ of each step of a sampler, from noise to signal.

    Args:
        sampler: "ddim" or "ddpm", at equal distances from `lowest` to `highest`; or "fast", see `fast_levels`.
        steps: default 6, or the 8 of the fast schedule.
    Raises:
        ValueError: for an unknown sampler or a number of steps that it cannot take.

    >>> levels("ddim", 3, -6.0, 12.0)
    [-6.0, 3.0, 12.0]
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r}: expected one of {', '.join(SAMPLERS)}")
    if sampler == "fast":
        fast = fast_levels()
        if steps not in (None, len(fast)):
            raise ValueError(f"steps={steps}: the fast schedule has {len(fast)}; 'ddim' takes any number")
        return fast
    steps = 6 if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps={steps}: expected 1 or more")
    return torch.linspace(lowest, highest, steps, dtype=torch.float64).tolist()


# ----------------------------------------------------------------------------------------------------------- samplers


def from_noise(x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """y of which x = α y + σ ε: ŷ = (x - σ ε) / α. Shapes (b, n), (b, n), and what broadcasts with them."""
    alpha, sigma = scales(log_snr)
    return (x - sigma * noise) / alpha


def from_velocity(x: Tensor, velocity: Tensor, log_snr: Tensor) -> Tensor:
    """y of which v = α ε - σ y: ŷ = α x - σ v. Shapes as in `from_noise`."""
    alpha, sigma = scales(log_snr)
    return alpha * x - sigma * velocity


def sample(
    sampler: str,
    predict: Predict,
    noise: Callable[[int], Tensor],
    levels: Sequence[float],
    progress: Progress | None = None,
) -> Tensor:
    """y (b, n) by "ddim", or by "ddpm" ("fast" is that too) through noise levels.

    Args:
        noise: gives the noise (b, n) to begin with for 0, and that of step i = 1, 2, ... of "ddpm".
        progress: called after each step with the steps done and all steps.
    """
    if sampler == "ddim":
        return ddim(predict, noise(0), levels, progress)
    return ddpm(predict, noise(0), levels, noise, progress)


def ddim(predict: Predict, x: Tensor, levels: Sequence[float], progress: Progress | None = None) -> Tensor:
    """The deterministic sampler (Song et al. 2021, arXiv:2010.02502, η = 0): x (b, n) is noise, the result y.

    At each level y is estimated, and the noise that x then holds is carried to the next level. The last estimate is
    the result, so nothing of the noise is left.
    """
    for i, level in enumerate(levels):
        y = predict(x, level)
        if i + 1 < len(levels):
            (alpha, sigma), (next_alpha, next_sigma) = _scales(level), _scales(levels[i + 1])
            x = next_alpha * y + next_sigma * ((x - alpha * y) / sigma)
        if progress is not None:
            progress(i + 1, len(levels))
    return y


def ddpm(
    predict: Predict,
    x: Tensor,
    levels: Sequence[float],
    noise: Callable[[int], Tensor],
    progress: Progress | None = None,
) -> Tensor:
    """The ancestral sampler (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7), between any levels.

    From level t to the less noisy s, with a = α_t / α_s and β = σ_t² - a² σ_s², the posterior of x_s given x_t and y
    has the mean (a σ_s² x_t + α_s β y) / σ_t² and the variance β σ_s² / σ_t². The last step adds no noise.

    Args:
        noise: gives the fresh noise (b, n) of step i = 1, 2, ...
    """
    for i, level in enumerate(levels):
        y = predict(x, level)
        if i + 1 < len(levels):
            (alpha, sigma), (next_alpha, next_sigma) = _scales(level), _scales(levels[i + 1])
            a = alpha / next_alpha
            beta = sigma**2 - a**2 * next_sigma**2
            mean = (a * next_sigma**2 * x + next_alpha * beta * y) / sigma**2
            x = mean + math.sqrt(max(beta, 0.0)) * next_sigma / sigma * noise(i + 1)
        if progress is not None:
            progress(i + 1, len(levels))
    return y


def _scales(log_snr: float) -> tuple[float, float]:
    """α and σ in double precision."""
    return math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))


LOSSES = ("mse", "l1")


def deviation(x: Tensor, loss: str) -> Tensor:
    """Mean square ("mse") or mean absolute value ("l1") of signals (b, n), to (b,)."""
    return x.square().mean(-1) if loss == "mse" else x.abs().mean(-1)


def check_loss(loss: str) -> None:
    """Raise a ValueError for a loss that is not known."""
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")


# -------------------------------------------------------------------------------------------------------------- noise


def placed_noise(seed: int, position: int, samples: int, draw: int = 0) -> Tensor:
    """Standard normal noise (1, samples) that belongs to samples `position` and on of a signal without end.

    Two blocks of a long file that overlap get the same noise where they do, so that their outputs agree there. A page
    of it is a pure function of (seed, draw, page): a counter-based generator (Philox), the same on every machine.

    Args:
        draw: which of many independent signals, for samplers that add noise at every step.
    Raises:
        ValueError: for a negative seed or position.
    """
    if seed < 0 or position < 0:
        raise ValueError(f"noise got seed={seed}, position={position}: expected 0 or more")
    first, last = position // PAGE, (position + max(samples, 1) - 1) // PAGE
    pages = [
        np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, draw, page])).standard_normal(PAGE, np.float32)
        for page in range(first, last + 1)
    ]
    start = position - first * PAGE
    return torch.from_numpy(np.concatenate(pages)[None, start : start + samples])


def stratified(batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Times t in [0, 1), (b,): one in each b-th of the interval, so that every batch sees all noise levels."""
    where = generator.device if generator is not None else device
    within = torch.rand(batch, generator=generator, device=where).to(device)
    return (torch.arange(batch, device=device) + within) / batch
