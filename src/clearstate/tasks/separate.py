"""Separate speakers: the task behind `clearstate separate`. One output per speaker, and a timeline of their activity.

The outputs have the length (to the sample), rate, channels, bit depth and tags of the input, and their sum is the
input. So levels stay true, and noise goes to the speaker who is loudest at that time and frequency. Files are read,
separated and written block by block, so a recording of ten hours needs no more memory than one minute. The signal path
is in `voices.py`.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.atomic import write_text
from clearstate.audio.formats import WRITABLE
from clearstate.audio.io import BrokenOffError, check_target, open_reader, open_writer, stored, until_broken
from clearstate.audio.mono import MEAN, Mix, find_mix, mix_of
from clearstate.audio.rates import whole_rate
from clearstate.audio.streams import STDIO, is_stream
from clearstate.runtime import open_model
from clearstate.tasks.chain import Chain
from clearstate.tasks.enhance import Enhancer
from clearstate.tasks.keeping import Estimates, Kept, keep
from clearstate.tasks.signals import as_floats, as_type, like
from clearstate.tasks.timeline import Activity
from clearstate.tasks.voices import BLOCK_SECONDS, Voices, estimates_of

AnyPath = str | os.PathLike[str]
Signal = TypeVar("Signal")  # an array, a torch tensor, or anything like one
Progress = Callable[[float, float], None]  # seconds of audio done, total seconds (0 if unknown)

DEFAULT_MODEL = "separate-fast"
MODEL_SHARE = 0.9  # of the work on a long recording, for the progress; the rest is to write what the model gave


@dataclass(frozen=True)
class Speaker:
    """One output of a separation."""

    file: str
    segments: list[tuple[float, float]]  # start and end in seconds of this speaker's activity

    @property
    def active_seconds(self) -> float:
        """Seconds in which the speaker is active."""
        return sum(end - start for start, end in self.segments)


@dataclass(frozen=True)
class Separation:
    """The result for one file."""

    input: str
    timeline: str  # name of the JSON file with the segments
    speakers: list[Speaker]
    seconds: float  # of audio
    sample_rate: int  # Hz
    channels: int
    elapsed: float  # seconds of work
    note: str = ""  # how the channels were mixed, if their mean would cancel

    @property
    def speed(self) -> float:
        """Seconds of audio per second of work."""
        return self.seconds / self.elapsed if self.elapsed else 0.0


class Separator:
    """A separation model that accepts any signal or file.

    Args:
        model: a name, a folder, a PyTorch network of `clearstate.models`, or any `runtime.contract.SeparationModel`.
        enhancer: removes noise first; the sum of the outputs is then the enhanced signal.
        backend: "auto", "onnx" or "torch"; see `runtime.choose`.
    """

    def __init__(self, model: Any = DEFAULT_MODEL, enhancer: Enhancer | None = None, backend: str = "auto") -> None:
        self.model, self.enhancer = open_model(model, "separate", backend=backend), enhancer

    def separate(self, signal: Signal, sample_rate: int) -> Signal:
        """Separate a signal in memory.

        Args:
            signal: array, torch tensor or array-like, (n,) or (channels, n), at least one sample. Floating point
                with full scale at 1, or int16 or int32.
            sample_rate: of the signal, in Hz; any whole number, of any numeric type.
        Returns:
            A tensor for a tensor, an array otherwise, (speakers, n) or (speakers, channels, n), with the input's type
            and device, aligned with the input to the sample. The sum over speakers is the input, except for rounding
            and clipping of integers.
        Raises:
            ValueError: for another shape or type, an empty signal, or NaN or infinite samples.
        """
        sample_rate = whole_rate(sample_rate)

        def work(array: NDArray[Any]) -> NDArray[Any]:
            if array.ndim > 2:
                raise ValueError(f"signal of shape {array.shape}: expected (n,) or (channels, n), one signal at a time")
            x = as_floats(array)
            rows = x[None] if x.ndim == 1 else x
            mix = find_mix(rows)
            with ExitStack() as stack:
                kept = None
                if self._is_long(rows.shape[1] / sample_rate):
                    kept = self._kept(stack, [rows], sample_rate, len(rows), mix)
                voices = np.concatenate(list(self._stream([rows], sample_rate, len(rows), mix, kept)), axis=2)
            return as_type(voices[:, 0] if x.ndim == 1 else voices, array.dtype)

        return like(signal, work)

    def separate_file(
        self,
        in_path: AnyPath,
        out_dir: AnyPath,
        *,
        track: int | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Separation:
        """Separate a file of any length in bounded memory.

        `talk.wav` becomes `talk.speaker1.wav`, `talk.speaker2.wav`, ... and `talk.timeline.json` in `out_dir`. Formats
        that cannot be written, such as video, become WAV.

        Args:
            out_dir: created if it does not exist. Files are written under temporary names and renamed when complete.
            in_path, track, overwrite, progress: as for `Enhancer.enhance_file`, errors included.
        """
        started = time.perf_counter()
        in_name = os.fspath(in_path)
        broken: list[BrokenOffError] = []
        targets, timeline = output_names(in_name, out_dir, self.model.speakers)

        def check_targets() -> None:
            make_folder(out_dir)
            for name in (*targets, timeline):  # before the work, not after hours of it
                check_target(name, in_name, overwrite)

        with ExitStack() as stack:
            path = in_name
            if is_stream(in_name):
                check_targets()
                path = stack.enter_context(stored(in_path))
            source = stack.enter_context(open_reader(path, track))
            info = source.info
            check_targets()

            def report(samples: int, before: float, share: float) -> None:
                if progress:
                    total = info.seconds or 0.0
                    progress(before * total + share * samples / info.sample_rate, total)

            def first_reading() -> Iterator[NDArray[Any]]:
                done = 0
                with open_reader(path, track) as opened:
                    for block in until_broken(opened.blocks(), []):
                        yield block
                        done += block.shape[1]
                        report(done, 0.0, MODEL_SHARE)

            mix, kept, before = MEAN, None, 0.0
            if info.channels > 1:
                with open_reader(path, track) as first:
                    mix = mix_of(until_broken(first.blocks(), []), info.channels)
            if self._is_long(info.seconds):
                kept, before = self._kept(stack, first_reading(), info.sample_rate, info.channels, mix), MODEL_SHARE
            activity = Activity(len(targets), info.sample_rate)
            sinks = [stack.enter_context(open_writer(name, info, overwrite=overwrite)) for name in targets]
            frames = 0
            blocks = until_broken(source.blocks(), broken)
            for voices in self._stream(blocks, info.sample_rate, info.channels, mix, kept):
                for sink, voice in zip(sinks, voices, strict=True):
                    sink.write(voice)
                activity.push(voices)
                frames += voices.shape[2]
                report(frames, before, 1 - before)
        speakers = [Speaker(name, segments) for name, segments in zip(targets, activity.segments(), strict=True)]
        done = Separation(
            in_name, timeline, speakers, frames / info.sample_rate, info.sample_rate, info.channels,
            time.perf_counter() - started, mix.note,
        )  # fmt: skip
        write_timeline(done)
        if broken:
            raise broken[0].saved(out_dir)
        return done

    def _is_long(self, seconds: float | None) -> bool:
        """Whether the model needs more than one block, after which it does not know the voices again."""
        return not self.model.causal and self.model.speakers == 2 and (seconds is None or seconds > BLOCK_SECONDS)

    def _kept(self, stack: ExitStack, blocks: Iterable[Any], sample_rate: int, channels: int, mix: Mix) -> Kept:
        """The outputs of the model for all blocks, each voice in its own row."""
        estimates = stack.enter_context(Estimates(self.model.sample_rate))
        if self.enhancer:
            blocks = enhanced(self.enhancer, blocks, sample_rate, channels)
        for outputs in estimates_of(self.model, blocks, sample_rate, channels, mix):
            estimates.append(outputs)
        return keep(estimates, channels)

    def _stream(
        self, blocks: Iterable[Any], sample_rate: int, channels: int, mix: Mix, kept: Kept | None = None
    ) -> Iterator[NDArray[Any]]:
        """Convert blocks (channels, n) of a signal to blocks (speakers, channels, m)."""
        voices = Voices(self.model, sample_rate, channels, mix, kept)
        if self.enhancer:
            blocks = enhanced(self.enhancer, blocks, sample_rate, channels)
        for block in blocks:
            for start in range(0, block.shape[1], voices.piece):
                yield voices.push(block[:, start : start + voices.piece])
        yield voices.finish()


def separate(
    in_path: AnyPath,
    out_dir: AnyPath,
    *,
    model: AnyPath = DEFAULT_MODEL,
    enhance: AnyPath | None = None,
    track: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    backend: str = "auto",
) -> Separation:
    """Separate the speakers of one file into `out_dir`. `Separator.separate_file` explains the other arguments.

    Args:
        model: a name (see `clearstate models`) or a folder with weights.
        enhance: an enhancement model that removes noise first, such as "live"; None keeps the noise.
    """
    separator = load_separator(model, enhance, backend)
    return separator.separate_file(in_path, out_dir, track=track, overwrite=overwrite, progress=progress)


def load_separator(model: AnyPath = DEFAULT_MODEL, enhance: AnyPath | None = None, backend: str = "auto") -> Separator:
    """Load a trained separator by name or from a folder with weights, for several files. See `separate`.

    Raises:
        ValueError: for an unknown name, or a model of another task.
    """
    return Separator(model, Enhancer(enhance, backend) if enhance is not None else None, backend)


def enhanced(enhancer: Enhancer, blocks: Iterable[Any], sample_rate: int, channels: int) -> Iterator[NDArray[Any]]:
    """Remove noise from the blocks."""
    chain = Chain(enhancer.model, sample_rate, channels, warm_up=True)
    for block in blocks:
        yield chain.push(block)
    yield chain.finish()


# --------------------------------------------------------------------------------------------------------- outputs


def output_names(in_name: str, out_dir: AnyPath, speakers: int) -> tuple[list[str], str]:
    """The output names for an input: one per speaker, and the timeline."""
    path = Path("stdin.wav" if in_name == STDIO else in_name)
    suffix = path.suffix if path.suffix.lower() in WRITABLE else ".wav"
    folder = Path(out_dir)
    return (
        [str(folder / f"{path.stem}.speaker{i + 1}{suffix}") for i in range(speakers)],
        str(folder / f"{path.stem}.timeline.json"),
    )


def make_folder(folder: AnyPath) -> None:
    """Create the output folder.

    Raises:
        OSError: with the folder's name, if it cannot be created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be created ({error.strerror}); choose another place") from error


def write_timeline(done: Separation) -> None:
    """Write the segments as JSON."""
    speakers = [
        {
            "file": Path(speaker.file).name,
            "active_seconds": round(speaker.active_seconds, 2),
            "segments": speaker.segments,
        }
        for speaker in done.speakers
    ]
    described = {
        "input": done.input,
        "seconds": round(done.seconds, 3),
        "sample_rate": done.sample_rate,
        "channels": done.channels,
        "speakers": speakers,
    }
    write_text(done.timeline, json.dumps(described, indent=2) + "\n")
