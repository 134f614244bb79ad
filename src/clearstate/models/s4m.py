"""S4M: separation of speakers in the time domain (arXiv:2305.16932), with S4 where its parent TDANet has attention.

    mixture -- frames -- norm -- 1x1 -- x0 -- [block] x passes -- masks * frames -- overlap-add -- (speakers, samples)
                                               |
      the block, the same weights in every pass; pass i > 0 hears PReLU(w (x0 + x)):
      x -- 1x1 -- norm, PReLU -- b0 -- /2 -- b1 -- /2 -- ... -- b4           depthwise convolutions, one scale each
                                 |          |                  |
                                 +-- pooled to the coarsest, summed -- S4 -- feed-forward -- g
                                fuse(b0, g)  fuse(b1, g)  ...  fuse(b4, g)
                                 e0 <- merge - e1 <- merge - ... - e4                         e0 -- 1x1 -- + x

The frames are not a spectrum but a learnt filter bank, 2 or 4 ms long. b batch, l frames, f filters, c bottleneck
channels (128), h channels inside the block (512), k samples of a frame, s speakers; scale d has l / 2^d frames.

Departures from the published code, which is not the code of the published results (S4M's training code was never
released; what the paper leaves open is settled by parameter and work counts, see docs/models/s4m.md):
* the top-down path starts at the coarsest scale; `compat` brings the slip back that starts it from a finer one;
* S4 sums both members of a conjugate pair, has no stored kernel length, and its kernel is made once a forward;
* l is rounded up to a multiple of the coarsest scale's stride, so pooling and upsampling are by powers of two;
* the mixture is divided by its level first, and the output has it back: what comes out scales with what goes in.

The causal form has one-sided S4 and convolutions, pools over the past, normalises each frame by itself and the level
by a running one. It streams (`step`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clearstate.models.parts.s4m_ops import Depthwise, FrameNorm, GlobalNorm, Norm
from clearstate.ssm import selective_scan
from clearstate.ssm.s4 import KINDS, S4, Kernel, S4State

TAPS = 5  # of every depthwise convolution that has more than one
LEVEL_SECONDS = 2.0  # time constant of the causal form's running level
QUIET = 1e-15  # power of a frame that does not count in it: some -140 dBFS


@dataclass(frozen=True)
class S4MConfig:
    """The defaults are S4M-tiny. What is marked (fit) is not published; it is what reproduces the published counts."""

    sample_rate: int = 8_000  # Hz
    window_ms: float = 2.0  # frame length (fit); the hop is a quarter of it
    speakers: int = 2
    channels: int = 128
    hidden: int = 512
    states: int = 16  # of each S4 channel
    scales: int = 5  # (fit)
    passes: int = 16  # through the one block
    every_scale: bool = False  # an S4 at each scale: S4M; at the coarsest alone: S4M-tiny (fit)
    expansion: int = 2  # of the feed-forward; 1 in S4M (fit)
    ssm: str = "legs"  # "legs" (S4D) or "dplr" (S4, as published)
    causal: bool = False
    compat: bool = False  # start the top-down path from the finer neighbour, as the published code does
    recompute: bool = False  # in training, keep only the input of each pass: a fraction of the memory, 4/3 of the work

    def __post_init__(self) -> None:
        if self.window % 4 or self.window < 4:
            raise ValueError(
                f"window_ms={self.window_ms} at {self.sample_rate} Hz is {self.sample_rate * self.window_ms / 1000:g} "
                "samples: the hop is a quarter of it, so give a window of 4, 8, 12, ... samples"
            )
        if self.ssm not in KINDS:
            raise ValueError(f"ssm={self.ssm!r}: expected one of {', '.join(KINDS)}")
        if self.scales < 2 or self.passes < 1 or self.speakers < 1:
            raise ValueError(
                f"scales={self.scales}, passes={self.passes}, speakers={self.speakers}: expected at least 2, 1 and 1"
            )
        if self.compat and (self.causal or self.scales < 3):
            raise ValueError("compat repeats the published code, which is not causal and has three scales or more")

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def filters(self) -> int:
        return self.window // 2 + 1

    @property
    def stride(self) -> int:
        """Frames to one frame of the coarsest scale."""
        return 2 ** (self.scales - 1)


# ----------------------------------------------------------------------------------------------------- the block


class Inject(nn.Module):
    """Let a coarse signal modulate a finer one: norm(w_a * x) ⊙ up(σ(norm(w_b * g))) + up(norm(w_c * g)), * depthwise.

    x (b, l, h) and g (b, l / r, h) give (b, l, h); up repeats each frame of g r times.
    """

    def __init__(self, hidden: int, taps: int, norm: type[Norm], causal: bool) -> None:
        super().__init__()
        self.local, self.gate, self.shift = (Depthwise(hidden, taps, bias=False, causal=causal) for _ in range(3))
        self.local_norm, self.gate_norm, self.shift_norm = (norm(hidden) for _ in range(3))

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        gate, shift = self.gate_norm(self.gate(g)), self.shift_norm(self.shift(g))
        skip = max(1, g.shape[1] // x.shape[1])  # 1, but for `compat`, where g is the finer one
        scale = self.local.scale
        x = self.local(x) if scale is None else x
        return self.local_norm.modulate(x, torch.sigmoid(gate[:, ::skip]), shift[:, ::skip], scale)


class Remember(nn.Module):
    """x + S4(norm(x)): mixes time."""

    def __init__(self, hidden: int, config: S4MConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.s4 = S4(hidden, config.states, config.ssm, bidirectional=not config.causal)

    def forward(self, x: Tensor, kernel: Kernel) -> Tensor:
        return x + self.s4(self.norm(x), kernel)

    def step(self, x: Tensor, state: S4State) -> tuple[Tensor, S4State]:
        y, state = self.s4.step(self.norm(x), state)
        return x + y, state


class FeedForward(nn.Module):
    """x + W2 GELU(W1 norm(x)), frame by frame."""

    def __init__(self, hidden: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.widen = nn.Linear(hidden, expansion * hidden)
        self.narrow = nn.Linear(expansion * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(x))))


class PassState(NamedTuple):
    """What one pass carries from chunk to chunk."""

    before: tuple[Tensor, ...]  # the last frames of what each convolution and pool reads (b, frames, h), in their order
    s4: tuple[S4State, ...]


class Tape:
    """Puts before each signal what came before it, in the order of use, and keeps what the next chunk will need."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        self.before = iter(before)
        self.after: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        past = next(self.before)
        whole = torch.cat([past, x], 1)
        self.after.append(whole[:, whole.shape[1] - past.shape[1] :])
        return whole


class Block(nn.Module):
    """The multi-scale block; see the drawing at the top."""

    def __init__(self, config: S4MConfig) -> None:
        super().__init__()
        self.config = config
        h, scales, causal = config.hidden, config.scales, config.causal
        norm: type[Norm] = FrameNorm if causal else GlobalNorm
        self.widen = nn.Linear(config.channels, h)
        self.widen_norm = norm(h)
        self.slope = nn.Parameter(torch.tensor([0.25]))
        self.down = nn.ModuleList(Depthwise(h, TAPS, stride=1 if d == 0 else 2, causal=causal) for d in range(scales))
        self.down_norm = nn.ModuleList(norm(h) for _ in range(scales))
        # The last one works on the pooled sum; those of finer scales, if any, on their scale before it is pooled.
        self.remember = nn.ModuleList(Remember(h, config) for _ in range(scales if config.every_scale else 1))
        self.feed_forward = FeedForward(h, config.expansion)
        self.fuse = nn.ModuleList(Inject(h, 1, norm, causal) for _ in range(scales))
        self.merge = nn.ModuleList(Inject(h, TAPS, norm, causal) for _ in range(scales - 1))
        self.narrow = nn.Linear(h, config.channels)

    def network(
        self, x: Tensor, behind: Callable[[Tensor], Tensor], remember: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """x (b, l, c) to (b, l, c). `behind` puts the past before a signal, `remember` is the S4 of a scale."""
        b = self.widen_norm(self.widen(x), self.slope)  # (b, l, h)
        scales = []
        for down, norm in zip(self.down, self.down_norm, strict=True):
            b = norm(down(behind(b)))  # (b, l / 2^d, h)
            scales.append(b)
        if self.config.every_scale:
            scales[:-1] = [remember(d, b) for d, b in enumerate(scales[:-1])]
        frames = scales[-1].shape[1]
        # With the past before it, each pool ends at the frame it stands for; without, it begins there.
        pooled = [behind(b)[:, : b.shape[1]].unflatten(1, (frames, -1)).mean(2) for b in scales]
        g = self.feed_forward(remember(-1, torch.stack(pooled).sum(0)))  # (b, l / stride, h)
        fused = [fuse(b, g) for fuse, b in zip(self.fuse, scales, strict=True)]
        # The published code starts from a finer neighbour, so that its coarsest scale is never heard.
        e = fused[-3] if self.config.compat else fused[-1]
        for merge, b in zip(reversed(self.merge), reversed(fused[:-1]), strict=True):
            e = merge(behind(b), behind(e))
        return x + self.narrow(e)

    def memory(self, i: int) -> Remember:
        return cast(Remember, self.remember[i])

    def kernels(self, frames: int) -> list[Kernel]:
        """The S4 kernels for signals of l = frames, one a layer: the same in every pass."""
        first = self.config.scales - len(self.remember)
        return [self.memory(i).s4.kernel(frames >> (first + i)) for i in range(len(self.remember))]

    def forward(self, x: Tensor, kernels: list[Kernel]) -> Tensor:
        """A whole signal (b, l, c), l a multiple of the coarsest scale's stride."""
        return self.network(x, lambda signal: signal, lambda i, signal: self.memory(i)(signal, kernels[i]))

    def step(self, x: Tensor, state: PassState) -> tuple[Tensor, PassState]:
        """The next chunk of a causal stream."""
        tape, after = Tape(state.before), []

        def remember(i: int, signal: Tensor) -> Tensor:
            y, s4 = self.memory(i).step(signal, state.s4[i])
            after.append(s4)
            return y

        y = self.network(x, tape, remember)
        return y, PassState(tuple(tape.after), tuple(after))

    def init_state(self, batch: int) -> PassState:
        """The state before the first frame."""
        scales = self.config.scales
        reach = [TAPS - 1] * scales + [2 ** (scales - 1 - d) - 1 for d in range(scales)] + [TAPS - 1] * 2 * (scales - 1)
        before = (self.slope.new_zeros(batch, frames, self.config.hidden) for frames in reach)
        return PassState(tuple(before), tuple(self.memory(i).s4.init_state(batch) for i in range(len(self.remember))))


# ----------------------------------------------------------------------------------------------------- the model


class S4MState(NamedTuple):
    """What the causal form carries from chunk to chunk."""

    past: Tensor  # the samples that the next frame begins with (b, k - hop)
    level: Tensor  # running power and its weight (b, 2, 1)
    passes: tuple[PassState, ...]
    tail: Tensor  # samples that later frames still add to (b, s, k - hop)


class S4M(nn.Module):
    """Mixture (b, samples) to speakers (b, s, samples), in an order of the model's own; any length of 1 or more.

    All items of a batch have the same length: the non-causal form's statistics are those of the whole signal.
    """

    Config = S4MConfig
    task = "separate"

    def __init__(self, config: S4MConfig | None = None) -> None:
        super().__init__()
        self.config = config = S4MConfig() if config is None else config
        k, f, c, s = config.window, config.filters, config.channels, config.speakers
        self.sample_rate, self.causal, self.speakers = config.sample_rate, config.causal, s
        self.frame_hop = k // 4
        self.hop = self.frame_hop * config.stride  # of step(), in samples
        self.latency = k - self.frame_hop  # samples by which step() trails forward()
        self.encode = nn.Parameter(nn.init.xavier_uniform_(torch.empty(f, 1, k)))
        self.norm = (FrameScale if config.causal else GlobalNorm)(f)
        self.bottleneck = nn.Linear(f, c)
        self.block = Block(config)
        self.again = nn.Parameter(torch.empty(c).uniform_(-1, 1))  # a 1x1 depthwise convolution and its bias
        self.again_bias = nn.Parameter(torch.empty(c).uniform_(-1, 1))
        self.again_slope = nn.Parameter(torch.tensor([0.25]))
        self.head_slope = nn.Parameter(torch.tensor([0.25]))
        self.head = nn.Linear(c, s * f)
        self.decode = nn.Parameter(nn.init.xavier_uniform_(torch.empty(s * f, s, k)))

    def forward(self, mixture: Tensor) -> Tensor:
        """Separate whole signals (b, n), n >= 1, into (b, s, n)."""
        samples = mixture.shape[-1]
        if self.causal:
            padded = F.pad(mixture, (0, self.latency + -(samples + self.latency) % self.hop))
            return self.step(padded, self.init_state(len(mixture)))[0][..., self.latency : self.latency + samples]
        # As published, each end sees a window and a quarter of silence; then whole frames of the coarsest scale.
        head, hop, window = self.latency + self.config.window // 2, self.frame_hop, self.config.window
        count = (head + samples - 1) // hop + 1
        count += -count % self.config.stride
        level = mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)  # (b, 1)
        padded = F.pad(mixture / level, (head, (count - 1) * hop + window - head - samples))
        frames = self.frames(padded)  # (b, l, f)
        kernels = self.block.kernels(count)
        x = first = self.bottleneck(self.norm(frames))  # (b, l, c)
        for i in range(self.config.passes):
            x = x if i == 0 else self.enter_again(first + x)
            if self.config.recompute and self.training:
                x = checkpoint(self.block, x, kernels, use_reentrant=False)
            else:
                x = self.block(x, kernels)
        y, _ = self.overlap_add(self.masked(frames, x))
        return y[..., head : head + samples] * level[..., None]

    def step(self, x: Tensor, state: S4MState) -> tuple[Tensor, S4MState]:
        """The next samples of a stream: x (b, m * hop) gives (b, s, m * hop), `latency` samples late.

        Raises:
            ValueError: for a model that is not causal, or samples that are not a multiple of the hop.
        """
        if not self.causal:
            raise ValueError("step() on an S4M that hears the future: build it with causal=True, or take 's4m-causal'")
        if extra := x.shape[-1] % self.hop:
            raise ValueError(
                f"step() got {x.shape[-1]} samples, not a multiple of hop={self.hop}: "
                f"hold the last {extra} back and send them with the next chunk"
            )
        x = torch.cat([state.past, x], -1)
        frames = self.frames(x)  # (b, l, f)
        normed, level = self.norm(frames, state.level, self.frame_hop / (LEVEL_SECONDS * self.sample_rate))
        y = first = self.bottleneck(normed)
        passes = []
        for i, before in enumerate(state.passes):
            y, after = self.block.step(y if i == 0 else self.enter_again(first + y), before)
            passes.append(after)
        out, tail = self.overlap_add(self.masked(frames, y), state.tail)
        return out, S4MState(x[:, x.shape[-1] - self.latency :], level, tuple(passes), tail)

    def init_state(self, batch: int) -> S4MState:
        """The state before the first sample."""
        zeros = self.encode.new_zeros
        return S4MState(
            zeros(batch, self.latency), zeros(batch, 2, 1),
            tuple(self.block.init_state(batch) for _ in range(self.config.passes)),
            zeros(batch, self.speakers, self.latency),
        )  # fmt: skip

    def frames(self, x: Tensor) -> Tensor:
        """The filter bank: samples (b, n) to (b, l, f), no activation."""
        return F.linear(x.unfold(-1, self.config.window, self.frame_hop), self.encode[:, 0])

    def enter_again(self, x: Tensor) -> Tensor:
        return F.prelu(x * self.again + self.again_bias, self.again_slope)

    def masked(self, frames: Tensor, x: Tensor) -> Tensor:
        """The frames (b, l, f) under a mask of each speaker, made from x (b, l, c), as samples: (b, l, s, k)."""
        masks = torch.relu(self.head(F.prelu(x, self.head_slope)))  # (b, l, s f)
        sources = (masks.unflatten(-1, (self.speakers, -1)) * frames[:, :, None]).flatten(2)
        return (sources @ self.decode.flatten(1)).unflatten(-1, (self.speakers, -1))

    def overlap_add(self, pieces: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames (b, l, s, k) to samples (b, s, l hop), from the first frame's first sample on, and the rest.

        `tail` (b, s, k - hop) is the rest of the chunk before.
        """
        b, count, s, k = pieces.shape
        quarters = pieces.view(b, count, s, 4, k // 4).permute(3, 0, 2, 1, 4)  # (4, b, s, l, hop)
        y = pieces.new_zeros(b, s, count + 3, k // 4)
        y = sum((F.pad(quarter, (0, 0, i, 3 - i)) for i, quarter in enumerate(quarters)), y).flatten(2)
        if tail is not None:
            y = y + F.pad(tail, (0, y.shape[-1] - tail.shape[-1]))
        return y[..., : count * (k // 4)], y[..., count * (k // 4) :]


class FrameScale(nn.Module):
    """Frames divided by the root of their mean power so far, the older the less; then a gain and a bias a filter.

    The frame's own level stays, unlike in a norm of each frame by itself. Digital silence does not count. A running sum
    of powers over a running sum of weights, so that the first frame already has its own level.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(filters))
        self.bias = nn.Parameter(torch.zeros(filters))

    def forward(self, frames: Tensor, state: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """frames (b, l, f), state (b, 2, 1); rate: hop over time constant. Returns (b, l, f) and the next state."""
        with torch.no_grad():
            power = frames.square().mean(-1)  # (b, l)
            heard = (power > QUIET).to(power.dtype)
            u = torch.stack([power * heard, heard], -1)  # (b, l, 2)
            ones = torch.ones_like(heard)[..., None]
            sums, state = selective_scan(
                u, heard[..., None].expand_as(u), u.new_full((2, 1), -rate), ones, ones, state=state
            )
            level = (sums[..., :1] / sums[..., 1:].clamp_min(1e-6) + QUIET).sqrt()
        return frames / level * self.weight + self.bias, state
