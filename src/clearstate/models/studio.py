"""studio: the best quality for recordings at 16 kHz. Our own design: `live`, looking both ways.

What only looks back in `live` looks ahead, too: Mamba along every band, the Mamba over the whole band (here after every
second pair), and the level. Without the mixers that run backwards it is `live`, whose weights it starts from.

After training it hears every signal three times, as it is, four and eight percent faster, and gives the mean.

b batch, n samples, t frames, f bins, k bands, c channels.
"""

import re
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from clearstate.models.live import Live, LiveConfig
from clearstate.models.parts.band_attention import BandAttention
from clearstate.models.parts.band_codec import BandCodec
from clearstate.models.parts.running_level import running_power
from clearstate.models.parts.speed import at_speeds
from clearstate.models.parts.stft import compress, expand, istft, sqrt_hann, stft
from clearstate.ssm.mamba import BiMamba


@dataclass(frozen=True)
class StudioConfig(LiveConfig):
    """Sizes and signal settings of `Studio`: those of `Live`."""

    blocks: int = 6
    wide_every: int = 2  # pairs of time and frequency mixing that share a mixer over the whole band


SPEEDS = (25, 24, 23)  # it also hears 24 and 23 samples for 25

FROM_LIVE = (  # where the weights of `Live` go: patterns of their names, in turn
    (r"^time_norms\.(\d+)", r"time.\1.norm"),
    (r"^time\.(\d+)\.(?!norm)", r"time.\1.ahead."),
    (r"^wide_norm", "wide.0.mix.norm"),
    (r"^wide\.(?!0\.)", "wide.0.mix.ahead."),
    (r"^wide_in", "wide.0.enter"),
    (r"^wide_out", "wide.0.leave"),
    (r"^(gather|scatter)", r"wide.0.\1"),
)


class WholeBand(nn.Module):
    """Bands gathered to one vector a frame, mixed along time both ways, and scattered back."""

    def __init__(self, config: StudioConfig) -> None:
        super().__init__()
        all_gathered = config.gathered * config.bands
        self.gather = nn.Linear(config.channels, config.gathered)
        self.enter = nn.Linear(all_gathered, config.wide)
        self.mix = BiMamba(config.wide, nn.LayerNorm, d_state=config.wide_states)
        self.leave = nn.Linear(config.wide, all_gathered)
        self.scatter = nn.Linear(config.gathered, config.channels)

    def forward(self, x: Tensor) -> Tensor:  # (b, t, k, c)
        y = self.leave(self.mix(self.enter(self.gather(x).flatten(2))))
        return x + self.scatter(y.unflatten(2, (x.shape[2], -1)))


class Studio(BandCodec):
    """Maps noisy (b, n) to enhanced (b, n), n >= 1; every output depends on all of the signal."""

    Config = StudioConfig
    causal = False
    window: Tensor

    def __init__(self, config: StudioConfig | None = None) -> None:
        config = StudioConfig() if config is None else config
        super().__init__(config)
        c, blocks = config.channels, config.blocks
        self.sample_rate = config.sample_rate
        self.register_buffer("window", sqrt_hann(config.n_fft), persistent=False)
        self.time = nn.ModuleList(BiMamba(c, nn.LayerNorm, d_state=config.states, expand=1) for _ in range(blocks))
        self.frequency = nn.ModuleList(BandAttention(c, config.heads) for _ in range(blocks))
        self.wide = nn.ModuleList(WholeBand(config) for _ in range(0, blocks, config.wide_every))

    def forward(self, noisy: Tensor) -> Tensor:
        return self.hear(noisy) if self.training else at_speeds(self.hear, noisy, *SPEEDS)

    def hear(self, noisy: Tensor) -> Tensor:
        """Enhance signals (b, n) as they are."""
        config = self.config
        spec = stft(noisy, self.window, config.hop)  # (b, t, f) complex
        level = self.level(spec)
        parts = compress(spec / level, config.exponent)  # (b, t, f, 2)
        x, skips = self.encode(parts)
        for i, (time, frequency) in enumerate(zip(self.time, self.frequency, strict=True)):
            b, t, k, c = x.shape
            sequences = x.transpose(1, 2).reshape(b * k, t, c)
            x = frequency(time(sequences).view(b, k, t, c).transpose(1, 2))
            if i % config.wide_every == 0:
                x = self.wide[i // config.wide_every](x)
        masked = torch.view_as_real(torch.view_as_complex(parts) * self.decode(x, skips))
        return istft(expand(masked, config.exponent) * level, self.window, config.hop, noisy.shape[-1])

    def level(self, spec: Tensor) -> Tensor:
        """Root of the mean of what `live` has as running power before and after a frame (b, t, 1), never zero."""
        frames = self.config.level_seconds * self.config.sample_rate / self.config.hop
        nothing = spec.real.new_zeros(spec.shape[0], 2, 1)
        before, _ = running_power(spec, nothing, frames)
        after, _ = running_power(spec.flip(1), nothing, frames)
        return (0.5 * (before + after.flip(1)) + 1e-12).sqrt()


def start_from_live(live: Live) -> Studio:
    """A `Studio` with the weights of a `Live` to train on from. What it has besides adds nothing yet.

    The mixers that run backwards begin as copies of the others, with an output of zero.
    """
    studio = Studio(StudioConfig(**asdict(live.config)))
    state = studio.state_dict()
    for name, value in live.state_dict().items():
        for ours, theirs in FROM_LIVE:
            name = re.sub(ours, theirs, name)
        state[name] = value
    for name in state:
        if name.endswith("back.out_proj.weight") or re.match(r"wide\.[1-9]\d*\.scatter", name):
            state[name] = torch.zeros_like(state[name])
        elif ".back." in name:
            state[name] = state[name.replace(".back.", ".ahead.")].clone()
    studio.load_state_dict(state)
    return studio
