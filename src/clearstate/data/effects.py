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
import soxr

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


@lru_cache(maxsize=512)
def gentle_lowpass_sections(cutoff: int, order: int, rate: int) -> np.ndarray:
    """A gentle low-pass, -3 dB at `cutoff` Hz, as in analogue circuits."""
    return signal.butter(order, cutoff, fs=rate, output="sos").astype(np.float32)


def resampled(x: np.ndarray, rate: int, through: int, quality: str) -> np.ndarray:
    """Resample signals (n, k) to another sampling rate and back.

    `quality` is that of soxr: "LQ", "MQ", "HQ" or "VHQ".
    """
    y = soxr.resample(soxr.resample(x, rate, through, quality), through, rate, quality)[: len(x)]
    return np.pad(y, ((0, len(x) - len(y)), (0, 0)))


def shelf_sections(frequency: float, gain_db: float, rate: int) -> np.ndarray:
    """A high shelf of slope 1/2: `gain_db` above `frequency` Hz, 0 dB below.

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
    """A peak of `gain_db` at `frequency` Hz (same source as the shelf)."""
    a = 10 ** (gain_db / 40)
    w = 2 * np.pi * frequency / rate
    alpha, cos = np.sin(w) / (2 * quality), np.cos(w)
    a0 = 1 + alpha / a
    return np.array([[1 + alpha * a, -2 * cos, 1 - alpha * a, a0, -2 * cos, 1 - alpha / a]], np.float32) / np.float32(
        a0
    )


def random_equaliser(rng: np.random.Generator, rate: int, tilt_db: float) -> np.ndarray:
    """Sections of a tilt around 1 kHz of at most +-`tilt_db`, and a peak of at most half of it."""
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
    """A room response from `lead` samples before the direct path on, split into overlapping early and late parts."""

    name: str
    early: np.ndarray  # (m,) float32: direct path and reflections of the next 50 ms
    late: np.ndarray  # (k,) float32: later reflections, same time origin
    lead: int  # samples

    def apply(self, speech: np.ndarray, closeness_db: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Return (reverberant, early-reflection target), both (n,), with the direct path aligned with `speech`.

        `closeness_db` raises the early part relative to the late one, like a talker closer to the microphone. Both
        outputs have the same gain, with which white noise keeps its energy.
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

    The direct path is the first sample that reaches 60 % of the peak. The response starts one millisecond before it,
    because band-limited responses ring before their peak. The early part fades into the late one over 8 ms, which
    avoids spectral ripple in the target.
    """
    direct = int(np.argmax(np.abs(response) >= 0.6 * np.abs(response).max()))
    lead = min(direct, rate // 1000)
    h = response[direct - lead :].astype(np.float32)
    fade_at, fade = lead + int(early_ms * rate / 1000), int(0.008 * rate)
    weight = np.clip(1 - (np.arange(len(h)) - fade_at) / fade, 0, 1).astype(np.float32)
    weight = np.sin(weight * np.float32(np.pi / 2)) ** 2
    return Room(name, (h * weight)[: fade_at + fade], h * (1 - weight), lead)


def synthetic_room(rng: np.random.Generator, rate: int) -> Room:
    """A synthetic room: a box with sides of 2.2 to 10 m, RT60 0.15 to 1 s, from image sources and a decaying tail.

    Image sources cover the first 80 ms (Allen & Berkley 1979, J. Acoust. Soc. Am. 65, 943). Then follows decaying noise
    of their level, which decays faster at high frequencies.
    """
    size = rng.uniform([2.5, 2.5, 2.2], [10.0, 8.0, 4.5])  # m
    rt60 = float(np.exp(rng.uniform(np.log(0.15), np.log(1.0))))  # s
    surface = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    absorbed = 1 - np.exp(-0.161 * size.prod() / (surface * rt60))  # Eyring 1930, the mean of the six walls
    walls = np.sqrt(1 - np.clip(absorbed * rng.uniform(0.5, 1.5, (3, 2)), 0.02, 0.98))  # reflection coefficients
    ear = rng.uniform(0.4, size - 0.4)
    away = rng.standard_normal(3)
    talker = ear + away / np.linalg.norm(away) * np.exp(rng.uniform(np.log(0.2), np.log(4.0)))
    response = _images(np.clip(talker, 0.2, size - 0.2), ear, size, walls, 0.08, rate)
    n, joint = int(min(rt60 + 0.1, 0.8) * rate), int(0.06 * rate)
    time = np.arange(n, dtype=np.float32) / rate
    tail = rng.standard_normal(n, dtype=np.float32)
    dull = signal.lfilter([1.0], [1.0, -0.6], tail).astype(np.float32) * np.float32(0.6)
    tail = dull * np.exp(-6.9 * time / rt60) + 0.3 * tail * np.exp(-13.8 * time / rt60)
    both = slice(joint, len(response))  # the images fade into the tail here
    tail *= np.sqrt(np.dot(response[both], response[both]) / (np.dot(tail[both], tail[both]) + 1e-20))
    fade = np.clip((np.arange(n) - joint) / (len(response) - joint), 0, 1).astype(np.float32)
    tail *= np.sqrt(fade)
    tail[: len(response)] += response[:n] * np.sqrt(1 - fade[: len(response)])
    return make_room(f"box of {size[0]:.1f} x {size[1]:.1f} x {size[2]:.1f} m, RT60 {rt60:.2f} s", tail, rate)


def _images(
    talker: np.ndarray, ear: np.ndarray, size: np.ndarray, walls: np.ndarray, seconds: float, rate: int
) -> np.ndarray:
    """Response of a box, starting 2 ms before the direct path; walls (3, 2) are reflection coefficients."""
    speed = 343.0  # m/s
    reach = float(np.linalg.norm(talker - ear)) + speed * seconds
    offsets, gains = [], []
    for axis in range(3):
        m = np.arange(-int(reach / (2 * size[axis])) - 1, int(reach / (2 * size[axis])) + 2)[:, None]
        p = np.array([0, 1])  # whether the image is mirrored
        offsets.append(((1 - 2 * p) * talker[axis] + 2 * m * size[axis] - ear[axis]).ravel())
        gains.append((walls[axis, 0] ** np.abs(m - p) * walls[axis, 1] ** np.abs(m)).ravel())
    x, y, z = offsets
    distance = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2).ravel()
    gain = (gains[0][:, None, None] * gains[1][:, None] * gains[2]).ravel() / distance
    fine = 4 * rate  # arrivals are between samples
    arrival = np.round((distance - distance.min()) / speed * fine).astype(np.int64) + fine // 500
    heard = arrival < seconds * fine
    impulses = np.bincount(arrival[heard], gain[heard], int(seconds * fine))
    return signal.resample_poly(impulses, 1, 4).astype(np.float32)


def clip(x: np.ndarray, drive_db: float) -> np.ndarray:
    """Hard clipping: cut the top `drive_db` of the signal."""
    limit = float(np.abs(x).max()) * db_to_gain(-drive_db)
    return np.clip(x, -limit, limit)


def saturate(x: np.ndarray, drive_db: float, lopsided: float) -> np.ndarray:
    """Soft clipping by a tanh: `drive_db` of overload, `lopsided` (0..0.5) makes it asymmetric.

    The slope at zero is one, so quiet parts do not change.
    """
    limit = float(np.abs(x).max()) * db_to_gain(-drive_db) + 1e-9
    bias = np.float32(lopsided)
    return np.float32(limit) * (np.tanh(x / np.float32(limit) + bias) - np.tanh(bias)) / (1 - np.tanh(bias) ** 2)


def gain_control(x: np.ndarray, rate: int, strength: float, release: float) -> np.ndarray:
    """The gain (n,) of an automatic level control: `strength` (0..1) of the distance to the mean level in dB.

    It reacts to rising levels within 50 ms and to falling levels within `release` seconds; -20 to 20 dB.
    """
    hop = rate // 100
    power = np.pad(x, (0, -len(x) % hop)).reshape(-1, hop)
    db = 10 * np.log10(np.einsum("tn,tn->t", power, power) / hop + 1e-9)
    db = np.maximum(db, db.max() - 40)  # limits the gain in silent pauses
    fast, slow = (signal.lfilter([a], [1, a - 1], db, zi=[(1 - a) * db[0]])[0] for a in (0.2, 0.01 / release))
    gain = np.clip(strength * (db.mean() - np.maximum(fast, slow)), -20, 20)
    return (10 ** (np.interp(np.arange(len(x)), np.arange(len(gain)) * hop, gain) / 20)).astype(np.float32)


def mu_law(x: np.ndarray) -> np.ndarray:
    """Compand to eight bits and back, with the curve of ITU-T G.711 (mu = 255)."""
    squeezed = np.sign(x) * np.log1p(255 * np.minimum(np.abs(x), 1)) / np.log(256)
    coarse = np.round(squeezed * 127) / 127
    return (np.sign(coarse) * np.expm1(np.abs(coarse) * np.log(256)) / 255).astype(np.float32)


def quantise(x: np.ndarray, bits: int) -> np.ndarray:
    """Quantise the range -1..1 uniformly to `bits` bits."""
    step = np.float32(2.0 ** (1 - bits))
    return np.round(x / step) * step


def codec(x: np.ndarray, rate: int, kind: str, level: float) -> np.ndarray:
    """Encode and decode with libsndfile ("MP3" or "OPUS"); `level` 0 is best quality, 1 smallest size.

    The result has no delay and the same length; missing samples at the end are zeros.
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

    The packet after a lost one is lost with probability 1/3 (Gilbert's model).
    """
    packet = rate // 50
    count = -(-n // packet)
    lost = rng.random(count) < loss
    lost[1:] |= lost[:-1] & (rng.random(count - 1) < 0.33)
    return np.repeat(~lost, packet)[:n].astype(np.float32)


def conceal(x: np.ndarray, keep: np.ndarray, rate: int) -> np.ndarray:
    """Replace lost 20 ms packets (zeros of `keep`) by the last received one, 6 dB quieter for each lost packet."""
    size = rate // 50
    packets = np.pad(x, (0, -len(x) % size)).reshape(-1, size)
    number = np.arange(len(packets))
    last = np.maximum.accumulate(np.where(keep[::size] > 0, number, 0))
    heard = packets[last] * (0.5 ** (number - last)).astype(np.float32)[:, None]
    return heard.ravel()[: len(x)]


def wandering_gain(rng: np.random.Generator, n: int, rate: int, range_db: float) -> np.ndarray:
    """A gain (n,) that drifts between random levels of 0 to -`range_db` dB, with a new level every 0.3 to 1.5 s."""
    spacing = rng.uniform(0.3, 1.5) * rate
    knots = np.arange(0, n + spacing, spacing)
    coarse = np.arange(0, n + 64, 64)  # computed for every 64th sample and interpolated
    db = np.interp(coarse, knots, rng.uniform(-range_db, 0, len(knots)))
    return np.interp(np.arange(n), coarse, 10 ** (db / 20)).astype(np.float32)
