"""From a file or an array of any kind to the model and back.

Whatever goes in, the same comes out: length to the sample, no delay, rate, channels, level, type. Files are read,
enhanced and written block by block, so ten hours need the memory of a minute.
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
from clearstate.tasks.first_pass import survey
from clearstate.tasks.signals import as_floats, as_type, like

Path = str | os.PathLike[str]
Signal = TypeVar("Signal")  # an array, a torch tensor, or anything like one
Progress = Callable[[float, float], None]  # seconds of audio done, seconds in all (0 where the length is not known)


@dataclass(frozen=True)
class Report:
    """What was done to a file."""

    input: str
    output: str
    seconds: float  # of audio
    sample_rate: int  # Hz
    channels: int
    elapsed: float  # seconds of work

    @property
    def speed(self) -> float:
        """Seconds of audio in a second of work."""
        return self.seconds / self.elapsed if self.elapsed else 0.0


class Enhancer:
    """A model together with the way from any signal to it and back.

    Args:
        model: a PyTorch network of `clearstate.models`, a name, or what fulfils `runtime.contract.EnhancementModel`.

    >>> enhancer = Enhancer(model)  # doctest: +SKIP
    >>> clean = enhancer.enhance(noisy, 44_100)  # doctest: +SKIP
    """

    def __init__(self, model: Any) -> None:
        self.model = open_model(model, "enhance")

    def enhance(
        self,
        signal: Signal,
        sample_rate: int,
        strength: float | None = None,
        *,
        residual: bool = False,
        pcs: bool = False,
        warm_up: bool = True,
        channels: str = "linked",
    ) -> Signal:
        """Enhance a signal in memory.

        Args:
            signal: array, torch tensor or anything like one, (n,), (channels, n) or (batch, channels, n), at least
                one sample. Floating point with full scale at 1, or int16 or int32. The items of a batch are
                independent of each other.
            sample_rate: of the signal, in Hz; any whole number, of any numeric type.
            strength: the most by which anything is attenuated, in dB; 0 changes nothing, None takes all that the
                model removes.
            residual: return what was removed, input - output, instead.
            pcs: stretch the perceptual contrast of the result (`audio/contrast.py`): PESQ rises, SI-SDR falls.
            warm_up: let a causal model hear the first 1.5 s once before they count, so that it knows voice and noise
                from the first sample on. False gives exactly what `Stream` does, which cannot look ahead.
            channels: "linked": all channels share one gain, so the stereo image stays. "apart": each is enhanced by
                itself, for recordings with one speaker per channel.
        Returns:
            The same kind, shape, type and device, aligned with the input to the sample; a NumPy array for anything
            but a tensor.
        Raises:
            ValueError: for another shape or type, an empty signal, or samples that are NaN or infinite.
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
                    warm_up=warm_up, channels_mode=channels,
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
        warm_up: bool = True,
        channels: str = "linked",
        track: int | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Enhance a file of any length in bounded memory.

        Args:
            in_path: an audio file, or "-" for a WAV stream on stdin.
            out_path: its extension chooses the format; "-" for a WAV stream on stdout. Written under a temporary name
                and moved when complete.
            strength: the most by which anything is attenuated, in dB; None takes all that the model removes.
            residual: write what was removed, input - output, instead.
            pcs: stretch the perceptual contrast of the result: PESQ rises, SI-SDR falls.
            warm_up: let a causal model hear the first 1.5 s once before they count.
            channels: "linked" for one gain for all channels, "apart" to enhance each by itself.
            track: of a video with several sound tracks, counted from 1; None takes the default track.
            overwrite: replace `out_path` if it exists; never the input itself.
            progress: called after every block with the seconds done and in all (0 while the length is not known); an
                exception from it stops the work and leaves no output.
        Returns:
            What was done.
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy; no output is left then.
            BrokenOffError: for a file that is cut off or damaged; what could be read of it has been written.
        """
        started = time.perf_counter()
        check_channels_mode(channels)
        if os.fspath(out_path) != STDIO:  # before anything is read: hours of work must not end in a refusal
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
                warm_up=warm_up, channels_mode=channels,
            )  # fmt: skip
            with open_writer(out_path, info, overwrite=overwrite) as sink:
                frames = 0
                for block in until_broken(source.blocks(), broken):
                    frames += block.shape[1]
                    sink.write(chain.push(block))
                    if progress:
                        progress(frames / info.sample_rate, info.seconds or 0.0)
                sink.write(chain.finish())
        if broken:
            raise broken[0].saved(out_path)
        return Report(
            input=os.fspath(in_path),
            output=os.fspath(out_path),
            seconds=frames / info.sample_rate,
            sample_rate=info.sample_rate,
            channels=info.channels,
            elapsed=time.perf_counter() - started,
        )


def in_blocks(signal: NDArray[Any], length: int = 1 << 20) -> Iterator[NDArray[Any]]:
    """A signal (channels, n) in parts of at most so many samples."""
    return (signal[:, start : start + length] for start in range(0, signal.shape[1], length))


def load(name_or_path: Path = "live") -> Enhancer:
    """A trained model by its name (see `clearstate models`) or the folder of its weights, ready to enhance.

    Raises:
        ValueError: for a name that is not known (the nearest is suggested).
    """
    return Enhancer(name_or_path)


def enhance(
    in_path: Path,
    out_path: Path,
    *,
    model: Path = "live",
    strength: float | None = None,
    residual: bool = False,
    pcs: bool = False,
    warm_up: bool = True,
    channels: str = "linked",
    track: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Enhance one file; for several, `load` once and call its `enhance_file`, which explains the arguments."""
    return load(model).enhance_file(
        in_path, out_path, strength=strength, residual=residual, pcs=pcs, warm_up=warm_up, channels=channels,
        track=track,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
