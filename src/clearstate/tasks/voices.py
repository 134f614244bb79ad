"""Run one mixture of any rate and channel count through a separation model, to one signal per speaker.

    x ── to the model's rate ── X ── one channel (audio/mono.py) ── separator, block by block ── E, one per speaker
    │                           └──────────── E + W (X − ΣE), of each channel ──────────────────────┘
    └── wait ── up(that) + g (x − up(X))

W distributes the remainder X − ΣE (noise, errors of the separator, differences between channels) over the speakers in
proportion to their power at each time and frequency. g does the same above the model's band, by the power in the octave
below. Both sum to one over the speakers, so the sum of the outputs is the input, sample by sample.

Arrays are NumPy: X (channels, n), E (speakers, n), results (speakers, channels, n).
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.mono import MEAN, Mix
from clearstate.audio.offset import Offset
from clearstate.audio.rates import whole_rate
from clearstate.audio.resample import Resampler
from clearstate.runtime.contract import SeparationModel
from clearstate.tasks.blocks import Layout, Overlapping, Pair, Runner, Stream

Array = NDArray[Any]

BLOCK_SECONDS = 12.0  # block length
OVERLAP_SECONDS = 4.0  # of neighbouring blocks, long enough to recognise the voices
FADE_SECONDS = 0.5  # cross-fade in the middle of the overlap
SHARE_SECONDS = 0.016  # hop of the spectra for distributing the remainder
SHARE_MEMORY_SECONDS = 0.050  # time constant of the powers above the model's band
PIECE_SECONDS = 4.0  # longest input per step
SILENCE = 1e-12  # power below which all speakers get the same share


class Voices:
    """The signal path of one mixture. It holds all state between chunks.

    Args:
        model: a separator (see `clearstate.models`): mixture (b, n) to (b, speakers, n).
        sample_rate: of the signal, in Hz; any.
        channels: rows of every chunk.
        mix: how the channels are mixed to the one input of the separator.
        runner: gives the separator's outputs; None runs the model.
    Raises:
        ValueError: for an invalid rate or channel count.
    """

    def __init__(
        self, model: SeparationModel, sample_rate: int, channels: int, mix: Mix = MEAN, runner: Runner | None = None
    ) -> None:
        sample_rate = whole_rate(sample_rate)
        if channels < 1:
            raise ValueError(f"{channels} channels: expected at least 1")
        self.speakers, self.channels, rate = model.speakers, channels, model.sample_rate
        self.piece = max(1, int(PIECE_SECONDS * sample_rate))
        self.runner = runner or runner_for(model, channels, mix)
        self._early = self.runner.delay  # samples to drop, to align the output
        self._given = self._returned = 0  # samples, at the model's rate
        self.shares = Shares(self.speakers, channels, rate, mix.polarity)
        self.down = self.up = None
        if sample_rate != rate:
            self.down = Resampler(sample_rate, rate, channels)
            self.up = Resampler(rate, sample_rate, (self.speakers + 1) * channels)
        self._waiting = np.zeros((channels, 0))  # input that waits for its output
        self._received = self._produced = 0  # samples, at the signal's rate

    def push(self, x: Array) -> Array:
        """Process the next samples: x (channels, n) to the output that they complete (speakers, channels, m)."""
        starts = range(0, x.shape[1], self.piece)
        return np.concatenate([self._nothing(), *(self._push(x[:, i : i + self.piece]) for i in starts)], axis=2)

    def finish(self) -> Array:
        """Return the remaining output; in total it is as long as the input."""
        parts = []
        if self.down:
            parts.append(self._mix(*self.shares.push(*self._estimates(self.down.flush()))))
        X, E = self._aligned(*self.runner.finish())
        left = self._given - self._returned  # after it comes only silence
        parts.append(self._mix(*self.shares.push(X[:, :left], E[:, :left])))
        parts.append(self._mix(*self.shares.finish()))
        if self.up:
            rest = self.up.lookahead + 1
            parts.append(self._mix(np.zeros((self.speakers, self.channels, rest)), np.zeros((self.channels, rest))))
        return np.concatenate(parts, axis=2)

    def _nothing(self) -> Array:
        return np.zeros((self.speakers, self.channels, 0))

    def _push(self, x: Array) -> Array:
        self._received += x.shape[1]
        self._waiting = np.concatenate([self._waiting, x], axis=1)
        return self._mix(*self.shares.push(*self._estimates(self.down.push(x) if self.down else x)))

    def _estimates(self, X: Array) -> Pair:
        """The input (c, m) and the estimates (s, m) that the samples so far complete, aligned."""
        self._given += X.shape[1]
        X, E = self._aligned(*self.runner.push(X))
        self._returned += X.shape[1]
        return X, E

    def _aligned(self, X: Array, E: Array) -> Pair:
        drop = min(self._early, X.shape[1])
        self._early -= drop
        return X[:, drop:], E[:, drop:]

    def _mix(self, voices: Array, X: Array) -> Array:
        """Compute the output at the signal's rate from voices (s, c, m) and input (c, m) at the model's rate."""
        if not (self.up and self.down):
            self._produced += voices.shape[2]
            self._waiting = self._waiting[:, voices.shape[2] :]
            return voices
        start = self.up.produced
        both = self.up.push(np.concatenate([voices.reshape(self.speakers * self.channels, X.shape[1]), X]))
        count = min(both.shape[1], self._received - self._produced)
        self._produced += count
        shares = self.shares.at(start, self.up.produced, self.down.up / self.down.down)[:, None, :count]  # (s, 1, m)
        voices = both[: -self.channels, :count].reshape(self.speakers, self.channels, count)
        x, self._waiting = self._waiting[:, :count], self._waiting[:, count:]
        return voices + shares * (x - both[-self.channels :, :count])


# ---------------------------------------------------------------------------------------------------------- blocks


def best_order(before: Array, after: Array) -> tuple[int, ...]:
    """The order of rows in `after` that continues `before`, both (speakers, n): max of sum <before_i, after_order[i]>.

    The inner products are not normalised. So the order has the least squared difference, and a speaker who is silent in
    both does not count.
    """
    products = before.astype(np.float64) @ after.astype(np.float64).T
    rows = range(len(before))
    return max(permutations(rows), key=lambda order: products[list(rows), list(order)].sum())


def runner_for(model: SeparationModel, channels: int, mix: Mix) -> Runner:
    """A runner for the separator on channels (channels, n) float64, mixed to one input channel.

    A non-causal separator may swap speakers from block to block. The overlap of neighbouring blocks gives the right
    order. A causal separator keeps the order in its state.
    """
    rate = model.sample_rate
    if model.causal:
        advance, offset = model.open_stream(), Offset(1, model.hop, rate)

        def step(X: Array) -> Array:
            return advance(offset.push(mix(X)[None].astype(np.float32))).astype(np.float64)

        return Stream(step, channels, model.speakers, model.hop, model.latency, np.float64)

    length, overlap, fade = (round(s * rate) for s in (BLOCK_SECONDS, OVERLAP_SECONDS, FADE_SECONDS))
    run, layout = partial(run_mixed, model, mix), Layout(length, overlap, fade)
    return Overlapping(run, channels, model.speakers, layout, best_order, np.float64, elsewhere=run)


def estimates_of(
    model: SeparationModel, blocks: Iterable[Array], sample_rate: int, channels: int, mix: Mix
) -> Iterator[Array]:
    """The separator's outputs (speakers, m) at its own rate, for blocks (channels, n)."""
    down = Resampler(sample_rate, model.sample_rate, channels) if sample_rate != model.sample_rate else None
    runner, piece = runner_for(model, channels, mix), max(1, int(PIECE_SECONDS * sample_rate))
    for block in blocks:
        for start in range(0, block.shape[1], piece):
            x = block[:, start : start + piece]
            yield runner.push(down.push(x) if down else x)[1]
    if down:
        yield runner.push(down.flush())[1]
    yield runner.finish()[1]


def run_mixed(model: SeparationModel, mix: Mix, X: Array, position: int) -> Array:
    """Separate a block (channels, n), mixed to one channel, into (speakers, n)."""
    rate = model.sample_rate
    level = Offset(1, max(1, rate // 80), rate).push(mix(X)[None].astype(np.float32), last=True)
    return model.run(level[0]).astype(np.float64)


# ---------------------------------------------------------------------------------------------------------- shares


class Shares:
    """Distribute the remainder over the speakers, in proportion to their power at each time and frequency.

    The output of speaker s in channel c is p E_s + iSTFT(W_s STFT(X_c - p ΣE)) with W_s = |E_s|² / Σ|E|². p = ±1 is the
    polarity of the estimates in the channel. If all speakers are silent, each gets an equal share. Spectra use a
    square-root Hann window of 2 hop. The output is delayed by `hop` samples; the first hop, before the signal, is
    dropped.
    """

    def __init__(self, speakers: int, channels: int, rate: int, polarity: Array | float = 1.0) -> None:
        self.speakers, self.channels = speakers, channels
        self.polarity = np.full(channels, 1.0) * polarity  # polarity of the estimates in each channel
        self.hop = max(1, round(SHARE_SECONDS * rate))
        self.window = np.sin(np.pi * np.arange(2 * self.hop) / (2 * self.hop))  # periodic: the squares add to 1
        self.high = self.hop // 2  # first bin of the upper octave: a quarter of the rate
        self.keep = np.exp(-self.hop / (SHARE_MEMORY_SECONDS * rate))
        rows = speakers + channels
        self._held = np.zeros((rows, self.hop))  # estimates, then channels
        self._tail = np.zeros((speakers, channels, self.hop))
        self._early = self.hop
        self._power = np.zeros(speakers)  # running power of the upper octave
        self._curve = np.zeros((speakers, 0))  # shares above the band, one per frame
        self._first = 0  # first frame of _curve; frame t is centred on sample t hop

    def push(self, X: Array, E: Array) -> tuple[Array, Array]:
        """X (c, m), E (s, m) -> voices (s, c, m'), and X (c, m') delayed like them."""
        held = np.concatenate([self._held, np.concatenate([E, X])], axis=1)
        count = held.shape[1] // self.hop - 1  # frames
        self._held = held[:, count * self.hop :].copy()
        if count < 1:
            return np.zeros((self.speakers, self.channels, 0)), X[:, :0]
        halves = held[:, : (count + 1) * self.hop].reshape(len(held), count + 1, self.hop)
        frames = np.concatenate([halves[:, :-1], halves[:, 1:]], axis=2) * self.window  # (rows, t, 2 hop)
        spectra = np.fft.rfft(frames)  # (rows, t, f)
        estimates, inputs = spectra[: self.speakers], spectra[self.speakers :]
        power = estimates.real**2 + estimates.imag**2
        self._extend(power[..., self.high :].mean(-1))
        weights = (power + SILENCE) / (power.sum(0) + self.speakers * SILENCE)  # (s, t, f)
        rest = inputs - self.polarity[:, None, None] * estimates.sum(0)  # (c, t, f)
        shared = np.fft.irfft(weights[:, None] * rest, n=2 * self.hop) * self.window  # (s, c, t, 2 hop)
        first, second = shared[..., : self.hop], shared[..., self.hop :]
        first[:, :, 0] += self._tail
        first[:, :, 1:] += second[:, :, :-1]
        self._tail = second[:, :, -1].copy()
        whole = halves[:, :-1].reshape(len(held), -1)
        voices = whole[: self.speakers, None] * self.polarity[:, None] + first.reshape(self.speakers, self.channels, -1)
        drop = min(self._early, voices.shape[2])
        self._early -= drop
        return voices[:, :, drop:], whole[self.speakers :, drop:]

    def finish(self) -> tuple[Array, Array]:
        """Return the remaining samples, as if silence followed."""
        left = self._held.shape[1] - self._early
        voices, X = self.push(np.zeros((self.channels, 2 * self.hop)), np.zeros((self.speakers, 2 * self.hop)))
        return voices[:, :, :left], X[:, :left]

    def _extend(self, power: Array) -> None:
        """Append the shares of frames whose power in the upper octave is `power` (s, t)."""
        curve = np.empty_like(power)
        for t in range(power.shape[1]):
            self._power = self.keep * self._power + (1 - self.keep) * power[:, t]
            curve[:, t] = (self._power + SILENCE) / (self._power.sum() + self.speakers * SILENCE)
        self._curve = np.concatenate([self._curve, curve], axis=1)

    def at(self, start: int, end: int, ratio: float) -> Array:
        """The shares (s, end - start) at output samples start ... end - 1, `ratio` model samples apart.

        Drops the curve before them. Before the first frame and after the last, the nearest value applies.
        """
        if not self._curve.shape[1] or end <= start:
            return np.full((self.speakers, max(0, end - start)), 1 / self.speakers)
        instants = np.arange(start, end) * (ratio / self.hop)  # in frames
        known = np.arange(self._first, self._first + self._curve.shape[1])
        shares = np.stack([np.interp(instants, known, row) for row in self._curve])
        past = int(np.clip(int(instants[-1]) - 1 - self._first, 0, self._curve.shape[1] - 1))
        self._curve, self._first = self._curve[:, past:], self._first + past
        return shares
