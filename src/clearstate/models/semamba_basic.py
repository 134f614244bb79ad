"""Basic SEMamba: table 1 of Chao et al. 2024 (arXiv:2405.06573), and the Transformer that it is compared with.

    noisy -- STFT -- log(1 + |X|) -- 4 convolutions along time -- core -- linear, ReLU -- |Y| -- with X's phase -- iSTFT

The core is two Mamba blocks: one way if causal, both ways if not; or eight Transformer layers (Fu et al. 2020,
arXiv:2006.10296). The paper gives the layers, the parameter counts and the operation counts; what reproduces all three
is n_fft 512, hop 256, expand 2 one way and 4 both ways. The window, hop and the absence of a mask are our reading.

Departure: `gain_limit` bounds what a bin is amplified by, so that silence stays silent. A loss on the logarithmic
magnitude that the network gives (`estimate`) does not see it.

b batch, n samples, t frames, f bins, m model width.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.parts.dual_path import BiMix
from clearstate.models.parts.stft import analyse, dual_window, phase, synthesise
from clearstate.ssm import MambaBlock, MambaState


@dataclass(frozen=True)
class SEMambaBasicConfig:
    """Sizes and signal settings of `SEMambaBasic`."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 512  # samples: 32 ms
    hop: int = 256  # samples: 16 ms
    causal: bool = True  # convolutions and core look back only
    core: Literal["mamba", "transformer"] = "mamba"
    widths: tuple[int, ...] = (1024, 512, 128, 256)  # of the convolutions; the last is the core's
    kernel: int = 3  # taps of a convolution along time
    blocks: int = 2  # Mamba blocks; a Transformer has `layers`
    states: int = 16  # of a Mamba, for each inner channel
    taps: int = 4  # of its convolution
    expand: float = 2  # inner channels / m; the published model that is not causal has 4
    layers: int = 8  # of the Transformer
    heads: int = 8
    feedforward: int = 1024
    dropout: float = 0.1  # in the Transformer
    mask: bool = False  # give a gain for log(1 + |X|) through a sigmoid, instead of |Y| itself
    gain_limit: float = 10.0  # of a bin's magnitude: 20 dB


class SEMambaBasicState(NamedTuple):
    """What the causal model carries from one chunk to the next."""

    past: Tensor  # the last n_fft - hop samples (b, n_fft - hop)
    convolutions: tuple[Tensor, ...]  # the last kernel - 1 inputs of each (b, kernel - 1, width)
    mamba: tuple[MambaState, ...]  # of each block
    tail: Tensor  # samples that later frames still add to (b, n_fft - hop)


class FrameConv(nn.Module):
    """Convolution along time on (b, t, channels), layer norm of each frame, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x already has its context: (b, t + kernel - 1, inputs) to (b, t, outputs)."""
        return F.leaky_relu(self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2)), 0.01)


class Transformer(nn.Module):
    """Post-norm layers without positions: the convolutions before them are all that tells near from far."""

    def __init__(self, config: SEMambaBasicConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        layer = nn.TransformerEncoderLayer(
            width, config.heads, config.feedforward, config.dropout, activation=F.leaky_relu, batch_first=True
        )
        self.stack = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.causal = config.causal

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, m) to the same."""
        future = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device) if self.causal else None
        return self.stack(x, mask=future, is_causal=self.causal)


class SEMambaBasic(nn.Module):
    """See the module's drawing. Maps noisy (b, n) to enhanced (b, n); the causal Mamba also hop by hop with `step`.

    `causal` says whether it can stream. A Transformer that looks back only can be trained for the comparison, but needs
    all of the past at every step, so it is not offered as a stream.
    """

    Config = SEMambaBasicConfig
    predicts_spectrum = True  # forward knows `with_spectrum`
    window: Tensor
    synthesis: Tensor

    def __init__(self, config: SEMambaBasicConfig | None = None) -> None:
        super().__init__()
        self.config = config = SEMambaBasicConfig() if config is None else config
        self.sample_rate, self.hop = config.sample_rate, config.hop
        self.causal = config.causal and config.core == "mamba"
        self.overlap = config.n_fft - config.hop
        if self.causal:
            self.latency = self.overlap  # samples by which step() trails forward()
        self.register_buffer("window", torch.hamming_window(config.n_fft), persistent=False)
        self.register_buffer("synthesis", dual_window(self.window, config.hop), persistent=False)
        self.bins = config.n_fft // 2 + 1
        self.convolutions = nn.ModuleList(
            FrameConv(inputs, outputs, config.kernel)
            for inputs, outputs in zip((self.bins, *config.widths), config.widths, strict=False)
        )
        width, mamba = config.widths[-1], (config.states, config.taps, config.expand)
        if config.core == "transformer":
            self.core = nn.ModuleList([Transformer(config)])
        elif config.causal:
            self.core = nn.ModuleList(
                MambaBlock(width, d_state=config.states, d_conv=config.taps, expand=config.expand)
                for _ in range(config.blocks)
            )
        else:
            self.core = nn.ModuleList(BiMix(width, *mamba) for _ in range(config.blocks))
        self.leave = nn.Linear(width, self.bins, bias=False)

    def forward(self, noisy: Tensor, with_spectrum: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Enhance whole signals (b, n), n >= 1, silent before and after.

        Args:
            with_spectrum: return the predicted spectrum (b, t, f) too, |Y| without `gain_limit` and the noisy phase.
        """
        samples = noisy.shape[-1]
        if self.causal:
            padded = F.pad(noisy, (0, self.overlap + -samples % self.hop))
            y, spec, estimate, _ = self.advance(padded, self.init_state(noisy.shape[0]))
        else:
            spec = self.spectrum(noisy)
            estimate = self.estimate(spec)
            y, _ = synthesise(self.enhanced(spec, estimate), self.synthesis, self.hop)
        y = y[:, self.overlap : self.overlap + samples]
        return (y, torch.polar(torch.expm1(estimate), phase(spec))) if with_spectrum else y

    def spectrum(self, x: Tensor) -> Tensor:
        """The spectra (b, t, f) of signals (b, n), in the frames and window of the predicted spectrum."""
        return analyse(F.pad(x, (self.overlap, self.overlap + -x.shape[-1] % self.hop)), self.window, self.hop)

    def estimate(self, spec: Tensor) -> Tensor:
        """Noisy spectra (b, t, f) of whole signals to log(1 + |Y|), (b, t, f)."""
        noisy = torch.log1p(spec.abs())
        behind = self.config.kernel - 1 if self.config.causal else self.config.kernel // 2
        x = noisy
        for layer in self.convolutions:
            x = layer(F.pad(x, (0, 0, behind, self.config.kernel - 1 - behind)))
        for block in self.core:
            x = block(x)[0] if self.causal else block(x)
        return self.head(x, noisy)

    def head(self, x: Tensor, noisy: Tensor) -> Tensor:
        """What leaves the core (b, t, m) to log(1 + |Y|)."""
        return torch.sigmoid(self.leave(x)) * noisy if self.config.mask else F.relu(self.leave(x))

    def enhanced(self, spec: Tensor, estimate: Tensor) -> Tensor:
        """The spectrum (b, t, f) of this logarithmic magnitude and the noisy phase."""
        magnitude = spec.abs()
        gain = torch.expm1(estimate) / magnitude.clamp_min(1e-30)
        return spec * gain.clamp_max(self.config.gain_limit)

    def init_state(self, batch: int) -> SEMambaBasicState:
        """The state before the first sample."""
        zeros = self.window.new_zeros
        return SEMambaBasicState(
            zeros(batch, self.overlap),
            tuple(zeros(batch, self.config.kernel - 1, width) for width in (self.bins, *self.config.widths[:-1])),
            tuple(block.init_state(batch) for block in self.core if isinstance(block, MambaBlock)),
            zeros(batch, self.overlap),
        )

    def step(self, x: Tensor, state: SEMambaBasicState) -> tuple[Tensor, SEMambaBasicState]:
        """Enhance the next samples of a stream: x (b, m * hop) gives as many, `latency` samples late.

        Raises:
            ValueError: if the number of samples is not a multiple of the hop, or the model is not causal.
        """
        if not self.causal:
            raise ValueError("this SEMambaBasic is not causal and cannot stream: take 'semamba-basic-causal'")
        if extra := x.shape[-1] % self.hop:
            raise ValueError(
                f"step() got {x.shape[-1]} samples, not a multiple of hop={self.hop}: "
                f"hold the last {extra} back and send them with the next chunk"
            )
        y, _, _, state = self.advance(x, state)
        return y, state

    def advance(self, x: Tensor, state: SEMambaBasicState) -> tuple[Tensor, Tensor, Tensor, SEMambaBasicState]:
        """`step`, and between its output and its state the noisy spectrum and log(1 + |Y|), (b, t, f) each."""
        x = torch.cat([state.past, x], dim=-1)
        spec = analyse(x, self.window, self.hop)  # (b, t, f) complex
        estimate, convolutions, mamba = self.step_estimate(spec, state.convolutions, state.mamba)
        y, tail = synthesise(self.enhanced(spec, estimate), self.synthesis, self.hop, state.tail)
        return y, spec, estimate, SEMambaBasicState(x[:, x.shape[-1] - self.overlap :], convolutions, mamba, tail)

    def step_estimate(
        self, spec: Tensor, convolutions: tuple[Tensor, ...], mamba: tuple[MambaState, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[MambaState, ...]]:
        """`estimate` on the next frames of a stream, with what its layers remember."""
        noisy = torch.log1p(spec.abs())
        x, inputs, after = noisy, [], []
        for layer, before in zip(self.convolutions, convolutions, strict=True):
            x = torch.cat([before, x], dim=1)
            inputs.append(x[:, x.shape[1] - before.shape[1] :])
            x = layer(x)
        for block, state in zip(self.core, mamba, strict=True):
            x, state = block(x, state)
            after.append(state)
        return self.head(x, noisy), tuple(inputs), tuple(after)
