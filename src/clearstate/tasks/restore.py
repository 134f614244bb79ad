"""Restore recordings: inspect a file, choose what it needs, and do all of it in one pass over the samples.

    blocks ── clipping ── offset ── dead channel ── hum ── noise ── band ── written

The steps are chosen by what `inspect` finds (`findings.py`). A recording without a finding is copied byte for byte.
Length, channels, bit depth and tags stay; the rate only changes if the band is extended and the rate is too low for it.
Voices are never separated.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clearstate import __version__
from clearstate.audio import tags
from clearstate.audio.atomic import replacing
from clearstate.audio.declip import Declipper
from clearstate.audio.dehum import HumRemover
from clearstate.audio.io import (
    AudioInfo,
    Block,
    BrokenOffError,
    check_target,
    open_reader,
    open_writer,
    stored,
    until_broken,
)
from clearstate.audio.remote import open_file
from clearstate.audio.streams import STDIO, close_stream, is_stream, open_stream
from clearstate.tasks.chain import open_chain
from clearstate.tasks.enhance import Enhancer, load
from clearstate.tasks.extend import MODEL_RATE, Extender, at_rate
from clearstate.tasks.findings import STEPS
from clearstate.tasks.inspect import Inspection, Inspector

AnyPath = str | os.PathLike[str]
Progress = Callable[[float, float], None]  # seconds of audio done, total seconds (0 if unknown)

WIDE_RATE = 16_000  # Hz; a recording at a lower rate is extended to MODEL_RATE, others keep their rate
FLAT = 0.91  # of half the rate: the pass band of the interpolation before the extension model
LIGHT_DB, LIGHT_STEADY_DB = 10.0, 20.0  # signal-to-noise ratio, and that to the steady noise, of light noise
LIGHT_STRENGTH_DB = 12.0  # most attenuation of light noise
HIGHEST_PEAK = 0.84  # -1.5 dBFS, of restored peaks
INSPECTION_SHARE = 0.3  # of the work, for the progress


@dataclass(frozen=True)
class Step:
    """One thing that was done."""

    kind: str  # one of findings.STEPS
    what: str  # "removed the hum at 50 Hz"
    why: str  # what was found


@dataclass(frozen=True)
class Restoration:
    """The result for one file."""

    input: str
    output: str | None  # None for a dry run
    steps: list[Step]  # empty: the file was copied
    left: list[str]  # what was found and left as it is, with the reason
    seconds: float  # of audio
    sample_rate: int  # Hz, of the output
    channels: int
    inspection: Inspection = field(repr=False)
    elapsed: float = 0.0  # seconds of work

    @property
    def summary(self) -> str:
        """What was done, in one line."""
        return "; ".join(step.what for step in self.steps) or "nothing to do, copied unchanged"


class Pass(Protocol):
    """A step on a signal that arrives in blocks. In total, the output is as long as the input."""

    def push(self, x: Any) -> Any:
        """The next samples (channels, n); returns what they complete."""
        ...

    def finish(self) -> Any:
        """Return the remaining samples."""
        ...


class Restorer:
    """Restores files; loads the models once, when the first file needs them.

    Args:
        skip: steps of `findings.STEPS` that are never done.
    """

    def __init__(self, skip: Collection[str] = ()) -> None:
        if unknown := set(skip) - set(STEPS):
            raise ValueError(f"step {sorted(unknown)[0]!r}: expected one of {', '.join(STEPS)}")
        self.skip = frozenset(skip)
        self.inspector = Inspector()

    @cached_property
    def enhancer(self) -> Enhancer:
        """The model that removes noise; the inspector measures with a faster one."""
        return load()

    @cached_property
    def extender(self) -> Extender:
        """The extension model."""
        return Extender()

    def restore_file(
        self,
        in_path: AnyPath,
        out_path: AnyPath,
        *,
        dry_run: bool = False,
        track: int | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Restoration:
        """Restore a file of any length in bounded memory. It is read twice: to inspect it, and to restore it.

        Args:
            in_path: an audio file, or "-" for stdin; a stream is first stored in a temporary file.
            out_path: the extension selects the format; "-" for a WAV stream on stdout. The file is written under a
                temporary name and renamed when it is complete.
            dry_run: choose the steps, and write nothing.
            track: sound track of a video, counted from 1; None selects the default track.
            overwrite: replace `out_path` if it exists; never the input itself.
            progress: called after every block with the seconds done and the total (0 if unknown). An exception from it
                stops the work, and no output remains.
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy. No output remains.
            BrokenOffError: for a truncated or damaged file. The readable part has been written.
        """
        started = time.perf_counter()
        if not dry_run and os.fspath(out_path) != STDIO:  # check before reading, not after hours of work
            check_target(os.fspath(out_path), os.fspath(in_path), overwrite)
        with ExitStack() as stack:
            source = stack.enter_context(stored(in_path)) if is_stream(in_path) else os.fspath(in_path)
            name = os.fspath(in_path)

            def report(start: float, share: float) -> Progress | None:
                if progress is None:
                    return None
                return lambda done, total: progress(start * total + share * done, total)

            found = self.inspector.inspect_file(source, track=track, progress=report(0.0, INSPECTION_SHARE))
            found = replace(found, input=name)
            steps = choose(found, self.skip)
            to = rate_after(found, steps)
            left = self._left(found, steps)
            if not dry_run:
                if not steps and not found.broken and track is None and copies(source, out_path):
                    copy(source, out_path)
                else:
                    self._run(
                        source,
                        out_path,
                        found,
                        steps,
                        to,
                        track,
                        overwrite,
                        report(INSPECTION_SHARE, 1 - INSPECTION_SHARE),
                    )
        return Restoration(
            name, None if dry_run else os.fspath(out_path), steps, left, found.seconds, to, found.channels, found,
            time.perf_counter() - started,
        )  # fmt: skip

    def _left(self, found: Inspection, steps: list[Step]) -> list[str]:
        done = {step.kind for step in steps}
        left = []
        for one in found.findings:
            if one.kind in self.skip:
                left.append(f"{one.problem} (skipped)")
            elif one.kind not in done:
                left.append(f"{one.problem} ({one.command} does that)" if one.command else one.problem)
        return left

    def _run(
        self,
        source: str,
        out_path: AnyPath,
        found: Inspection,
        steps: list[Step],
        to: int,
        track: int | None,
        overwrite: bool,
        progress: Progress | None,
    ) -> None:
        broken: list[BrokenOffError] = []
        with open_reader(source, track) as opened:
            info = opened.info
            like = at_rate(info, to) if to != info.sample_rate else info
            if steps:
                like = replace(like, metadata=tags.with_comment(tags.of(like), "clearstate", comment(steps)))
            with open_writer(out_path, like, overwrite=overwrite) as sink:
                done = 0
                for y in self._through(until_broken(opened.blocks(), broken), info, found, steps, to):
                    sink.write(y)
                    done += y.shape[1]
                    if progress:
                        progress(done / to, info.seconds or 0.0)
        if broken:
            raise broken[0].saved(out_path)

    def _through(
        self, blocks: Iterable[Block], info: AudioInfo, found: Inspection, steps: list[Step], to: int
    ) -> Iterator[Block]:
        """Connect the steps."""
        for step in steps:
            if step.kind == "band":
                blocks = self.extender.stream(blocks, info.sample_rate, info.channels, to, reach(found))
            else:
                blocks = passed(blocks, self._open(step.kind, info, found))
        gain = gain_for(found, steps)
        return (gain * block for block in blocks)

    def _open(self, kind: str, info: AudioInfo, found: Inspection) -> Pass:
        measured, rate, channels = found.measurement, info.sample_rate, info.channels
        assert measured is not None
        if kind == "clipping":
            return Declipper(rate, channels, measured.clipping.positive, measured.clipping.negative)
        if kind == "offset":
            return Moved(np.array(measured.channels.offsets))
        if kind == "channel":
            return Revived(measured.channels.dead[0])
        if kind == "hum":
            assert measured.hum is not None
            return HumRemover(rate, channels, [k * measured.hum.exact for k in measured.hum.harmonics])
        return open_chain(self.enhancer.model, rate, channels, strength_for(found), warm_up=True)


def restore(
    in_path: AnyPath,
    out_path: AnyPath,
    *,
    skip: Collection[str] = (),
    track: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Restoration:
    """Restore one file; see `Restorer.restore_file`. For several files, create one `Restorer`."""
    return Restorer(skip).restore_file(in_path, out_path, track=track, overwrite=overwrite, progress=progress)


# ------------------------------------------------------------------------------------------------------------- choice


def choose(found: Inspection, skip: Collection[str] = ()) -> list[Step]:
    """The steps that a recording needs, in order."""
    whys = {one.kind: one.problem for one in found.findings}
    whats = {
        "clipping": "restored the clipped peaks",
        "offset": "removed the offset",
        "channel": f"filled channel {found.dead_channels[0] if found.dead_channels else ''} with the other one",
        "hum": f"removed the hum at {found.hum_hz} Hz",
        "noise": "removed noise (model studio)",
        "band": "added the missing high frequencies (model extend-fast)",
    }
    steps = [Step(kind, whats[kind], whys[kind]) for kind in STEPS if kind in whys and kind not in skip]
    if (gain := gain_for(found, steps)) < 1:
        louder = f", {-20 * np.log10(gain):.1f} dB quieter to make room for them"
        steps = [replace(one, what=one.what + louder) if one.kind == "clipping" else one for one in steps]
    return steps


def gain_for(found: Inspection, steps: Collection[Step]) -> float:
    """The gain that makes room for restored peaks; 1 without them."""
    if found.measurement is None or not any(step.kind == "clipping" for step in steps):
        return 1.0
    return min(1.0, HIGHEST_PEAK / max(found.restored_peak, 1e-9))


def strength_for(found: Inspection) -> float | None:
    """The most attenuation of noise in dB; None sets no limit. In light noise, damage to the voice weighs more."""
    light = (found.snr_db or 0.0) >= LIGHT_DB and (found.steady_snr_db or 0.0) >= LIGHT_STEADY_DB
    return LIGHT_STRENGTH_DB if light else None


def rate_after(found: Inspection, steps: Collection[Step]) -> int:
    """The sample rate of the output in Hz."""
    extended = any(step.kind == "band" for step in steps)
    return MODEL_RATE if extended and found.sample_rate < WIDE_RATE else found.sample_rate


def reach(found: Inspection) -> float:
    """Where the recorded band starts to fall in Hz, also at the top of the file's own rate."""
    assert found.measurement is not None
    return min(found.measurement.edge, FLAT * found.sample_rate / 2)


def comment(steps: Collection[Step]) -> str:
    """The text for the tags."""
    return f"clearstate {__version__} restore: " + "; ".join(f"{step.what} ({step.why})" for step in steps)


# -------------------------------------------------------------------------------------------------------------- steps


def passed(blocks: Iterable[Block], through: Pass) -> Iterator[Block]:
    """Send blocks through a step."""
    for block in blocks:
        y = through.push(block)
        if y.shape[1]:
            yield y
    yield through.finish()


class Moved:
    """Subtract a constant from each channel."""

    def __init__(self, offsets: NDArray[np.float64]) -> None:
        self.offsets = offsets[:, None]

    def push(self, x: Block) -> Block:
        """The next samples (channels, n)."""
        return x - self.offsets

    def finish(self) -> Block:
        """Nothing remains."""
        return np.zeros((len(self.offsets), 0))


class Revived:
    """Replace one of two channels by the other."""

    def __init__(self, dead: int) -> None:
        self.dead = dead

    def push(self, x: Block) -> Block:
        """The next samples (2, n)."""
        return np.repeat(x[1 - self.dead][None], 2, axis=0)

    def finish(self) -> Block:
        """Nothing remains."""
        return np.zeros((2, 0))


# -------------------------------------------------------------------------------------------------------------- files


def copies(source: str, target: AnyPath) -> bool:
    """Whether a byte copy of the source is right for the target."""
    suffix = ".wav" if os.fspath(target) == STDIO or is_stream(target) else Path(target).suffix.lower()
    return Path(source).suffix.lower() == suffix


def copy(source: str, target: AnyPath) -> None:
    """Copy a file byte for byte; it appears complete or not at all."""
    with open_file(source) as file:
        if is_stream(target):
            stream = open_stream(target, "wb")
            try:
                shutil.copyfileobj(file, stream)
                stream.flush()
            finally:
                close_stream(stream)
            return
        with replacing(target) as temporary, open(temporary, "wb") as sink:
            shutil.copyfileobj(file, sink)
