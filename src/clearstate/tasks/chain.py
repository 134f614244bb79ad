"""Run one signal of any rate and channel count through an enhancement model, chunk by chunk.

    x ── to the model's rate ── model, one batch item per channel ── one gain for all channels ─┐
    │                                      (contrast stretched)                               ├─ (noisy, enhanced)
    └──────────────── wait ──────────────── x + up(enhanced − noisy) + (g − 1)(x − up(noisy)) ┘

`Chain` implements the drawing, for files (`enhance.py`) and live audio (`stream.py`). The sum on the right adds the
model's correction to the original signal. So a model that changes nothing returns its input bit for bit, at any rate.
x − up(noisy) is the band above the model's rate (above 8 kHz for a 16 kHz model). Its gain g follows the gain of the
model in the octave below.

Arrays are NumPy, (channels, n). A `pair` is (2, channels, n): the noisy and the enhanced signal, at the model's rate
and with the same delay.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.contrast import ContrastStretcher
from clearstate.audio.offset import Offset
from clearstate.audio.rates import whole_rate
from clearstate.audio.resample import Resampler
from clearstate.runtime.contract import EnhancementModel
from clearstate.tasks.blocks import Layout, Overlapping, Runner, Stream
from clearstate.tasks.stereo import HighGain, Link, in_step

Array = NDArray[Any]

WARM_UP_SECONDS = 1.5  # of a recording, to initialise a causal model's state; 0.5 to 2 were tried, docs/LOG.md
PIECE_SECONDS = 4.0  # longest input of a causal model per call, to bound the memory
BLOCK_SECONDS = 8.0  # block length of a non-causal model (150 MB per second for the largest)
OVERLAP_SECONDS = 2.0  # of neighbouring blocks
FADE_SECONDS = 0.5  # cross-fade in the middle of the overlap; the rest is context
CHANNELS_MODES = ("linked", "apart")  # one gain for all channels, or every channel separately
LINK_SECONDS = 0.016  # hop of the spectra in which channels share a gain
LOUDEST = 1e6  # 120 dB above full scale; the model's input is clipped there, so that squares fit into float32


class Chain:
    """The signal path of one signal through a model. It holds all state between chunks.

    Args:
        model: an enhancement model (see `clearstate.models`); causal models run as a stream, others in blocks.
        sample_rate: of the signal, in Hz.
        channels: rows of every chunk.
        strength: maximum attenuation in dB; 0 changes nothing, None sets no limit.
        residual: return the removed sound, input - output, instead of the output.
        live: chunks are short and arrive one by one.
        overviews: one per channel of a long signal, for models that use them (`first_pass.py`).
        pcs: apply perceptual contrast stretching to the output (`audio/contrast.py`).
        warm_up: a causal model first processes the beginning to initialise its state. Output starts after
            WARM_UP_SECONDS, which is too late for live audio.
        highs: keep the band above the model's rate, with the gain g; False removes it.
    Raises:
        ValueError: for an invalid rate, channel count or strength, or a model of another task.
    """

    def __init__(
        self,
        model: EnhancementModel,
        sample_rate: int,
        channels: int,
        strength: float | None = None,
        residual: bool = False,
        live: bool = False,
        overviews: list[Any] | None = None,
        pcs: bool = False,
        warm_up: bool = False,
        highs: bool = True,
    ) -> None:
        check_settings(channels, strength)
        sample_rate = whole_rate(sample_rate)
        self.wet = 1.0 if strength is None else 1.0 - 10 ** (-strength / 20)
        self.residual, self.live, self.highs = residual, live, highs
        self.channels = channels
        model_rate = model.sample_rate
        self.piece = max(1, int(PIECE_SECONDS * sample_rate))
        self.runner = Levelled(model, channels, overviews, live, warm_up and model.causal)
        grid = self.runner.grid
        self.contrast = ContrastStretcher(channels, model_rate, grid) if pcs else None
        self.link = Link(channels, in_step(grid, int(LINK_SECONDS * model_rate))) if channels > 1 else None
        self.grid = max(
            grid, self.link.hop if self.link else 0
        )  # the output so far is a multiple of it, except at the end
        stages = [stage for stage in (self.contrast, self.link) if stage]
        self.delay = self.runner.delay + sum(stage.delay for stage in stages)  # of the pairs, at the model's rate

        self.down = self.up = self.gain = None
        if sample_rate != model_rate:
            self.down = Resampler(sample_rate, model_rate, channels, fold=True)
            self.up = Resampler(model_rate, sample_rate, 2 * channels)
            self.gain = HighGain(model_rate, self.grid, start=-self.delay)
        self._dry = np.zeros((channels, 0), dtype=np.float32)  # input that waits for its output
        self._low = np.zeros((channels, 0), dtype=np.float32)  # the same at the model's rate, if the rates differ
        self._early = self.delay  # samples to drop from the pairs, to align them with the input
        self._received = self._produced = 0  # samples, at the signal's rate

    @property
    def latency(self) -> int | None:
        """The most later samples that the output of an input sample needs, for any chunk sizes; None: unbounded."""
        if not self.runner.causal:
            return None
        late = self.delay + self.grid - 1 + self.runner.warm_up
        if not (self.up and self.down):
            return late
        return (self.up.lookahead + late) * self.down.down // self.down.up + self.down.lookahead

    def push(self, x: Array) -> Array:
        """Process the next samples: x (channels, n) to the output that they complete (channels, m)."""
        if x.shape[1] <= self.piece:
            return self._push(x)
        starts = range(0, x.shape[1], self.piece)
        return np.concatenate([self._push(x[:, start : start + self.piece]) for start in starts], axis=1)

    def finish(self) -> Array:
        """Return the remaining output; in total it is as long as the input."""
        parts = []
        if self.down:
            parts.append(self._mix(self._pairs(self._run(self.down.flush()))))
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
        self._dry = np.concatenate([self._dry, x], axis=1)  # a copy, because the caller may reuse the array
        clipped = x if self.live else np.minimum(np.maximum(x, -LOUDEST), LOUDEST)  # `Stream` has clipped its chunks
        return self._mix(self._pairs(self._run(self.down.push(clipped) if self.down else clipped)))

    def _run(self, x: Array) -> Array:
        if self.down:
            self._low = np.concatenate([self._low, x], axis=1)
        return self.runner.push(x)

    def _pairs(self, pair: Array) -> Array:
        return self._linked(self.contrast.push(pair) if self.contrast else pair)

    def _linked(self, pair: Array) -> Array:
        return self._aligned(self.link.push(pair) if self.link else pair)

    def _aligned(self, pair: Array) -> Array:
        """Drop the first `delay` samples of the signal."""
        if self.gain:
            self.gain.push(pair)
        early = min(self._early, pair.shape[2])
        self._early -= early
        return pair[:, :, early:]

    def _mix(self, pair: Array) -> Array:
        """Compute the output at the signal's rate from aligned pairs at the model's rate and the waiting input."""
        change, gain, low = pair[1] - pair[0], None, None
        if self.up and self.down and self.gain:
            count = pair.shape[2]
            low, self._low = self._low[:, :count], self._low[:, count:]
            low = np.pad(low, ((0, 0), (0, count - low.shape[1])))  # silence after the end
            change, low = self.up.push(np.concatenate([change, low])).reshape(2, self.channels, -1)
            start = self.up.produced - change.shape[1]
            gain = self.gain.at(start, self.up.produced, self.down.up, self.down.down)  # (m,)
            gain = gain if self.highs else np.zeros_like(gain)
        count = min(change.shape[1], self._received - self._produced)
        self._produced += count
        x, self._dry = self._dry[:, :count], self._dry[:, count:]
        change = change[:, :count]
        if gain is not None and low is not None:
            change = change + (gain[:count] - 1) * (x - low[:, :count])
        y = x + (change if self.wet == 1 else self.wet * change)
        if self.residual:
            y = x - y
        return y.astype(x.dtype, copy=False)


class Apart:
    """One chain per channel, for recordings with one speaker per channel."""

    def __init__(self, chains: list[Chain]) -> None:
        self.chains, self.piece, self.latency = chains, chains[0].piece, chains[0].latency

    def push(self, x: Array) -> Array:
        """Like `Chain.push`: x (channels, n) -> (channels, m)."""
        return np.concatenate([chain.push(row[None]) for chain, row in zip(self.chains, x, strict=True)])

    def finish(self) -> Array:
        """Return the remaining output."""
        return np.concatenate([chain.finish() for chain in self.chains])


def open_chain(
    model: EnhancementModel,
    sample_rate: int,
    channels: int,
    strength: float | None = None,
    residual: bool = False,
    *,
    overviews: list[Any] | None = None,
    channels_mode: str = "linked",
    **options: bool,
) -> Chain | Apart:
    """Open one `Chain` with a shared gain for all channels ("linked"), or one per channel ("apart").

    Raises:
        ValueError: as for `Chain`, and for an unknown mode.
    """
    check_channels_mode(channels_mode)
    if channels_mode == "linked" or channels < 2:
        return Chain(model, sample_rate, channels, strength, residual, overviews=overviews, **options)
    own = [None] * channels if overviews is None else [[overview] for overview in overviews]
    return Apart([Chain(model, sample_rate, 1, strength, residual, overviews=known, **options) for known in own])


def check_channels_mode(mode: str) -> None:
    """Raise a ValueError for an unknown channels mode."""
    if mode not in CHANNELS_MODES:
        raise ValueError(f"channels {mode!r}: expected {' or '.join(map(repr, CHANNELS_MODES))}")


class Levelled:
    """An enhancement model whose input has no constant offset (`audio/offset.py`): samples in, pairs out.

    Args:
        live: chunks are short and arrive one by one.
        warm_up: process the first WARM_UP_SECONDS, or all of a shorter signal, once before they count: the state that
            this leaves is the one the signal begins with.

    Attributes:
        delay, grid: see `blocks.Runner`.
        warm_up: samples that wait until the model has processed all of them once.
    """

    def __init__(
        self, model: EnhancementModel, channels: int, overviews: list[Any] | None, live: bool, warm_up: bool
    ) -> None:
        self.causal = model.causal
        if model.causal:
            advance = model.open_stream(channels, live)
            self.runner: Runner = Stream(advance, channels, channels, model.hop, model.latency)
            self.offset = Offset(channels, model.hop, model.sample_rate)
        else:
            known = overviews or [None] * channels
            run = partial(run_rows, model, known)
            self.runner = Overlapping(run, channels, channels, layout_at(model.sample_rate), elsewhere=run)
            self.offset = offset_for(model, channels)
        self.delay, self.grid = self.runner.delay, self.runner.grid
        self.warm_up = int(WARM_UP_SECONDS * model.sample_rate) // self.grid * self.grid if warm_up else 0
        self._cold = self.warm_up > 0
        self._held = np.zeros((channels, 0), dtype=np.float32)  # until there is enough to warm up

    def push(self, x: Array) -> Array:
        """The next samples (channels, n) -> pairs (2, channels, m)."""
        x = x.astype(np.float32, copy=False)
        if self._cold:
            self._held = np.concatenate([self._held, x], axis=1)
            if self._held.shape[1] < self.warm_up:
                return np.zeros((2, len(x), 0), dtype=np.float32)
            x = self._begin()
        return self._through(x)

    def finish(self) -> Array:
        """The rest, as if silence followed."""
        x = self._begin() if self._cold else self._held
        return np.concatenate([self._through(x, last=True), np.stack(self.runner.finish())], axis=2)

    def _begin(self) -> Array:
        """What waited, after the model has processed its whole hops for the sake of the state alone."""
        held, self._held, self._cold = self._held, self._held[:, :0], False
        self._through(held[:, : min(self.warm_up, held.shape[1] // self.grid * self.grid)])
        return held

    def _through(self, x: Array, last: bool = False) -> Array:
        noisy, enhanced = self.runner.push(self.offset.push(x, last))
        pair = np.empty((2, *noisy.shape), dtype=np.float32)
        pair[0], pair[1] = noisy, enhanced
        return pair


def run_rows(model: EnhancementModel, overviews: list[Any], x: Array, position: int) -> Array:
    """Enhance a block (channels, n), channel by channel: a batch is no faster on a CPU and needs more memory."""
    return np.stack([model.run(row, overview) for row, overview in zip(x, overviews, strict=True)])


def layout_at(rate: int) -> Layout:
    """The block positions for a non-causal model, on a grid of 50 ms."""
    grid = max(1, rate // 20)
    length, overlap, fade = (round(20 * s) * grid for s in (BLOCK_SECONDS, OVERLAP_SECONDS, FADE_SECONDS))
    return Layout(length, overlap, fade, grid)


def offset_for(model: EnhancementModel, channels: int) -> Offset:
    """What removes the offset from the input of a model that works in blocks."""
    return Offset(channels, max(1, model.sample_rate // 80), model.sample_rate)


def check_settings(channels: int, strength: float | None) -> None:
    """Raise a ValueError for an invalid channel count or strength."""
    if channels < 1:
        raise ValueError(f"{channels} channels: expected at least 1")
    if strength is not None and not strength >= 0:
        raise ValueError(f"strength {strength}: expected decibels of attenuation, 0 (no change) or more, such as 12")
