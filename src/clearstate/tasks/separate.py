"""From a recording of several speakers to one recording each, and a timeline of who speaks when.

The outputs have the length (to the sample), rate, channels, bit depth and tags of the input, and they add up to it:
who is louder in the recording is louder in their file, and what is not speech goes to whoever is loudest there.
Files are read, separated and written block by block, so ten hours need the memory of a minute.
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
import torch
from numpy.typing import NDArray

from clearstate.audio.atomic import write_text
from clearstate.audio.io import CONTAINERS, STDIO, check_target, open_reader, open_writer
from clearstate.tasks.chain import Chain
from clearstate.tasks.enhance import Enhancer, as_floats, as_type
from clearstate.tasks.voices import Voices

AnyPath = str | os.PathLike[str]
Signal = TypeVar("Signal", NDArray[Any], torch.Tensor)
Progress = Callable[[float, float], None]  # seconds of audio done, seconds in all (0 where the length is not known)

DEFAULT_MODEL = "separate-fast"
WRITABLE = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au", ".caf", ".w64", ".rf64", *CONTAINERS}

FRAME_SECONDS = 0.05  # of the timeline
OWN_RANGE_DB = 30.0  # a speaker is silent this far under their own loud parts ...
OTHER_RANGE_DB = 15.0  # ... and this far under whoever is loudest at the time: that is what leaks
FLOOR_DBFS = -70.0
GAP_SECONDS = 0.3  # shorter pauses do not end a segment
LEAST_SECONDS = 0.15  # shorter sounds do not make one


@dataclass(frozen=True)
class Speaker:
    """One output of a separation."""

    file: str
    segments: list[tuple[float, float]]  # seconds, start and end, in which this speaker is active

    @property
    def active_seconds(self) -> float:
        return sum(end - start for start, end in self.segments)


@dataclass(frozen=True)
class Separation:
    """What was done to a file."""

    input: str
    timeline: str  # the JSON file that holds the segments
    speakers: list[Speaker]
    seconds: float  # of audio
    sample_rate: int  # Hz
    channels: int
    elapsed: float  # seconds of work

    @property
    def speed(self) -> float:
        """Seconds of audio in a second of work."""
        return self.seconds / self.elapsed if self.elapsed else 0.0


class Separator:
    """A model that separates, together with the way from any signal to it and back.

    Args:
        model: from `clearstate.models`, task "separate".
        enhancer: if given, noise is removed first, and the outputs add up to what it leaves.
    """

    def __init__(self, model: torch.nn.Module, enhancer: Enhancer | None = None) -> None:
        self.model, self.enhancer = model.eval(), enhancer

    def separate(self, signal: Signal, sample_rate: int) -> Signal:
        """Separate a signal in memory.

        Args:
            signal: NumPy array or torch tensor, (n,) or (channels, n), at least one sample. Floating point with full
                scale at 1, or int16 or int32.
            sample_rate: of the signal, in Hz; any.
        Returns:
            The same kind, type and device, (speakers, n) or (speakers, channels, n), aligned with the input to the
            sample; the speakers add up to the input (integers: but for rounding and clipping).
        Raises:
            ValueError: for another shape or type, an empty signal, or samples that are NaN or infinite.
        """
        if isinstance(signal, torch.Tensor):
            wide = signal.detach().cpu()
            wide = wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide
            return torch.from_numpy(self.separate(wide.numpy(), sample_rate)).to(signal)
        if signal.ndim > 2:
            raise ValueError(f"signal of shape {signal.shape}: expected (n,) or (channels, n), one signal at a time")
        x = as_floats(signal)
        rows = x[None] if x.ndim == 1 else x
        voices = np.concatenate(list(self._stream([rows], sample_rate, len(rows))), axis=2)
        return as_type(voices[:, 0] if x.ndim == 1 else voices, signal.dtype)

    def separate_file(
        self, in_path: AnyPath, out_dir: AnyPath, *, overwrite: bool = False, progress: Progress | None = None
    ) -> Separation:
        """Separate a file of any length in bounded memory.

        `talk.wav` gives `talk.speaker1.wav`, `talk.speaker2.wav`, ... and `talk.timeline.json` in `out_dir`; a format
        that is not written (video) becomes WAV.

        Args:
            in_path: an audio file, or "-" for a WAV stream on stdin.
            out_dir: made if it does not exist. Files are written under temporary names and moved when complete.
            overwrite: replace outputs that exist; never the input itself.
            progress: called after every block with the seconds done and in all (0 while the length is not known); an
                exception from it stops the work and leaves no output.
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy; no output is left then.
        """
        started = time.perf_counter()
        in_name = os.fspath(in_path)
        with open_reader(in_path) as source:
            info = source.info
            targets, timeline = output_names(in_name, out_dir, int(self.model.speakers))  # type: ignore[arg-type]
            make_folder(out_dir)
            for name in (*targets, timeline):  # before anything is read: hours of work must not end in a refusal
                check_target(name, in_name, overwrite)
            activity = Activity(len(targets), info.sample_rate)
            with ExitStack() as stack:
                sinks = [stack.enter_context(open_writer(name, info, overwrite=overwrite)) for name in targets]
                frames = 0
                for voices in self._stream(source.blocks(), info.sample_rate, info.channels):
                    for sink, voice in zip(sinks, voices, strict=True):
                        sink.write(voice)
                    activity.push(voices)
                    frames += voices.shape[2]
                    if progress:
                        progress(frames / info.sample_rate, info.seconds or 0.0)
        speakers = [Speaker(name, segments) for name, segments in zip(targets, activity.segments(), strict=True)]
        done = Separation(
            in_name, timeline, speakers, frames / info.sample_rate, info.sample_rate, info.channels,
            time.perf_counter() - started,
        )  # fmt: skip
        write_timeline(done)
        return done

    def _stream(self, blocks: Iterable[Any], sample_rate: int, channels: int) -> Iterator[NDArray[Any]]:
        """Blocks (channels, n) of a signal to blocks (speakers, channels, m) of its speakers."""
        voices = Voices(self.model, sample_rate, channels)
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
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Separation:
    """Separate the speakers of one file into files in `out_dir`; `Separator.separate_file` explains the arguments.

    Args:
        model: a name (see `clearstate models`) or a folder with weights.
        enhance: an enhancement model that removes noise first, such as "live"; None leaves the noise in.
    """
    separator = load_separator(model, enhance)
    return separator.separate_file(in_path, out_dir, overwrite=overwrite, progress=progress)


def load_separator(model: AnyPath = DEFAULT_MODEL, enhance: AnyPath | None = None) -> Separator:
    """A trained separator by its name or the folder of its weights, for several files; see `separate`.

    Raises:
        ValueError: for a name that is not known, or a model of another task.
    """
    from clearstate.models import PRESETS, load_model

    name = os.fspath(model)
    if name in PRESETS and PRESETS[name].task != "separate":
        known = ", ".join(preset.name for preset in PRESETS.values() if preset.task == "separate")
        raise ValueError(f"{name!r} does not separate speakers (its task is {PRESETS[name].task}); take one of {known}")
    loaded = load_model(name)
    return Separator(loaded, Enhancer(load_model(os.fspath(enhance))) if enhance is not None else None)


def enhanced(enhancer: Enhancer, blocks: Iterable[Any], sample_rate: int, channels: int) -> Iterator[NDArray[Any]]:
    """The blocks without their noise."""
    chain = Chain(enhancer.model, sample_rate, channels, warm_up=True)
    for block in blocks:
        yield chain.push(block)
    yield chain.finish()


# --------------------------------------------------------------------------------------------------------- outputs


def output_names(in_name: str, out_dir: AnyPath, speakers: int) -> tuple[list[str], str]:
    """Where the speakers and the timeline of an input are written."""
    path = Path("stdin.wav" if in_name == STDIO else in_name)
    suffix = path.suffix if path.suffix.lower() in WRITABLE else ".wav"
    folder = Path(out_dir)
    return (
        [str(folder / f"{path.stem}.speaker{i + 1}{suffix}") for i in range(speakers)],
        str(folder / f"{path.stem}.timeline.json"),
    )


def make_folder(folder: AnyPath) -> None:
    """Make the output folder.

    Raises:
        OSError: naming the folder, where it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be made ({error.strerror}); choose another place") from error


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


class Activity:
    """Who is active when, from the power of each speaker in frames of FRAME_SECONDS: 160 bytes a second of audio."""

    def __init__(self, speakers: int, sample_rate: int) -> None:
        self.size = max(1, round(FRAME_SECONDS * sample_rate))
        self.seconds = self.size / sample_rate  # of a frame
        self.sample_rate = sample_rate
        self._held = np.zeros((speakers, 0))  # squares of less than a frame
        self._powers: list[NDArray[np.float32]] = []  # (speakers, frames)
        self._samples = 0

    def push(self, voices: NDArray[Any]) -> None:
        """voices (speakers, channels, n)."""
        self._samples += voices.shape[2]
        squares = np.concatenate([self._held, np.square(voices).mean(1)], axis=1)
        whole = squares.shape[1] // self.size * self.size
        frames = squares[:, :whole].reshape(len(squares), -1, self.size)
        self._powers.append(frames.mean(2).astype(np.float32))
        self._held = squares[:, whole:]

    def segments(self) -> list[list[tuple[float, float]]]:
        """Of each speaker the stretches of activity, in seconds."""
        last = [self._held.mean(1, keepdims=True)] if self._held.shape[1] else []
        level = 10 * np.log10(np.concatenate([*self._powers, *last], axis=1) + 1e-20)  # (speakers, frames)
        segments = []
        for row in level:
            heard = row[row > FLOOR_DBFS]
            loud = float(np.percentile(heard, 95)) if len(heard) else 0.0
            least = np.maximum(level.max(0) - OTHER_RANGE_DB, max(loud - OWN_RANGE_DB, FLOOR_DBFS))
            segments.append(self._runs(row > least))
        return segments

    def _runs(self, active: NDArray[np.bool_]) -> list[tuple[float, float]]:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
        runs: list[list[float]] = []
        for start, end in edges.reshape(-1, 2) * self.seconds:
            if runs and start - runs[-1][1] < GAP_SECONDS:
                runs[-1][1] = end
            else:
                runs.append([start, end])
        total = self._samples / self.sample_rate
        kept = [(start, min(end, total)) for start, end in runs if end - start >= min(LEAST_SECONDS, total)]
        return [(round(float(start), 2), round(float(end), 2)) for start, end in kept]
