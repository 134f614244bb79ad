"""MambaWave as published (S. Facchiano 2024; the public code where it differs from the report), for comparison.

    noisy x -- 1x1, ReLU ----------------------------- layer x 11 -- sum of skips / sqrt(11) -- 1x1, ReLU -- 1x1 -- ε̂
    narrow -- every second sample -- 1x1 -- twice as many -- BatchNorm --^
    step t -- 128 sines and cosines -- 512 -- 512 -----------------------^

    layer i:  h = conv(x + step), three taps 2^i apart;  h = both ways Mamba(BatchNorm(h)) + ReLU(1x1 condition)
              residual, skip = 1x1 (σ(first half of h) ⊙ tanh(second half));  x = (x + residual) / sqrt(2)

The architecture is the published one, parameter by parameter, at the full rate of 48 kHz: 31 GMAC a second of audio and
step. Three things are put right, for with them wrong nothing can be compared: the condition is interpolated on the
sample and not half a sample late; target and condition have one gain and no offset; both directions of Mamba begin with
step sizes of a useful length. The diffusion is DDPM on NU-Wave's linear schedule of 1000 steps.

`schedule="published"` brings the published diffusion back, which is wrong: the variance of *one* step, 1e-6 to 5e-3, in
place of the cumulative one, so that training never sees an input with less than 99.5 % noise (and later steps have less
of it), and sampling that feeds the estimate of the clean signal back as the next noisy one, on another schedule. Its
result is the condition at some 4 % of its amplitude, whatever the noise and the number of steps.

b batch, n samples, c channels (32).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.mambawave import TwoWayMamba, bandwidths, check_narrow
from clearstate.models.parts import diffusion

LOUDEST = 3.0  # what no signal with an RMS of 0.1 reaches; keeps an estimate from pure noise in bounds


@dataclass(frozen=True)
class AsPublishedConfig:
    """Sizes and signal settings of `MambaWaveAsPublished`."""

    sample_rate: int = 48_000  # Hz
    channels: int = 32
    layers: int = 11  # dilations 1, 2, 4, ... samples
    states: int = 14  # of Mamba, a channel
    embedding: int = 128  # sines and cosines of the step
    step_width: int = 512
    steps: int = 1000  # of the linear schedule
    schedule: Literal["linear", "published"] = "linear"  # "published" is wrong, see above
    published_steps: int = 500  # of training in that case
    loss: str = "mse"  # of training: "mse", or "l1", the absolute error
    level: float = 0.1  # RMS to which the narrow signal is brought; speech of full scale has about this

    def __post_init__(self) -> None:
        diffusion.check_loss(self.loss)
        if self.schedule not in ("linear", "published"):
            raise ValueError(f"schedule={self.schedule!r}: expected 'linear', or 'published' to repeat the mistake")


class Layer(nn.Module):
    """See the drawing: x (b, n, c), step (b, width), condition (b, n, c) to the next x and a skip (b, n, c)."""

    def __init__(self, config: AsPublishedConfig, dilation: int) -> None:
        super().__init__()
        c = config.channels
        self.step = nn.Linear(config.step_width, c)
        self.conv = nn.Conv1d(c, 2 * c, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(2 * c)
        self.mixer = TwoWayMamba(2 * c, config.states, shortest=1e-4)  # a step is a sample here: up to 0.2 s
        self.condition = nn.Linear(c, 2 * c)
        self.out = nn.Linear(c, 2 * c)

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(self.conv((x + self.step(step)[:, None]).transpose(1, 2))).transpose(1, 2)  # (b, n, 2 c)
        h = self.mixer(h) + F.relu(self.condition(condition))
        passed, content = h.chunk(2, dim=-1)
        residual, skip = self.out(torch.sigmoid(passed) * torch.tanh(content)).chunk(2, dim=-1)
        return (x + residual) * 0.5**0.5, skip


class MambaWaveAsPublished(nn.Module):
    """See the drawing. Maps narrow (b, n) at 48 kHz, which must end at 12 kHz, to wide (b, n), any n >= 1."""

    Config = AsPublishedConfig
    task = "extend"
    causal = False
    is_diffusion = True
    table: Tensor

    def __init__(self, config: AsPublishedConfig | None = None) -> None:
        super().__init__()
        self.config = config = AsPublishedConfig() if config is None else config
        self.sample_rate = config.sample_rate
        c, width = config.channels, config.step_width
        self.log_snr = diffusion.linear_log_snr(config.steps)  # (steps,), falling
        frequencies = 10 ** torch.linspace(0, 4, config.embedding // 2)
        angles = torch.arange(config.steps)[:, None] * frequencies
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)
        self.embed = nn.Sequential(nn.Linear(config.embedding, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.enter, self.condition, self.condition_norm = nn.Linear(1, c), nn.Linear(1, c), nn.BatchNorm1d(c)
        self.layers = nn.ModuleList(Layer(config, 2**i) for i in range(config.layers))
        self.head, self.leave = nn.Linear(c, c), nn.Linear(c, 1)
        for layer in (self.enter, self.condition, self.head):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @torch.no_grad()
    def forward(
        self,
        narrow: Tensor,
        *,
        bandwidth_hz: Tensor | float | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
        position: int = 0,
        progress: diffusion.Progress | None = None,
    ) -> Tensor:
        """Extend signals (b, n) at 48 kHz with content up to 12 kHz. Unlike `MambaWave`, it makes the low band anew.

        Args:
            bandwidth_hz: only checked: the published system knows one bandwidth.
            steps: evaluations of the network; default 6, 8 on the fast schedule, 300 as published (200 to 500 there).
            sampler: as in `MambaWave`, "ddpm" on the schedule's own steps; or "published", the default and the only
                choice with that schedule.
            seed, position, progress: as in `MambaWave`. A block is brought to its own level, so blocks agree less.
        Raises:
            ValueError: for shapes, bandwidths, steps or samplers that cannot be.
        """
        check_narrow(narrow)
        widest = self.sample_rate / 4
        if bandwidth_hz is not None and (bandwidths(narrow, bandwidth_hz, self.sample_rate) > 1.02 * widest).any():
            raise ValueError(
                f"bandwidth_hz={bandwidth_hz}: this system hears every second sample, content up to {widest:g} Hz: "
                "filter the signal, or take 'mambawave', which has no such limit"
            )
        wrong = self.config.schedule == "published"
        sampler = sampler or ("published" if wrong else "ddim")
        if (sampler == "published") != wrong:
            raise ValueError(
                f"sampler={sampler!r} with schedule={self.config.schedule!r}: the published sampler and the published "
                "schedule are wrong in a way that fits together, so take both or neither"
            )
        level, gain = self.level(narrow)
        condition = self.conditioned(narrow * gain)  # (b, n, c)

        def noise(draw: int) -> Tensor:
            return diffusion.placed_noise(seed, position, narrow.shape[-1], draw).to(narrow).expand_as(narrow)

        def predict(x: Tensor, level: float) -> Tensor:
            at = x.new_full((len(x), 1), level)
            y = diffusion.from_noise(x, self.noise(x, self.step_of(at[:, 0]), condition), at)
            return y.clamp(-LOUDEST, LOUDEST)

        if sampler == "published":
            x = self.published_sampler(noise(0), condition, 300 if steps is None else steps, progress)
        else:
            x = diffusion.sample(sampler, predict, noise, self.levels(sampler, steps), progress)
        return x * level

    def levels(self, sampler: str, steps: int | None) -> list[float]:
        """The log-SNR of each step, see `diffusion.levels`; "ddpm" keeps to the steps of the schedule."""
        levels = diffusion.levels(sampler, steps, float(self.log_snr[-1]), float(self.log_snr[0]))
        if sampler == "ddpm":
            return self.log_snr[torch.linspace(len(self.log_snr) - 1, 0, len(levels)).round().long()].tolist()
        return levels

    def published_sampler(
        self, x: Tensor, condition: Tensor, steps: int, progress: diffusion.Progress | None
    ) -> Tensor:
        """The published iteration, x <- (x - σ ε̂) / α over the first `steps` levels, the noisiest first.

        This is the estimate of the clean signal, put in the place of the slightly less noisy one.

        Raises:
            ValueError: for more steps than there are.
        """
        if not 1 <= steps <= self.config.steps:
            raise ValueError(f"steps={steps}: expected 1 to {self.config.steps}; 200 to 500 were published")
        for i, t in enumerate(reversed(range(steps))):
            step = x.new_full((len(x),), float(t))
            x = diffusion.from_noise(x, self.noise(x, step, condition), self.log_snr[t].to(x))
            if progress is not None:
                progress(i + 1, steps)
        return x

    def training_loss(
        self,
        narrow: Tensor,
        wide: Tensor,
        *,
        bandwidth_hz: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Error of the predicted noise at a random step, as in `loss`: {"noise": (b,)}. Arguments as in `MambaWave`."""
        _, gain = self.level(narrow)
        y = wide * gain
        count = self.config.steps if self.config.schedule == "linear" else self.config.published_steps
        step = (diffusion.stratified(len(y), generator, y.device) * count).floor().clamp_max(count - 1)  # (b,)
        alpha, sigma = self.training_scales(step.long())
        where = generator.device if generator is not None else y.device
        noise = torch.randn(y.shape, generator=generator, device=where).to(y)
        predicted = self.noise(alpha * y + sigma * noise, step, self.conditioned(narrow * gain))
        return {"noise": diffusion.deviation(predicted - noise, self.config.loss)}

    def training_scales(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ (b, 1) of steps (b,) in training."""
        if self.config.schedule == "linear":
            alpha, sigma = diffusion.scales(self.log_snr[step.cpu()].float().to(step.device))
        else:  # the variance of one step taken for what is left of the signal after all of them
            kept = torch.linspace(1e-6, 5e-3, self.config.published_steps, device=step.device)[step]
            alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        return alpha[:, None], sigma[:, None]

    def level(self, narrow: Tensor) -> tuple[Tensor, Tensor]:
        """The level of each signal against that of training, zero for silence, and what divides by it; (b, 1) each."""
        peak = narrow.abs().amax(-1, keepdim=True)
        level = (narrow / peak.clamp_min(1e-37)).square().mean(-1, keepdim=True).sqrt() * peak / self.config.level
        return level, 1 / level.clamp_min(1e-35)

    def step_of(self, log_snr: Tensor) -> Tensor:
        """The step, with a fraction, that has a log-SNR: (b,) to (b,)."""
        table = self.log_snr.to(log_snr).flip(0)  # rising
        above = torch.searchsorted(table, log_snr.contiguous()).clamp(1, len(table) - 1)
        part = ((log_snr - table[above - 1]) / (table[above] - table[above - 1])).clamp(0, 1)
        return len(table) - above - part

    def conditioned(self, narrow: Tensor) -> Tensor:
        """The condition (b, n, c): maps of every second sample, and means of neighbours between them."""
        samples = narrow.shape[-1]
        maps = self.condition(narrow[:, ::2, None])  # (b, n / 2, c)
        between = 0.5 * (maps + torch.cat([maps[:, 1:], maps[:, -1:]], 1))
        both = torch.stack([maps, between], 2).flatten(1, 2)[:, :samples]  # (b, n, c)
        return self.condition_norm(both.transpose(1, 2)).transpose(1, 2)

    def noise(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """The network: noisy x (b, n) at step (b,), which may have a fraction, to the noise in it (b, n)."""
        below = step.floor().long().clamp(0, len(self.table) - 1)
        above = (below + 1).clamp_max(len(self.table) - 1)
        embedded = self.embed(torch.lerp(self.table[below], self.table[above], (step - below)[:, None]))
        h = F.relu(self.enter(x[..., None]))  # (b, n, c)
        total = torch.zeros_like(h)
        for layer in self.layers:
            h, skip = layer(h, embedded, condition)
            total = total + skip
        return self.leave(F.relu(self.head(total * len(self.layers) ** -0.5)))[..., 0]
