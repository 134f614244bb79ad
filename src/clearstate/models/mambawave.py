"""MambaWave: bandwidth extension of speech to 48 kHz by diffusion with Mamba (S. Facchiano 2024), rebuilt.

    narrow -- prior -- condition c, scale s, tilt G, high-pass H        wide = narrow + H (s G x̂0)
                          |
    noise x -- [x, c] -- patches -- block x 8 -- sum of skips -- patches to samples -- v̂ -- x̂0 = H (α x - σ v̂)
                 ^                    |                                                          |
                 |                    + log-SNR and bandwidth, embedded                          |
                 +-------------------- the sampler's next x, 4 to 8 times -----------------------+

    block:  h = x + step;  h = SiLU(dilated conv(norm(h)));  h = h + both ways Mamba(norm(h));
            residual, skip = W2 (σ(W1a h) ⊙ tanh(W1b h));  x = (x + residual) / sqrt(2)

What is new against the published system, whose diffusion was broken (docs/models/mambawave.md has the proof; its
architecture is in mambawave_as_published.py):
* only the missing band is diffused: wide - narrow, high-passed. The low band of the result is the input's;
* it is divided by what is known of its level: by the local level of the narrow signal's second difference, which
  follows the level above the edge to within some 7 dB where a fixed gain is off by 12, and by the tilt of the spectrum
  of speech. So the noise to begin with already has about the right colour, as in PriorGrad (arXiv:2106.06406) and
  SpecGrad (arXiv:2203.16749), and the network has to learn only what differs;
* v-prediction on the cosine schedule, cumulative; few deterministic steps;
* patches of 8 samples, so that the recurrence runs at 6 kHz; the condition enters before Mamba, which has a residual
  around it; norms over the channels of one place, not over the batch.

b batch, n samples (t patches of them), c channels, λ log-SNR.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts import diffusion
from clearstate.models.parts.stft import measured_bandwidth
from clearstate.ssm import RMSNorm, causal_conv1d_silu, selective_scan

TAPS = 511  # of the high-pass and of the tilt; odd
REACH = TAPS // 2
BELOW_EDGE = 500.0  # Hz: the high-pass is 6 dB down so far below the bandwidth, and 100 dB another 300 Hz below
LOUDEST = 100.0  # of what is diffused, which is near 1: a wide signal over a silent narrow one must not be infinite
FLOOR = 1e-3  # of the envelope, as a share of its RMS over the signal


@dataclass(frozen=True)
class MambaWaveConfig:
    """Sizes and signal settings of `MambaWave`."""

    sample_rate: int = 48_000  # Hz
    channels: int = 96
    blocks: int = 8
    dilations: tuple[int, ...] = (1, 2, 4, 8)  # patches; repeated over the blocks
    states: int = 16  # of Mamba, a channel
    stride: int = 8  # samples of a patch; each is seen through twice as many
    embedding: int = 128  # numbers that say the noise level and the bandwidth, half each
    step_width: int = 256  # hidden layers of the embedding
    loss: str = "mse"  # of training: "mse", or "l1", the absolute error
    envelope_ms: float = 10.0  # box, applied twice, over which the local level is taken
    # The level of the missing band over the envelope, at frequency f and bandwidth b, both in kHz, is
    # gain_db + tilt_db f + slope_db b: a fit to the medians of speech at b = 3.6 to 15.3, to some 2 dB.
    gain_db: float = 26.0
    tilt_db: float = -1.4
    slope_db: float = -1.15
    shift: float = 3.0  # of the training schedule in log-SNR
    stretch: float = 2.0
    lowest: float = -6.0  # log-SNR of the first step of sampling,
    highest: float = 12.0  # and of the last

    def __post_init__(self) -> None:
        diffusion.check_loss(self.loss)
        if self.embedding % 4 or self.channels % 2:
            raise ValueError(
                f"embedding={self.embedding}, channels={self.channels}: expected a multiple of 4 and an even number"
            )
        if not self.lowest < self.highest:
            raise ValueError(f"lowest={self.lowest} is not below highest={self.highest}: sampling goes from noise up")


# --------------------------------------------------------------------------------------------------- both ways Mamba


class Direction(nn.Module):
    """What a Mamba mixer has between its projections, (b, t, d) twice to (b, t, d); names as in `ssm.Mamba`."""

    def __init__(self, inner: int, states: int, rank: int, reverse: bool, shortest: float) -> None:
        super().__init__()
        self.states, self.rank, self.reverse = states, rank, reverse
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():  # step sizes log-uniform in [shortest, 0.1]; the bias is what softplus maps to them
            dt = shortest * (0.1 / shortest) ** torch.rand(inner)
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, u: Tensor, z: Tensor) -> Tensor:
        u, _ = causal_conv1d_silu(u, self.conv1d.weight[:, 0], self.conv1d.bias, reverse=self.reverse)
        delta, B, C = self.x_proj(u).split([self.rank, self.states, self.states], dim=-1)
        y, _ = selective_scan(
            u, F.linear(delta, self.dt_proj.weight), -torch.exp(self.A_log.float()), B, C, self.D.float(), z,
            self.dt_proj.bias.float(), delta_softplus=True, reverse=self.reverse,
        )  # fmt: skip
        return y


class TwoWayMamba(nn.Module):
    """Mamba along a sequence and against it between shared projections; (b, t, c) to (b, t, c). No norm, no residual.

    Args:
        shortest: step size from which those of the fresh layer go, up to 0.1: a memory of 10 to 1 / shortest steps.
    """

    def __init__(self, width: int, states: int, shortest: float = 1e-3) -> None:
        super().__init__()
        inner, rank = 2 * width, -(-width // 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.ahead = Direction(inner, states, rank, False, shortest)
        self.back = Direction(inner, states, rank, True, shortest)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (b, t, d)
        return self.out_proj(self.ahead(u, z) + self.back(u, z))

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of one step by kind, as `metrics.cost` counts a mixer."""
        d, width = self.out_proj.in_features, self.out_proj.out_features
        n, r, taps = self.ahead.states, self.ahead.rank, self.ahead.conv1d.kernel_size[0]
        return {
            "matrix": 3 * width * d + 2 * (d * (r + 2 * n) + r * d),
            "convolution": 2 * d * taps,
            "scan": 2 * (4 * d * n + 3 * d),
        }


# -------------------------------------------------------------------------------------------------------- the network


class Block(nn.Module):
    """See the drawing; x (b, t, c) and step (b, width) to the next x and a skip, both (b, t, c)."""

    def __init__(self, config: MambaWaveConfig, dilation: int) -> None:
        super().__init__()
        c = config.channels
        self.step = nn.Linear(config.step_width, c)
        self.conv_norm, self.mixer_norm = RMSNorm(c), RMSNorm(c)
        self.conv = nn.Conv1d(c, c, 3, padding=dilation, dilation=dilation)
        self.mixer = TwoWayMamba(c, config.states)
        self.gate = nn.Linear(c, 2 * c)
        self.out = nn.Linear(c, 2 * c)

    def forward(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        h = x + self.step(step)[:, None]
        h = F.silu(self.conv(self.conv_norm(h).transpose(1, 2)).transpose(1, 2))
        h = h + self.mixer(self.mixer_norm(h))
        passed, content = self.gate(h).chunk(2, dim=-1)
        residual, skip = self.out(torch.sigmoid(passed) * torch.tanh(content)).chunk(2, dim=-1)
        return (x + residual) * 0.5**0.5, skip


class Prior(NamedTuple):
    """What is known of the missing band before any network."""

    condition: Tensor  # what the network sees of the narrow signal (b, n), locally at a level of 1
    scale: Tensor  # (b, n), positive: the missing band is scale * tilted x0, x0 like white noise
    tilt: Tensor  # frequency response (1, f)
    response: Tensor  # of the high-pass, (b, f)
    bandwidth: Tensor  # Hz, (b,)


class MambaWave(nn.Module):
    """See the drawing. Maps narrow (b, n) at 48 kHz to wide (b, n), any n >= 1."""

    Config = MambaWaveConfig
    task = "extend"
    causal = False
    is_diffusion = True
    frequencies: Tensor

    def __init__(self, config: MambaWaveConfig | None = None) -> None:
        super().__init__()
        self.config = config = MambaWaveConfig() if config is None else config
        self.sample_rate = config.sample_rate
        c, stride, width = config.channels, config.stride, config.step_width
        self.register_buffer("frequencies", 1000 ** torch.linspace(0, 1, config.embedding // 4), persistent=False)
        self.embed = nn.Sequential(nn.Linear(config.embedding, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.enter = nn.Conv1d(2, c, 2 * stride, stride, padding=stride // 2)
        dilations = config.dilations
        self.blocks = nn.ModuleList(Block(config, dilations[i % len(dilations)]) for i in range(config.blocks))
        self.head = nn.Linear(c, c)
        self.leave = nn.ConvTranspose1d(c, 1, 2 * stride, stride, padding=stride // 2)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]  # it has one

    @torch.no_grad()
    def forward(
        self,
        narrow: Tensor,
        *,
        bandwidth_hz: Tensor | float | None = None,
        steps: int | None = None,
        sampler: str = "ddim",
        seed: int = 0,
        position: int = 0,
        progress: diffusion.Progress | None = None,
    ) -> Tensor:
        """Extend signals (b, n) at 48 kHz that hold nothing above their bandwidth; the band below it stays.

        Args:
            bandwidth_hz: of each signal (b,), or of all; None measures it, and takes a quarter of the rate where the
                signal has no edge. Blocks of one signal should all be given the same.
            steps: evaluations of the network; default 6, or the 8 of the fast schedule.
            sampler: "ddim" is deterministic between steps of equal distance in log-SNR; "ddpm" adds fresh noise at
                each of them; "fast" is that over NU-Wave's eight levels.
            seed: of the noise. All items of a batch have the same, so that none depends on its place in the batch.
            position: of the first sample in a longer signal, of which this is a block: the noise belongs to the place,
                so that blocks agree where they overlap.
            progress: called after each step with the steps done and all steps.
        Raises:
            ValueError: for shapes, bandwidths, steps or samplers that cannot be.
        """
        check_narrow(narrow)
        levels = diffusion.levels(sampler, steps, self.config.lowest, self.config.highest)
        stride, samples = self.config.stride, narrow.shape[-1]
        head = position % stride  # so that patches of overlapping blocks coincide
        padded = F.pad(narrow, (head, -(head + samples) % stride))
        prior = self.prior(padded, bandwidths(narrow, bandwidth_hz, self.sample_rate))

        def noise(draw: int) -> Tensor:
            fresh = diffusion.placed_noise(seed, position - head, padded.shape[-1], draw).to(padded)
            return filtered(fresh.expand_as(padded), prior.response)

        def predict(x: Tensor, level: float) -> Tensor:
            log_snr = x.new_full((len(x), 1), level)
            return filtered(diffusion.from_velocity(x, self.velocity(x, log_snr, prior), log_snr), prior.response)

        x = diffusion.sample(sampler, predict, noise, levels, progress)
        missing = filtered(prior.scale * filtered(x, prior.tilt), prior.response)
        return (padded + missing)[:, head : head + samples]

    def training_loss(
        self,
        narrow: Tensor,
        wide: Tensor,
        *,
        bandwidth_hz: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Error of the predicted velocity at a random noise level, {"velocity": (b,)}; 1 at most for a zero.

        It is squared, or absolute with `loss="l1"`, and relative to the noise, or to the velocity where that is more:
        now and then the band above is louder by 30 dB than the one below would have it, and such an item must not
        outweigh all others. Where the wide signal itself has an edge, as a codec leaves it, nothing above counts, or
        the network would learn the codec.

        Args:
            narrow, wide: aligned signals (b, n), of which the latter holds the band that the former lacks.
            generator: of noise and noise levels; default torch's own.
        """
        extra = -narrow.shape[-1] % self.config.stride
        narrow, wide = F.pad(narrow, (0, extra)), F.pad(wide, (0, extra))
        with torch.no_grad():
            prior = self.prior(narrow, bandwidths(narrow, bandwidth_hz, self.sample_rate))
            response = prior.response * below_own_edge(wide, prior.bandwidth, self.sample_rate)
            y = filtered((wide - narrow) / prior.scale.clamp_min(1e-30), response / prior.tilt).clamp(-LOUDEST, LOUDEST)
            t = diffusion.stratified(len(y), generator, y.device)[:, None]
            log_snr = diffusion.cosine_log_snr(t, self.config.shift, self.config.stretch)
            alpha, sigma = diffusion.scales(log_snr)
            where = generator.device if generator is not None else y.device
            noise = torch.randn(y.shape, generator=generator, device=where).to(y)
            noise = filtered(noise, response)
            target = alpha * noise - sigma * y
        error = self.velocity(alpha * y + sigma * noise, log_snr, prior) - target
        found, wanted, noise_level = (diffusion.deviation(x, self.config.loss) for x in (error, target, noise))
        return {"velocity": found / torch.maximum(wanted, noise_level)}

    def velocity(self, x: Tensor, log_snr: Tensor, prior: Prior) -> Tensor:
        """The network: noisy x (b, n) at log-SNR (b, 1) to the velocity (b, n); n is a multiple of the stride."""
        level = (log_snr[:, 0] - diffusion.LEAST_LOG_SNR) / (diffusion.MOST_LOG_SNR - diffusion.LEAST_LOG_SNR)
        known = torch.stack([level, prior.bandwidth * (2 / self.sample_rate)], 1)  # (b, 2), 0 to 1
        angles = known[..., None] * self.frequencies  # (b, 2, embedding / 4)
        step = self.embed(torch.cat([angles.sin(), angles.cos()], -1).flatten(1))  # (b, width)
        h = self.enter(torch.stack([x, prior.condition], 1)).transpose(1, 2)  # (b, t, c)
        total = torch.zeros_like(h)
        for block in self.blocks:
            h, skip = block(h, step)
            total = total + skip
        h = F.silu(self.head(total * len(self.blocks) ** -0.5))
        return self.leave(h.transpose(1, 2))[:, 0]

    def prior(self, narrow: Tensor, bandwidth: Tensor) -> Prior:
        """What the narrow signal (b, n) and its bandwidth (b,) say of the missing band."""
        config = self.config
        peak = narrow.abs().amax(-1, keepdim=True)
        unit = F.pad(narrow / peak.clamp_min(1e-37), (1, 1))
        bend = 2 * unit[:, 1:-1] - unit[:, :-2] - unit[:, 2:]  # (b, n): +12 dB an octave, no delay
        power = local_mean(bend.square(), round(config.envelope_ms * 1e-3 * self.sample_rate))
        envelope = power.sqrt() + FLOOR * bend.square().mean(-1, keepdim=True).sqrt()
        gain = 10 ** ((config.gain_db + config.slope_db * bandwidth[:, None] / 1000) / 20)
        samples, rate = narrow.shape[-1], self.sample_rate
        return Prior(
            bend / envelope.clamp_min(1e-30),
            envelope * gain * peak,
            tilt_response(config.tilt_db, samples, rate, narrow.device),
            highpass_response(bandwidth - BELOW_EDGE, samples, rate),
            bandwidth,
        )


# ----------------------------------------------------------------------------------------------------------- signals


def check_narrow(narrow: Tensor) -> None:
    """Raise a ValueError for what is not a batch of signals."""
    if narrow.ndim != 2 or narrow.shape[-1] < 1:
        raise ValueError(
            f"the narrow signal has the shape {tuple(narrow.shape)}: expected (batch, samples), at least one sample"
        )


def bandwidths(narrow: Tensor, given: Tensor | float | None, sample_rate: int) -> Tensor:
    """The bandwidth of each signal in Hz, (b,): as given, else measured, else a quarter of the rate.

    Raises:
        ValueError: for one that is not in (BELOW_EDGE, half the rate], or that does not fit the batch.
    """
    if given is None:
        edge = measured_bandwidth(narrow, sample_rate)
        return torch.where(edge < 0.49 * sample_rate, edge.clamp_min(2 * BELOW_EDGE), sample_rate / 4)
    known = torch.as_tensor(given, dtype=torch.float32, device=narrow.device).flatten()
    if len(known) not in (1, len(narrow)):
        raise ValueError(f"bandwidth_hz has {len(known)} values for {len(narrow)} signals: give one, or one for each")
    if not ((known > BELOW_EDGE) & (known <= sample_rate / 2)).all():
        raise ValueError(
            f"bandwidth_hz={known.tolist()}: expected more than {BELOW_EDGE:g} and at most {sample_rate / 2:g} Hz, "
            "the frequency up to which the narrow signal reaches"
        )
    return known.expand(len(narrow))


def below_own_edge(wide: Tensor, bandwidth: Tensor, sample_rate: int) -> Tensor:
    """Frequency response (b, f) that passes what lies below the edge of wide signals (b, n), if they have one.

    An edge within 1 kHz of the bandwidth (b,) of the narrow signals is none: there is nothing to learn then.
    """
    edge = measured_bandwidth(wide, sample_rate)
    whole = (edge > 0.49 * sample_rate) | (edge < bandwidth + 1000)
    lowpass = 1 - highpass_response(edge - BELOW_EDGE, wide.shape[-1], sample_rate)
    return torch.where(whole[:, None], torch.ones_like(lowpass), lowpass)


def local_mean(x: Tensor, length: int) -> Tensor:
    """Means of x (b, n) under a triangle 2 * length - 1 samples wide, zeros beyond the ends: a box, twice.

    In double precision, because sums over a signal of both loud and faint parts are subtracted from each other.
    """
    sums = F.pad(x.double(), (length, length - 1)).cumsum(-1)
    once = sums[:, length:] - sums[:, :-length]  # (b, n + length - 1): means of what ends here
    sums = F.pad(once, (1, 0)).cumsum(-1)
    return ((sums[:, length:] - sums[:, :-length]) / length**2).clamp_min(0).to(x.dtype)


def highpass_response(cutoff: Tensor, samples: int, sample_rate: int) -> Tensor:
    """Frequency response (b, f) of high-passes for `filtered`: unity minus a Kaiser-windowed sinc.

    They are 6 dB down at the cut-off (b,) in Hz and 100 dB down 300 Hz below.
    """
    at = torch.arange(-REACH, REACH + 1, device=cutoff.device, dtype=cutoff.dtype)
    lowpass = torch.sinc(2 / sample_rate * cutoff[:, None] * at) * window(10.0, cutoff)  # (b, taps)
    return 1 - response_of(lowpass / lowpass.sum(-1, keepdim=True), samples)


def tilt_response(tilt_db: float, samples: int, sample_rate: int, device: torch.device) -> Tensor:
    """Frequency response (1, f) for `filtered` of a spectrum that changes by so many dB a kHz, 1 at 0 Hz.

    True above some 500 Hz and up to as much below half the rate; rounded off beyond.
    """
    khz = torch.linspace(0, sample_rate / 2000, TAPS + 1, device=device)
    taps = torch.fft.irfft(10 ** (tilt_db / 20 * khz)).roll(TAPS)[None, TAPS - REACH : TAPS + REACH + 1]
    return response_of(taps * window(6.0, taps), samples)


def window(beta: float, like: Tensor) -> Tensor:
    """A Kaiser window (taps,)."""
    return torch.kaiser_window(TAPS, periodic=False, beta=beta, dtype=like.dtype, device=like.device)


def response_of(taps: Tensor, samples: int) -> Tensor:
    """Frequency response (b, f), real, of symmetric filters (b, taps) with their delay taken out."""
    size = -(-(samples + 2 * REACH) // 1024) * 1024  # room for two of them in a row
    around_zero = torch.cat([taps[:, REACH:], taps.new_zeros(len(taps), size - TAPS), taps[:, :REACH]], -1)
    return torch.fft.rfft(around_zero).real


def filtered(x: Tensor, response: Tensor) -> Tensor:
    """x (b, n) through a filter of `response_of`; zeros beyond the ends."""
    size = 2 * (response.shape[-1] - 1)
    return torch.fft.irfft(torch.fft.rfft(x, size) * response, size)[:, : x.shape[-1]]
