"""Keep each voice in its own file, in recordings that are longer than a separator hears at a time.

A separator names its outputs anew for each block. Where neighbouring blocks overlap, sound shows the order
(`voices.py`), but not across a pause, and within a block it may give one voice to both outputs in turn. So the outputs
are judged once more when all of them are known: by utterance, which is what lies between two pauses.

    outputs ── utterances ── portrait of each output in each ── two groups of portraits ── an action for each utterance

A portrait is the mean cepstrum of the frames in which an output is the louder one, relative to the scatter of single
frames. Actions are the order of the outputs, or that both belong to one voice. All of this needs numbers for each
utterance only; the outputs wait in a temporary file.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.atomic import explained
from clearstate.tasks.timeline import FRAME_SECONDS, GAP_SECONDS, LEAST_SECONDS, runs, speech_level

Array = NDArray[Any]

MOST_SECONDS = 6.0  # of an utterance; a longer one is divided where it is quietest
FADE_SECONDS = 0.02  # between two actions, in the middle of the pause
WINDOW_SECONDS = 0.032  # of the spectra
BANDS, LOWEST, COEFFICIENTS = 40, 80.0, 19  # of the cepstrum: mel bands, Hz, and numbers without the level
LOUDER_DB = 6.0  # than the other output: a frame that counts for a portrait
QUIETER_DB = 25.0  # than the loud frames of an utterance: one that does not
LEAST_FRAMES, MOST_FRAMES = 6, 100  # of a portrait: below it is none; above it weighs no more
BEGINNINGS, ROUNDS = 8, 20  # of the search for two groups
KEEP, SWAP = np.eye(2), np.eye(2)[::-1]
ACTIONS = (KEEP, SWAP, np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 1.0]]))


@dataclass(frozen=True)
class Utterance:
    """What the outputs contain between two pauses."""

    start: int  # samples
    stop: int
    weights: Array  # (2,) frames of each portrait
    portraits: Array  # (2, COEFFICIENTS)
    scatter: Array  # (2, COEFFICIENTS), variance of single frames


class Estimates:
    """The two outputs of a separator, on the disk. Use it in a `with` statement.

    Args:
        rate: Hz.
    """

    def __init__(self, rate: int) -> None:
        self.rate, self.samples = rate, 0
        self._size = max(1, round(FRAME_SECONDS * rate))  # of a frame
        self._powers: list[Array] = []
        self._held = np.zeros((2, 0), np.float32)  # an incomplete frame
        self._file = tempfile.TemporaryFile(prefix="clearstate-")  # noqa: SIM115, closed by `__exit__`

    def __enter__(self) -> "Estimates":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, outputs: Array) -> None:
        """Store the next samples (2, n).

        Raises:
            OSError: in one line, if the folder for temporary files is full.
        """
        outputs = outputs.astype(np.float32)
        try:
            self._file.write(outputs.T.tobytes())
        except OSError as error:
            raise explained(error, tempfile.gettempdir()) from error
        self.samples += outputs.shape[1]
        held = np.concatenate([self._held, outputs], axis=1)
        whole = held.shape[1] // self._size * self._size
        self._powers.append(np.square(held[:, :whole]).reshape(2, -1, self._size).mean(2))
        self._held = held[:, whole:]

    def read(self, start: int, stop: int) -> Array:
        """The samples [start, stop) as (2, n)."""
        self._file.seek(start * 8)
        return np.frombuffer(self._file.read((stop - start) * 8), np.float32).reshape(-1, 2).T

    def utterances(self) -> list[Utterance]:
        """What lies between pauses, in order."""
        power = np.concatenate([np.zeros((2, 0)), *self._powers], axis=1).sum(0)
        level = 10 * np.log10(power + 1e-20)
        spoken = runs(level > speech_level(level), GAP_SECONDS / FRAME_SECONDS, LEAST_SECONDS / FRAME_SECONDS)
        pieces = (piece for start, stop in spoken for piece in divided(start, stop, power))
        return [self._utterance(start * self._size, stop * self._size) for start, stop in pieces]

    def _utterance(self, start: int, stop: int) -> Utterance:
        cepstra, levels = zip(*(cepstrum(output, self.rate) for output in self.read(start, stop)), strict=True)
        level = np.stack(levels)  # (2, t)
        audible = level > np.percentile(level.max(0), 95) - QUIETER_DB
        weights, means, scatter = np.zeros(2), np.zeros((2, COEFFICIENTS)), np.zeros((2, COEFFICIENTS))
        for i, frames in enumerate(cepstra):
            chosen = frames[audible[i] & (level[i] > level[1 - i] + LOUDER_DB)]
            if len(chosen) >= LEAST_FRAMES:
                weights[i], means[i], scatter[i] = len(chosen), chosen.mean(0), chosen.var(0)
        return Utterance(start, stop, weights, means, scatter)


@dataclass
class Kept:
    """The outputs of a separator with each voice in its own row, read in order.

    Like `blocks.Runner`, whose place it takes: what it returns was computed before.
    """

    estimates: Estimates
    channels: int  # of the input
    borders: Array  # (k,) samples at which the next action begins
    actions: Array  # (k + 1, 2, 2)
    delay: int = 0
    grid: int = 1
    _position: int = field(default=0, init=False)

    def push(self, X: Array) -> tuple[Array, Array]:
        """The input (channels, n) -> it and the outputs (2, n)."""
        start, stop = self._position, self._position + X.shape[1]
        self._position = stop
        outputs, fade = self.estimates.read(start, stop).astype(np.float64), round(FADE_SECONDS * self.estimates.rate)
        first, last = np.searchsorted(self.borders, [start - fade, stop + fade])
        gains = np.broadcast_to(self.actions[first], (X.shape[1], 2, 2))
        for k in range(first, last):
            rise = np.clip((np.arange(start, stop) - self.borders[k]) / fade + 0.5, 0, 1)[:, None, None]
            gains = gains + rise * (self.actions[k + 1] - self.actions[k])
        return X, np.einsum("nij,jn->in", gains, outputs)

    def finish(self) -> tuple[Array, Array]:
        """Nothing remains."""
        return np.zeros((self.channels, 0)), np.zeros((2, 0))


def keep(estimates: Estimates, channels: int) -> Kept:
    """Choose an action for each utterance, for an input of some channels."""
    found = estimates.utterances()
    actions = [ACTIONS[i] for i in choose(found)] or [KEEP]
    borders = [(one.stop + two.start) // 2 for one, two in pairwise(found)]
    return Kept(estimates, channels, np.array(borders, int), np.stack(actions))


def choose(found: list[Utterance]) -> list[int]:
    """The index of the action for each utterance.

    The portraits are divided into two groups (k-means, weighted by their frames), one for each voice. An utterance
    takes the action that brings its portraits nearest to their group.
    """
    weights = np.array([one.weights for one in found]).reshape(-1, 2)
    if np.count_nonzero(weights) < 3:
        return [0] * len(found)
    scatter = sum((one.weights[:, None] * one.scatter).sum(0) for one in found) / weights.sum()
    portraits = np.array([one.portraits for one in found]) / np.sqrt(scatter + 1e-6)  # (u, 2, COEFFICIENTS)
    weights = np.minimum(weights, MOST_FRAMES)
    centres = two_groups(portraits.reshape(-1, COEFFICIENTS), weights.reshape(-1))
    far = weights[:, :, None] * np.square(portraits[:, :, None] - centres).sum(3)  # (u, output, voice)
    kept, swapped = far[:, 0, 0] + far[:, 1, 1], far[:, 0, 1] + far[:, 1, 0]
    if np.minimum(kept, far[:, :, 0].sum(1)).sum() > np.minimum(swapped, far[:, :, 1].sum(1)).sum():
        far, kept, swapped = far[:, :, ::-1], swapped, kept  # which voice is the first one: the one that mostly was
    costs = np.stack([kept, swapped, far[:, :, 0].sum(1), far[:, :, 1].sum(1)])
    return [int(i) for i in costs.argmin(0)]


def two_groups(points: Array, weights: Array) -> Array:
    """The centres (2, d) of two groups of points (n, d) with the least weighted squared distance from them."""
    rng, best, least = np.random.default_rng(0), points[:2], np.inf
    for _ in range(BEGINNINGS):
        centres = points[rng.choice(len(points), 2, replace=False, p=weights / weights.sum())]
        for _ in range(ROUNDS):
            nearest = np.square(points[:, None] - centres).sum(2).argmin(1)
            for j in range(2):
                if (share := weights * (nearest == j)).any():
                    centres[j] = share @ points / share.sum()
        if (cost := float(weights @ np.square(points[:, None] - centres).sum(2).min(1))) < least:
            best, least = centres, cost
    return best


def divided(start: int, stop: int, power: Array) -> Iterable[tuple[int, int]]:
    """A run of frames in pieces of at most MOST_SECONDS, divided at the quietest frame of their middle third."""
    if (stop - start) * FRAME_SECONDS <= MOST_SECONDS:
        return [(start, stop)]
    third = (stop - start) // 3
    middle = start + third + int(power[start + third : stop - third].argmin())
    return [*divided(start, middle, power), *divided(middle, stop, power)]


def cepstrum(x: Array, rate: int) -> tuple[Array, Array]:
    """Cepstra (t, COEFFICIENTS) and levels in dB (t,) of a signal (n,), in windows that overlap by half."""
    size = max(2, round(WINDOW_SECONDS * rate) // 2 * 2)
    x = np.pad(x, (0, max(0, size - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, size)[:: size // 2] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2
    bands = np.log(power @ mel_bands(size, rate) + 1e-9)
    k, at = np.arange(1, COEFFICIENTS + 1)[:, None], np.arange(BANDS) + 0.5
    transform = np.cos(np.pi / BANDS * k * at) / np.sqrt(BANDS / 2)
    return (bands - bands.mean(1, keepdims=True)) @ transform.T, 10 * np.log10(power.sum(1) + 1e-20)


def mel_bands(size: int, rate: int) -> Array:
    """Triangular bands on the mel scale: (bins, BANDS)."""
    lowest, highest = (2595 * np.log10(1 + f / 700) for f in (LOWEST, 0.475 * rate))
    mel = np.linspace(lowest, highest, BANDS + 2)
    low, middle, high = (700 * (10 ** (mel[i : i + BANDS] / 2595) - 1) for i in range(3))
    bins = np.fft.rfftfreq(size, 1 / rate)[:, None]
    return np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
