"""Causal SEMamba, in the layout of RT-SEMamba (arXiv:2608.12099): the successor of SEMamba that can stream.

    noisy -- STFT -- |X|^0.3, arg X -- encoder -- [time, frequency, MLP] x n --+-- mask M:  |Y| = |X| M^(1/0.3)
                                                                              +-- phase of Y -- iSTFT

What makes SEMamba look ahead, and the cure: centred frames -> frames that end with their hop; symmetric convolutions
-> two taps in time, the newer one now; instance norm over the signal -> layer norm of one bin; Mamba against time ->
left out (frequency keeps both directions); the level of the whole signal -> none. The latency is one frame, 25 ms.

Departures from the published code: the signal is silent before its start, where theirs begins with a frame full of
signal; and the output is a gain on the noisy magnitude itself, so that silence stays silent.

b batch, n samples, t frames, f bins, k = (f + 1) / 2 bands, c channels; tensors are channel-last, (b, t, f, c).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts.dense_codec import convolve
from clearstate.models.parts.dual_path import BiMix, along_frequency
from clearstate.models.parts.magnitude_phase import direction
from clearstate.models.parts.stft import analyse, dual_window, phase, synthesise
from clearstate.ssm import MambaBlock, MambaState


@dataclass(frozen=True)
class SEMambaCausalConfig:
    """Sizes and signal settings of `SEMambaCausal`."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 400  # samples: 25 ms, the algorithmic latency
    hop: int = 100  # samples: 6.25 ms
    window_offset: float = 1e-3  # added to the Hann window, as the published weights were trained with
    exponent: float = 0.3  # of the magnitudes the network sees
    channels: int = 64
    blocks: int = 4
    depth: int = 4  # layers of a dense block; their dilations in time are 1, 2, 4, 8
    states: int = 16  # of a Mamba, for each inner channel
    taps: int = 4  # of its convolution
    expand: float = 4  # inner channels of a Mamba / channels
    dropout: float = 0.1  # in the MLPs
    ceiling: float = 2.0  # largest gain of a compressed magnitude


class SEMambaCausalState(NamedTuple):
    """What the model carries from one chunk to the next."""

    past: Tensor  # the last n_fft - hop samples (b, n_fft - hop)
    encoder: Tensor  # maps of the last frames in a dense block, (b, frames, f, depth c)
    time: tuple[MambaState, ...]  # of each block, b k sequences
    mask: Tensor  # (b, frames, k, depth c)
    phase: Tensor  # (b, frames, k, depth c)
    tail: Tensor  # samples that later frames still add to (b, n_fft - hop)


class ChannelNormPReLU(nn.Module):
    """Layer norm over the channels of one bin, then PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, eps=1e-5)
        return F.prelu(y.permute(0, 3, 1, 2), self.slope).permute(0, 2, 3, 1)


class CausalDenseLayer(nn.Module):
    """2 x 3 convolution without padding in time, channel norm, PReLU."""

    def __init__(self, channels: int, inputs: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, (2, 3), dilation=(dilation, 1), padding=(0, 1))
        self.norm = ChannelNormPReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(x, self.conv))


class CausalDenseBlock(nn.Module):
    """2 x 3 convolutions, the older tap 1, 2, 4, 8 frames back; each sees the maps of all before it, newest first."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CausalDenseLayer(channels, (i + 1) * channels, 2**i) for i in range(depth))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """(b, t, f, c) to the same; `past` are the earlier frames of the inputs of all layers, oldest map last."""
        frames = past.shape[1]
        before = past.split(x.shape[-1], dim=-1)[::-1]  # of the block's input, then of each output
        maps = torch.cat([before[0], x], dim=1)  # (b, frames + t, f, c)
        y = x
        for i, layer in enumerate(self.layers):
            y = layer(maps[:, frames - 2**i :])  # (b, t, f, c)
            if i + 1 < len(self.layers):
                maps = torch.cat([torch.cat([before[i + 1], y], dim=1), maps], dim=-1)
        return y, maps[:, maps.shape[1] - frames :]


class CausalEncoder(nn.Module):
    """Compressed magnitude and phase (b, t, f, 2) to features on half the bins (b, t, k, c)."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(2, channels)
        self.enter_norm = ChannelNormPReLU(channels)
        self.dense = CausalDenseBlock(channels, depth)
        self.down = nn.Conv2d(channels, channels, (1, 3), stride=(1, 2), padding=(0, 1))
        self.down_norm = ChannelNormPReLU(channels)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        y, past = self.dense(self.enter_norm(self.enter(x)), past)
        return self.down_norm(convolve(y, self.down)), past


class CausalDecoder(nn.Module):
    """Features (b, t, k, c) to a few numbers a bin (b, t, f, outputs): dense block, sub-pixel convolution, heads."""

    def __init__(self, channels: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.dense = CausalDenseBlock(channels, depth)
        self.up = nn.Conv2d(channels, 2 * channels, (1, 3), padding=(0, 1))
        self.norm = ChannelNormPReLU(channels)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, (1, 2)) for _ in range(outputs))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        y, past = self.dense(x, past)
        y = convolve(y, self.up)  # (b, t, k, 2 c): a band's two halves are neighbouring bins
        y = self.norm(y.reshape(*y.shape[:2], 2 * y.shape[2], -1))  # (b, t, 2 k, c)
        numbers = [head(y.permute(0, 3, 1, 2))[:, 0] for head in self.heads]  # (b, t, f) each
        return torch.stack(numbers, dim=-1), past


class CausalBlock(nn.Module):
    """Mix the past of each band, then the bands of each frame, then the channels of each bin."""

    def __init__(self, config: SEMambaCausalConfig) -> None:
        super().__init__()
        c, mamba = config.channels, (config.states, config.taps, config.expand)
        self.time = MambaBlock(c, d_state=config.states, d_conv=config.taps, expand=config.expand)
        self.time_merge = nn.Linear(c, c)
        self.frequency = BiMix(c, *mamba)
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c), nn.Dropout(config.dropout))
        self.mlp_norm = nn.LayerNorm(c)

    def forward(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """(b, t, k, c) to the same, with the state of the b k sequences along time."""
        b, t, k, c = x.shape
        mixed, state = self.time(x.transpose(1, 2).reshape(b * k, t, c), state)
        x = x + self.time_merge(mixed).view(b, k, t, c).transpose(1, 2)
        x = along_frequency(self.frequency, x)
        return x + self.mlp_norm(self.mlp(x)), state


class SEMambaCausal(nn.Module):
    """See the module's drawing. Maps noisy (b, n) to enhanced (b, n); `step` does the same hop by hop."""

    Config = SEMambaCausalConfig
    causal = True
    predicts_spectrum = True  # forward knows `with_spectrum`
    window: Tensor
    synthesis: Tensor

    def __init__(self, config: SEMambaCausalConfig | None = None) -> None:
        super().__init__()
        self.config = config = SEMambaCausalConfig() if config is None else config
        self.sample_rate, self.hop = config.sample_rate, config.hop
        self.latency = config.n_fft - config.hop  # samples by which step() trails forward()
        self.bins, self.bands = config.n_fft // 2 + 1, (config.n_fft // 2 + 2) // 2
        self.register_buffer("window", torch.hann_window(config.n_fft) + config.window_offset, persistent=False)
        self.register_buffer("synthesis", dual_window(self.window, config.hop), persistent=False)
        self.encoder = CausalEncoder(config.channels, config.depth)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.blocks))
        self.mask = CausalDecoder(config.channels, config.depth, outputs=1)
        self.mask_slope = nn.Parameter(torch.ones(self.bins))  # of the sigmoid, learnt for each bin
        self.phase = CausalDecoder(config.channels, config.depth, outputs=2)

    def forward(self, noisy: Tensor, with_spectrum: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Enhance whole signals (b, n), n >= 1: the stream over all of it, its delay cut off.

        Args:
            with_spectrum: return the predicted spectrum (b, 1 + n // hop, f) too, of the frames that have their middle
                at a multiple of the hop within the signal; it need not be that of any signal.
        """
        samples = noisy.shape[-1]
        padded = F.pad(noisy, (0, self.latency + -samples % self.hop))
        y, spec, _ = self.advance(padded, self.init_state(noisy.shape[0]))
        y = y[:, self.latency : self.latency + samples]
        return (y, self.centred(spec, samples)) if with_spectrum else y

    def spectrum(self, x: Tensor) -> Tensor:
        """The spectra (b, t, f) of signals (b, n), in the frames and window of the predicted spectrum."""
        samples = x.shape[-1]
        padded = F.pad(x, (self.latency, self.latency + -samples % self.hop))
        return self.centred(analyse(padded, self.window, self.hop), samples)

    def centred(self, spec: Tensor, samples: int) -> Tensor:
        """Of the spectra of all frames those that have their middle at a multiple of the hop within the signal."""
        first = self.config.n_fft // 2 // self.hop - 1  # frame 0 ends with the first hop
        return spec[:, first : first + 1 + samples // self.hop]

    def init_state(self, batch: int) -> SEMambaCausalState:
        """The state before the first sample."""
        zeros, config = self.window.new_zeros, self.config
        frames, width = 2 ** (config.depth - 1), config.depth * config.channels
        decoder = zeros(batch, frames, self.bands, width)
        return SEMambaCausalState(
            zeros(batch, self.latency), zeros(batch, frames, self.bins, width),
            tuple(b.time.init_state(batch * self.bands) for b in self.blocks if isinstance(b, CausalBlock)),
            decoder, decoder.clone(), zeros(batch, self.latency),
        )  # fmt: skip

    def step(self, x: Tensor, state: SEMambaCausalState) -> tuple[Tensor, SEMambaCausalState]:
        """Enhance the next samples of a stream: x (b, m * hop) gives as many, `latency` samples late.

        Raises:
            ValueError: if the number of samples is not a multiple of the hop.
        """
        if extra := x.shape[-1] % self.hop:
            raise ValueError(
                f"step() got {x.shape[-1]} samples, not a multiple of hop={self.hop}: "
                f"hold the last {extra} back and send them with the next chunk"
            )
        y, _, state = self.advance(x, state)
        return y, state

    def advance(self, x: Tensor, state: SEMambaCausalState) -> tuple[Tensor, Tensor, SEMambaCausalState]:
        """`step`, and between its output and its state the spectrum (b, t, f) that was predicted."""
        x = torch.cat([state.past, x], dim=-1)
        spec = analyse(x, self.window, self.hop)  # (b, t, f) complex
        spec, state = self.enhance_spectrum(spec, state)
        y, tail = synthesise(spec, self.synthesis, self.hop, state.tail)
        return y, spec, state._replace(past=x[:, x.shape[-1] - self.latency :], tail=tail)

    def enhance_spectrum(self, spec: Tensor, state: SEMambaCausalState) -> tuple[Tensor, SEMambaCausalState]:
        """The network between STFT and iSTFT: spectra (b, t, f) to spectra; the samples in the state are left alone."""
        x, encoder = self.encoder(self.features(spec), state.encoder)  # (b, t, k, c)
        after = []
        for block, before in zip(self.blocks, state.time, strict=True):
            x, mamba = block(x, before)
            after.append(mamba)
        mask, mask_past = self.mask(x, state.mask)
        phase, phase_past = self.phase(x, state.phase)
        mask = self.config.ceiling * torch.sigmoid(self.mask_slope * mask[..., 0])  # (b, t, f)
        enhanced = spec.abs() * mask ** (1 / self.config.exponent) * direction(phase[..., 0], phase[..., 1])
        return enhanced, state._replace(encoder=encoder, time=tuple(after), mask=mask_past, phase=phase_past)

    def features(self, spec: Tensor) -> Tensor:
        """Compressed magnitude and phase (b, t, f, 2); the floor bounds the gradient of the power."""
        magnitude = spec.abs().clamp_min(1e-10) ** self.config.exponent
        return torch.stack([magnitude, phase(spec)], dim=-1)
