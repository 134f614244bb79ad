"""Compare an exported model with the PyTorch network that it was made from, and time it."""

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from clearstate.runtime.contract import Array
from clearstate.runtime.onnx import OnnxModel
from clearstate.runtime.torch import TorchModel

LIMIT = 1e-4  # of the peak
HALF_LIMIT = 2e-2  # the same with weights as float16
SECONDS = 10.0  # of noise for the real-time factor


@dataclass(frozen=True)
class Agreement:
    """What `compare` found."""

    difference: float  # largest, over the peak of the output
    cases: int  # signals compared
    stateless: float | None  # the same for a stream whose state is dropped: must be large. None without a stream
    real_time_factor: float  # seconds of work per second of audio, one thread
    hop_ms: float | None  # median time of one hop

    def holds(self, limit: float = LIMIT) -> bool:
        """Whether the file computes what the network does, and the comparison could tell."""
        return self.difference <= limit and (self.stateless is None or self.stateless > 2 * limit)


def compare(exported: Any, network: Any) -> Agreement:
    """Run both on noise: several lengths, batches and chunkings with the state carried on.

    Args:
        exported: an `OnnxEnhancer`, `OnnxSeparator` or `OnnxExtender`.   network: its PyTorch twin.
    """
    return _streams(exported, network) if exported.causal else _blocks(exported, network)


def noise_like_speech(rows: int, samples: int, rate: int) -> Array:
    """Noise whose level rises and falls five times a second (rows, samples), the same at each call.

    It begins with digital silence, which is also in the middle: what divides by a level has to survive it.
    """
    generator = np.random.default_rng(0)
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * 5 * np.arange(samples) / rate)
    x = 0.1 * swell * generator.standard_normal((rows, samples))
    x[:, : samples // 8] = x[:, samples // 2 : samples * 5 // 8] = 0
    return x.astype(np.float32)


def _streams(exported: OnnxModel, network: TorchModel) -> Agreement:
    hop, worst, cases, stateless = exported.hop, 0.0, 0, 0.0
    for rows, chunks in ((1, [1] * 40), (1, [40]), (1, [1, 7, 2, 1, 29]), (3, [1, 1, 18, 20]), (2, [40])):
        x = noise_like_speech(rows, hop * sum(chunks), exported.sample_rate)
        edges = np.cumsum([0, *chunks]) * hop
        pieces = [x[:, start:end] for start, end in pairwise(edges)]
        wanted = network.open_stream(rows)(x)  # type: ignore[attr-defined]
        advance = exported.stream_of(rows)
        worst = max(worst, _difference(np.concatenate([advance(piece) for piece in pieces], axis=-1), wanted))
        if len(chunks) > 1:
            dropped = np.concatenate([exported.stream_of(rows)(piece) for piece in pieces], axis=-1)
            stateless = max(stateless, _difference(dropped, wanted))
        cases += 1
    samples = int(SECONDS * exported.sample_rate) // hop * hop
    x, advance = noise_like_speech(1, samples, exported.sample_rate), exported.stream_of(1)
    advance(x[:, : 4 * hop])
    started = time.perf_counter()
    for start in range(0, samples, 128 * hop):
        advance(x[:, start : start + 128 * hop])
    factor = (time.perf_counter() - started) / SECONDS
    times = []
    for start in range(0, samples // 2, hop):
        started = time.perf_counter()
        advance(x[:, start : start + hop])
        times.append(time.perf_counter() - started)
    return Agreement(worst, cases, stateless, factor, 1e3 * float(np.median(times)))


def _blocks(exported: Any, network: Any) -> Agreement:
    worst, cases = 0.0, 0
    more: tuple[Any, ...] = (8000.0, 0, lambda done, steps: None) if exported.task == "extend" else ()
    for seconds in (0.6, 1.0, 2.37):
        x = noise_like_speech(1, int(seconds * exported.sample_rate), exported.sample_rate)[0]
        worst = max(worst, _difference(exported.run(x, *more), network.run(x, *more)))
        cases += 1
    x = noise_like_speech(1, int(SECONDS * exported.sample_rate), exported.sample_rate)[0]
    started = time.perf_counter()
    exported.run(x, *more)
    return Agreement(worst, cases, None, (time.perf_counter() - started) / SECONDS, None)


def _difference(x: Array, wanted: Array) -> float:
    if x.shape != wanted.shape:
        raise ValueError(f"the exported model returned {x.shape}, the network {wanted.shape}")
    difference = np.nan_to_num(np.abs(x - wanted), nan=np.inf)
    return float(difference.max() / np.abs(wanted).max())
