"""Effects that degrade speech for training: filters, rooms, overload, codecs, lost packets.

Each effect is a function of a float32 signal (n,) at `rate` Hz and takes at most a few milliseconds for three seconds
of audio: second-order sections from SciPy for filters, FFTs for rooms, and no loops over samples. No function changes
its input.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soundfile

from clearstate.audio.level import db_to_gain

try:
    from scipy import signal
except ImportError as error:  # pragma: no cover
    raise ImportError("mixing training audio needs SciPy: pip install 'clearstate[train]'") from error


@lru_cache(maxsize=512)
def lowpass_sections(cutoff: int, rate: int) -> np.ndarray:
    """A steep low-pass, 50 dB down from `cutoff` Hz, as in sample rate converters."""
    return signal.cheby2(8, 50, cutoff, fs=rate, output="sos").astype(np.float32)


@lru_cache(maxsize=512)
def highpass_sections(cutoff: int, rate: int) -> np.ndarray:
    """A second-order high-pass at `cutoff` Hz, as in microphones and mixing desks."""
    return signal.butter(2, cutoff, "highpass", fs=rate, output="sos").astype(np.float32)


def shelf_sections(frequency: float, gain_db: float, rate: int) -> np.ndarray:
    """A high shelf of slope 1/2: `gain_db` above `frequency` Hz, nothing below.

    R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients".
    """
    a = 10 ** (gain_db / 40)
    w = 2 * np.pi * frequency / rate
    cos, slope = np.cos(w), 0.5
    alpha = np.sin(w) / 2 * np.sqrt((a + 1 / a) * (1 / slope - 1) + 2)
    root = 2 * np.sqrt(a) * alpha
    b0, b1, b2 = (
        a * (a + 1 + (a - 1) * cos + root),
        -2 * a * (a - 1 + (a + 1) * cos),
        a * (a + 1 + (a - 1) * cos - root),
    )
    a0, a1, a2 = a + 1 - (a - 1) * cos + root, 2 * (a - 1 - (a + 1) * cos), a + 1 - (a - 1) * cos - root
    return np.array([[b0, b1, b2, a0, a1, a2]], np.float32) / np.float32(a0)


def peak_sections(frequency: float, gain_db: float, quality: float, rate: int) -> np.ndarray:
    """A bell of `gain_db` at `frequency` Hz (same source as the shelf)."""
    a = 10 ** (gain_db / 40)
    w = 2 * np.pi * frequency / rate
    alpha, cos = np.sin(w) / (2 * quality), np.cos(w)
    a0 = 1 + alpha / a
    return np.array([[1 + alpha * a, -2 * cos, 1 - alpha * a, a0, -2 * cos, 1 - alpha / a]], np.float32) / np.float32(
        a0
    )


def random_equaliser(rng: np.random.Generator, rate: int, tilt_db: float) -> np.ndarray:
    """Sections of a tilt about 1 kHz of up to +-`tilt_db` and a bell of up to half that."""
    tilt, bell = rng.uniform(-tilt_db, tilt_db), rng.uniform(-tilt_db / 2, tilt_db / 2)
    centre = np.exp(rng.uniform(np.log(150), np.log(0.4 * rate)))
    return np.concatenate(
        [shelf_sections(1000.0, tilt, rate), peak_sections(centre, bell, rng.uniform(0.5, 2.0), rate)]
    )


def apply_sections(sections: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Filter by second-order sections, in float32."""
    return signal.sosfilt(sections, x).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Room:
    """A room response from `lead` samples before its direct path on, cut into an early and a late part that overlap."""

    name: str
    early: np.ndarray  # (m,) float32: direct path and the reflections of the next 50 ms
    late: np.ndarray  # (k,) float32: what follows, from the same origin
    lead: int  # samples

    def apply(self, speech: np.ndarray, closeness_db: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(reverberant, early-reflection target), each (n,), the direct path where it was in `speech`.

        `closeness_db` raises the early part over the late one, as a talker nearer to the microphone would. Both
        outputs carry one gain, which keeps the energy of white noise at the energy of `speech`.
        """
        n = len(speech)
        direct = signal.fftconvolve(speech, self.early)[self.lead : self.lead + n]
        direct = direct * np.float32(db_to_gain(closeness_db))
        tail = signal.fftconvolve(speech, self.late)[self.lead : self.lead + n]
        early, late = float(np.dot(self.early, self.early)), float(np.dot(self.late, self.late))
        gain = np.float32(1 / np.sqrt(early * db_to_gain(2 * closeness_db) + late + 1e-20))
        return (direct + tail) * gain, direct * gain


def make_room(name: str, response: np.ndarray, rate: int, early_ms: float = 50.0) -> Room:
    """Cut a measured response into a Room.

    The direct path is the first sample that reaches 60 % of the peak; a millisecond before it is kept, for
    band-limited responses ring before their peak, and the rest thrown away. The early part fades into the late one
    over 8 ms, so that the target has no spectral ripple of its own.
    """
    direct = int(np.argmax(np.abs(response) >= 0.6 * np.abs(response).max()))
    lead = min(direct, rate // 1000)
    h = response[direct - lead :].astype(np.float32)
    fade_at, fade = lead + int(early_ms * rate / 1000), int(0.008 * rate)
    weight = np.clip(1 - (np.arange(len(h)) - fade_at) / fade, 0, 1).astype(np.float32)
    weight = np.sin(weight * np.float32(np.pi / 2)) ** 2
    return Room(name, (h * weight)[: fade_at + fade], h * (1 - weight), lead)


def synthetic_room(rng: np.random.Generator, rate: int) -> Room:
    """A made-up room: a direct path, a dozen sparse reflections, and decaying noise (RT60 0.15-1 s, faster at high
    frequencies).

    Polack's statistical model, J.-D. Polack 1988. The direct-to-reverberant ratio is drawn between -3 and 15 dB.
    """
    rt60 = float(np.exp(rng.uniform(np.log(0.15), np.log(1.0))))  # s
    n = int(min(rt60, 0.8) * rate)
    time = np.arange(n, dtype=np.float32) / rate
    tail = rng.standard_normal(n, dtype=np.float32)
    dull = signal.lfilter([1.0], [1.0, -0.6], tail).astype(np.float32) * np.float32(0.6)
    tail = dull * np.exp(-6.9 * time / rt60) + 0.3 * tail * np.exp(-13.8 * time / rt60)
    start = int(rng.uniform(0.002, 0.012) * rate)
    tail[:start] = 0
    where = start + (rng.random(12) ** 2 * 0.04 * rate).astype(np.int64)
    tail[np.minimum(where, n - 1)] += (
        rng.choice([-1.0, 1.0], 12).astype(np.float32) * 2 * np.exp(-(where - start) / (0.02 * rate))
    )
    tail *= np.float32(db_to_gain(-rng.uniform(-3, 15)) / np.sqrt(np.dot(tail, tail) + 1e-20))
    tail[0] = 1.0
    return make_room(f"synthetic RT60 {rt60:.2f} s", tail, rate)


def clip(x: np.ndarray, drive_db: float) -> np.ndarray:
    """Overload: everything within `drive_db` of the peak is cut flat."""
    limit = float(np.abs(x).max()) * db_to_gain(-drive_db)
    return np.clip(x, -limit, limit)


def mu_law(x: np.ndarray) -> np.ndarray:
    """Eight-bit companding and back, ITU-T G.711's curve with mu = 255."""
    squeezed = np.sign(x) * np.log1p(255 * np.minimum(np.abs(x), 1)) / np.log(256)
    coarse = np.round(squeezed * 127) / 127
    return (np.sign(coarse) * np.expm1(np.abs(coarse) * np.log(256)) / 255).astype(np.float32)


def quantise(x: np.ndarray, bits: int) -> np.ndarray:
    """Uniform quantisation of the range -1..1 to `bits` bits."""
    step = np.float32(2.0 ** (1 - bits))
    return np.round(x / step) * step


def codec(x: np.ndarray, rate: int, kind: str, level: float) -> np.ndarray:
    """Encode and decode with libsndfile ("MP3" or "OPUS"); `level` 0..1 goes from the best to the smallest.

    Both come back without delay and at the old length (libsndfile trims the padding); what is missing is filled with
    zeros.
    """
    form, subtype = {"MP3": ("MP3", "MPEG_LAYER_III"), "OPUS": ("OGG", "OPUS")}[kind]
    memory = io.BytesIO()
    with soundfile.SoundFile(memory, "w", rate, 1, format=form, subtype=subtype, compression_level=level) as file:
        file.write(x)
    memory.seek(0)
    y, _ = soundfile.read(memory, dtype="float32")
    return y[: len(x)] if len(y) >= len(x) else np.pad(y, (0, len(x) - len(y)))


def lost_packets(rng: np.random.Generator, n: int, rate: int, loss: float) -> np.ndarray:
    """A gain (n,) of zeros and ones that drops 20 ms packets at rate `loss`, in bursts.

    A lost packet takes the next with it one time in three, after Gilbert's model.
    """
    packet = rate // 50
    count = -(-n // packet)
    lost = rng.random(count) < loss
    lost[1:] |= lost[:-1] & (rng.random(count - 1) < 0.33)
    return np.repeat(~lost, packet)[:n].astype(np.float32)


def wandering_gain(rng: np.random.Generator, n: int, rate: int, range_db: float) -> np.ndarray:
    """A gain (n,) that drifts between random levels of 0..-`range_db` dB, a new one every 0.3-1.5 s."""
    spacing = rng.uniform(0.3, 1.5) * rate
    knots = np.arange(0, n + spacing, spacing)
    coarse = np.arange(0, n + 64, 64)  # the gain itself is interpolated linearly between every 64th sample
    db = np.interp(coarse, knots, rng.uniform(-range_db, 0, len(knots)))
    return np.interp(np.arange(n), coarse, 10 ** (db / 20)).astype(np.float32)
