"""extend-fast: the band that a recording lacks, in one step, at 48 kHz. Our own design.

    narrow -- STFT --+-- log spectrum of what is there -- encode -- BiMamba x blocks -- decode -- envelope, mix --+
                     |                                                                                            |
                     +-- missing band from what is there: copied up, mirrored, made white -- texture -- x --------+
                                                                                                        |
    wide = narrow + iSTFT(missing band) <---------------------------------------------------------------+

The waveform of the missing band cannot be known; its envelope can be guessed, and that is what the network does: a
level for each bin and frame. What fills the envelope, phase included, is taken from the recording itself: the upper
half of the band that is there, mirrored and copied upwards as often as needed, with its rotation from frame to frame
put right and its own envelope divided out. It is voiced where the voice is and noise where there is noise, it costs
nothing, and it makes the model a function of its input, without a random number.

Above 22 kHz there is no voice in any recording, for converters end there: only its faint noise goes on.

Below the bandwidth the output is the input. Everything is relative to the level, so the output scales with the input.

b batch, n samples, t frames, f bins, m width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts.stft import dual_window, istft, measured_bandwidth, sqrt_hann, stft
from clearstate.ssm.mamba import BiMamba, RMSNorm

QUIET = 1e-9  # power under the local level (90 dB) at which a spectrum is taken to end
LOUDEST = 4.0  # nepers (35 dB) that the missing band may rise above the reference
FAINTEST = -14.0


@dataclass(frozen=True)
class ExtendFastConfig:
    """Sizes and signal settings of `ExtendFast`."""

    sample_rate: int = 48_000  # Hz
    n_fft: int = 1024  # samples: 21 ms
    hop: int = 512  # samples: 11 ms
    width: int = 128
    blocks: int = 3  # pairs of Mamba, one in each direction
    states: int = 8  # of Mamba, a channel
    level_seconds: float = 3.0  # over which the level is averaged that the network hears the spectrum against
    white_bins: int = 8  # the texture is made white in windows of twice so many bins
    mix_bands: int = 48  # in which the two textures are mixed
    ceiling_hz: float = 22_000.0  # no voice above, only the faint noise of every recording: converters end here
    dropout: float = 0.1  # of the encoded spectrum, in training


class ExtendFast(nn.Module):
    """See the module's drawing. Maps narrow (b, n), sinc-interpolated to 48 kHz, to wide (b, n), n >= 1."""

    Config = ExtendFastConfig
    task = "extend"
    causal = False
    window: Tensor
    turns: Tensor

    def __init__(self, config: ExtendFastConfig | None = None) -> None:
        super().__init__()
        self.config = config = ExtendFastConfig() if config is None else config
        self.sample_rate = config.sample_rate
        bins, m = config.n_fft // 2 + 1, config.width
        self.register_buffer("window", sqrt_hann(config.n_fft), persistent=False)
        steps = config.n_fft // config.hop  # a bin turns by a multiple of 1 / steps from frame to frame
        self.register_buffer("turns", torch.exp(2j * torch.pi * torch.arange(steps) / steps), persistent=False)
        self.encode = nn.Linear(bins, m)
        self.place = nn.Linear(bins, m, bias=False)  # which bins are there
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(BiMamba(m, d_state=config.states, expand=1) for _ in range(config.blocks))
        self.norm = RMSNorm(m)
        self.envelope = nn.Linear(m, bins)
        self.mix = nn.Linear(m, config.mix_bands)
        with torch.no_grad():  # begin with a band that falls by some 20 dB
            self.envelope.weight.mul_(0.1)
            self.envelope.bias.copy_(torch.linspace(0, -2.3, bins))

    def forward(self, narrow: Tensor, *, bandwidth_hz: Tensor | float | None = None) -> Tensor:
        """Extend signals.

        Args:
            narrow: (b, n) float32 at 48 kHz.
            bandwidth_hz: up to where each signal reaches, (b,) or one number for all; measured if None. A signal that
                reaches to 24 kHz comes back as it is.
        """
        config, samples = self.config, narrow.shape[-1]
        top = self.first_missing(narrow, bandwidth_hz)  # (b,) bins
        peak = narrow.abs().amax(-1, keepdim=True)  # (b, 1)
        gain = torch.where(peak > 1e-30, 1 / peak.clamp_min(1e-30), torch.zeros_like(peak))
        spec = stft(narrow * gain, self.window, config.hop)  # (b, t, f) complex
        log_power, level = self.heard(spec, top)  # (b, t, f), (b, t, 1)
        texture, whole = self.texture(spec, top)  # (b, t, f) complex each

        there = self.there(top)  # (b, 1, f)
        x = self.drop(self.encode(log_power * there) + self.place(there))  # (b, t, m)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        reference = self.reference(log_power, top)  # (b, t, 1)
        envelope = (self.envelope(x) + reference).clamp(FAINTEST, LOUDEST).exp() * level  # (b, t, f) magnitude
        envelope = self.with_floor(envelope)
        mix = F.interpolate(torch.sigmoid(self.mix(x)), envelope.shape[-1], mode="linear")  # (b, t, f)
        missing = envelope * (mix * texture + (1 - mix) * whole) * (1 - there)
        y = istft(missing, dual_window(self.window, config.hop), config.hop, samples)
        return narrow + y * peak

    def first_missing(self, narrow: Tensor, bandwidth_hz: Tensor | float | None) -> Tensor:
        """The first bin above the bandwidth of each signal (b,), at most f, which stands for none."""
        if bandwidth_hz is None:
            bandwidth_hz = measured_bandwidth(narrow, self.sample_rate)
        hz = torch.as_tensor(bandwidth_hz, dtype=torch.float32, device=narrow.device).expand(narrow.shape[0])
        bins = self.config.n_fft // 2 + 1
        return (hz / (self.sample_rate / 2) * (bins - 1)).floor().long().add(1).clamp(16, bins)

    def there(self, top: Tensor) -> Tensor:
        """Which bins are there: (b,) to (b, 1, f) of 0 and 1."""
        bins = torch.arange(self.config.n_fft // 2 + 1, device=top.device)
        return (bins < top[:, None]).float()[:, None]

    def heard(self, spec: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Log power (b, t, f) in nepers of the amplitude, against the level (b, t, 1), an amplitude, around each frame.

        The level is the root of the mean power over `level_seconds`; at the ends over what there is of them.
        """
        power = spec.real.square() + spec.imag.square()
        mean = (power * self.there(top)).mean(-1)  # (b, t)
        half = round(self.config.level_seconds * self.sample_rate / self.config.hop / 2)
        around = F.avg_pool1d(mean[:, None], 2 * half + 1, 1, half, count_include_pad=False)[:, 0, :, None]
        around = around + 1e-16  # of a signal whose peak is 1: 160 dB down, there is nothing
        return 0.5 * torch.log(power / around + QUIET), around.sqrt()

    def reference(self, log_power: Tensor, top: Tensor) -> Tensor:
        """Mean log level of the upper half of what is there, (b, t, 1): where the missing band takes off."""
        bins = torch.arange(log_power.shape[-1], device=top.device)
        upper = ((bins >= top[:, None] // 2) & (bins < top[:, None] - 1)).float()[:, None]  # (b, 1, f)
        return (log_power * upper).sum(-1, keepdim=True) / upper.sum(-1, keepdim=True)

    def with_floor(self, envelope: Tensor) -> Tensor:
        """Continue the envelope (b, t, f) above the ceiling with its noise floor.

        The floor is the mean of the kilohertz below the ceiling, in the quietest tenth of a second around each frame.
        """
        config = self.config
        bins = envelope.shape[-1] - 1
        ceiling = round(config.ceiling_hz / (config.sample_rate / 2) * bins)
        kilohertz = round(1000.0 / (config.sample_rate / 2) * bins)
        near = envelope[:, :, ceiling - kilohertz : ceiling].detach().mean(-1)  # (b, t)
        ends = config.n_fft // config.hop - 1  # frames at both ends that are partly outside the signal: not quieter
        if near.shape[1] > 2 * ends:
            near = torch.cat([near[:, ends : 2 * ends], near[:, ends:-ends], near[:, -2 * ends : -ends]], dim=1)
        brief, half = (round(s * self.sample_rate / config.hop / 2) for s in (0.1, config.level_seconds))
        near = F.avg_pool1d(near[:, None], 2 * brief + 1, 1, brief, count_include_pad=False)[:, 0]
        least = -F.max_pool1d(-near[:, None], 2 * half + 1, 1, half)[:, 0, :, None]  # (b, t, 1)
        return torch.cat([envelope[:, :, :ceiling], least.expand(-1, -1, bins + 1 - ceiling)], dim=-1)

    def texture(self, spec: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Two fillings of the missing band of about unit power, (b, t, f) complex: white, and of constant magnitude.

        Bin k is taken from bin s of the upper half of what is there: mirrored (the conjugate) or copied, in turn. A
        tone in bin s turns by s hop / n_fft a frame, one in bin k by k hop / n_fft: the difference is made up for.
        """
        b, t, bins = spec.shape
        k = torch.arange(bins, device=top.device).expand(b, bins)
        end = top[:, None] - 1  # the last bin may be in the slope of the filter
        width = end - end // 2  # of what is taken
        place = (k - end).clamp_min(0) % (2 * width)
        mirrored = place < width
        source = torch.where(mirrored, end - 1 - place, end - 2 * width + place)  # (b, f)
        taken = torch.view_as_real(spec).gather(2, source[:, None, :, None].expand(b, t, bins, 2))
        sign = torch.where(mirrored, 1, -1)
        taken = taken * torch.stack([torch.ones_like(sign), -sign], -1)[:, None]  # conjugate where mirrored
        turn = torch.arange(t, device=top.device)[:, None] * (k + sign * source)[:, None] % len(self.turns)  # (b, t, f)
        taken = torch.view_as_complex(taken) * torch.view_as_complex(torch.view_as_real(self.turns)[turn])
        power = taken.real.square() + taken.imag.square() + 1e-20
        size = self.config.white_bins
        smooth = F.avg_pool1d(power, 2 * size, size, size // 2, count_include_pad=False)  # (b, t, f / size)
        smooth = F.interpolate(smooth, bins, mode="linear")
        return taken * smooth.rsqrt(), taken * power.rsqrt()
