"""Speech, pauses, steady noise, reverberation and music, from power spectra every 20 ms (`frames.py`).

The signal is judged in segments of 10 s, so noise that changes during an hour is followed.

* Steady noise: in each band the 5th percentile over time, corrected by what it is for stationary Gaussian noise. Sounds
  that come and go, such as barking, are not in it.
* Speech: frames in which the bands are clearly above the steady noise. A segment counts only if enough of them are
  voiced with a pitch that moves: in music and machines it stays, and noise has none.
* Reverberation: how fast bands fall after a sound, compared with speech in rooms of known reverberation time.
* Music: the fine structure of the spectrum stays the same for 200 ms. Speech and noise change faster.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clearstate.audio.inspection.frames import BIN_HZ, HOPS_PER_SECOND

Floats = NDArray[np.floating]

SEGMENT = 10 * HOPS_PER_SECOND  # frames
EDGES = (
    75, 175, 275, 375, 475, 600, 725, 875, 1025, 1200, 1400, 1600, 1850, 2150, 2500, 2900, 3350, 3900, 4600, 5400, 6400,
    7600, 9200, 11500, 14500, 18000, 24000,
)  # fmt: skip
FLOOR = 1e-13  # power of a band: -130 dBFS; fainter frames are digital silence
SMOOTH = 3  # frames, for the percentile
QUANTILE, NORMAL = 0.05, -1.645  # of the steady noise, and of the normal distribution

RISE_DB = 4.0  # of the bands between 175 and 3900 Hz over the steady noise, on average, during speech
RANGE_DB = 40.0  # speech is within this range below its loud parts
PAUSE = 15  # frames; a shorter gap is part of the speech
LEAST = 3  # frames of speech
VOICED = 0.35  # of the autocorrelation at the pitch
LEAST_VOICED = 0.06  # share of the frames with speech
LEAST_GLIDE = 0.25  # share of the voiced frames whose pitch moves
PITCH_BINS, LAGS = 160, (20, 101)  # spectrum up to 4 kHz; lags at 8 kHz: 79 to 400 Hz

DECAY = 6  # frames
LEAST_DECAYS = 25
# Median decay in dB/s of speech in rooms with these reverberation times in seconds.
ROOMS = ((57.0, 1.2), (68.0, 1.0), (78.0, 0.8), (89.0, 0.65), (103.0, 0.5), (120.0, 0.4), (136.0, 0.3), (148.0, 0.2))

TONAL_BINS, TONAL_LAG = (8, 160), 10  # 200 to 4000 Hz; 200 ms
TONAL = 0.35  # correlation of the fine structure
MUSICAL = 0.5  # share of the frames that are tonal


class Speech(NamedTuple):
    """What was found in one recording."""

    speech: float  # share of the time, 0 to 1
    silence: float  # share of the time with nothing above the steady noise
    music: float  # share of the time
    noise_floor: float  # steady noise in dBFS; -inf for none
    snr: float  # of everything else to the steady noise in dB
    reverberation: float | None  # reverberation time in seconds; 0 below 0.2; None if unknown
    pitch: float | None  # median in Hz


class SpeechFinder:
    """Collect segments."""

    def __init__(self, rate: int) -> None:
        top = rate / 2
        self._edges = [round(edge / BIN_HZ) for edge in EDGES if edge < top] + [int(top // BIN_HZ)]
        shape = 1 + 1.5 * np.diff(self._edges)  # of a gamma distribution: power of the band, smoothed
        self._bias = (1 - 1 / (9 * shape) + NORMAL / np.sqrt(9 * shape)) ** -3  # Wilson and Hilferty 1931
        self._heard = slice(1, sum(edge <= 3900 for edge in EDGES if edge < top) - 1)  # bands of the voice
        self._held: list[Floats] = []  # frames of the segment that begins
        self._frames = 0
        self._before: Floats | None = None  # bands of the previous segment
        self._noise = self._total = 0.0
        self._counts = dict.fromkeys(("frames", "speech", "silence", "music"), 0)
        self._decays = np.zeros(600, dtype=np.int64)  # by dB/s
        self._pitches = np.zeros(LAGS[1] - LAGS[0], dtype=np.int64)

    def push(self, power: Floats) -> None:
        """The next frames (t, f)."""
        while len(power):
            part, power = power[: SEGMENT - self._frames], power[SEGMENT - self._frames :]
            self._held.append(part)
            self._frames += len(part)
            if self._frames == SEGMENT:
                self._judge()

    def _judge(self) -> None:
        """Add the segment."""
        power = np.concatenate(self._held)  # (t, f)
        self._held, self._frames = [], 0
        bands = np.add.reduceat(power, self._edges[:-1], axis=1)[:, : len(self._edges) - 1].astype(np.float64)
        bands[:, -1] = power[:, self._edges[-2] : self._edges[-1]].sum(1)
        audible = bands.sum(1) > FLOOR
        known = bands if self._before is None or len(bands) > SEGMENT / 2 else np.concatenate([self._before, bands])
        self._before = bands
        noise = self._steady(known[known.sum(1) > FLOOR])  # (bands,)
        self._counts["frames"] += len(bands)
        self._noise += float(noise.sum()) * len(bands)
        self._total += float(np.maximum(bands.sum(1) - noise.sum(), 0).sum())

        tonal = self._tonal(power, audible)
        self._counts["music"] += len(bands) if tonal > MUSICAL else 0
        active = self._active(bands, noise)
        self._counts["silence"] += int((~active).sum())
        voiced, lags = self._voiced(power)
        voiced &= active
        glides = np.abs(np.diff(np.log2(lags[voiced]))) if voiced.sum() > 5 else np.zeros(1)
        moving = float(((glides > 0.01) & (glides < 0.15)).mean())
        if voiced.sum() >= LEAST_VOICED * max(1, active.sum()) and moving >= LEAST_GLIDE and tonal <= MUSICAL:
            self._counts["speech"] += int(active.sum())
            self._decays += self._falls(bands, noise)
            self._pitches += np.bincount(lags[voiced] - LAGS[0], minlength=len(self._pitches))

    def _steady(self, bands: Floats) -> Floats:
        """Power of the steady noise in each band."""
        if not len(bands):
            return np.zeros(len(self._bias))
        size = min(SMOOTH, len(bands))
        sums = np.cumsum(np.concatenate([np.zeros((1, bands.shape[1])), bands]), axis=0)
        smooth = np.maximum((sums[size:] - sums[:-size]) / size, 0)
        return np.quantile(smooth, QUANTILE, axis=0) * self._bias

    def _active(self, bands: Floats, noise: Floats) -> NDArray[np.bool_]:
        """Frames with sound above the steady noise, without gaps shorter than PAUSE."""
        heard, floor = bands[:, self._heard], noise[self._heard] + FLOOR
        rise = np.maximum(0, 10 * np.log10((heard + FLOOR) / floor)).mean(1)
        level = heard.sum(1)
        loud = np.quantile(level, 0.95)
        active = (rise > RISE_DB) & (level > loud * 10 ** (-RANGE_DB / 10)) & (level > FLOOR)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8))).reshape(-1, 2)
        for (_, end), (start, _) in pairwise(edges):
            if start - end < PAUSE:
                active[end:start] = True
        edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8))).reshape(-1, 2)
        for start, end in edges:
            if end - start < LEAST:
                active[start:end] = False
        return active

    def _voiced(self, power: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each frame is voiced, and the lag of its pitch. The square root of the spectrum reduces formants."""
        magnitude = np.sqrt(power[:, :PITCH_BINS])
        magnitude[:, :3] = 0
        correlation = np.fft.irfft(magnitude, n=2 * PITCH_BINS, axis=1)
        lags = correlation[:, LAGS[0] : LAGS[1]]
        best = lags.argmax(1)
        return lags.max(1) > VOICED * correlation[:, 0] + 1e-20, best + LAGS[0]

    def _tonal(self, power: Floats, audible: NDArray[np.bool_]) -> float:
        """Share of the loud frames whose fine structure was the same 200 ms before."""
        low, high = TONAL_BINS
        level = np.log(power[:, low:high] + FLOOR)
        if len(level) <= TONAL_LAG or level.shape[1] < 20:
            return 0.0
        sums = np.cumsum(np.pad(level, ((0, 0), (5, 4)), mode="edge"), axis=1)
        fine = level - (sums[:, 9:] - sums[:, :-9]) / 9
        fine /= np.sqrt(np.square(fine).sum(1, keepdims=True)) + 1e-9
        same = (fine[TONAL_LAG:] * fine[:-TONAL_LAG]).sum(1)
        total = power[TONAL_LAG:].sum(1)
        loud = audible[TONAL_LAG:] & (total > 1e-3 * np.quantile(total, 0.95))
        return float((same[loud] > TONAL).mean()) if loud.any() else 0.0

    def _falls(self, bands: Floats, noise: Floats) -> NDArray[np.int64]:
        """Histogram of the rates at which bands fall steadily over DECAY frames, in dB/s."""
        level = 10 * np.log10(bands[:, 3:18] + FLOOR)
        floor = 10 * np.log10(noise[3:18] + FLOOR)
        if len(level) < DECAY:
            return np.zeros_like(self._decays)
        time = np.arange(DECAY) - (DECAY - 1) / 2
        windows = sliding_window_view(level, DECAY, axis=0)  # (t, bands, DECAY)
        rates = windows @ (time / (time @ time)) * -HOPS_PER_SECOND
        falling = (np.diff(windows, axis=2) < 1).all(2) & (windows[:, :, -1] > floor + 8) & (rates > 20)
        return np.bincount(np.minimum(rates[falling].astype(np.int64), 599), minlength=600)

    def result(self) -> Speech:
        """The whole recording."""
        if self._frames:
            self._judge()
        count = max(1, self._counts["frames"])
        with np.errstate(divide="ignore", invalid="ignore"):
            floor = 10 * np.log10(self._noise / count)
            snr = 10 * np.log10(self._total / self._noise) if self._noise else np.inf
        shares = {name: self._counts[name] / count for name in ("speech", "silence", "music")}
        reverberation, pitch = self._voice()
        return Speech(**shares, noise_floor=float(floor), snr=float(snr), reverberation=reverberation, pitch=pitch)

    def _voice(self) -> tuple[float | None, float | None]:
        """Reverberation time in seconds and pitch in Hz; None with too little speech."""
        pitch = room = None
        if (count := self._pitches.sum()) >= 25:
            pitch = 8000 / (LAGS[0] + float(np.searchsorted(np.cumsum(self._pitches), count / 2)))
        if (count := self._decays.sum()) >= LEAST_DECAYS:
            median = float(np.searchsorted(np.cumsum(self._decays), count / 2))
            rates, times = zip(*ROOMS, strict=True)
            room = float(np.interp(median, rates, times)) if median < rates[-1] else 0.0
        return room, pitch
