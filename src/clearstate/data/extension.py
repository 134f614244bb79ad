"""Training items for bandwidth extension: wide speech, and the same speech after a random low-pass and a lower rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from scipy import fft

from clearstate.audio.bandwidth import bandwidth
from clearstate.audio.io import read_audio
from clearstate.audio.level import db_to_gain
from clearstate.data.folders import audio_files
from clearstate.data.mixing import Generated, MixtureConfig, noise_crop, speech_crop
from clearstate.data.sources import Pool, Sources

TILTED = (2_000.0, 16_000.0)  # Hz
WHOLE, TRUSTED = 20_000.0, 0.75  # of a clip that ends below WHOLE Hz a codec has thinned out the top: this share counts
BEYOND = 1.15  # times half the narrow rate: what a wide clip must reach
VALID_RATES = (8000, 16_000, 24_000)  # Hz, to which held-out files are narrowed


@dataclass(frozen=True)
class ExtensionConfig:
    """How narrow recordings are made from wide ones."""

    seconds: float = 1.0
    rates: tuple[int, ...] = (8000, 11025, 12000, 16000, 22050, 24000, 32000)  # Hz, of the narrow signal
    cutoff: tuple[float, float] = (0.85, 1.0)  # of the filter, as a share of half the narrow rate
    level_dbfs: tuple[float, float] = (-20.0, 0.0)  # peak of the wide signal
    # Chance of another speed, which moves the spectrum: a codec's 20 kHz become 24 at 1.2. A slower voice ends lower.
    speed: float = 0.0
    speed_range: tuple[float, float] = (1.0, 1.2)
    corpora: dict[str, float] = field(default_factory=dict)  # weights by `Clip.source`; empty: as the pool draws
    tilt_db: tuple[float, float] = (0.0, 0.0)  # of the voice, from TILTED[0] to TILTED[1]: other microphones
    voiceless: float = 0.0  # chance of a noise instead of a voice: nothing is to be added to it
    voiceless_floor_db: float = -60.0  # below the noise: white noise that stands for nothing in the target


class ExtensionDataset(Generated):
    """Items are dicts: narrow and wide float32 (samples,), both at the rate of the sources and aligned, and info.

    `narrow` has been at `info["narrow_rate"]` and holds nothing above half of it; one gain is common to both. The
    filter's family is drawn too, for a network that has seen one filter learns to undo that filter. All have zero
    phase, so that the low band of both signals agrees sample by sample. The rate is drawn among those below what the
    voice reaches, because nothing can be learned above. Indices are as in `Generated`.
    """

    def __init__(
        self, sources: Sources, config: ExtensionConfig | None = None, seed: int = 0, items_per_epoch: int = 10_000
    ):
        self.config = config if config is not None else ExtensionConfig()
        super().__init__(sources, self.config.seconds, seed, items_per_epoch)
        self._rates = [rate for rate in self.config.rates if rate < self.rate]
        speech = sources.speech
        self._reach = {clip.key: trusted(clip.reach_hz) for clip in speech.clips if clip.reach_hz is not None}
        self.corpora = {name: of_corpus(speech, name) for name in self.config.corpora}
        if not self._rates:
            raise ValueError(
                f"no narrow rate of {self.config.rates} is below the sources' {self.rate} Hz: "
                "open them with sample_rate=48000"
            )

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        voiceless = rng.random() < self.config.voiceless
        wide, info = self._noise(rng) if voiceless else self._voice(rng)
        level = rng.uniform(*self.config.level_dbfs)
        wide = wide * np.float32(db_to_gain(level) / max(float(np.abs(wide).max()), 1e-6))
        reach = self.rate / 2 if voiceless else float(bandwidth(wide[None], self.rate)[0])
        rate = int(rng.choice([rate for rate in self._rates if rate * BEYOND <= 2 * reach] or [min(self._rates)]))
        cutoff = rate / 2 * rng.uniform(*self.config.cutoff)
        family = str(rng.choice(["brickwall", "chebyshev", "butterworth", "cosine"]))
        order = int(rng.integers(4, 12))
        narrow = narrowed(wide, self.rate, rate, cutoff, family, order)
        info |= {"narrow_rate": rate, "cutoff_hz": round(cutoff), "filter": family, "level_dbfs": round(level, 2)}
        if voiceless:
            floor = np.sqrt(np.square(narrow).mean()) * db_to_gain(self.config.voiceless_floor_db)
            wide = narrow + np.float32(floor) * rng.standard_normal(len(narrow), np.float32)
        return {"narrow": narrow, "wide": wide, "info": info}

    def _voice(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """A voice (n,), with an edge where its content ends: above is the noise of a converter or a codec's rest."""
        voice = MixtureConfig(speed=self.config.speed, speed_range=self.config.speed_range)
        pool = self.sources.speech
        if self.corpora:
            weights = np.array(list(self.config.corpora.values()))
            pool = list(self.corpora.values())[int(rng.choice(len(weights), p=weights / weights.sum()))]
        wide, info = speech_crop(rng, self.samples, pool, voice, self.rate)
        known = [self._reach[key] for key in info["speech"] if key in self._reach]
        if known and (reach := min(known) * info.get("speed", 1.0)) < 0.49 * self.rate:
            wide = narrowed(wide, self.rate, self.rate, reach)
        tilt = round(rng.uniform(*self.config.tilt_db), 1)
        return tilted(wide, self.rate, tilt), info | {"tilt_db": tilt}

    def _noise(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Hum, hiss or a recorded noise (n,), without voices."""
        noise, drawn = noise_crop(rng, self.samples, self.sources, MixtureConfig(babble=0.0), "")
        return noise, {"noises": drawn}


def trusted(reach_hz: float) -> float:
    """Up to where a clip whose content ends at `reach_hz` shows what a voice has there."""
    return reach_hz if reach_hz >= WHOLE else TRUSTED * reach_hz


def of_corpus(pool: Pool, name: str) -> Pool:
    """The clips of one corpus.

    Raises:
        ValueError: if there are none.
    """
    found = [(s, i) for (s, i), clip in zip(pool.where, pool.clips, strict=True) if clip.source == name]
    if not found:
        known = sorted({clip.source for clip in pool.clips})
        raise ValueError(f"no speech of the corpus {name!r}: expected one of {', '.join(known)}")
    return Pool(pool.sets, [[i for s, i in found if s == number] for number in range(len(pool.sets))])


class NarrowedFolder:
    """Whole wide files of a folder for validation, each narrowed to each of `rates` by the sinc resampler.

    Items are dicts: narrow and wide float32 (n,) at one rate and aligned, and info.
    """

    def __init__(self, folder: str | Path, sample_rate: int = 48_000, rates: tuple[int, ...] = VALID_RATES):
        self.rate, self.rates = sample_rate, rates
        self.files = sorted(audio_files(Path(folder)))
        if not self.files:
            raise FileNotFoundError(f"{folder} contains no audio: expected wide files at {sample_rate} Hz")

    def __len__(self) -> int:
        return len(self.files) * len(self.rates)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, turn = divmod(index, len(self.rates))
        path, rate = self.files[number], self.rates[turn]
        wide, file_rate = read_audio(path)
        if file_rate != self.rate:
            raise ValueError(f"{path} is at {file_rate} Hz: expected wide files at {self.rate} Hz")
        mono = wide[0].astype(np.float32)
        return {"narrow": resampled(mono, self.rate, rate), "wide": mono, "info": {"file": path, "narrow_rate": rate}}


def resampled(wide: np.ndarray, rate: int, narrow_rate: int) -> np.ndarray:
    """Resample to `narrow_rate` and back with soxr's HQ sinc: float32 (n,) at `rate`, aligned with `wide` (n,)."""
    back = soxr.resample(soxr.resample(wide, rate, narrow_rate), narrow_rate, rate)[: len(wide)]
    return np.pad(back, (0, len(wide) - len(back)))


def tilted(x: np.ndarray, rate: int, tilt_db: float) -> np.ndarray:
    """x (n,) with a level that rises by `tilt_db` from TILTED[0] to TILTED[1], evenly an octave. Zero phase."""
    if not tilt_db:
        return x
    size = fft.next_fast_len(len(x) + rate // 20, real=True)
    frequency = np.linspace(0, rate / 2, size // 2 + 1)
    share = np.log(np.maximum(frequency / TILTED[0], 1)) / np.log(TILTED[1] / TILTED[0])
    gain = (10 ** (tilt_db / 20 * np.minimum(share, 1))).astype(np.float32)
    return fft.irfft(fft.rfft(x, size) * gain, size)[: len(x)]


def narrowed(
    wide: np.ndarray, rate: int, narrow_rate: int, cutoff: float, family: str = "brickwall", order: int = 8
) -> np.ndarray:
    """Filter at `cutoff` Hz, resample to `narrow_rate` and back: float32 (n,) at `rate`, aligned with `wide` (n,)."""
    n = len(wide)
    pad = rate // 20  # so that filter ringing does not wrap around and rounded lengths do not cut the signal
    size = fft.next_fast_len(n + 2 * pad, real=True)
    spectrum = fft.rfft(np.pad(wide, (pad, size - n - pad)))
    frequency = np.linspace(0, rate / 2, len(spectrum))
    filtered = fft.irfft(spectrum * magnitude(frequency, cutoff, family, order).astype(np.float32), size)
    down = soxr.resample(filtered.astype(np.float32, copy=False), rate, narrow_rate)
    up = soxr.resample(down, narrow_rate, rate)
    return up[pad : pad + n]


def magnitude(frequency: np.ndarray, cutoff: float, family: str, order: int) -> np.ndarray:
    """|H(f)| of a low-pass with cut-off `cutoff` in Hz, by filter family."""
    x = frequency / cutoff
    if family == "brickwall":
        return (x <= 1).astype(np.float64)
    if family == "butterworth":
        return 1 / np.sqrt(1 + x ** (2 * order))
    if family == "chebyshev":  # type I, 0.5 dB of ripple
        polynomial = np.where(x <= 1, np.cos(order * np.arccos(np.minimum(x, 1))), 0) + np.where(
            x > 1, np.cosh(np.minimum(order * np.arccosh(np.maximum(x, 1)), 300)), 0
        )
        return 1 / np.sqrt(1 + (10**0.05 - 1) * polynomial**2)
    if family == "cosine":  # a windowed sinc: its transition band is a tenth of the cut-off wide
        return 0.5 + 0.5 * np.cos(np.pi * np.clip((x - 0.9) / 0.1, 0, 1))
    raise ValueError(f"filter family {family!r}: expected brickwall, butterworth, chebyshev or cosine")
