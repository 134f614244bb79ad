"""The way of one mixture through a separator: any rate and channel count in, one signal like it a speaker out.

    x ── to the model's rate ── X ── mean of the channels ── separator, block by block ── E, a signal a speaker
    │                           └──────────── E + W (X − ΣE), of each channel ──────────────────────┘
    └── wait ── up(that) + g (x − up(X))

W shares out, at each time and frequency, what the estimates leave unexplained: the noise, the separator's errors and
what tells the channels apart. It goes to the speakers by their power there. g does the same above the model's band, by
the power in the octave below. Both add to one over the speakers, so the outputs add up to the input, sample by sample:
their levels are true, and nothing is lost.

Arrays are NumPy: X (channels, n), E (speakers, n), results (speakers, channels, n).
"""

from itertools import permutations
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clearstate.audio.resample import Resampler
from clearstate.kernels.threads import inference
from clearstate.tasks.chain import device_of

Array = NDArray[Any]

BLOCK_SECONDS = 12.0  # what the separator hears at once ...
OVERLAP_SECONDS = 4.0  # ... and how much of it the block before has heard too: long enough to know the voices again
FADE_SECONDS = 0.5  # the cross-fade in the middle of the overlap
SHARE_SECONDS = 0.016  # hop of the spectra in which the rest is shared out
SHARE_MEMORY_SECONDS = 0.050  # time constant of the powers that share out what lies above the model's band
PIECE_SECONDS = 4.0  # at most this much is worked on at a time
SILENCE = 1e-12  # power under which everybody has the same share


class Blocks(Protocol):
    """The separator with its state: channels at the model's rate in; the same and the estimates out, aligned."""

    def push(self, X: Array) -> tuple[Array, Array]: ...
    def finish(self) -> tuple[Array, Array]: ...


class Voices:
    """One mixture's way; holds the only state there is between chunks.

    Args:
        model: a separator (see `clearstate.models`): mixture (b, n) to (b, speakers, n).
        sample_rate: of the signal, in Hz; any.
        channels: rows of every chunk.
    Raises:
        ValueError: for a rate or channel count that cannot be, or a model that does not separate.
    """

    def __init__(self, model: torch.nn.Module, sample_rate: int, channels: int) -> None:
        if not hasattr(model, "speakers"):
            raise ValueError(f"{type(model).__name__} does not separate speakers; take a model such as 'separate-fast'")
        if sample_rate != int(sample_rate) or sample_rate < 1 or channels < 1:
            raise ValueError(f"{sample_rate} Hz with {channels} channels: expected whole numbers of at least 1")
        self.speakers, self.channels = int(model.speakers), channels  # type: ignore[arg-type]  # every separator's
        rate = int(model.sample_rate)  # type: ignore[arg-type]
        self.piece = max(1, int(PIECE_SECONDS * sample_rate))
        self.blocks: Blocks = CausalBlocks(model, channels) if model.causal else OverlappingBlocks(model, channels)
        self.shares = Shares(self.speakers, channels, rate)
        self.down = self.up = None
        if sample_rate != rate:
            self.down = Resampler(int(sample_rate), rate, channels)
            self.up = Resampler(rate, int(sample_rate), (self.speakers + 1) * channels)
        self._waiting = np.zeros((channels, 0))  # input whose output is not determined yet
        self._received = self._produced = 0  # samples, at the signal's rate

    def push(self, x: Array) -> Array:
        """All output that the input so far determines: x (channels, n) -> (speakers, channels, m), aligned with it."""
        starts = range(0, x.shape[1], self.piece)
        return np.concatenate([self._nothing(), *(self._push(x[:, i : i + self.piece]) for i in starts)], axis=2)

    def finish(self) -> Array:
        """The rest: after it, there has been exactly as much output as input."""
        parts = []
        if self.down:
            parts.append(self._mix(*self.shares.push(*self.blocks.push(self.down.flush()))))
        parts.append(self._mix(*self.shares.push(*self.blocks.finish())))
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
        return self._mix(*self.shares.push(*self.blocks.push(self.down.push(x) if self.down else x)))

    def _mix(self, voices: Array, X: Array) -> Array:
        """Output at the signal's rate, from the voices (s, c, m) and the input (c, m) at the model's rate."""
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
    """Which of `after` continues each of `before`, both (speakers, n): sum of <before_i, after_order[i]> at its most.

    The inner products are not normalised: the order is that of the least squared difference, and a voice that is silent
    in both has no say.
    """
    products = before.astype(np.float64) @ after.astype(np.float64).T
    rows = range(len(before))
    return max(permutations(rows), key=lambda order: products[list(rows), list(order)].sum())


class OverlappingBlocks:
    """A separator that needs the whole signal, on overlapping blocks of it.

    In every block the separator chooses anew which speaker comes first. The overlap, which two blocks have both heard,
    says who is who; then they are cross-faded. The blocks lie on a fixed grid from the start of the signal, so the
    result does not depend on the chunks in which it arrives; a signal of up to BLOCK_SECONDS is one block.
    """

    def __init__(self, model: torch.nn.Module, channels: int) -> None:
        self.model, self.speakers = model, int(model.speakers)  # type: ignore[arg-type]
        rate = int(model.sample_rate)  # type: ignore[arg-type]
        self.length, self.overlap, fade = (round(s * rate) for s in (BLOCK_SECONDS, OVERLAP_SECONDS, FADE_SECONDS))
        self.hop = self.length - self.overlap
        self.context = (self.overlap - fade) // 2  # samples at each end of a block whose estimates are not used
        self.ramp = (np.arange(fade) + 0.5) / fade
        self._held = np.zeros((channels, 0))
        self._before: Array | None = None  # what the block before made of the overlap (speakers, overlap)

    def push(self, X: Array) -> tuple[Array, Array]:
        self._held = np.concatenate([self._held, X], axis=1)
        parts = [(self._held[:, :0], np.zeros((self.speakers, 0)))]
        while self._held.shape[1] > self.length:  # never equal: the last block has more than an overlap of its own
            parts.append(self._block(self._held[:, : self.length], last=False))
            self._held = self._held[:, self.hop :].copy()
        return joined(parts)

    def finish(self) -> tuple[Array, Array]:
        return self._block(self._held, last=True)

    def _block(self, X: Array, last: bool) -> tuple[Array, Array]:
        if not X.shape[1]:
            return X, np.zeros((self.speakers, 0))
        E = separate_once(self.model, X)
        start, end = 0, X.shape[1] if last else self.hop + self.context
        if self._before is not None:
            E = E[list(best_order(self._before, E[:, : self.overlap]))]
            start = self.context
            meet = slice(start, start + len(self.ramp))
            E[:, meet] = self._before[:, meet] + self.ramp * (E[:, meet] - self._before[:, meet])
        self._before = None if last else E[:, self.hop :].copy()
        return X[:, start:end], E[:, start:end]


class CausalBlocks:
    """A causal separator as one endless stream: its state knows who is who."""

    def __init__(self, model: Any, channels: int) -> None:
        self.model, self.speakers, self.hop, self.late = model, int(model.speakers), int(model.hop), int(model.latency)
        with inference(model):
            self.state = model.init_state(1)
        self._held = np.zeros((channels, 0))  # less than a hop
        self._heard = np.zeros((channels, 0))  # whose estimates have not come out
        self._early = self.late  # samples to drop, so that the rest is aligned

    def push(self, X: Array) -> tuple[Array, Array]:
        self._held, self._heard = (np.concatenate([held, X], axis=1) for held in (self._held, self._heard))
        whole = self._held.shape[1] // self.hop * self.hop
        if not whole:
            return X[:, :0], np.zeros((self.speakers, 0))
        ready, self._held = self._held[:, :whole], self._held[:, whole:].copy()
        with inference(self.model):
            mono = torch.from_numpy(ready.mean(0, keepdims=True).astype(np.float32)).to(device_of(self.model))
            y, self.state = self.model.step(mono, self.state)
        drop = min(self._early, whole)
        self._early -= drop
        E = y[0].cpu().numpy().astype(np.float64)[:, drop:]
        out, self._heard = self._heard[:, : E.shape[1]], self._heard[:, E.shape[1] :]
        return out, E

    def finish(self) -> tuple[Array, Array]:
        """Silence follows, until everything pushed has come out."""
        left = self._heard.shape[1]
        X, E = self.push(np.zeros((len(self._held), self.late + self.hop - 1)))
        return X[:, :left], E[:, :left]


def separate_once(model: torch.nn.Module, X: Array) -> Array:
    """The model on the mean of the channels X (channels, n): float64 (speakers, n)."""
    mono = torch.from_numpy(X.mean(0, keepdims=True).astype(np.float32)).to(device_of(model))
    with inference(model):
        return model(mono)[0].cpu().numpy().astype(np.float64)


def joined(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    X, E = (np.concatenate(rows, axis=1) for rows in zip(*parts, strict=True))
    return X, E


# ---------------------------------------------------------------------------------------------------------- shares


class Shares:
    """What the estimates leave over goes to the speakers by their power at each time and frequency.

    Of speaker s in channel c: E_s + iSTFT(W_s STFT(X_c - ΣE)) with W_s = |E_s|² / Σ|E|², and an equal share for each
    where all are silent. Spectra have a square-root Hann window of 2 hop; everything comes out `hop` samples after it
    went in, and the first hop of all, which is before the signal, is dropped.
    """

    def __init__(self, speakers: int, channels: int, rate: int) -> None:
        self.speakers, self.channels = speakers, channels
        self.hop = max(1, round(SHARE_SECONDS * rate))
        self.window = np.sin(np.pi * np.arange(2 * self.hop) / (2 * self.hop))  # periodic: the squares add to 1
        self.high = self.hop // 2  # first bin of the upper octave: a quarter of the rate
        self.keep = np.exp(-self.hop / (SHARE_MEMORY_SECONDS * rate))
        rows = speakers + channels
        self._held = np.zeros((rows, self.hop))  # estimates, then channels
        self._tail = np.zeros((speakers, channels, self.hop))
        self._early = self.hop
        self._power = np.zeros(speakers)  # of the upper octave, running
        self._curve = np.zeros((speakers, 0))  # shares above the band, one a frame
        self._first = 0  # the frame that _curve begins with; frame t is centred on sample t hop

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
        rest = inputs - estimates.sum(0)  # (c, t, f)
        shared = np.fft.irfft(weights[:, None] * rest, n=2 * self.hop) * self.window  # (s, c, t, 2 hop)
        first, second = shared[..., : self.hop], shared[..., self.hop :]
        first[:, :, 0] += self._tail
        first[:, :, 1:] += second[:, :, :-1]
        self._tail = second[:, :, -1].copy()
        whole = halves[:, :-1].reshape(len(held), -1)
        voices = whole[: self.speakers, None] + first.reshape(self.speakers, self.channels, -1)
        drop = min(self._early, voices.shape[2])
        self._early -= drop
        return voices[:, :, drop:], whole[self.speakers :, drop:]

    def finish(self) -> tuple[Array, Array]:
        """Silence follows, until everything pushed has come out."""
        left = self._held.shape[1] - self._early
        voices, X = self.push(np.zeros((self.channels, 2 * self.hop)), np.zeros((self.speakers, 2 * self.hop)))
        return voices[:, :, :left], X[:, :left]

    def _extend(self, power: Array) -> None:
        """Shares of the frames of which `power` (s, t) is that of the upper octave."""
        curve = np.empty_like(power)
        for t in range(power.shape[1]):
            self._power = self.keep * self._power + (1 - self.keep) * power[:, t]
            curve[:, t] = (self._power + SILENCE) / (self._power.sum() + self.speakers * SILENCE)
        self._curve = np.concatenate([self._curve, curve], axis=1)

    def at(self, start: int, end: int, ratio: float) -> Array:
        """The shares (s, end - start) at output samples start ... end - 1, `ratio` model samples apart.

        Forgets what lies before them. Before the first frame and after the last, the nearest holds.
        """
        if not self._curve.shape[1] or end <= start:
            return np.full((self.speakers, max(0, end - start)), 1 / self.speakers)
        instants = np.arange(start, end) * (ratio / self.hop)  # in frames
        known = np.arange(self._first, self._first + self._curve.shape[1])
        shares = np.stack([np.interp(instants, known, row) for row in self._curve])
        past = int(np.clip(int(instants[-1]) - 1 - self._first, 0, self._curve.shape[1] - 1))
        self._curve, self._first = self._curve[:, past:], self._first + past
        return shares
