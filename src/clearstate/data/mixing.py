"""Training mixtures for enhancement: (noisy, clean) pairs, each a function of (seed, epoch, item) only.

    speech of one voice -> equaliser -> room (the target keeps the early reflections)
    noises              -> equaliser -> wandering gain -> scaled to the SNR
    both                -> band limits, resampling -> level, automatic level -> silent stretches, lost packets
    the mixture alone   -> overload, codec, offset

Damage that removes parts of the speech (band limits, lost packets, silence) is applied to the target, too, because an
enhancement model should not invent speech. The model must repair overload and codecs.

    dataset = MixtureDataset(open_sources("../shared/data"), MixtureConfig(), seed=0, items_per_epoch=10_000)
    loader = DataLoader(dataset, batch_size=8, sampler=dataset.order(epoch=3, start_item=1200), num_workers=2,
    collate_fn=collate)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from clearstate.audio.level import active_level, db_to_gain, frame_power, mean_power
from clearstate.data import effects, noises
from clearstate.data.shards import BrokenClipError
from clearstate.data.sources import Pool, Sources

SPEECH_DBFS = -25.0  # active level of a voice before it is mixed
_TRIPS = [8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000]  # Hz
_TRIP_WEIGHTS = [0.12, 0.06, 0.04, 0.12, 0.06, 0.06, 0.27, 0.27]


@dataclass(frozen=True)
class MixtureConfig:
    """Ranges are (low, high) and drawn uniformly; chances are per item, 0..1."""

    seconds: float = 3.0  # length of an item
    snr_db: tuple[float, float] = (-10.0, 20.0)  # active speech (including reverberation) over noise
    faint_noise: float = 0.03  # chance of an SNR above that range instead
    faint_noise_db: float = 32.0  # up to this
    level_dbfs: tuple[float, float] = (-40.0, 0.0)  # peak of the mixture
    noise_counts: tuple[float, ...] = (0.6, 0.3, 0.1)  # weights of one, two, three noises at once
    # weights of the kinds of noise
    recorded: float = 0.62
    babble: float = 0.12
    speech_shaped: float = 0.07
    coloured: float = 0.09
    synthetic: float = 0.10
    # special items
    clean_only: float = 0.09  # the target is the input
    noise_only: float = 0.03  # the target is silence
    # the voice
    start_inside: float = 0.5  # chance that the crop begins in mid-utterance
    pause_seconds: tuple[float, float] = (0.05, 0.7)  # between utterances
    least_speech: float = 0.2  # share of a crop that must not be pauses
    speed: float = 0.3  # chance of another speed, which also shifts pitch and formants: new voices
    speed_range: tuple[float, float] = (0.85, 1.2)
    voice_gain: float = 0.2  # the voice rises and falls, as acted or excited speech does
    voice_gain_db: float = 14.0  # by up to this
    # what happens to it
    room: float = 0.3
    synthetic_room: float = 0.4  # share of the rooms that are made up
    closeness_db: tuple[float, float] = (0.0, 9.0)  # early part raised over the late one
    early_ms: float = 50.0  # reflections the target keeps
    equaliser: float = 0.5  # of the speech, and of each noise
    tilt_db: float = 6.0
    noise_gain: float = 0.3  # noise level wanders
    noise_gain_db: float = 15.0  # by up to this
    resampling: float = 0.1  # a trip to another sampling rate and back, which limits the band too
    lowpass: float = 0.15  # half of them steep, half gentle
    lowpass_hz: tuple[float, float] = (3000.0, 7500.0)
    highpass: float = 0.15
    highpass_hz: tuple[float, float] = (50.0, 300.0)
    level_control: float = 0.05  # an automatic gain
    offset: float = 0.03  # of the zero line, up to a tenth of the peak
    clipping: float = 0.06  # hard, or one time in two soft
    clipping_db: tuple[float, float] = (1.0, 9.0)  # of the peak cut off
    codec: float = 0.06  # mu-law or coarse quantisation, or one time in six MP3 or Opus
    packet_loss: float = 0.03  # half of them concealed
    packet_loss_rate: tuple[float, float] = (0.02, 0.15)
    silence: float = 0.05  # a stretch of digital silence
    silence_seconds: tuple[float, float] = (0.1, 1.0)


class Generated:
    """A map-style dataset over all epochs: item i of epoch e is `dataset[e * items_per_epoch + i]`.

    Indices beyond the first epoch tell persistent workers the epoch, and let a run resume in the middle of an epoch:
    pass `order(epoch, start_item)` as the loader's sampler. For loaders that count from 0, `set_epoch` moves
    `dataset[0]` to another epoch. Each item depends only on (seed, epoch, item); see `redrawn`.
    """

    def __init__(self, sources: Sources, seconds: float, seed: int, items_per_epoch: int):
        self.sources, self.seed, self.items_per_epoch, self.epoch = sources, seed, items_per_epoch, 0
        self.rate = sources.rate
        self.samples = round(seconds * self.rate)

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.items_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Draw the items of this epoch from now on."""
        self.epoch = epoch

    def order(self, epoch: int, start_item: int = 0, rank: int = 0, world: int = 1) -> range:
        """Indices of what is left of an epoch, every `world`-th of them from `rank`: a sampler for a DataLoader."""
        first = epoch * self.items_per_epoch
        return range(first + start_item + rank, first + self.items_per_epoch, world)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise IndexError(f"item {index}: counted from 0, with items_per_epoch={self.items_per_epoch} to an epoch")
        epoch, item = divmod(index, self.items_per_epoch)
        return redrawn(self._draw, self.seed, epoch + self.epoch, item)


class MixtureDataset(Generated):
    """Items are dicts: noisy and clean, float32 (samples,), and `info`, the drawn values, ready for JSON."""

    def __init__(
        self, sources: Sources, config: MixtureConfig | None = None, seed: int = 0, items_per_epoch: int = 10_000
    ):
        self.config = config if config is not None else MixtureConfig()
        super().__init__(sources, self.config.seconds, seed, items_per_epoch)
        self.rooms = [
            effects.make_room(name, response, self.rate, self.config.early_ms) for name, response in sources.rooms
        ]

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        noisy, clean, info = mix(rng, self.samples, self.sources, self.rooms, self.config)
        return {"noisy": noisy, "clean": clean, "info": info}


def redrawn(draw: Callable[[np.random.Generator], dict[str, Any]], seed: int, epoch: int, item: int) -> dict[str, Any]:
    """Draw the item of (seed, epoch, item). If a file is damaged, draw again, with the same result on every worker.

    `info` receives seed, epoch and item, and the damaged files under `skipped`.
    Raises:
        RuntimeError: after ten broken files in a row.
    """
    skipped: list[str] = []
    for attempt in range(10):
        try:
            drawn = draw(np.random.default_rng([seed, epoch, item, attempt]))
        except BrokenClipError as error:
            skipped.append(str(error))
            continue
        drawn["info"] = {"seed": seed, "epoch": epoch, "item": item} | drawn["info"]
        if skipped:
            drawn["info"]["skipped"] = skipped
        return drawn
    raise RuntimeError(
        f"ten consecutive files are unreadable, the last: {skipped[-1]}; check that the corpus still exists"
    )


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: arrays of one shape stacked into tensors (b, ...), everything else as a list."""
    import torch

    batch: dict[str, Any] = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        batch[key] = torch.from_numpy(np.stack(values)) if isinstance(first, np.ndarray) else values
    return batch


def mix(
    rng: np.random.Generator, n: int, sources: Sources, rooms: Sequence[effects.Room], config: MixtureConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw one (noisy, clean, info): arrays (n,) float32, info fit for JSON."""
    rate = sources.rate
    kind = str(rng.choice(["mixture", "clean_only", "noise_only"], p=_item_weights(config)))
    image, info = speech_crop(rng, n, sources.speech, config, rate)  # image: the voice at the microphone
    voice = info["voice"]
    info = {"kind": kind} | ({} if kind == "noise_only" else info)
    if rng.random() < config.equaliser:
        image = effects.apply_sections(effects.random_equaliser(rng, rate, config.tilt_db), image)
    if rng.random() < config.voice_gain:
        image = image * effects.wandering_gain(rng, n, rate, config.voice_gain_db)
    clean = image
    if kind == "mixture" and rng.random() < config.room:
        made_up = not rooms or rng.random() < config.synthetic_room
        room = effects.synthetic_room(rng, rate) if made_up else rooms[int(rng.integers(len(rooms)))]
        closeness = rng.uniform(*config.closeness_db)
        image, clean = room.apply(image, closeness)
        info |= {"room": room.name, "closeness_db": round(closeness, 1)}

    if kind == "clean_only":
        noise = np.zeros(n, np.float32)
    else:
        noise, info["noises"] = noise_crop(rng, n, sources, config, voice)
    if kind == "noise_only":
        image = clean = np.zeros(n, np.float32)
    image, clean, noise, band = _band_limits(rng, rate, config, image, clean, noise)
    info |= band

    faint = rng.random() < config.faint_noise
    snr_range = (config.snr_db[1], config.faint_noise_db) if faint else config.snr_db
    noisy, snr_db = at_snr(image, noise, rng.uniform(*snr_range), rate)
    if kind == "mixture" and snr_db is not None:
        info["snr_db"] = round(snr_db, 2)
    level = rng.uniform(*config.level_dbfs)
    gain = np.float32(db_to_gain(level) / max(float(np.abs(noisy).max()), 1e-6))
    noisy, clean = noisy * gain, clean * gain
    info["level_dbfs"] = round(level, 2)
    if rng.random() < config.level_control:
        follow = effects.gain_control(noisy, rate, rng.uniform(0.3, 0.9), rng.uniform(0.2, 2.0))
        noisy, clean = noisy * follow, clean * follow
        info["level_control"] = True
    if kind == "mixture":
        noisy, damage = _damage(rng, noisy, rate, config)
        info |= damage
    noisy, clean, gaps = _gaps(rng, noisy, clean, rate, config)
    info |= gaps
    return noisy, (noisy if kind == "clean_only" else clean), info


def speech_crop(
    rng: np.random.Generator, n: int, pool: Pool, config: MixtureConfig, rate: int, first: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """n samples of one voice at about -25 dBFS: utterances of one level joined with pauses, the first often cut.

    A crop inside a pause of a long recording is drawn again, because its hiss would count as the voice.
    `first` is the number of the clip to begin with, drawn if None.
    """
    number = pool.draw(rng) if first is None else first
    for _ in range(6):
        crop, info = _utterances(rng, n, pool, config, rate, number)
        loud = frame_power(crop, rate) > 10 ** ((SPEECH_DBFS - 25) / 10)
        if loud.mean() >= config.least_speech:
            break
        number = pool.draw(rng) if first is None else int(rng.choice(pool.by_voice[info["voice"]]))
    return crop, info


def _utterances(
    rng: np.random.Generator, n: int, pool: Pool, config: MixtureConfig, rate: int, number: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Clips of one voice from clip `number` on, all at one speed, until n samples are full."""
    speed = float(np.round(rng.uniform(*config.speed_range), 2)) if rng.random() < config.speed else 1.0
    voice = pool.clips[number].voice
    others = pool.by_voice[voice]
    crop = np.zeros(n, np.float32)
    files: list[str] = []
    inside = rng.random() < config.start_inside
    position = 0 if inside else min(int(rng.uniform(0, 0.5) * rate), n // 4)
    while position < n - rate // 10:
        clip = pool.clips[number]
        start = _beginning(rng, clip.samples, round(n * speed), rate, inside)
        inside = False
        x = pool.read(number, start, math.ceil((n - position) * speed))
        if speed != 1:
            x = soxr.resample(x, speed, 1.0)[: n - position]
        x = x * np.float32(db_to_gain(SPEECH_DBFS - pool.level(number, x) + rng.uniform(-2, 2)))
        if start:  # 5 ms, so that the cut does not click
            fade = min(rate // 200, len(x))
            x[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
        crop[position : position + len(x)] = x
        files.append(clip.key)
        position += len(x) + int(np.exp(rng.uniform(*np.log(config.pause_seconds))) * rate)
        number = int(others[rng.integers(len(others))])
    info = {"voice": voice, "speech": files}
    return crop, info | ({} if speed == 1 else {"speed": speed})


def _beginning(rng: np.random.Generator, samples: int, n: int, rate: int, inside: bool) -> int:
    """Where in a clip to begin: anywhere in a long recording, at the beginning of an utterance unless `inside`."""
    if samples > 2 * n or (inside and samples > n):
        return int(rng.integers(samples - n + 1))
    return int(rng.integers(max(0, samples - rate // 2) + 1)) if inside else 0


def noise_crop(
    rng: np.random.Generator, n: int, sources: Sources, config: MixtureConfig, voice: str
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One to three noises at once, each 0-12 dB below the first, together at level 1, see `noises.Noise.level`."""
    names = ["recorded", "babble", "speech_shaped", "coloured", "synthetic"]
    weights = np.array([getattr(config, name) if name != "recorded" or len(sources.noise) else 0.0 for name in names])
    counts = np.array(config.noise_counts) / sum(config.noise_counts)
    steady, sparse = np.zeros(n, np.float32), np.zeros(n, np.float32)
    sparse_power = 0.0
    drawn: list[dict[str, Any]] = []
    for i in range(1 + int(rng.choice(len(counts), p=counts))):
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        for _ in range(4):  # draw again if the crop is digital silence
            noise = _draw_noise(rng, name, n, sources, voice)
            if noise.level(sources.rate) > 1e-5:
                break
        audio = noise.audio
        if rng.random() < config.equaliser:
            audio = effects.apply_sections(effects.random_equaliser(rng, sources.rate, config.tilt_db), audio)
        if rng.random() < config.noise_gain:
            audio = audio * effects.wandering_gain(rng, n, sources.rate, config.noise_gain_db)
        below = rng.uniform(0, 12) if i else 0.0
        level = noise._replace(audio=audio).level(sources.rate)
        if level > 1e-7:
            (sparse if noise.sparse else steady)[:] += audio * np.float32(db_to_gain(-below) / level)
            sparse_power += db_to_gain(-2 * below) if noise.sparse else 0.0
            drawn.append(noise.info | {"below_db": round(below, 1)})
    power = mean_power(steady) + sparse_power
    return (steady + sparse) / np.float32(np.sqrt(power) if power else 1.0), drawn


def _draw_noise(rng: np.random.Generator, name: str, n: int, sources: Sources, voice: str) -> noises.Noise:
    if name == "recorded":
        return noises.recorded(rng, n, sources.noise)
    if name == "babble":
        return noises.babble(rng, n, sources.speech, avoid=voice)
    if name == "speech_shaped":
        return noises.speech_shaped(rng, n, sources.speech, sources.rate)
    if name == "coloured":
        return noises.coloured(rng, n, sources.rate)
    return noises.synthetic(rng, n, sources.rate)


def at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float, rate: int) -> tuple[np.ndarray, float | None]:
    """speech + scaled noise, the active level of the speech `snr_db` above the noise's: (mixture, the SNR or None).

    The speech is measured over its 20 ms frames within 30 dB of the loudest; the noise is of level 1, as `noise_crop`
    leaves it: its RMS over the whole crop, sparse kinds counting by their loud frames. Where either is silent (a
    voice 35 dB below what `speech_crop` delivers) there is no SNR, and the sum is returned as it is.
    """
    speech_db = active_level(speech, rate)
    if speech_db < SPEECH_DBFS - 35 or not noise.any():
        return speech + noise, None
    return speech + noise * np.float32(db_to_gain(speech_db - snr_db)), snr_db


def _item_weights(config: MixtureConfig) -> list[float]:
    return [1 - config.clean_only - config.noise_only, config.clean_only, config.noise_only]


def _band_limits(
    rng: np.random.Generator, rate: int, config: MixtureConfig, image: np.ndarray, clean: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """The same filters and resampling for all three. Cut-offs are rounded so that the filters can be kept."""
    sections: list[np.ndarray] = []
    info: dict[str, Any] = {}
    if rng.random() < config.lowpass:
        cutoff = round(rng.uniform(*config.lowpass_hz) / 100) * 100
        if cutoff < rate / 2:
            steep = rng.random() < 0.5
            order = int(rng.integers(2, 9))
            sections.append(
                effects.lowpass_sections(cutoff, rate)
                if steep
                else effects.gentle_lowpass_sections(cutoff, order, rate)
            )
            info["lowpass_hz"] = cutoff
    if rng.random() < config.highpass:
        cutoff = round(rng.uniform(*config.highpass_hz) / 10) * 10
        sections.append(effects.highpass_sections(cutoff, rate))
        info["highpass_hz"] = cutoff
    trip = rng.random() < config.resampling
    if not sections and not trip:
        return image, clean, noise, info
    signals = np.stack([image, noise] if clean is image else [image, noise, clean])  # (k, n)
    if sections:
        signals = effects.apply_sections(np.concatenate(sections), signals)
    if trip:
        through = int(rng.choice(_TRIPS, p=_TRIP_WEIGHTS))
        quality = str(rng.choice(["LQ", "MQ", "HQ", "VHQ"]))
        signals = effects.resampled(signals.T, rate, through, quality).T
        info["resampled"] = [through, quality]
    image, noise, clean = (np.ascontiguousarray(signals[i]) for i in (0, 1, -1 if len(signals) == 3 else 0))
    return image, clean, noise, info


def _damage(
    rng: np.random.Generator, noisy: np.ndarray, rate: int, config: MixtureConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """Overload, codecs and an offset, on the mixture alone."""
    info: dict[str, Any] = {}
    if rng.random() < config.clipping:
        drive = rng.uniform(*config.clipping_db)
        soft = rng.random() < 0.5
        noisy = effects.saturate(noisy, drive - 6, rng.uniform(0, 0.5)) if soft else effects.clip(noisy, drive)
        info["saturation_db" if soft else "clipping_db"] = round(drive, 1)
    if rng.random() < config.codec:
        kind = str(rng.choice(["mu-law", "bits", "MP3", "OPUS"], p=[0.5, 0.33, 0.12, 0.05]))
        if kind == "mu-law":
            noisy = effects.mu_law(noisy)
        elif kind == "bits":
            bits = int(rng.integers(8, 13))
            noisy = effects.quantise(noisy, bits)
            kind = f"{bits} bits"
        else:
            noisy = effects.codec(noisy, rate, kind, rng.uniform(0.3, 0.97))
        info["codec"] = kind
    if rng.random() < config.offset:
        offset = rng.uniform(-0.1, 0.1) * float(np.abs(noisy).max())
        noisy = noisy + np.float32(offset)
        info["offset"] = round(offset, 4)
    return noisy, info


def _gaps(
    rng: np.random.Generator, noisy: np.ndarray, clean: np.ndarray, rate: int, config: MixtureConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Lost packets and stretches of digital silence, in the mixture and the target alike."""
    info: dict[str, Any] = {}
    n = len(noisy)
    if rng.random() < config.packet_loss:
        loss = rng.uniform(*config.packet_loss_rate)
        keep = effects.lost_packets(rng, n, rate, loss)
        concealed = rng.random() < 0.5
        noisy, clean = (effects.conceal(x, keep, rate) if concealed else x * keep for x in (noisy, clean))
        info["packet_loss"] = round(loss, 3)
        info["concealed"] = concealed
    if rng.random() < config.silence:
        length = min(n, int(rng.uniform(*config.silence_seconds) * rate))
        start = int(rng.integers(n - length + 1))
        quiet = np.ones(n, np.float32)
        quiet[start : start + length] = 0
        noisy, clean = noisy * quiet, clean * quiet
        info["silence"] = [start, start + length]
    return noisy, clean, info
