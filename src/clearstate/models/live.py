"""live: the default model, a small causal enhancer for speech at 16 kHz. Our own design.

    noisy -- STFT -- / level -- compress -- encode -- [time, frequency] x blocks -- decode -- complex mask -- iSTFT
                                                |          + whole band                 |
                                                +---------------- skip -----------------+

Time is mixed by Mamba, one sequence a band, and once by a Mamba over the whole band; it carries all the memory that
the model has, and looks only back. Frequency is mixed within a frame, by convolution and by attention over bands.
The mask acts on the power-compressed spectrum, so a mask of one changes nothing, and a moderate one is a deep cut.

The spectrum is divided by a running level before the network sees it: the output scales exactly with the input.

For live sound `kernels/live` has the same arithmetic compiled into one function.

b batch, t frames, f bins, k bands, c channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts.band_attention import BandAttention
from clearstate.models.parts.band_codec import BandCodec
from clearstate.models.parts.running_level import running_power
from clearstate.models.parts.stft import analyse, compress, expand, sqrt_hann, synthesise
from clearstate.ssm import Mamba, MambaState


@dataclass(frozen=True)
class LiveConfig:
    """Sizes and signal settings of `Live`."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 512  # samples: 32 ms, the algorithmic latency
    hop: int = 256  # samples: 16 ms
    exponent: float = 0.3  # of the magnitudes the network sees and masks
    level_seconds: float = 1.0  # time constant of the running level
    fine_channels: int = 32  # at f / 4 bands
    fine_blocks: int = 1  # convolutions over fine bands, in the encoder and again in the decoder
    channels: int = 48  # at the coarse bands
    bands: int = 24  # coarse bands
    blocks: int = 4  # pairs of time and frequency mixing
    states: int = 8  # of Mamba, a channel
    heads: int = 3  # of the attention over bands
    wide: int = 96  # width of the Mamba over the whole band
    wide_states: int = 16  # of that Mamba, a channel
    gathered: int = 8  # channels of a band that it sees: enough for what all bands have in common
    fine_bins: int = 4  # of a fine band, which sees half as many more on either side


class LiveState(NamedTuple):
    """What the model carries from one chunk to the next."""

    past: Tensor  # the last n_fft - hop samples (b, n_fft - hop)
    level: Tensor  # running power and its weight (b, 2, 1)
    bands: tuple[MambaState, ...]  # of each block, b * bands sequences
    wide: MambaState  # of the whole band
    tail: Tensor  # samples that later frames still add to (b, n_fft - hop)


class Live(BandCodec):
    """See the module's drawing. Maps noisy (b, n) to enhanced (b, n); `step` does the same hop by hop."""

    Config = LiveConfig
    causal = True
    window: Tensor

    def __init__(self, config: LiveConfig | None = None) -> None:
        config = LiveConfig() if config is None else config
        super().__init__(config)
        c, bands = config.channels, config.bands
        self.sample_rate, self.hop = config.sample_rate, config.hop
        self.latency = config.n_fft - config.hop  # samples by which step() trails forward()
        self.register_buffer("window", sqrt_hann(config.n_fft), persistent=False)
        self.time_norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(config.blocks))
        self.time = nn.ModuleList(Mamba(c, d_state=config.states, expand=1) for _ in range(config.blocks))
        self.frequency = nn.ModuleList(BandAttention(c, config.heads) for _ in range(config.blocks))
        # The whole band as one vector.
        self.gather = nn.Linear(c, config.gathered)
        self.wide_in = nn.Linear(config.gathered * bands, config.wide)
        self.wide_norm = nn.LayerNorm(config.wide)
        self.wide = Mamba(config.wide, d_state=config.wide_states)
        self.wide_out = nn.Linear(config.wide, config.gathered * bands)
        self.scatter = nn.Linear(config.gathered, c)

    def forward(self, noisy: Tensor) -> Tensor:
        """Enhance whole signals (b, n), n >= 1. The stream over all of it, its delay cut off."""
        samples = noisy.shape[-1]
        padded = F.pad(noisy, (0, self.latency + -samples % self.hop))
        return self.step(padded, self.init_state(noisy.shape[0]))[0][:, self.latency : self.latency + samples]

    def init_state(self, batch: int) -> LiveState:
        """The state before the first sample."""
        zeros, bands = self.window.new_zeros, batch * self.config.bands
        mixers: Iterable[Any] = self.time
        return LiveState(
            zeros(batch, self.latency), zeros(batch, 2, 1), tuple(mixer.init_state(bands) for mixer in mixers),
            self.wide.init_state(batch), zeros(batch, self.latency),
        )  # fmt: skip

    def step(self, x: Tensor, state: LiveState) -> tuple[Tensor, LiveState]:
        """Enhance the next samples of a stream: x (b, m * hop) gives as many, `latency` samples late.

        Raises:
            ValueError: if the number of samples is not a multiple of the hop.
        """
        self._check_length(x)
        x = torch.cat([state.past, x], dim=-1)
        spec = analyse(x, self.window, self.hop)  # (b, t, f) complex
        spec, level, bands, wide = self.enhance_spectrum(spec, state.level, state.bands, state.wide)
        y, tail = synthesise(spec, self.window, self.hop, state.tail)
        return y, LiveState(x[:, x.shape[-1] - self.latency :], level, bands, wide, tail)

    def _check_length(self, x: Tensor) -> None:
        if extra := x.shape[-1] % self.hop:
            raise ValueError(
                f"step() got {x.shape[-1]} samples, not a multiple of hop={self.hop}: "
                f"hold the last {extra} back and send them with the next chunk"
            )

    def enhance_spectrum(
        self, spec: Tensor, level_state: Tensor, bands: tuple[MambaState, ...], wide: MambaState
    ) -> tuple[Tensor, Tensor, tuple[MambaState, ...], MambaState]:
        """The model between STFT and iSTFT: spectra (b, t, f) and states to spectra and states."""
        level, level_state = self.running_level(spec, level_state)
        parts = compress(spec / level, self.config.exponent)  # (b, t, f, 2)
        x, skips = self.encode(parts)
        after = []
        for i in range(self.config.blocks):
            x, mamba = self.mix_time(i, x, bands[i])
            after.append(mamba)
            x = self.frequency[i](x)
            if i == 0:
                x, wide = self.mix_whole_band(x, wide)
        masked = torch.view_as_real(torch.view_as_complex(parts) * self.decode(x, skips))
        return expand(masked, self.config.exponent) * level, level_state, tuple(after), wide

    def running_level(self, spec: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Root of the mean power of the frames so far (b, t, 1), never zero, and the state to pass on."""
        power, state = running_power(spec, state, self.config.level_seconds * self.config.sample_rate / self.config.hop)
        return (power + 1e-12).sqrt(), state

    def mix_time(self, i: int, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Mamba along time, the same for every band: (b, t, k, c)."""
        b, t, k, c = x.shape
        sequences = x.transpose(1, 2).reshape(b * k, t, c)
        y, state = self.time[i](self.time_norms[i](sequences), state)
        return x + y.view(b, k, t, c).transpose(1, 2), state

    def mix_whole_band(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Mamba along time over all bands at once: (b, t, k, c)."""
        y = self.wide_in(self.gather(x).flatten(2))  # (b, t, wide)
        mixed, state = self.wide(self.wide_norm(y), state)
        return x + self.scatter(self.wide_out(y + mixed).unflatten(2, (-1, self.config.gathered))), state
