"""Noises to mix with speech: recordings, babble and speech-shaped noise from speech, and synthetic noises.

Synthetic are tones, hums, fans, wind, clicks, typing and music.

Levels are arbitrary: the mixture scales each noise by its `level`. This is the RMS or, for sparse kinds (clicks,
beeps), the RMS of the loud frames, because the mean over pauses is too low.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import fft, signal

from clearstate.audio.level import active_level, db_to_gain, mean_power
from clearstate.data.sources import Pool


class Noise(NamedTuple):
    """A noise with the length of its item."""

    audio: np.ndarray  # (n,) float32
    info: dict[str, Any]
    sparse: bool = False

    def level(self, rate: int) -> float:
        """RMS (of the loud frames if sparse)."""
        if self.sparse:
            return db_to_gain(active_level(self.audio, rate))
        return math.sqrt(mean_power(self.audio))


def recorded(rng: np.random.Generator, n: int, pool: Pool) -> Noise:
    """A crop of a recorded noise, sometimes at another speed; short recordings are repeated with cross-fades."""
    number = pool.draw(rng)
    clip = pool.clips[number]
    speed = float(np.exp(rng.uniform(np.log(0.8), np.log(1.25)))) if rng.random() < 0.3 else 1.0
    need = int(np.ceil(n * speed)) + 2
    start = int(rng.integers(max(1, clip.samples - need + 1)))
    x = pool.read(number, start, need)
    if len(x) < need:
        x = repeat(x, need, fade=min(800, len(x) // 4))
        x = np.roll(x, int(rng.integers(need)))
    if speed != 1.0:
        # Linear interpolation attenuates the top octave slightly, which does not matter for noise.
        x = np.interp(np.arange(n) * speed, np.arange(len(x)), x).astype(np.float32)
    info = {"kind": "recorded", "file": clip.key, "group": clip.owner, "start": start, "speed": round(speed, 3)}
    return Noise(x[:n], info)


def repeat(x: np.ndarray, n: int, fade: int) -> np.ndarray:
    """Repeat `x` to n samples, with its end cross-faded into its start over `fade` samples."""
    if fade:
        up = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))  # equal power: the two ends are unrelated
        x = np.concatenate([x[:fade] * up + x[-fade:] * up[::-1], x[fade:-fade]])
    return np.tile(x, -(-n // len(x)))[:n]


def babble(rng: np.random.Generator, n: int, speech: Pool, avoid: str, talkers: tuple[int, int] = (3, 24)) -> Noise:
    """Several voices at once, a few more often than many; not the voice `avoid`, unless it is the only one.

    Short clips are repeated.
    """
    count = int(np.exp(rng.uniform(np.log(talkers[0]), np.log(talkers[1] + 1))))
    total = np.zeros(n, np.float32)
    voices: list[str] = []
    for _ in range(4 * count):
        number = speech.draw(rng)
        clip = speech.clips[number]
        if clip.voice in voices or (clip.voice == avoid and len(speech.by_voice) > 1):
            continue
        x = speech.read(number, int(rng.integers(max(1, clip.samples - n + 1))), n)
        level = speech.level(number, x)
        if len(x) < n:
            x = np.roll(repeat(x, n, 0), int(rng.integers(n)))
        total += x * np.float32(db_to_gain(rng.uniform(-6, 6) - level))
        voices.append(clip.voice)
        if len(voices) == count:
            break
    return Noise(total, {"kind": "babble", "voices": voices})


def speech_shaped(rng: np.random.Generator, n: int, speech: Pool, rate: int) -> Noise:
    """Stationary noise with the long-term spectrum of a random part of a speech recording."""
    number = speech.draw(rng)
    clip = speech.clips[number]
    x = speech.read(number, int(rng.integers(max(1, clip.samples - 4 * rate + 1))), 4 * rate)
    size = 512
    if len(x) < size:
        x = np.pad(x, (0, size - len(x)))
    frames = x[: len(x) // size * size].reshape(-1, size) * np.hanning(size).astype(np.float32)
    magnitude = np.sqrt((np.abs(fft.rfft(frames, axis=-1)) ** 2).mean(axis=0))  # (size / 2 + 1,)
    return Noise(
        shaped(rng, n, np.linspace(0, 1, len(magnitude)), magnitude), {"kind": "speech_shaped", "file": clip.key}
    )


def coloured(rng: np.random.Generator, n: int, rate: int) -> Noise:
    """Noise with power proportional to f^-beta, white (0), pink (1) to brown (2), flat below 40 Hz."""
    beta = float(rng.choice([0.0, 1.0, 2.0])) if rng.random() < 0.3 else float(rng.uniform(-0.5, 2.0))
    frequency = np.linspace(0, 1, 513)
    magnitude = np.maximum(frequency, 80 / rate) ** (-beta / 2)
    return Noise(shaped(rng, n, frequency, magnitude), {"kind": "coloured", "beta": round(beta, 2)})


def shaped(rng: np.random.Generator, n: int, frequency: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Gaussian noise (n,) with the given magnitude over frequency (0..1 of half the sampling rate)."""
    size = fft.next_fast_len(n, real=True)
    spectrum = fft.rfft(rng.standard_normal(size, dtype=np.float32))
    spectrum *= np.interp(np.linspace(0, 1, len(spectrum)), frequency, magnitude).astype(np.float32)
    return fft.irfft(spectrum, size)[:n]


def synthetic(rng: np.random.Generator, n: int, rate: int) -> Noise:
    """One of: mains hum, a fan, wind, a steady or gated tone, a siren, clicks, typing, machine noise, music."""
    kind = str(rng.choice(list(_KINDS)))
    sparse = kind in ("beeps", "clicks", "typing")
    return Noise(_KINDS[kind](rng, n, rate).astype(np.float32, copy=False), {"kind": kind}, sparse)


def _oscillator(n: int, rate: int, frequency: float) -> np.ndarray:
    return np.exp(2j * np.pi * frequency / rate * np.arange(n)).astype(np.complex64)


def _hum(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    mains = float(rng.choice([50.0, 60.0])) * rng.uniform(0.998, 1.002)
    turn = _oscillator(n, rate, mains)
    harmonics = int(rng.integers(2, 20))
    decay = rng.uniform(0.3, 1.5)
    total, power = np.zeros(n, np.float32), np.ones(n, np.complex64)
    for h in range(1, harmonics + 1):
        power = power * turn  # the h-th harmonic by a multiplication, without a cosine
        amplitude = h**-decay * rng.uniform(0.1, 1) * (0.3 if h % 2 == 0 else 1)  # rectifiers favour odd harmonics
        total += np.real(power * np.complex64(amplitude * np.exp(2j * np.pi * rng.random())))
    return total + np.float32(0.02) * rng.standard_normal(n, dtype=np.float32)


def _beeps(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    frequency = float(np.exp(rng.uniform(np.log(200), np.log(0.45 * rate))))
    tone = np.real(_oscillator(n, rate, frequency))
    if rng.random() < 0.5:
        tone = tone + rng.uniform(0.1, 0.7) * np.real(_oscillator(n, rate, min(2 * frequency, 0.48 * rate)))
    if rng.random() < 0.3:
        return tone  # steady
    period, duty = rng.uniform(0.15, 1.5) * rate, rng.uniform(0.1, 0.8)
    phase = (np.arange(n) + rng.uniform(0, period)) % period
    ramp = 0.003 * rate
    return tone * np.clip(np.minimum(phase, duty * period - phase) / ramp, 0, 1)


def _siren(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    low, high = np.sort(np.exp(rng.uniform(np.log(200), np.log(0.4 * rate), 2)))
    speed = rng.uniform(0.1, 4.0)  # Hz
    frequency = low + (high - low) * (0.5 + 0.5 * np.sin(2 * np.pi * (speed * np.arange(n) / rate + rng.random())))
    return np.sin(2 * np.pi * np.cumsum(frequency) / rate)


def _clicks(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    count = max(1, int(rng.poisson(rng.uniform(1, 15) * n / rate)))
    impulses = np.zeros(n, np.float32)
    impulses[rng.integers(n, size=count)] = rng.standard_normal(count) * np.exp(rng.uniform(-2, 0, count))
    length = int(np.exp(rng.uniform(np.log(0.001), np.log(0.04))) * rate)
    body = rng.standard_normal(length, dtype=np.float32) * np.exp(-np.linspace(0, 5, length, dtype=np.float32))
    return signal.oaconvolve(impulses, body)[:n]


def _machine(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    carrier = coloured(rng, n, rate).audio
    rhythm = 0.5 + 0.5 * np.real(
        _oscillator(n, rate, rng.uniform(2, 40)) * np.complex64(np.exp(2j * np.pi * rng.random()))
    )
    depth = rng.uniform(0.4, 1.0)
    return carrier * (1 - depth + depth * np.maximum(rhythm, 0.0) ** rng.uniform(1, 6))


def _fan(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Harmonics of a drifting speed, and air noise."""
    knots = rng.standard_normal(4 + n // rate) * rng.uniform(0, 0.03)
    speed = rng.uniform(40, 400) * (1 + np.interp(np.arange(n), np.linspace(0, n, len(knots)), knots))
    turn = np.exp(2j * np.pi * np.cumsum(speed) / rate).astype(np.complex64)
    decay, total, power = rng.uniform(0.5, 2), np.zeros(n, np.float32), np.ones(n, np.complex64)
    for h in range(1, min(20, int(0.4 * rate / speed.max())) + 1):
        power = power * turn
        total += np.real(power * np.complex64(h**-decay * rng.uniform(0.1, 1) * np.exp(2j * np.pi * rng.random())))
    return total / total.std() + np.float32(db_to_gain(rng.uniform(-12, 12))) * _unit(coloured(rng, n, rate).audio)


def _wind(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Rumble in gusts that falls steeply above about 100 Hz."""
    frequency = np.linspace(0, 1, 513) * rate / 2
    corner, slope = rng.uniform(60, 400), rng.uniform(1.0, 2.5)
    air = shaped(rng, n, frequency * 2 / rate, (1 + (frequency / corner) ** 2) ** (-slope / 2))
    knots = rng.standard_normal(3 + int(n / rate * rng.uniform(1, 8))) * rng.uniform(2, 10)  # dB
    return air * 10 ** (np.interp(np.arange(n), np.linspace(0, n, len(knots)), knots) / 20)


def _typing(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Key presses and softer releases, each a knock and a click, with pauses."""
    length = rate // 20
    time = np.arange(length) / rate
    hits, total = [], np.zeros(n + length, np.float32)
    tones = rng.uniform([150, 1200], [500, 4500])
    for _ in range(4):
        knock, click = (np.sin(2 * np.pi * f * rng.uniform(0.8, 1.2) * time + rng.uniform(0, 6)) for f in tones)
        noise = rng.standard_normal(length)
        hit = 0.5 * knock * np.exp(-time / 0.012) + (0.4 * click + noise) * np.exp(-time / rng.uniform(0.001, 0.006))
        hits.append(hit.astype(np.float32))
    pace, at = rng.uniform(0.08, 0.3), rng.uniform(0, 0.3)  # s
    while at * rate < n:
        for delay, softer in ((0.0, 1.0), (rng.uniform(0.05, 0.12), rng.uniform(0.2, 0.7))):
            start = int((at + delay) * rate)
            if start < n:
                total[start : start + length] += hits[int(rng.integers(4))] * np.float32(softer * rng.uniform(0.5, 1))
        at += pace * rng.uniform(0.5, 1.6) if rng.random() > 0.06 else rng.uniform(0.5, 1.5)
    return total[:n]


def _music(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Chords of a major or minor scale, struck or held, with or without drums."""
    beat = int(rng.uniform(0.25, 0.8) * rate)
    scale = np.array([0, 2, 4, 5, 7, 9, 11]) if rng.random() < 0.5 else np.array([0, 2, 3, 5, 7, 8, 10])
    key, held, bright = rng.uniform(90, 250), rng.random() < 0.4, rng.uniform(0.8, 2.5)
    time = np.arange(2 * beat) / rate
    shape = np.minimum(time / 0.01, 1) * (
        np.clip(4 * (1 - time / time[-1]), 0, 1) if held else np.exp(-time / rng.uniform(0.1, 0.6))
    )
    total = np.zeros(n + 2 * beat, np.float32)
    for start in range(0, n, beat):
        root = int(rng.integers(7))
        for step in (0, 2, 4, int(rng.integers(7)) + 7):
            degree = root + step
            pitch = key * 2 ** ((scale[degree % 7] + 12 * (degree // 7)) / 12)
            turn, power = _oscillator(2 * beat, rate, pitch), np.ones(2 * beat, np.complex64)
            for h in range(1, min(8, int(0.45 * rate / pitch)) + 1):
                power = power * turn
                total[start : start + 2 * beat] += (h**-bright * shape * power.imag).astype(np.float32)
        if rng.random() < 0.3:
            drum = rng.standard_normal(rate // 10) * np.exp(-np.arange(rate // 10) / (0.02 * rate))
            total[start : start + len(drum)] += drum.astype(np.float32)
    return total[:n]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.float32(np.sqrt(np.dot(x, x) / len(x)) + 1e-9)


_KINDS = {
    "hum": _hum, "beeps": _beeps, "siren": _siren, "clicks": _clicks, "machine": _machine, "fan": _fan, "wind": _wind,
    "typing": _typing, "music": _music,
}  # fmt: skip
