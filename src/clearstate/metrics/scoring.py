"""Score many pairs of files, in several processes, with notes and errors for each pair."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clearstate.metrics import learned
from clearstate.metrics.align import delay
from clearstate.metrics.composite import llr, regression, wss
from clearstate.metrics.extras import MissingExtra, need
from clearstate.metrics.files import Loaded, Pair, load, resample
from clearstate.metrics.intrusive import lsd, sdr, segmental_snr, si_sdr, snr
from clearstate.metrics.learned import FILES, MissingWeights, find_weights
from clearstate.metrics.perceptual import estoi, pesq_nb, pesq_wb, stoi
from clearstate.metrics.table import SCORES

PESQ_RATE = 16_000  # Hz, also for the composites, whose regression is only valid there
REGRESSED, DIVIDED = frozenset({"csig", "cbak", "covl"}), frozenset({"csig_divided", "cbak_divided", "covl_divided"})
AT_16K = REGRESSED | DIVIDED | {"pesq_wb", "pesq_nb", "llr", "wss", "ssnr"}


@dataclass(frozen=True)
class Options:
    """The scores to compute. Every worker receives a copy."""

    keys: tuple[str, ...]
    high_band: float | None = None  # Hz from which LSD-high counts; half of the band where None
    weights: Mapping[str, Path] = field(default_factory=dict)  # of learned scores, by group
    asr: str | None = None  # a recogniser, see asr.py
    transcripts: Mapping[str, str] = field(default_factory=dict)  # by pair name


@dataclass(frozen=True)
class FileScores:
    """The scores of one pair. Undefined scores are NaN; `error` is the reason if there are none."""

    name: str
    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # resampled, cut, late by ... samples
    silent: bool = False  # the output is all zeros
    words: int = 0  # in the transcript, where there is one
    error: str | None = None


def score_pair(pair: Pair, options: Options) -> FileScores:
    """Compute the chosen scores of one pair of files. An unreadable file gives an error line, not an exception."""
    try:
        loaded = load(pair)
    except (ValueError, OSError) as error:
        return FileScores(pair.name, error=str(error))
    late = delay(loaded.clean, loaded.enhanced)
    notes = list(loaded.notes)
    if late.samples:
        count = f"{abs(late.samples)} sample{'s' if abs(late.samples) > 1 else ''}"
        when = f"{count} {'late' if late.samples > 0 else 'early'}"
        notes.append(f"enhanced is {when}: SI-SDR {late.si_sdr:.1f} dB, {late.aligned:.1f} dB with that taken out")
    scores = _intrusive(loaded, options, notes)
    scores |= _learned(loaded, options)
    words = 0
    if options.asr and pair.name in options.transcripts:
        from clearstate.metrics.asr import word_errors

        own, words = word_errors(loaded, options.transcripts[pair.name], options.asr)
        scores |= own
    ordered = {key: scores[key] for key in (*options.keys, *scores) if key in scores}
    return FileScores(pair.name, ordered, tuple(notes), not loaded.enhanced.any(), words)


def _intrusive(loaded: Loaded, options: Options, notes: list[str]) -> dict[str, float]:
    """The scores against the clean signal at its own rate, and those that are defined at 16 kHz."""
    r, d, rate = loaded.clean, loaded.enhanced, loaded.rate
    x = r[:0] if loaded.noisy is None else loaded.noisy  # improvements are chosen only where there are noisy files
    wanted = set(options.keys)
    high = options.high_band or rate / 4
    at_own_rate: dict[str, Callable[[], float]] = {
        "stoi": lambda: stoi(r, d, rate),
        "estoi": lambda: estoi(r, d, rate),
        "si_sdr": lambda: si_sdr(r, d),
        "si_sdri": lambda: si_sdr(r, d) - si_sdr(r, x),
        "sdr": lambda: sdr(r, d),
        "sdri": lambda: sdr(r, d) - sdr(r, x),
        "snr": lambda: snr(r, d),
        "lsd": lambda: lsd(r, d, rate),
        "lsd_high": lambda: lsd(r, d, rate, above=high),
        "lsd_1024": lambda: lsd(r, d, rate, n_fft=1024),
    }
    scores = {key: score() for key, score in at_own_rate.items() if key in wanted}
    if wanted & AT_16K:
        if rate != PESQ_RATE:
            notes.append(f"PESQ and the composites on both resampled from {rate} to {PESQ_RATE} Hz")
        scores |= _at_16k(resample(r, rate, PESQ_RATE), resample(d, rate, PESQ_RATE), wanted)
    return scores


def _at_16k(r: np.ndarray, d: np.ndarray, wanted: set[str]) -> dict[str, float]:
    """PESQ, the composites and their parts, each computed once."""
    scores: dict[str, float] = {}
    if wanted & (REGRESSED | DIVIDED | {"pesq_wb"}):
        scores["pesq_wb"] = pesq_wb(r, d, PESQ_RATE)
    if "pesq_nb" in wanted:
        scores["pesq_nb"] = pesq_nb(r, d, PESQ_RATE)
    scores |= {"llr": llr(r, d, PESQ_RATE), "wss": wss(r, d, PESQ_RATE), "ssnr": segmental_snr(r, d, PESQ_RATE)}
    if wanted & REGRESSED:
        scores |= regression(scores["pesq_wb"], scores["llr"], scores["wss"], scores["ssnr"])._asdict()
    if wanted & DIVIDED:
        slope = wss(r, d, PESQ_RATE, divided=True)
        other = regression(scores["pesq_wb"], scores["llr"], slope, scores["ssnr"])._asdict()
        scores |= {f"{key}_divided": value for key, value in other.items()}
    return {key: value for key, value in scores.items() if key in wanted}


def _learned(loaded: Loaded, options: Options) -> dict[str, float]:
    scores: dict[str, float] = {}
    for group, weights in options.weights.items():
        scores |= learned.score(group, loaded.enhanced, loaded.rate, weights)
    return {key: value for key, value in scores.items() if key in options.keys}


def score_pairs(pairs: Sequence[Pair], options: Options, jobs: int = 1) -> Iterator[FileScores]:
    """Score every pair and yield each result when it is ready, in this process or in `jobs` new ones.

    A worker runs one thread: several jobs are faster than several threads here. A script that calls this with more
    than one job needs the usual `if __name__ == "__main__":`, because workers are spawned.
    """
    if jobs <= 1 or len(pairs) <= 1:
        for pair in pairs:
            yield score_pair(pair, options)
        return
    with _single_threaded_children():
        pool = ProcessPoolExecutor(min(jobs, len(pairs)), multiprocessing.get_context("spawn"), _ignore_interrupt)
        try:
            futures = {pool.submit(score_pair, pair, options): pair for pair in pairs}
            for future in as_completed(futures):
                try:
                    yield future.result()
                except Exception as error:  # the worker process died: killed, or out of memory
                    why = f"its worker process failed ({error}); score it alone to see the reason, or use fewer --jobs"
                    yield FileScores(futures[future].name, error=why)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and cancels waiting pairs


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def available(keys: Sequence[str], named: Mapping[str, Path]) -> tuple[list[str], dict[str, Path], dict[str, str]]:
    """Find out which scores are available on this machine.

    Returns:
        Their keys, the weight files of the learned ones, and for every other key the reason, as it is printed.
    """
    have, weights, missing = [], {}, {}
    for key in keys:
        group = SCORES[key].group
        try:
            for library in LIBRARIES.get(key, LIBRARIES.get(group, ())):
                need(library, "torch" if library == "torch" else "metrics", SCORES[key].label)
            if group in FILES:
                weights[group] = find_weights(group, named)
            have.append(key)
        except (MissingExtra, MissingWeights) as error:
            missing[key] = str(error)
    return have, weights, missing


LIBRARIES: dict[str, tuple[str, ...]] = {
    "stoi": ("pystoi",),
    "estoi": ("pystoi",),
    "sdr": ("scipy",),
    "sdri": ("scipy",),
    "dnsmos": ("onnxruntime",),
    "plcmos": ("onnxruntime",),
    "distillmos": ("torch",),
    "nisqa": ("torch",),
    **dict.fromkeys((*REGRESSED, *DIVIDED, "pesq_wb", "pesq_nb"), ("pesq",)),
}
