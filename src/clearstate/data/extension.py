"""Training items for bandwidth extension: wide speech, and the same speech after a random low-pass and a lower rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from scipy import fft

from clearstate.audio.io import read_audio
from clearstate.audio.level import db_to_gain
from clearstate.data.folders import audio_files
from clearstate.data.mixing import Generated, MixtureConfig, speech_crop
from clearstate.data.sources import Sources

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


class ExtensionDataset(Generated):
    """Items are dicts: narrow and wide float32 (samples,), both at the rate of the sources and aligned, and info.

    `narrow` has been at `info["narrow_rate"]` and holds nothing above half of it; one gain is common to both. The
    filter's family is drawn too, for a network that has seen one filter learns to undo that filter. All have zero
    phase, so that the low band of both signals agrees sample by sample. Indices are as in `Generated`.
    """

    def __init__(
        self, sources: Sources, config: ExtensionConfig | None = None, seed: int = 0, items_per_epoch: int = 10_000
    ):
        self.config = config if config is not None else ExtensionConfig()
        super().__init__(sources, self.config.seconds, seed, items_per_epoch)
        self._rates = [rate for rate in self.config.rates if rate < self.rate]
        if not self._rates:
            raise ValueError(
                f"no narrow rate of {self.config.rates} is below the sources' {self.rate} Hz: "
                "open them with sample_rate=48000"
            )

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        voice = MixtureConfig(speed=self.config.speed, speed_range=self.config.speed_range)
        wide, info = speech_crop(rng, self.samples, self.sources.speech, voice, self.rate)
        level = rng.uniform(*self.config.level_dbfs)
        wide = wide * np.float32(db_to_gain(level) / max(float(np.abs(wide).max()), 1e-6))
        rate = int(rng.choice(self._rates))
        cutoff = rate / 2 * rng.uniform(*self.config.cutoff)
        family = str(rng.choice(["brickwall", "chebyshev", "butterworth", "cosine"]))
        order = int(rng.integers(4, 12))
        narrow = narrowed(wide, self.rate, rate, cutoff, family, order)
        info |= {"narrow_rate": rate, "cutoff_hz": round(cutoff), "filter": family, "level_dbfs": round(level, 2)}
        return {"narrow": narrow, "wide": wide, "info": info}


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
