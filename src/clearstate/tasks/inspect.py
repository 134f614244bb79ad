"""Inspect recordings: what a file holds and what is wrong with it. The task behind `clearstate inspect`.

One pass over the file measures what needs no model (`audio/inspection/`) and keeps up to a minute of excerpts. Two
models then answer what signal processing cannot: the enhancement model separates speech from noise of any kind, which
gives the signal-to-noise ratio, and the separation model shows whether two voices speak at the same time. So the time
and memory that they need do not grow with the length of the recording.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.declip import TOLERANCE, Declipper
from clearstate.audio.dehum import HumRemover
from clearstate.audio.inspection.frames import Frames
from clearstate.audio.inspection.measure import EXCERPT_SECONDS, Measurement, measure
from clearstate.audio.inspection.speech import Speech, SpeechFinder
from clearstate.audio.io import AudioInfo, Block, BrokenOffError, open_reader, until_broken
from clearstate.tasks.enhance import Enhancer
from clearstate.tasks.findings import NOISY_DB, Finding, find
from clearstate.tasks.separate import Separator

AnyPath = str | os.PathLike[str]
Floats = NDArray[np.floating]
Progress = Callable[[float, float], None]  # seconds of audio done, total seconds (0 if unknown)
Score = Callable[[Floats, int], float]  # signal (n,) and rate to an opinion from 1 to 5

ENHANCER, SEPARATOR = "live", "separate-fast"
VOICES_SECONDS = 12.0  # of excerpts for the separation model
SCORED_SECONDS = 12.0  # of excerpts for the opinion score
FRAME_SECONDS, RANGE_DB = 0.02, 25.0  # frames with speech in the separated voices: within this range of the loudest
BOTH_DB = 12.0  # two voices speak in a frame if their levels differ by less
SIMULTANEOUS = 0.05  # share of the frames with speech in which both speak, at least, for two speakers
WEAKER_DB = 13.0  # the second of two speakers is at most this far below the first
SURE_DB = 27.0  # ratio to the steady noise, above which the model is doubted if it removes a voice
CLEANER_DB = 5.0  # the same, if this ratio is larger by this in the removed sound than in the recording
SAME_PITCH = 0.12  # relative difference of two pitches of the same voice
SPEECH_REMOVED = 0.5  # share of the time in which the removed sound is like speech
LEAST_FOR_ROOM_DB = 15.0  # signal-to-noise ratio; below it, noise hides how sounds decay
LEAST_SPEECH = 0.02  # share of the time; less is no speech


@dataclass(frozen=True)
class Inspection:
    """What was found in one file. Levels are None for digital silence, and estimates are None where not made."""

    input: str
    container: str  # such as WAV, FLAC or M4A
    codec: str  # in libsndfile's terms, or in those of FFmpeg if PyAV reads the file
    sample_rate: int  # Hz
    channels: int
    seconds: float
    bandwidth_hz: float  # where the recording ends; half the rate if nothing is missing
    loudness_lufs: float | None  # integrated, ITU-R BS.1770
    peak_dbfs: float | None  # of the samples
    true_peak_dbfs: float | None  # between the samples, four times oversampled
    clipped_share: float  # of the samples, 0 to 1
    clipping_dbfs: float | None  # level at which peaks are cut; None if they are not
    dc_offset: list[float]  # of each channel, full scale is 1
    hum_hz: int | None  # 50 or 60
    hum_exact_hz: float | None
    hum_dbfs: float | None
    hum_harmonics: list[int]  # 1 is the mains frequency itself
    noise_floor_dbfs: float | None  # of the steady noise
    steady_snr_db: float | None  # ratio of everything else to the steady noise
    snr_db: float | None  # ratio of speech to noise of any kind, by the enhancement model; without it steady_snr_db
    speech_share: float  # of the time, 0 to 1
    silence_share: float  # of the time, 0 to 1: nothing above the steady noise
    music_share: float  # of the time, 0 to 1
    speakers: int | None  # at the same time: 0, 1, or 2 for two and more
    pitch_hz: float | None  # median of the voices
    reverberation_seconds: float | None  # reverberation time; 0 below 0.2; None with much noise
    stereo: str  # mono, stereo, dual mono, inverted, dead channel, multichannel or silent
    correlation: float | None  # of the first two channels
    dead_channels: list[int]  # counted from 1
    score: float | None  # predicted opinion, 1 to 5
    broken: str | None = None  # the reason, if the file is damaged or cut off
    findings: list[Finding] = field(default_factory=list)
    elapsed: float = 0.0  # seconds of work
    restored_peak: float = 0.0  # largest magnitude after clipped peaks are restored, full scale is 1
    measurement: Measurement | None = field(default=None, repr=False, compare=False)

    @property
    def speed(self) -> float:
        """Seconds of audio per second of work."""
        return self.seconds / self.elapsed if self.elapsed else 0.0

    @property
    def verdict(self) -> str:
        """What is wrong in one line."""
        return "; ".join(found.problem for found in self.findings) or "nothing is wrong"

    def as_json(self) -> dict[str, Any]:
        """The entries of the JSON report."""
        rows = asdict(replace(self, measurement=None))
        for key in ("measurement", "restored_peak", "elapsed"):
            del rows[key]
        return {key: rounded(value) for key, value in rows.items()} | {"verdict": self.verdict}


def rounded(value: Any) -> Any:
    """Round a number to six significant digits; other values are unchanged."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [rounded(one) for one in value] if isinstance(value, list) else value


class Inspector:
    """Inspects files; loads the models once.

    Args:
        models: run the enhancement and separation models on excerpts. Without them, `snr_db` is the ratio to the steady
            noise, and the number of speakers is unknown.
        score: predicts an opinion from 1 to 5 for a signal.
    """

    def __init__(self, models: bool = True, score: Score | None = None) -> None:
        self.models, self.score = models, score

    @cached_property
    def enhancer(self) -> Enhancer:
        """The enhancement model."""
        return Enhancer(ENHANCER)

    @cached_property
    def separator(self) -> Separator:
        """The separation model."""
        return Separator(SEPARATOR)

    def inspect_file(self, path: AnyPath, *, track: int | None = None, progress: Progress | None = None) -> Inspection:
        """Inspect a file of any length in bounded memory.

        Args:
            path: an audio file, or "-" for a WAV stream on stdin.
            track: sound track of a video, counted from 1; None selects the default track.
            progress: called after every block with the seconds done and the total (0 if unknown).
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy.
        """
        started = time.perf_counter()
        broken: list[BrokenOffError] = []
        with open_reader(path, track) as source:
            info, done = source.info, 0

            def blocks() -> Any:
                nonlocal done
                for block in until_broken(source.blocks(), broken):
                    yield block
                    done += block.shape[1]
                    if progress:
                        progress(done / info.sample_rate, info.seconds or 0.0)

            measured = measure(blocks(), info.sample_rate, info.channels)
        found = summary(info, measured, str(broken[0]) if broken else None)
        found = replace(found, input=os.fspath(path), **self._listen(measured, info.sample_rate, found))
        if found.snr_db is not None and found.snr_db < LEAST_FOR_ROOM_DB:
            found = replace(found, reverberation_seconds=None)
        return replace(found, findings=find(found), elapsed=time.perf_counter() - started)

    def _listen(self, measured: Measurement, rate: int, found: Inspection) -> dict[str, Any]:
        """The estimates that need a model."""
        if found.peak_dbfs is None:
            return {"speakers": 0}
        excerpts = [repaired(x, rate, measured) for x in measured.excerpts]
        cut = [clipped(x, measured) for x in measured.excerpts]
        known: dict[str, Any] = {"restored_peak": max(float(np.abs(x).max(initial=0.0)) for x in excerpts)}
        known |= {"speakers": 0} if found.speech_share < LEAST_SPEECH else {}
        if self.models:
            # One after the other, so that the model has settled in most of them.
            noisy = np.concatenate(excerpts)
            clean = self.enhancer.enhance(noisy, rate)
            ratio = signal_to_noise(noisy, clean, np.concatenate(cut))
            heard = speech_in(noisy, rate)
            steady = heard.snr  # without hum
            if took_voice(heard, speech_in(noisy - clean, rate)):
                ratio = steady if ratio is None else max(ratio, steady)
            if ratio and ratio > NOISY_DB:  # the steady noise is the better estimate up there
                ratio = min(ratio, max(NOISY_DB, steady))
            known["snr_db"] = ratio
            if known.get("speakers") is None:
                known["speakers"] = self._speakers(loudest(clean, VOICES_SECONDS, rate), rate)
        if self.score:
            joined = np.concatenate(loudest(np.concatenate(excerpts), SCORED_SECONDS, rate))
            opinion = self.score(joined, rate)
            known["score"] = opinion if math.isfinite(opinion) else None
        return known

    def _speakers(self, voices: Sequence[Floats], rate: int) -> int:
        """1, or 2 if two voices speak at the same time in most of the excerpts."""
        both = heard = 0
        for x in voices:
            pair = np.asarray(self.separator.separate(x.astype(np.float32), rate)).reshape(2, -1)
            active, together = simultaneous(pair, rate)
            heard += active
            both += active * together
        return 2 if 2 * both > heard else 1


def inspect(path: AnyPath, *, models: bool = True, track: int | None = None) -> Inspection:
    """Inspect one file; see `Inspector.inspect_file`. For several files, create one `Inspector`."""
    return Inspector(models).inspect_file(path, track=track)


def summary(info: AudioInfo, measured: Measurement, broken: str | None) -> Inspection:
    """The estimates without models."""
    speech, clipping, channels, hum = measured.speech, measured.clipping, measured.channels, measured.hum
    kind = info.container if info.container != "AV" else os.path.splitext(info.name)[1][1:].upper() or "AV"
    levels = [level for level in (clipping.positive, clipping.negative) if level]
    return Inspection(
        input=info.name, container=kind, codec=info.codec or info.subtype, sample_rate=info.sample_rate,
        channels=info.channels, seconds=measured.samples / info.sample_rate, bandwidth_hz=measured.bandwidth,
        loudness_lufs=finite(measured.lufs), peak_dbfs=amplitude(measured.peak),
        true_peak_dbfs=amplitude(measured.true_peak), clipped_share=clipping.share,
        clipping_dbfs=amplitude(max(levels)) if levels else None, dc_offset=channels.offsets,
        hum_hz=hum.hz if hum else None, hum_exact_hz=hum.exact if hum else None, hum_dbfs=hum.level if hum else None,
        hum_harmonics=hum.harmonics if hum else [], noise_floor_dbfs=finite(speech.noise_floor),
        steady_snr_db=finite(speech.snr), snr_db=finite(speech.snr), speech_share=speech.speech,
        silence_share=speech.silence, music_share=speech.music, speakers=None, pitch_hz=speech.pitch,
        reverberation_seconds=speech.reverberation, stereo=channels.relation, correlation=channels.correlation,
        dead_channels=[c + 1 for c in channels.dead], score=None, broken=broken, measurement=measured,
    )  # fmt: skip


def repaired(x: Floats, rate: int, measured: Measurement) -> Floats:
    """An excerpt (n,) without offset, hum and clipping: these are not noise."""
    y: Block = x[None].astype(np.float64)
    if measured.clipping.share:
        declipper = Declipper(rate, 1, measured.clipping.positive, measured.clipping.negative)
        y = np.concatenate([declipper.push(y), declipper.finish()], axis=1)
    y = y - y.mean()
    if measured.hum:
        remover = HumRemover(rate, 1, [k * measured.hum.exact for k in measured.hum.harmonics])
        y = np.concatenate([remover.push(y), remover.finish()], axis=1)
    return y[0].astype(np.float32)


def clipped(x: Floats, measured: Measurement) -> NDArray[np.bool_]:
    """Which samples of an excerpt (n,) are clipped."""
    top, bottom = measured.clipping.positive or np.inf, measured.clipping.negative or np.inf
    return (x >= top - TOLERANCE) | (x <= TOLERANCE - bottom)


def loudest(x: Floats, seconds: float, rate: int) -> list[Floats]:
    """The loudest parts of a signal (n,) of EXCERPT_SECONDS, as many as fit into `seconds`; a short one as a whole."""
    size = round(EXCERPT_SECONDS * rate)
    parts = [x[start : start + size] for start in range(0, max(1, len(x) - size // 2), size)]
    return sorted(parts, key=energy, reverse=True)[: max(1, int(seconds / EXCERPT_SECONDS))]


def signal_to_noise(noisy: Floats, clean: Floats, cut: NDArray[np.bool_]) -> float | None:
    """Ratio of the speech to what a model removed, in dB. Errors of restored peaks (where `cut`) are not noise."""
    kept = energy(clean) / len(clean)
    removed = energy((noisy - clean)[~cut]) / max(1, int((~cut).sum()))
    return decibels(kept / removed) if kept > 0 and removed > 0 else None


def simultaneous(pair: Floats, rate: int) -> tuple[int, bool]:
    """The frames with speech in two separated outputs (2, n), and whether there is a voice in each at the same time.

    The separation of a single voice leaves little in one output; two voices in turn are hardly ever in both at once.
    """
    size = max(1, round(FRAME_SECONDS * rate))
    energies = np.square(pair[:, : pair.shape[1] // size * size]).reshape(2, -1, size).mean(2)  # (2, t)
    if not energies.any():
        return 0, False
    weaker, stronger = np.sort(10 * np.log10(energies.sum(1) + 1e-12))
    level = 10 * np.log10(energies + 1e-12)
    active = level.max(0) > np.percentile(level.max(0), 95) - RANGE_DB
    close = float((np.abs(level[0] - level[1])[active] < BOTH_DB).mean())
    return int(active.sum()), bool(stronger - weaker < WEAKER_DB and close > SIMULTANEOUS)


def took_voice(heard: Speech, removed: Speech) -> bool:
    """Whether a model took a part of the voice for noise: what it removed sounds like the voice, and is no noise.

    It has the pitch of the voice, and there is hardly steady noise in the recording, or less in what was removed.
    """
    if removed.speech <= SPEECH_REMOVED or not removed.pitch or not heard.pitch:
        return False
    same = abs(removed.pitch / heard.pitch - 1) < SAME_PITCH
    return same and (heard.snr > SURE_DB or removed.snr > heard.snr + CLEANER_DB)


def speech_in(x: Floats, rate: int) -> Speech:
    """Speech and steady noise in a signal (n,)."""
    frames, finder = Frames(rate, 1), SpeechFinder(rate)
    finder.push(frames.push(x[None].astype(np.float64), last=True))
    return finder.result()


def energy(x: Floats) -> float:
    """Sum of squares."""
    wide = x.astype(np.float64)
    return float(np.dot(wide, wide))


def decibels(power: float) -> float:
    """A ratio of powers in dB."""
    return 10 * math.log10(power)


def amplitude(value: float) -> float | None:
    """A magnitude in dBFS; None for zero."""
    return 20 * math.log10(value) if value > 0 else None


def finite(value: float) -> float | None:
    """The value; None if it is infinite or NaN."""
    return value if math.isfinite(value) else None
