"""Enhance files and arrays: the task behind `clearstate enhance` and `clearstate.load`.

The output has the length (to the sample), sample rate, channels, level and type of the input, without delay. Files are
read, enhanced and written block by block, so a recording of ten hours needs no more memory than one minute. The signal
path is in `chain.py`. With an `Extender`, the missing high frequencies follow in the same pass.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.io import BrokenOffError, check_target, open_reader, open_writer, until_broken
from clearstate.audio.rates import whole_rate
from clearstate.audio.streams import STDIO, is_stream
from clearstate.runtime import open_model
from clearstate.tasks.chain import BLOCK_SECONDS, check_channels_mode, open_chain
from clearstate.tasks.extend import MODEL_RATE, Extender, at_rate, at_second_reading, check_rates, load_extender
from clearstate.tasks.first_pass import survey
from clearstate.tasks.signals import as_floats, as_type, like

Path = str | os.PathLike[str]
Signal = TypeVar("Signal")  # an array, a torch tensor, or anything like one
Progress = Callable[[float, float], None]  # seconds of audio done, total seconds (0 if unknown)


@dataclass(frozen=True)
class Report:
    """The result for one file."""

    input: str
    output: str
    seconds: float  # of audio
    sample_rate: int  # Hz
    channels: int
    elapsed: float  # seconds of work
    bandwidth_hz: float | None = None  # of the enhanced signal, if it was to be extended

    @property
    def speed(self) -> float:
        """Seconds of audio per second of work."""
        return self.seconds / self.elapsed if self.elapsed else 0.0


class Enhancer:
    """An enhancement model that accepts any signal or file.

    Args:
        model: a name, a folder, a PyTorch network of `clearstate.models`, or any `runtime.contract.EnhancementModel`.
        backend: "auto", "onnx" or "torch"; see `runtime.choose`.

    >>> enhancer = Enhancer(model)  # doctest: +SKIP
    >>> clean = enhancer.enhance(noisy, 44_100)  # doctest: +SKIP
    """

    def __init__(self, model: Any, backend: str = "auto") -> None:
        self.model = open_model(model, "enhance", backend=backend)

    def enhance(
        self,
        signal: Signal,
        sample_rate: int,
        strength: float | None = None,
        *,
        residual: bool = False,
        pcs: bool = False,
        highs: bool = True,
        warm_up: bool = True,
        channels: str = "linked",
    ) -> Signal:
        """Enhance a signal in memory.

        Args:
            signal: array, torch tensor or array-like, (n,), (channels, n) or (batch, channels, n), at least one
                sample. Floating point with full scale at 1, or int16 or int32. Batch items are independent.
            sample_rate: of the signal, in Hz; any whole number, of any numeric type.
            strength: maximum attenuation in dB; 0 changes nothing, None sets no limit.
            residual: return the removed sound, input - output, instead.
            pcs: apply perceptual contrast stretching to the output (`audio/contrast.py`): PESQ rises, SI-SDR falls.
            highs: keep the band above the model's (above 8 kHz at 16 kHz), with the model's gain just below it; False
                removes that band.
            warm_up: a causal model first processes the opening 1.5 s to initialise its state, then starts again from
                the beginning. False gives the same samples as `Stream`, which cannot look ahead.
            channels: "linked": all channels share one gain, which keeps the stereo image. "apart": every channel is
                enhanced separately, for recordings with one speaker per channel.
        Returns:
            A tensor for a tensor, a NumPy array otherwise, with the input's shape, type and device, aligned with the
            input to the sample.
        Raises:
            ValueError: for another shape or type, an empty signal, or NaN or infinite samples.
        """
        sample_rate = whole_rate(sample_rate)

        def work(array: NDArray[Any]) -> NDArray[Any]:
            x = as_floats(array)
            batch = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x[None, None]  # (b, channels, n)
            out = np.empty_like(batch)
            for item, target in zip(batch, out, strict=True):
                overviews = None
                if self.model.wants_overview:
                    overviews = survey(self.model, sample_rate, len(item), in_blocks(item), BLOCK_SECONDS)
                chain = open_chain(
                    self.model, sample_rate, len(item), strength, residual, overviews=overviews, pcs=pcs,
                    highs=highs, warm_up=warm_up, channels_mode=channels,
                )  # fmt: skip
                done = 0
                for start in range(0, item.shape[1], chain.piece):
                    y = chain.push(item[:, start : start + chain.piece])
                    target[:, done : done + y.shape[1]] = y
                    done += y.shape[1]
                target[:, done:] = chain.finish()
            return as_type(out.reshape(x.shape), array.dtype)

        return like(signal, work)

    def enhance_file(
        self,
        in_path: Path,
        out_path: Path,
        *,
        strength: float | None = None,
        residual: bool = False,
        pcs: bool = False,
        highs: bool = True,
        warm_up: bool = True,
        channels: str = "linked",
        extender: Extender | None = None,
        track: int | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Enhance a file of any length in bounded memory.

        Args:
            in_path: an audio file, or "-" for a WAV stream on stdin.
            out_path: the extension selects the format; "-" for a WAV stream on stdout. The file is written under a
                temporary name and renamed when it is complete.
            strength, residual, pcs, highs, warm_up, channels: as for `enhance`.
            extender: then add the missing high frequencies with this model, at its rate (48 kHz). Their edge is
                measured in the enhanced signal, because noise may fill the band above the voice. Until then, it waits
                in a temporary file (32 or 64 bits a sample).
            track: sound track of a video, counted from 1; None selects the default track.
            overwrite: replace `out_path` if it exists; never the input itself.
            progress: called after every block with the seconds done and the total (0 if unknown). An exception from it
                stops the work, and no output remains.
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy. No output remains.
            BrokenOffError: for a truncated or damaged file. The readable part has been written.
        """
        started = time.perf_counter()
        check_channels_mode(channels)
        if os.fspath(out_path) != STDIO:  # check before reading, not after hours of work
            check_target(os.fspath(out_path), os.fspath(in_path), overwrite)
        overviews = None
        if self.model.wants_overview and not is_stream(in_path):  # a stream cannot be read twice
            with open_reader(in_path, track) as source:
                info, sound = source.info, until_broken(source.blocks(), [])
                overviews = survey(self.model, info.sample_rate, info.channels, sound, BLOCK_SECONDS)
        broken: list[BrokenOffError] = []
        with open_reader(in_path, track) as source:
            info = source.info
            chain = open_chain(
                self.model, info.sample_rate, info.channels, strength, residual, overviews=overviews, pcs=pcs,
                highs=highs, warm_up=warm_up, channels_mode=channels,
            )  # fmt: skip
            rate, frames, steps, reaches = info.sample_rate, 0, 1 if extender is None else 2, list[float]()

            def report(done: float, before: int) -> None:
                if progress:
                    total = info.seconds or 0.0
                    progress((before * total + done) / steps, total)

            def enhanced() -> Iterator[NDArray[Any]]:
                nonlocal frames
                for block in until_broken(source.blocks(), broken):
                    frames += block.shape[1]
                    yield chain.push(block)
                    report(frames / rate, 0)
                yield chain.finish()

            blocks, shape = enhanced(), info
            if extender:
                check_rates(rate, MODEL_RATE, info.name)
                shape = at_rate(info, MODEL_RATE)
                blocks = at_second_reading(extender, blocks, rate, info.channels, MODEL_RATE, reaches.append)
            with open_writer(out_path, shape, overwrite=overwrite) as sink:
                written = 0
                for y in blocks:
                    sink.write(y)
                    written += y.shape[1]
                    if extender:
                        report(written / MODEL_RATE, 1)
        if broken:
            raise broken[0].saved(out_path)
        return Report(
            input=os.fspath(in_path),
            output=os.fspath(out_path),
            seconds=frames / info.sample_rate,
            sample_rate=shape.sample_rate,
            channels=info.channels,
            elapsed=time.perf_counter() - started,
            bandwidth_hz=round(reaches[0]) if reaches else None,
        )


def in_blocks(signal: NDArray[Any], length: int = 1 << 20) -> Iterator[NDArray[Any]]:
    """Split a signal (channels, n) into parts of at most `length` samples."""
    return (signal[:, start : start + length] for start in range(0, signal.shape[1], length))


def load(name_or_path: Path = "studio", backend: str = "auto") -> Enhancer:
    """Load a trained enhancement model by name (see `clearstate models`) or from a folder with weights.

    Raises:
        ValueError: for an unknown name (the message suggests the closest one).
    """
    return Enhancer(name_or_path, backend)


def enhance(
    in_path: Path,
    out_path: Path,
    *,
    model: Path = "studio",
    strength: float | None = None,
    residual: bool = False,
    pcs: bool = False,
    highs: bool = True,
    warm_up: bool = True,
    channels: str = "linked",
    extend: bool = False,
    track: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    backend: str = "auto",
) -> Report:
    """Enhance one file; see `Enhancer.enhance_file` for the arguments. For several files, `load` the model once.

    Args:
        extend: also add the missing high frequencies, with the default extension model.
    """
    return load(model, backend).enhance_file(
        in_path, out_path, strength=strength, residual=residual, pcs=pcs, highs=highs, warm_up=warm_up,
        channels=channels, extender=load_extender(backend=backend) if extend else None, track=track,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
