"""Extend the bandwidth of narrowband speech: the task behind `clearstate extend`. Recorded frequencies stay unchanged.

    x ── aligned sinc interpolation to 48 kHz ──┬── model, in overlapping blocks ── wide
                                                │                                    │
                                                └──────── + ──── high-pass ──── wide − x

The high-pass is a linear-phase filter that starts where the recording ends. Below it the output equals the input,
independent of the model. The bandwidth of the recording is measured, because many 48 kHz files were at 16 kHz before.
Files are read twice (first to measure) and written block by block, so a recording of ten hours needs no more memory
than one minute.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray

from clearstate.audio import tags
from clearstate.audio.atomic import explained
from clearstate.audio.bandwidth import HOP, N_FFT, power_spectrum, upper_edge
from clearstate.audio.io import AudioInfo, BrokenOffError, check_target, open_reader, open_writer, stored, until_broken
from clearstate.audio.offset import Offset
from clearstate.audio.rates import whole_rate
from clearstate.audio.streams import STDIO, is_stream
from clearstate.runtime import open_model
from clearstate.runtime.contract import ExtensionModel
from clearstate.tasks.blocks import Layout, Overlapping
from clearstate.tasks.signals import as_floats, as_type, like

AnyPath = str | os.PathLike[str]
Signal = TypeVar("Signal")  # an array, a torch tensor, or anything like one
Array = NDArray[Any]
Progress = Callable[[float, float], None]  # seconds of audio done, total seconds (0 if unknown)

DEFAULT_MODEL = "extend-fast"
MODEL_RATE = 48_000  # Hz, of every extension model
LEAST_RATE, LEAST_BANDWIDTH = 4_000, 2_000.0  # Hz; below that, a model cannot predict the band above
WHOLE = 0.9  # share of half the output rate; a recording that reaches it is complete
QUALITY = "HQ"  # of soxr: flat up to 0.91 of half the narrow rate, linear phase

BLOCK_SECONDS = 10.0  # block length
CONTEXT_SECONDS = 2.0  # at each end of a block, input only
FADE_SECONDS = 0.1  # cross-fade between neighbouring blocks
GRID = 4096  # samples; blocks start on multiples, so a model's frames have the same position in each block
TAPS = 511  # length of the crossover filter
STOP_DB = 80.0  # attenuation of the model's output below the crossover


@dataclass(frozen=True)
class Extension:
    """The result for one file."""

    input: str
    output: str
    seconds: float  # of audio
    from_rate: int  # Hz
    sample_rate: int  # Hz, of the output
    channels: int
    bandwidth_hz: float  # measured bandwidth of the input
    extended: bool  # False: nothing was missing; only the rate has changed
    elapsed: float  # seconds of work
    silent: bool = False  # the input is digital silence

    @property
    def speed(self) -> float:
        """Seconds of audio per second of work."""
        return self.seconds / self.elapsed if self.elapsed else 0.0


class Extender:
    """An extension model that accepts any signal or file.

    Args:
        model: a name, a folder, a PyTorch network of `clearstate.models`, or any `runtime.contract.ExtensionModel`.
        steps, seed: settings of a diffusion model; None keeps its defaults.
    Raises:
        ValueError: for a model of another task, or steps or a seed for a model that works in one step.
    """

    def __init__(
        self, model: Any = DEFAULT_MODEL, *, steps: int | None = None, seed: int | None = None, backend: str = "auto"
    ) -> None:
        self.model = open_model(model, "extend", backend=backend, steps=steps, seed=seed)
        if self.model.sample_rate != MODEL_RATE:
            raise ValueError(f"{self.model.name} works at {self.model.sample_rate} Hz: expected {MODEL_RATE} Hz")

    def extend(self, signal: Signal, sample_rate: int, to: int = MODEL_RATE) -> Signal:
        """Extend a signal in memory.

        Args:
            signal: NumPy array or torch tensor, (n,), (channels, n) or (batch, channels, n), at least one sample.
                Floating point with full scale at 1, or int16 or int32.
            sample_rate: of the signal, in Hz: LEAST_RATE to `to`.
            to: sample rate of the output in Hz, at most 48000.
        Returns:
            An array or tensor like the input, aligned with it, with round(n to / sample_rate) samples, at least 1.
        Raises:
            ValueError: for another shape or type, an empty signal, NaN or infinite samples, or rates out of range.
        """
        sample_rate, to = check_rates(sample_rate, to)

        def work(array: Array) -> Array:
            x = as_floats(array)
            batch = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x[None, None]  # (b, channels, n)
            out = []
            for item in batch:
                reach = measure([item], sample_rate, len(item))
                blocks = (item[:, start : start + sample_rate] for start in range(0, item.shape[1], sample_rate))
                out.append(np.concatenate(list(self.stream(blocks, sample_rate, len(item), to, reach)), axis=1))
            y = np.stack(out)
            return as_type(y.reshape(*x.shape[:-1], y.shape[-1]), array.dtype)

        return like(signal, work)

    def extend_file(
        self,
        in_path: AnyPath,
        out_path: AnyPath,
        *,
        to: int = MODEL_RATE,
        track: int | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Extension:
        """Extend a file of any length in bounded memory.

        Args:
            in_path: an audio file, or "-" for stdin; a stream is first stored in a temporary file.
            out_path: the extension selects the format; "-" for a WAV stream on stdout. The file is written under a
                temporary name and renamed when it is complete.
            to: sample rate of the output in Hz, at most 48000.
            track: sound track of a video, counted from 1; None selects the default track.
            overwrite: replace `out_path` if it exists; never the input itself.
            progress: called after every block, and after every step of a diffusion model, with the seconds done and
                the total (0 if unknown). An exception from it stops the work, and no output remains.
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy. No output remains.
            BrokenOffError: for a truncated or damaged file. The readable part has been written.
        """
        started = time.perf_counter()
        to = whole_rate(to, "output rate")
        if os.fspath(out_path) != STDIO:  # check before reading, not after hours of work
            check_target(os.fspath(out_path), os.fspath(in_path), overwrite)
        broken: list[BrokenOffError] = []
        with ExitStack() as stack:
            path = stack.enter_context(stored(in_path)) if is_stream(in_path) else os.fspath(in_path)
            with open_reader(path, track) as source:
                check_rates(source.info.sample_rate, to, source.info.name)
                reach = measure(until_broken(source.blocks(), []), source.info.sample_rate, source.info.channels)
            source = stack.enter_context(open_reader(path, track))
            info = source.info
            blocks = until_broken(source.blocks(), broken)
            like = at_rate(info, to)
            with open_writer(out_path, like, overwrite=overwrite) as sink:
                done, silent = 0, True

                def within(share: float) -> None:  # of the current block
                    if progress:
                        progress(done / to + share * BLOCK_SECONDS, info.seconds or 0.0)

                for y in self.stream(blocks, info.sample_rate, info.channels, to, reach, within):
                    sink.write(y)
                    silent = silent and not y.any()
                    done += y.shape[1]
                    if progress:
                        progress(done / to, info.seconds or 0.0)
        if broken:
            raise broken[0].saved(out_path)
        return Extension(
            os.fspath(in_path), os.fspath(out_path), done / to, info.sample_rate, to, info.channels, round(reach, 0),
            not is_whole(reach, to), time.perf_counter() - started, silent,
        )  # fmt: skip

    def stream(
        self,
        blocks: Iterable[Array],
        sample_rate: int,
        channels: int,
        to: int,
        reach: float,
        within: Callable[[float], None] = lambda share: None,
    ) -> Iterator[Array]:
        """Convert blocks (channels, n) to (channels, m) at the new rate, with a generated band above `reach` Hz."""
        whole = is_whole(reach, to)
        up = Rate(sample_rate, to if whole else MODEL_RATE, channels)
        down = Rate(up.to, to, channels)
        middle = None if whole else Added(self.model, channels, reach, within)
        received = produced = 0

        def through(x: Array) -> Array:
            return down.push(middle.push(x)[1] if middle else x)

        dtype: Any = np.float64
        for block in blocks:
            dtype = block.dtype
            received += block.shape[1]
            y = through(up.push(block.astype(np.float64, copy=False)))
            produced += y.shape[1]
            if y.shape[1]:
                yield y.astype(dtype, copy=False)
        last = [through(up.finish()), *([down.push(middle.finish()[1])] if middle else []), down.finish()]
        rest, total = np.concatenate(last, axis=1), length_at(received, sample_rate, to)
        missing = total - produced - rest.shape[1]  # soxr may return one sample more or less
        rest = np.pad(rest, ((0, 0), (0, max(0, missing))))[:, : total - produced]
        yield rest.astype(dtype, copy=False)


def at_second_reading(
    extender: Extender,
    blocks: Iterable[Array],
    sample_rate: int,
    channels: int,
    to: int,
    measured: Callable[[float], None] = lambda reach: None,
) -> Iterator[Array]:
    """Extend blocks (channels, n) that can be read only once: they wait on the disk until their bandwidth is known.

    Args:
        sample_rate, to: Hz, of the blocks and of the output.
        measured: called with the bandwidth in Hz before the first output.
    Raises:
        OSError: in one line, if the temporary folder is full.
    """
    with tempfile.TemporaryFile(prefix="clearstate-") as file:
        kinds: list[np.dtype[Any]] = []

        def stored() -> Iterator[Array]:
            for block in blocks:
                kinds.append(block.dtype)
                try:
                    file.write(block.T.tobytes())
                except OSError as error:
                    raise explained(error, tempfile.gettempdir()) from error
                yield block

        def again() -> Iterator[Array]:
            file.seek(0)
            kind = kinds[0] if kinds else np.dtype(np.float32)
            while data := file.read(MODEL_RATE * channels * kind.itemsize):
                yield np.frombuffer(data, kind).reshape(-1, channels).T

        reach = measure(stored(), sample_rate, channels)
        measured(reach)
        yield from extender.stream(again(), sample_rate, channels, to, reach)


def extend(
    in_path: AnyPath,
    out_path: AnyPath,
    *,
    to: int = MODEL_RATE,
    model: AnyPath = DEFAULT_MODEL,
    steps: int | None = None,
    seed: int | None = None,
    track: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    backend: str = "auto",
) -> Extension:
    """Extend the bandwidth of one file. `Extender.extend_file` explains the arguments."""
    extender = load_extender(model, steps=steps, seed=seed, backend=backend)
    return extender.extend_file(in_path, out_path, to=to, track=track, overwrite=overwrite, progress=progress)


def load_extender(
    model: AnyPath = DEFAULT_MODEL, *, steps: int | None = None, seed: int | None = None, backend: str = "auto"
) -> Extender:
    """Load a trained extension model by name or from a folder with weights.

    Raises:
        ValueError: for an unknown name, a model of another task, or a model without weights.
    """
    return Extender(model, steps=steps, seed=seed, backend=backend)


# -------------------------------------------------------------------------------------------------------------- rates


def check_rates(sample_rate: int, to: int, name: str = "the signal") -> tuple[int, int]:
    """Return both rates as int.

    Raises:
        ValueError: for rates out of range.
    """
    sample_rate, to = whole_rate(sample_rate), whole_rate(to, "output rate")
    if not 2 * LEAST_BANDWIDTH < to <= MODEL_RATE:
        raise ValueError(
            f"output rate {to} Hz: expected at most {MODEL_RATE}, the models' rate, such as 48000 or 44100"
        )
    if not LEAST_RATE <= sample_rate <= to:
        remedy = "the bandwidth is too small" if sample_rate < LEAST_RATE else "resample it first"
        raise ValueError(f"{name} is at {sample_rate} Hz: expected {LEAST_RATE} to {to} Hz, the output rate; {remedy}")
    return sample_rate, to


def length_at(samples: int, rate: int, to: int) -> int:
    """Number of samples after a change of rate, rounded half up; at least 1 unless the signal is empty.

    >>> length_at(1, 8_000, 48_000), length_at(44_101, 44_100, 48_000), length_at(0, 8_000, 48_000)
    (6, 48001, 0)
    """
    return max(1, (2 * samples * to + rate) // (2 * rate)) if samples else 0


def at_rate(info: AudioInfo, to: int) -> AudioInfo:
    """The properties of a file after extension to the rate `to`."""
    frames = None if info.frames is None else length_at(info.frames, info.sample_rate, to)
    # The quantisation noise of 8 bits would mask the added band.
    fine = {"ULAW": "PCM_16", "ALAW": "PCM_16", "PCM_U8": "PCM_16", "PCM_S8": "PCM_16"}
    like = replace(info, sample_rate=to, frames=frames, subtype=fine.get(info.subtype, info.subtype))
    return replace(like, metadata=tags.of(info).at_rate(info.sample_rate, to))


def is_whole(reach: float, to: int) -> bool:
    """Whether a bandwidth of `reach` Hz is complete at the sample rate `to`."""
    return reach >= WHOLE * to / 2


class Rate:
    """Resample one signal in chunks with soxr, aligned and independent of the chunks. Equal rates pass through."""

    def __init__(self, rate: int, to: int, channels: int) -> None:
        self.to, self.channels = to, channels
        self._stream = None if rate == to else soxr.ResampleStream(rate, to, channels, dtype="float64", quality=QUALITY)

    def push(self, x: Array, last: bool = False) -> Array:
        """Process the next samples: x (channels, n) float64 to (channels, m)."""
        if self._stream is None:
            return x
        return np.ascontiguousarray(self._stream.resample_chunk(np.ascontiguousarray(x.T), last=last).T)

    def finish(self) -> Array:
        """The rest."""
        return self.push(np.zeros((self.channels, 0)), last=True)


# ---------------------------------------------------------------------------------------------------------- bandwidth


def measure(blocks: Iterable[Array], sample_rate: int, channels: int) -> float:
    """Measure the bandwidth of a signal in Hz over all its blocks (channels, n), for all channels together.

    It is measured after interpolation to MODEL_RATE, because the interpolation filter counts, too.
    """
    up = Rate(sample_rate, MODEL_RATE, channels)
    held = np.zeros((channels, 0))
    power = np.zeros(N_FFT // 2 + 1, dtype=np.float32)

    def add(x: Array) -> None:
        nonlocal held, power
        held = np.concatenate([held, x], axis=1)
        frames = max(0, (held.shape[1] - N_FFT) // HOP + 1)
        if frames:
            part = held[:, : N_FFT + (frames - 1) * HOP].astype(np.float32)
            power = power + power_spectrum(part).sum(0)
            held = held[:, frames * HOP :]

    for block in blocks:
        for start in range(0, block.shape[1], MODEL_RATE):
            add(up.push(block[:, start : start + MODEL_RATE].astype(np.float64, copy=False)))
    add(up.finish())
    if not power.any() and held.shape[1]:  # shorter than a frame
        power = power_spectrum(held.astype(np.float32)).sum(0)
    return max(LEAST_BANDWIDTH, float(upper_edge(power[None], MODEL_RATE)[0]))


# ------------------------------------------------------------------------------------------------------------- blocks


class Added(Overlapping):
    """Process one signal at MODEL_RATE in overlapping blocks; the model adds the band above `reach` Hz."""

    def __init__(self, model: ExtensionModel, channels: int, reach: float, within: Callable[[float], None]) -> None:
        length, context = (round(s * MODEL_RATE / GRID) * GRID for s in (BLOCK_SECONDS, CONTEXT_SECONDS))
        layout = Layout(length, 2 * context, round(FADE_SECONDS * MODEL_RATE))
        run, elsewhere = partial(widened, model, reach, within), partial(widened, model, reach, None)
        super().__init__(run, channels, channels, layout, dtype=np.float64, elsewhere=elsewhere)


def widened(
    model: ExtensionModel, reach: float, within: Callable[[float], None] | None, x: Array, position: int
) -> Array:
    """Add the band above `reach` Hz to a block (channels, n). Channels run one by one to save memory.

    Args:
        within: called with the finished share of the block.
    """
    high = highpass(round(reach))

    def added(x: Array, c: int) -> Array:
        def progress(done: int, steps: int) -> None:
            if within:
                within((c + done / steps) / channels)

        narrow = Offset(1, MODEL_RATE // 80, MODEL_RATE).push(x[None].astype(np.float32), last=True)[0]
        change = (model.run(narrow, reach, position, progress) - narrow).astype(np.float64)
        size = next_fast_len(len(x) + TAPS - 1)
        filtered = np.fft.irfft(np.fft.rfft(change, size) * np.fft.rfft(high, size), size)
        return filtered[TAPS // 2 : TAPS // 2 + len(x)]

    channels = len(x)
    return x + np.stack([added(channel, c) for c, channel in enumerate(x)])


def next_fast_len(least: int) -> int:
    """The smallest number >= `least` without prime factors above 5. An FFT of this length is fast.

    >>> next_fast_len(1_031), next_fast_len(1)
    (1080, 1)
    """
    candidates = (2**a * 3**b * 5**c for a in range(32) for b in range(4) for c in range(4))
    return min(size for size in candidates if size >= least)


@lru_cache(maxsize=8)
def highpass(reach: int) -> Array:
    """Linear-phase high-pass (TAPS,) with its pass band from `reach` Hz; STOP_DB attenuation 470 Hz below.

    Unity minus a Kaiser-windowed sinc.
    """
    beta = 0.1102 * (STOP_DB - 8.7)
    transition = (STOP_DB - 7.95) / (14.36 * (TAPS - 1)) * MODEL_RATE  # Hz, Kaiser's length formula
    middle = (reach - transition / 2) / MODEL_RATE  # cycles a sample
    low = 2 * middle * np.sinc(2 * middle * (np.arange(TAPS) - TAPS // 2)) * np.kaiser(TAPS, beta)
    high = -low / low.sum()
    high[TAPS // 2] += 1
    return high
