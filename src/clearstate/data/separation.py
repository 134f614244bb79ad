"""Training items for separation: mixtures of voices with their sources, generated or from published corpora."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clearstate.audio.level import active_level, db_to_gain
from clearstate.audio.paths import why_no_file
from clearstate.data.corpora import Mixture
from clearstate.data.effects import Room, apply_sections, make_room, random_equaliser, synthetic_room
from clearstate.data.folders import audio_files, read_crop, scan
from clearstate.data.mixing import Generated, MixtureConfig, at_snr, noise_crop, redrawn, speech_crop
from clearstate.data.pitch import median_pitch
from clearstate.data.sources import Pool, Sources, vctk_speaker

NEAR_OF = 4  # number of candidates for the nearest voice


@dataclass(frozen=True)
class SeparationConfig:
    """Ranges are (low, high) and drawn uniformly; chances are per item, 0..1."""

    speakers: int = 2
    seconds: float = 4.0
    level_db: tuple[float, float] = (-5.0, 5.0)  # active level of each further voice relative to the first
    overlap: tuple[float, float] = (0.0, 1.0)  # share of a voice's stretch that it shares with the next one's
    full_overlap: float = 0.5  # chance that all of them speak throughout instead
    alone: float = 0.0  # chance of one voice and silence for the others
    speed: float = 0.3  # chance of another speed per voice: new voices
    near: float = 0.0  # chance that further voices are the nearest in pitch of four candidates: hard mixtures
    equaliser: float = 0.0  # chance of another microphone, for each voice; 0.5 where speakers are few
    unlabelled: float = 0.0  # chance that one of the voices, no more, is of a corpus without labels, if there is one
    level_dbfs: tuple[float, float] = (-30.0, -1.0)  # peak of the mixture
    room: float = 0.0  # chance that all voices are in rooms; their reverberation stays theirs
    noise: float = 0.0  # chance of background noise
    snr_db: tuple[float, float] = (0.0, 20.0)  # all voices over the noise


class SeparationDataset(Generated):
    """Items are dicts: mixture float32 (samples,), sources float32 (speakers, samples), info fit for JSON.

    The mixture is the sum of the sources, plus optional noise. The voices of an item are always different speakers. So
    at most one of them is from a corpus without speaker labels (`config.unlabelled`; such a corpus must share no
    speaker with the labelled ones). Empty sources (`config.alone`) are zeros and come last. Indices are as in
    `Generated`.

    Raises:
        ValueError: if the speech has fewer labelled speakers than a mixture needs.
    """

    def __init__(
        self,
        sources: Sources,
        config: SeparationConfig | None = None,
        seed: int = 0,
        items_per_epoch: int = 10_000,
    ):
        self.config = config if config is not None else SeparationConfig()
        super().__init__(sources, self.config.seconds, seed, items_per_epoch)
        self.speech = having(sources.speech, labels=True)
        self.unlabelled = having(sources.speech, labels=False)
        self.rooms = [make_room(name, response, self.rate) for name, response in sources.rooms]
        if len(self.speech.by_voice) < self.config.speakers:
            raise ValueError(
                f"mixtures of {self.config.speakers} voices need as many labelled speakers, and the speech has "
                f"{len(self.speech.by_voice)}: add a corpus with one folder a speaker"
            )

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        config = self.config
        voices, info = self._voices(rng)
        mixture = voices.sum(axis=0)
        if rng.random() < config.noise:
            noise, info["noises"] = noise_crop(rng, self.samples, self.sources, MixtureConfig(babble=0.0), "")
            mixture, snr_db = at_snr(mixture, noise, rng.uniform(*config.snr_db), self.rate)
            info["snr_db"] = None if snr_db is None else round(snr_db, 2)
        peak_db = rng.uniform(*config.level_dbfs)
        gain = np.float32(db_to_gain(peak_db) / max(float(np.abs(mixture).max()), 1e-6))
        return {"mixture": mixture * gain, "sources": voices * gain, "info": info | {"level_dbfs": round(peak_db, 2)}}

    def _voices(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """The voices (k, n) before anything is done about noise and level, and who they are."""
        config, n, k = self.config, self.samples, self.config.speakers
        overlap = 1.0 if rng.random() < config.full_overlap else float(rng.uniform(*config.overlap))
        # k stretches of one length, each starting (1 - overlap) of a length after the one before, fill the item.
        stretch = min(n, round(n / (1 + (1 - overlap) * (k - 1))))
        starts = [round(i * (n - stretch) / max(1, k - 1)) for i in range(k)]
        rng.shuffle(starts)
        if rng.random() < config.alone:
            overlap, stretch, starts = 0.0, n, [0]
        stranger = int(rng.integers(k)) if len(self.unlabelled) and rng.random() < config.unlabelled else None
        near = rng.random() < config.near
        indoors = rng.random() < config.room
        voices = np.zeros((k, n), np.float32)
        who: list[dict[str, Any]] = []
        first: np.ndarray | None = None
        for i, start in enumerate(starts):
            if near and first is not None:
                choice = [self._voice(rng, stretch, who, i == stranger) for _ in range(NEAR_OF)]
                crop, drawn = nearest(first, choice, self.rate)
            else:
                crop, drawn = self._voice(rng, stretch, who, i == stranger)
            first = crop if first is None else first
            if rng.random() < config.equaliser:
                crop = apply_sections(random_equaliser(rng, self.rate, MixtureConfig.tilt_db), crop)
            if indoors:
                crop = self._room(rng).apply(crop, rng.uniform(*MixtureConfig.closeness_db))[0]
            relative = float(rng.uniform(*config.level_db)) if i else 0.0
            level = active_level(crop, self.rate)
            if np.isfinite(level):
                voices[i, start : start + stretch] = crop * np.float32(db_to_gain(relative - level))
            who.append(drawn | {"level_db": round(relative, 2), "start": start})
        return voices, {"voices": who, "overlap": round(overlap, 3)}

    def _room(self, rng: np.random.Generator) -> Room:
        """A measured room, or one that is made up."""
        made_up = not self.rooms or rng.random() < MixtureConfig.synthetic_room
        return synthetic_room(rng, self.rate) if made_up else self.rooms[int(rng.integers(len(self.rooms)))]

    def _voice(
        self, rng: np.random.Generator, n: int, who: list[dict[str, Any]], stranger: bool
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A crop of a speaker who is not in the item yet."""
        if stranger:
            pool, number = self.unlabelled, None
        else:
            pool, number = self.speech, self._another(rng, {person(row["voice"]) for row in who})
        return speech_crop(rng, n, pool, MixtureConfig(speed=self.config.speed), self.rate, number)

    def _another(self, rng: np.random.Generator, people: set[str]) -> int:
        """A labelled clip of any corpus by a speaker who is not one of `people`."""
        for _ in range(20):  # by the pool's weights as a rule
            number = self.speech.draw(rng)
            if person(self.speech.clips[number].voice) not in people:
                return number
        # If one voice has nearly all the speech, choose any other.
        others = [voice for voice in self.speech.by_voice if person(voice) not in people]
        return int(rng.choice(self.speech.by_voice[others[int(rng.integers(len(others)))]]))


class MixtureFolder:
    """Published mixtures, or sums of folders of voices: dicts of mixture, sources (k, samples), name, info.

    Args:
        mixtures: from `Corpus.mixtures(split)` or `mixtures_of(folders)`.
        sample_rate: Hz.
        seconds: crops of this length, drawn anew each epoch (indices as in `Generated`); None for whole files.
    """

    def __init__(self, mixtures: Sequence[Mixture], sample_rate: int, seconds: float | None = None, seed: int = 0):
        self.mixtures, self.rate, self.seed = list(mixtures), sample_rate, seed
        self.samples = None if seconds is None else round(seconds * sample_rate)
        self._headers = scan([mixture.sources[0] for mixture in self.mixtures], "mixtures")

    def __len__(self) -> int:
        return len(self.mixtures)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, item = divmod(index, len(self))
        # In training, the next mixture replaces an unreadable one.
        turns = iter(range(item, item + 10) if self.samples is not None else [item] * 10)

        def draw(rng: np.random.Generator) -> dict[str, Any]:
            number = next(turns) % len(self)
            mixture, (frames, native) = self.mixtures[number], self._headers[number]
            length = frames * self.rate // native
            take = length if self.samples is None else min(self.samples, length)
            start = int(rng.integers(length - take + 1))
            parts = [read_crop(path, native, self.rate, start, take) for path in mixture.sources]
            sources = np.pad(np.stack(parts), ((0, 0), (0, 0 if self.samples is None else self.samples - take)))
            mixed = sources.sum(axis=0)
            if mixture.mixture is not None:  # it may contain noise
                mixed = np.pad(read_crop(mixture.mixture, native, self.rate, start, take), (0, len(mixed) - take))
            name = mixture.sources[0].stem
            return {"mixture": mixed, "sources": sources, "name": name, "info": {"name": name, "start": start}}

        return redrawn(draw, self.seed, epoch, item)


def mixtures_of(*folders: str | Path) -> list[Mixture]:
    """Mixtures of folders s1, s2, ... whose files have the same names; the mixture is their sum.

    Raises:
        FileNotFoundError: if a file of the first folder is missing in another.
    """
    first, *rest = map(Path, folders)
    listed = []
    for path in audio_files(first):
        sources = (path, *(folder / path.relative_to(first) for folder in rest))
        for source in sources:
            if not os.path.lexists(source):
                raise FileNotFoundError(f"{source} is missing: every folder of voices must have the same file names")
        if unusable := [f"{source} {reason}" for source in sources if (reason := why_no_file(source))]:
            warnings.warn(f"a mixture is skipped: {'; '.join(unusable)}")
        else:
            listed.append(Mixture(None, sources))
    return listed


def nearest(
    voice: np.ndarray, choice: Sequence[tuple[np.ndarray, dict[str, Any]]], rate: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """The candidate with the smallest pitch ratio to `voice`; the first if no pitch is known."""
    pitch = median_pitch(voice, rate)

    def distance(crop: np.ndarray) -> float:
        other = median_pitch(crop, rate)
        return np.inf if pitch is None or other is None else abs(np.log(other / pitch))

    return min(choice, key=lambda drawn: distance(drawn[0]))


def having(pool: Pool, labels: bool) -> Pool:
    """The clips of a pool with known speakers (`labels`), or those without."""
    keep: list[list[int]] = [[] for _ in pool.sets]
    for (s, i), clip in zip(pool.where, pool.clips, strict=True):
        if clip.labelled == labels:
            keep[s].append(i)
    return Pool(pool.sets, keep)


def person(voice: str) -> str:
    """One name for a speaker in several corpora: p226 of VCTK is p226 of VoiceBank."""
    return vctk_speaker(voice) or voice
