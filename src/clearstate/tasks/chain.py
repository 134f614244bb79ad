"""The way of one signal through a model: any rate and channel count in, the same out, chunk by chunk.

    x ── to the model's rate ── model, one batch item a channel ── one gain for all channels ─┐
    │                                      (contrast stretched)                               ├─ (noisy, enhanced)
    └──────────────── wait ──────────────── x + up(enhanced − noisy) + (g − 1)(x − up(noisy)) ┘

`Chain` is that drawing; files (`enhance.py`) and live sound (`stream.py`) both run it. The sum on the right adds
what the model changed to the input itself, so a model that changes nothing gives the input back bit for bit, at any
rate. x − up(noisy) is what the model's rate cannot hold (above 8 kHz for a 16 kHz model); g follows what the model
does to the octave below.

Arrays are NumPy, (channels, n); a `pair` is (2, channels, n): the noisy signal and the enhanced one, on the model's
time grid and equally delayed.
"""

from collections.abc import Callable
from math import ceil, exp, sqrt
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clearstate.audio.contrast import ContrastStretcher
from clearstate.audio.resample import Resampler
from clearstate.kernels import live as compiled
from clearstate.kernels.threads import inference

Array = NDArray[Any]

WARM_UP_SECONDS = 1.5  # of a recording, heard by a causal model before it begins: 0.5 to 2 were tried, docs/LOG.md
PIECE_SECONDS = 2.0  # a causal model sees at most this much at a time: bounds the memory
BLOCK_SECONDS = 8.0  # a non-causal one sees blocks of this length (150 MB a second for the largest models) ...
OVERLAP_SECONDS = 2.0  # ... that overlap by this much ...
FADE_SECONDS = 0.5  # ... and are cross-faded over the middle of the overlap; the rest is context
LINK_SECONDS = 0.016  # hop of the spectra in which channels share a gain
GAIN_SECONDS = 0.004  # hop of the gain above the model's band
GAIN_FALL_SECONDS = 0.050  # time constant; slower than speech's pauses are short, so that hiss does not flutter
GAIN_RISE_SECONDS = 0.004
LOUDEST = 1e6  # 120 dB beyond full scale: what a model hears is cut there, lest a square leave float32
SILENCE = 1e-30  # power; float32 keeps its precision above, and nothing audible is below


class Runner(Protocol):
    """A model with its state: samples at the model's rate in, pairs out, `delay` samples late."""

    delay: int
    grid: int  # what has come out is always a multiple of this many samples, but for the very end

    def push(self, x: Array) -> Array: ...
    def finish(self) -> Array: ...


class Chain:
    """One signal's way through a model; holds the only state there is between chunks.

    Args:
        model: an enhancement model (see `clearstate.models`); causal ones run as one stream, others in blocks.
        sample_rate: of the signal, in Hz.
        channels: rows of every chunk.
        strength: the most by which anything is attenuated, in dB; 0 changes nothing, None takes all the model removes.
        residual: give what was removed, input - output, instead of the output.
        live: chunks are short and come one by one.
        overviews: of each channel of a long signal, for models that want one (`first_pass.py`).
        pcs: stretch the perceptual contrast of what the model gives (`audio/contrast.py`).
        warm_up: let a causal model hear the beginning once before it counts. It then knows voice and noise from the
            first sample on; output comes WARM_UP_SECONDS later, which live sound cannot wait for.
    Raises:
        ValueError: for a rate, channel count or strength that cannot be, or a model that does not enhance.
    """

    def __init__(
        self,
        model: Any,
        sample_rate: int,
        channels: int,
        strength: float | None = None,
        residual: bool = False,
        live: bool = False,
        overviews: list[Any] | None = None,
        pcs: bool = False,
        warm_up: bool = False,
    ) -> None:
        check_settings(model, sample_rate, channels, strength)
        sample_rate = int(sample_rate)
        self.wet = 1.0 if strength is None else 1.0 - 10 ** (-strength / 20)
        self.residual = residual
        self.channels = channels
        model_rate = int(model.sample_rate)
        self.piece = max(1, int(PIECE_SECONDS * sample_rate))
        self.runner: Runner = (
            CausalRunner(model, channels, live, warm_up) if model.causal else BlockRunner(model, channels, overviews)
        )
        grid = self.runner.grid
        self.contrast = ContrastStretcher(channels, model_rate, grid) if pcs else None
        self.link = Link(channels, in_step(grid, int(LINK_SECONDS * model_rate))) if channels > 1 else None
        self.grid = max(grid, self.link.hop if self.link else 0)  # output comes in multiples of it, but for the end
        stages = [stage for stage in (self.contrast, self.link) if stage]
        self.delay = self.runner.delay + sum(stage.delay for stage in stages)  # of the pairs, at the model's rate

        self.down = self.up = self.gain = None
        if sample_rate != model_rate:
            self.down = Resampler(sample_rate, model_rate, channels)
            self.up = Resampler(model_rate, sample_rate, 2 * channels)
            self.gain = HighGain(model_rate, self.grid, start=-self.delay)
        self._dry = np.zeros((channels, 0), dtype=np.float32)  # input that waits for its enhanced form
        self._early = self.delay  # pairs still to drop, so that the rest is aligned with the input
        self._received = self._produced = 0  # samples, at the signal's rate

    @property
    def latency(self) -> int | None:
        """Samples after an input sample that its output may have to wait for, whatever the chunks; None: unbounded."""
        if not isinstance(self.runner, CausalRunner):
            return None
        late = self.delay + self.grid - 1 + self.runner.warm_up
        if not (self.up and self.down):
            return late
        return (self.up.lookahead + late) * self.down.down // self.down.up + self.down.lookahead

    def push(self, x: Array) -> Array:
        """All output that the input so far determines, aligned with the input: x (channels, n) -> (channels, m)."""
        if x.shape[1] <= self.piece:
            return self._push(x)
        starts = range(0, x.shape[1], self.piece)
        return np.concatenate([self._push(x[:, start : start + self.piece]) for start in starts], axis=1)

    def finish(self) -> Array:
        """The rest: after it, there has been exactly as much output as input."""
        parts = []
        if self.down:
            parts.append(self._mix(self._pairs(self.runner.push(self.down.flush()))))
        parts.append(self._mix(self._pairs(self.runner.finish())))
        if self.contrast:
            parts.append(self._mix(self._linked(self.contrast.finish())))
        if self.link:
            parts.append(self._mix(self._aligned(self.link.finish())))
        if self.up:
            silence = np.zeros((2, self.channels, self.up.lookahead + 1), dtype=np.float32)
            parts.append(self._mix(silence))
        return np.concatenate(parts, axis=1)

    def _push(self, x: Array) -> Array:
        self._received += x.shape[1]
        self._dry = np.concatenate([self._dry, x], axis=1) if self._dry.shape[1] else x
        heard = np.clip(x, -LOUDEST, LOUDEST)
        return self._mix(self._pairs(self.runner.push(self.down.push(heard) if self.down else heard)))

    def _pairs(self, pair: Array) -> Array:
        return self._linked(self.contrast.push(pair) if self.contrast else pair)

    def _linked(self, pair: Array) -> Array:
        return self._aligned(self.link.push(pair) if self.link else pair)

    def _aligned(self, pair: Array) -> Array:
        """Without the first `delay` samples of all."""
        if self.gain:
            self.gain.push(pair)
        early = min(self._early, pair.shape[2])
        self._early -= early
        return pair[:, :, early:]

    def _mix(self, pair: Array) -> Array:
        """Output at the signal's rate from aligned pairs at the model's rate and the input that waited."""
        if self.up and self.down and self.gain:
            noisy, enhanced = pair
            both = self.up.push(np.concatenate([enhanced - noisy, noisy]))  # (2 channels, m)
            change, low = both[: self.channels], both[self.channels :]
            start = self.up.produced - both.shape[1]
            gain = self.gain.at(start, self.up.produced, self.down.up, self.down.down)  # (m,)
        else:
            change = low = pair[1]
            gain = None
        count = min(change.shape[1], self._received - self._produced)
        self._produced += count
        x, self._dry = self._dry[:, :count], self._dry[:, count:]
        if gain is not None:
            y = x + self.wet * (change[:, :count] + (gain[:count] - 1) * (x - low[:, :count]))
        elif self.wet == 1.0:
            y = change[:, :count]
        else:
            y = x + self.wet * (change[:, :count] - x)
        if self.residual:
            y = x - y
        return y.astype(x.dtype, copy=False)


class CausalRunner:
    """A causal model as one endless stream: the state is carried, so chunking changes nothing.

    With `warm_up` the first WARM_UP_SECONDS, or all of a shorter signal, go through the model twice: the state that the
    first time leaves is the one the signal begins with.

    For live sound the model's compiled step is taken, if it has one: it is faster by the frame, and its compilation
    (some seconds, once on a machine) would be lost on a file.
    """

    def __init__(self, model: Any, channels: int, live: bool = False, warm_up: bool = False) -> None:
        self.delay = int(model.latency)
        self.hop = self.grid = int(model.hop)
        fused = live and compiled.supports(model)
        self.advance: Callable[[Array], Array] = (compiled.open_stream if fused else stepwise)(model, channels)
        self._held = np.zeros((channels, 0), dtype=np.float32)  # less than a hop
        self._noisy = np.zeros((channels, self.delay), dtype=np.float32)  # to come out beside its enhanced form
        # So many samples wait until the model has heard all of them once.
        self.warm_up = int(WARM_UP_SECONDS * model.sample_rate) // self.hop * self.hop if warm_up else 0
        self._cold = self.warm_up > 0

    def push(self, x: Array) -> Array:
        held = np.concatenate([self._held, x.astype(np.float32, copy=False)], axis=1)
        if self._cold:
            if held.shape[1] < self.warm_up:
                self._held = held
                return np.empty((2, len(x), 0), dtype=np.float32)
            self._warm(held[:, : self.warm_up])
        whole = held.shape[1] // self.hop * self.hop
        pair = np.empty((2, len(x), whole), dtype=np.float32)
        if not whole:
            self._held = held
            return pair
        ready, self._held = held[:, :whole], held[:, whole:].copy()
        noisy = np.concatenate([self._noisy, ready], axis=1)
        self._noisy = noisy[:, whole:].copy()
        pair[0] = noisy[:, :whole]
        pair[1] = self.advance(ready)
        return pair

    def finish(self) -> Array:
        """Silence follows, until everything pushed has come out."""
        if self._cold:
            self._warm(self._held[:, : self._held.shape[1] // self.hop * self.hop])
        return self.push(np.zeros((len(self._held), self.delay + self.hop - 1), dtype=np.float32))

    def _warm(self, beginning: Array) -> None:
        """Hear whole hops for the sake of the state alone."""
        self._cold = False
        if beginning.shape[1]:
            self.advance(beginning)
            self._noisy = np.concatenate([self._noisy, beginning], axis=1)[:, beginning.shape[1] :].copy()


def stepwise(model: Any, channels: int) -> Callable[[Array], Array]:
    """The model's `step` with its state kept: samples (channels, m * hop) in, as many out."""
    device = device_of(model)
    with inference(model):
        state = model.init_state(channels)

    def advance(x: Array) -> Array:
        nonlocal state
        with inference(model):
            y, state = model.step(torch.from_numpy(x).to(device), state)
        return y.cpu().numpy()

    return advance


class BlockRunner:
    """A non-causal model on overlapping blocks: context at both ends, a cross-fade where they meet.

    A signal of up to BLOCK_SECONDS is one block: exactly the model's `forward`. The blocks lie on a fixed grid from the
    start of the signal, so the result does not depend on the chunks in which it arrives. A model that listens to whole
    signals enhances a block with an overview of its channel.
    """

    delay = 0

    def __init__(self, model: Any, channels: int, overviews: list[Any] | None = None) -> None:
        self.model = model
        self.known = [()] * channels if overviews is None else [(overview,) for overview in overviews]
        self.device = device_of(model)
        self.grid = max(1, int(model.sample_rate) // 20)
        self.length, overlap, fade = (round(20 * s) * self.grid for s in (BLOCK_SECONDS, OVERLAP_SECONDS, FADE_SECONDS))
        self.hop = self.length - overlap
        self.context = (overlap - fade) // 2  # samples at each end whose output is not used
        self.ramp = (np.arange(fade, dtype=np.float32) + 0.5) / fade
        self._held = np.zeros((channels, 0), dtype=np.float32)
        self._fading: Array | None = None  # the end of the block before, in the place of the cross-fade

    def push(self, x: Array) -> Array:
        self._held = np.concatenate([self._held, x.astype(np.float32, copy=False)], axis=1)
        parts = [np.zeros((2, len(x), 0), dtype=np.float32)]
        while self._held.shape[1] > self.length:  # never equal: the last block then has more than an overlap of its own
            parts.append(self._block(self._held[:, : self.length], last=False))
            self._held = self._held[:, self.hop :].copy()
        return np.concatenate(parts, axis=2)

    def finish(self) -> Array:
        return self._block(self._held, last=True)

    def _block(self, noisy: Array, last: bool) -> Array:
        if not noisy.shape[1]:
            return np.zeros((2, len(noisy), 0), dtype=np.float32)
        with inference(self.model):
            x = torch.from_numpy(np.ascontiguousarray(noisy)).to(self.device)
            # Channel by channel: a batch would be no faster on a CPU, and need the memory of all at once.
            parts = [self.model(channel[None], *known) for channel, known in zip(x, self.known, strict=True)]
            y = torch.cat(parts).cpu().numpy()
        fade, start = len(self.ramp), 0
        end = y.shape[1] if last else self.hop + self.context
        if self._fading is not None:
            start = self.context
            meet = slice(start, start + fade)
            y = y.copy()
            y[:, meet] = self._fading + self.ramp * (y[:, meet] - self._fading)
        self._fading = None if last else y[:, end : end + fade].copy()
        return np.stack([noisy[:, start:end], y[:, start:end]])


class Link:
    """One gain for all channels at each time and frequency, so that the stereo image stays where it was.

    The model enhanced every channel by itself. The gain is the one that, given to all channels alike, comes closest to
    those in the sense of least squares, over channels c,

        G = sum_c Y_c X_c* / sum_c |X_c|^2,   output G X_c,

    so it is weighted towards the loud channels, differences of level and phase between channels stay, and channels
    that are equal come out as the model's own output. |G|^2 sum |X|^2 <= sum |Y|^2: no power is added to the model's.

    Spectra have a square-root Hann window of 2 hop; the output trails by `delay` = hop samples.
    """

    def __init__(self, channels: int, hop: int) -> None:
        self.hop = self.delay = hop
        self.window = np.sin(np.pi * np.arange(2 * hop) / (2 * hop)).astype(np.float32)  # its squares add to 1
        self._held = np.zeros((2, channels, hop), dtype=np.float32)
        self._tail = np.zeros((channels, hop), dtype=np.float32)  # the second half of the last frame

    def push(self, pair: Array) -> Array:
        held = np.concatenate([self._held, pair], axis=2)
        count = held.shape[2] // self.hop - 1  # frames
        self._held = held[:, :, count * self.hop :].copy()
        if not count:
            return np.zeros((*pair.shape[:2], 0), dtype=np.float32)
        halves = held[:, :, : (count + 1) * self.hop].reshape(*pair.shape[:2], count + 1, self.hop)
        frames = np.concatenate([halves[:, :, :-1], halves[:, :, 1:]], axis=3) * self.window  # (2, c, t, 2 hop)
        x, y = np.fft.rfft(frames)  # (c, t, f) each
        gain = (y * x.conj()).sum(0) / ((x.real**2 + x.imag**2).sum(0) + SILENCE)  # (t, f)
        linked = np.fft.irfft(gain * x, n=2 * self.hop).astype(np.float32) * self.window  # (c, t, 2 hop)
        first, second = linked[..., : self.hop], linked[..., self.hop :]
        first[:, 0] += self._tail
        first[:, 1:] += second[:, :-1]
        self._tail = second[:, -1].copy()
        return np.stack([held[0, :, : count * self.hop], first.reshape(-1, count * self.hop)])

    def finish(self) -> Array:
        return self.push(np.zeros((*self._held.shape[:2], 2 * self.hop - 1), dtype=np.float32))


class HighGain:
    """What happens above the model's band: a smooth gain that follows what the model does to its top octave.

    Every hop, the energies of both signals between a quarter and half of the model's rate are compared, over all
    channels together; the root of their ratio, at most 1, is the gain that the next hop moves to. It rises within
    milliseconds (an "s" starts at once) and falls slowly.
    """

    def __init__(self, rate: int, grid: int, start: int) -> None:
        # A divisor of the grid on which the model's output comes: then the gain never waits for more than that does.
        longest = max(1, int(GAIN_SECONDS * rate))
        self.hop = next(h for h in range(longest, 0, -1) if grid % h == 0)
        self.window = np.hanning(2 * self.hop + 1)[:-1].astype(np.float32)
        self.rise = 1 - exp(-self.hop / (GAIN_RISE_SECONDS * rate))
        self.fall = 1 - exp(-self.hop / (GAIN_FALL_SECONDS * rate))
        self._held: Array | None = None  # the last hop
        self._now: float | None = None  # the gain, once there was something to take it from
        self._curve = np.zeros(0)  # one value a sample, at the model's rate
        self._curve_from = start  # before the signal by the delay of the pairs

    def push(self, pair: Array) -> None:
        """Extend the curve by what these samples determine."""
        before = np.zeros((*pair.shape[:2], self.hop), dtype=np.float32) if self._held is None else self._held
        held = np.concatenate([before, pair], axis=2)
        count = held.shape[2] // self.hop - 1
        self._held = held[:, :, count * self.hop :].copy()
        if not count:
            return
        halves = held[:, :, : (count + 1) * self.hop].reshape(*pair.shape[:2], count + 1, self.hop)
        spectra = np.fft.rfft(np.concatenate([halves[:, :, :-1], halves[:, :, 1:]], axis=3) * self.window)
        top = spectra[..., self.hop // 2 :]
        noisy, enhanced = (top.real**2 + top.imag**2).sum(axis=(1, 3))  # (t,) each
        ends = np.array([self._follow(n, e) for n, e in zip(noisy.tolist(), enhanced.tolist(), strict=True)])  # (t, 2)
        ramps = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.arange(1, self.hop + 1) / self.hop  # (t, hop)
        self._curve = np.concatenate([self._curve, ramps.ravel()])

    def _follow(self, noisy: float, enhanced: float) -> tuple[float, float]:
        """The gain before and after the hop that follows a frame with these energies."""
        if noisy <= SILENCE:
            self._now = None  # nothing to follow: the next sound sets the gain at once
            return 1.0, 1.0
        target = min(1.0, sqrt(enhanced / noisy))
        before = target if self._now is None else self._now
        self._now = before + (self.rise if target > before else self.fall) * (target - before)
        return before, self._now

    def at(self, start: int, end: int, up: int, down: int) -> Array:
        """The gain at output samples start .. end, `up / down` model samples apart; forgets what lies before."""
        instants = np.arange(start, end) * up / down
        known = np.arange(self._curve_from, self._curve_from + len(self._curve))
        gain = np.interp(instants, known, self._curve) if len(known) else np.ones(len(instants))
        past = min(max(0, end * up // down - 1 - self._curve_from), max(0, len(self._curve) - 1))
        self._curve, self._curve_from = self._curve[past:], self._curve_from + past
        return gain


def in_step(grid: int, wanted: int) -> int:
    """A hop near `wanted` that is a multiple or a divisor of the grid, so that neither waits for the other."""
    if grid <= wanted:
        return grid * ceil(wanted / grid)
    divisor = next(h for h in range(wanted, 0, -1) if grid % h == 0)
    return divisor if 2 * divisor > wanted else grid


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def check_settings(model: Any, sample_rate: int, channels: int, strength: float | None) -> None:
    """Raise a ValueError for what no signal can have."""
    if not all(hasattr(model, name) for name in ("sample_rate", "causal")):
        raise ValueError(f"{type(model).__name__} is not an enhancement model; expected one, such as 'live'")
    if sample_rate != int(sample_rate) or sample_rate < 1:
        raise ValueError(f"sample rate {sample_rate}: expected a whole number of Hz, such as 16000 or 48000")
    if channels < 1:
        raise ValueError(f"{channels} channels: expected at least 1")
    if strength is not None and not strength >= 0:
        raise ValueError(f"strength {strength}: expected decibels of attenuation, 0 (no change) or more, such as 12")
