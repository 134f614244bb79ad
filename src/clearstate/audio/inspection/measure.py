"""Measure a recording of any length in one pass and in bounded memory."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.inspection.channels import Channels, Relation
from clearstate.audio.inspection.clipping import Clipping, Clips
from clearstate.audio.inspection.frames import Frames
from clearstate.audio.inspection.hum import Hum, HumFinder
from clearstate.audio.inspection.loudness import Loudness, TruePeak
from clearstate.audio.inspection.spectrum import LongTerm
from clearstate.audio.inspection.speech import Speech, SpeechFinder

Block = NDArray[np.float64]  # (channels, n)
Floats = NDArray[np.floating]

EXCERPT_SECONDS = 4.0
EXCERPTS = 8  # at least, of a long recording


class Measurement(NamedTuple):
    """What one pass over a recording gives."""

    samples: int  # per channel
    lufs: float  # integrated loudness; -inf for silence
    peak: float  # of the samples, full scale is 1
    true_peak: float  # between the samples
    bandwidth: float  # Hz: where the recording ends
    edge: float  # Hz: where its spectrum starts to fall; everything below is as recorded
    clipping: Clipping
    channels: Channels
    hum: Hum | None
    speech: Speech
    spectrum: Floats  # mean power by bin, from 0 Hz to half the rate
    spectrogram: Floats  # dB, (rows, columns)
    loudness: Floats  # power of windows of 400 ms after the K filter, every 100 ms
    excerpts: list[Floats]  # of one channel each


class Excerpts:
    """Keep parts from the whole signal, the loudest of each stretch: all of a short one, at least EXCERPTS of others.

    When there are twice as many, the quieter one of each two neighbours is dropped.
    """

    def __init__(self, rate: int, channels: int) -> None:
        self._length = max(1, round(EXCERPT_SECONDS * rate))
        self._held = np.zeros((channels, 0), dtype=np.float32)
        self._kept: dict[int, Floats] = {}  # stretch to the loudest part in it (channels, n)
        self._seen = 0
        self._size = 1  # parts per stretch

    def push(self, x: Block) -> None:
        """The next samples."""
        self._held = np.concatenate([self._held, x.astype(np.float32)], axis=1)
        while self._held.shape[1] >= self._length:
            self._keep(self._seen // self._size, self._held[:, : self._length].copy())
            self._held = self._held[:, self._length :].copy()
            self._seen += 1
            if len(self._kept) > 2 * EXCERPTS:
                before, self._kept, self._size = self._kept, {}, 2 * self._size
                for stretch, part in before.items():
                    self._keep(stretch // 2, part)

    def _keep(self, stretch: int, x: Floats) -> None:
        if stretch not in self._kept or np.square(x).sum() > np.square(self._kept[stretch]).sum():
            self._kept[stretch] = x

    def result(self) -> list[Floats]:
        """The parts of the loudest channel in order; a short signal is one part."""
        parts = list(self._kept.values())
        if self._size == 1:
            parts = [np.concatenate([*parts, self._held], axis=1)]
        powers = np.sum([np.square(part).sum(1) for part in parts], axis=0)
        return [part[int(np.argmax(powers))] for part in parts]


def measure(blocks: Iterable[Block], rate: int, channels: int) -> Measurement:
    """Measure a signal in blocks (channels, n)."""
    loudness, peaks, clips = Loudness(rate, channels), TruePeak(channels), Clips(channels)
    relation, hum, frames = Relation(channels), HumFinder(rate, channels), Frames(rate, channels)
    spectrum, speech, excerpts = LongTerm(rate), SpeechFinder(rate), Excerpts(rate, channels)

    def spectral(x: Block, last: bool = False) -> None:
        power = frames.push(x, last)
        spectrum.push(power)
        speech.push(power)
        hum.push(x, last)

    for block in blocks:
        for part in (loudness, peaks, clips, relation, excerpts):
            part.push(block)
        spectral(block)
    spectral(np.zeros((channels, 0)), last=True)
    return Measurement(
        relation.samples, loudness.integrated(), peaks.peak, peaks.true_peak, spectrum.bandwidth(), spectrum.edge(),
        clips.result(), relation.result(), hum.result(), speech.result(), spectrum.spectrum(), spectrum.spectrogram(),
        loudness.windows(), excerpts.result(),
    )  # fmt: skip
