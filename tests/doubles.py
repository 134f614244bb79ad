"""Small stand-ins for trained models, with the interface of the real ones and a behaviour that tests can predict.

And what tests of real models do to them: `shaken` weights, a number of threads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HOP = 256


class DoubleState(NamedTuple):
    before: Tensor  # (b, hop) input samples of the last frame's second half
    tail: Tensor  # (b, hop) output still to be added to
    noise: Tensor  # (b, f) running mean of the power


class CausalDouble(nn.Module):
    """An STFT enhancer without weights: 512-sample square-root Hann frames, hop 256, at 16 kHz.

    gain: a number, the same for all of the spectrum (1 changes nothing); or None for a Wiener-like gain against a
    slowly moving mean of the power, which depends on all of the past and not on the level.
    """

    sample_rate = 16_000
    causal = True
    hop = HOP
    latency = HOP

    def __init__(self, gain: float | None = None) -> None:
        super().__init__()
        self.gain = gain
        self.register_buffer("window", torch.hann_window(2 * HOP, dtype=torch.float64).sqrt().float())

    def init_state(self, batch: int) -> DoubleState:
        return DoubleState(torch.zeros(batch, HOP), torch.zeros(batch, HOP), torch.zeros(batch, HOP + 1))

    def step(self, x: Tensor, state: DoubleState) -> tuple[Tensor, DoubleState]:
        if extra := x.shape[-1] % self.hop:
            raise ValueError(f"step() got {x.shape[-1]} samples: hold the last {extra} back")
        before, tail, noise = state
        out = []
        for block in x.split(self.hop, dim=-1):
            spectrum = torch.fft.rfft(torch.cat([before, block], dim=-1) * self.window)  # (b, f)
            gain, noise = self.mask(spectrum, noise)
            frame = torch.fft.irfft(spectrum * gain) * self.window
            out.append(tail + frame[:, : self.hop])
            before, tail = block, frame[:, self.hop :]
        return torch.cat(out, dim=-1), DoubleState(before, tail, noise)

    def mask(self, spectrum: Tensor, noise: Tensor) -> tuple[Tensor | float, Tensor]:
        if self.gain is not None:
            return self.gain, noise
        power = spectrum.abs().square()
        noise = torch.where(noise > 0, 0.95 * noise + 0.05 * power, power)
        return power / (power + noise + 1e-30), noise

    def forward(self, noisy: Tensor) -> Tensor:
        samples = noisy.shape[-1]
        padded = nn.functional.pad(noisy, (0, self.latency + -samples % self.hop))
        y, _ = self.step(padded, self.init_state(len(noisy)))
        return y[:, self.latency : self.latency + samples]


class Identity(CausalDouble):
    """Gives its input back bit for bit, `latency` late, as a perfect model on a clean recording would."""

    def step(self, x: Tensor, state: DoubleState) -> tuple[Tensor, DoubleState]:
        if extra := x.shape[-1] % self.hop:
            raise ValueError(f"step() got {x.shape[-1]} samples: hold the last {extra} back")
        late = torch.cat([state.before, x], dim=-1)
        return late[:, : x.shape[-1]], state._replace(before=late[:, x.shape[-1] :])


class NonCausalDouble(nn.Module):
    """Looks at all of its input: the gain of the causal double with a noise estimate from the whole signal."""

    sample_rate = 16_000
    causal = False

    def forward(self, noisy: Tensor) -> Tensor:
        window = torch.hann_window(2 * HOP)
        spectrum = torch.stft(
            nn.functional.pad(noisy, (0, 2 * HOP)),
            2 * HOP,
            HOP,
            window=window,
            return_complex=True,
            pad_mode="constant",
        )
        power = spectrum.abs().square()
        # The mean over a few frames before and after: context matters, but only nearby.
        noise = nn.functional.avg_pool1d(power, 41, stride=1, padding=20)
        cleaned = spectrum * power / (power + noise + 1e-30)
        return torch.istft(cleaned, 2 * HOP, HOP, window=window, length=noisy.shape[-1] + 2 * HOP)[:, : noisy.shape[-1]]


class First(nn.Module):
    """The first speaker of a separator: what the contracts, written for one signal in and one out, can look at."""

    def __init__(self, separator: Any) -> None:
        super().__init__()
        self.separator = separator
        self.causal = separator.causal
        if self.causal:
            self.hop, self.latency, self.init_state = separator.hop, separator.latency, separator.init_state

    def forward(self, x: Tensor) -> Tensor:
        return self.separator(x)[:, 0]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.separator.step(x, state)
        return y[:, 0], state


def shaken(model: nn.Module, amount: float = 0.05) -> nn.Module:
    """In eval mode, with no weight at a value that hides an error (gains of one, biases and offsets of zero)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return model.eval()


def on_threads(count: int, work: Callable[[], Any]) -> Any:
    """What `work` returns on so many of PyTorch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(before)
