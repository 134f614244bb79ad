"""From a narrow recording to a wide one: what it holds comes back unchanged, and the band above is added.

    x ── aligned sinc interpolation to 48 kHz ──┬── model, in overlapping blocks ── wide
                                                │                                    │
                                                └──────── + ──── high-pass ──── wide − x

The high-pass is a linear-phase filter that begins where the recording ends: whatever a model does below, the output
there is the input. The recording's bandwidth is measured, for many a file at 48 kHz has been at 16 before. Files are
read twice, once to measure, and written block by block: ten hours need the memory of a minute.
"""

import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from clearstate.audio.bandwidth import HOP, N_FFT, power_spectrum, upper_edge
from clearstate.audio.io import STDIO, check_target, open_reader, open_writer
from clearstate.kernels.threads import inference
from clearstate.ssm.s4 import fft_size
from clearstate.tasks.chain import device_of
from clearstate.tasks.enhance import as_floats, as_type

AnyPath = str | os.PathLike[str]
Signal = TypeVar("Signal", NDArray[Any], torch.Tensor)
Array = NDArray[Any]
Progress = Callable[[float, float], None]  # seconds of audio done, seconds in all (0 where the length is not known)

DEFAULT_MODEL = "extend-fast"
MODEL_RATE = 48_000  # Hz: of every model that extends
LEAST_RATE, LEAST_BANDWIDTH = 4_000, 2_000.0  # Hz; from less than that nothing above can be told
WHOLE = 0.9  # share of half the output's rate from which on nothing is missing
QUALITY = "HQ"  # of soxr: flat up to 0.91 of half the narrow rate, linear phase

BLOCK_SECONDS = 10.0  # what the model sees at a time ...
CONTEXT_SECONDS = 2.0  # ... of which so much at either end only serves to hear the rest ...
FADE_SECONDS = 0.1  # ... and neighbours are cross-faded over this
GRID = 4096  # samples: blocks begin on multiples, so that a model's frames fall alike in all of them
TAPS = 511  # of the crossover
STOP_DB = 80.0  # by which what the model does under the crossover is taken down


@dataclass(frozen=True)
class Extension:
    """What was done to a file."""

    input: str
    output: str
    seconds: float  # of audio
    from_rate: int  # Hz
    sample_rate: int  # Hz, of the output
    channels: int
    bandwidth_hz: float  # up to where the input reaches, measured
    extended: bool  # False: nothing was missing, only the rate was changed
    elapsed: float  # seconds of work

    @property
    def speed(self) -> float:
        """Seconds of audio in a second of work."""
        return self.seconds / self.elapsed if self.elapsed else 0.0


class Extender:
    """A model that extends the bandwidth, together with the way from any signal to it and back.

    Args:
        model: from `clearstate.models`, task "extend".
        steps, seed: of a diffusion model; None leaves its own.
    Raises:
        ValueError: for a model of another task, or steps or a seed for a model that works in one step.
    """

    def __init__(self, model: torch.nn.Module, *, steps: int | None = None, seed: int | None = None) -> None:
        self.model = model.eval()
        known = inspect.signature(model.forward).parameters
        if "bandwidth_hz" not in known or model.sample_rate != MODEL_RATE:
            raise ValueError(
                f"{type(model).__name__} does not extend the bandwidth; expected 'extend-fast' or its like"
            )
        given = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{type(model).__name__} works in one step: {' and '.join(unknown)} do not apply to it")
        if steps is not None and steps < 1:
            raise ValueError(f"steps {steps}: expected 1 or more, such as 6")
        self.sampling = given

    def extend(self, signal: Signal, sample_rate: int, to: int = MODEL_RATE) -> Signal:
        """Extend a signal in memory.

        Args:
            signal: NumPy array or torch tensor, (n,), (channels, n) or (batch, channels, n), at least one sample.
                Floating point with full scale at 1, or int16 or int32.
            sample_rate: of the signal, in Hz: LEAST_RATE to `to`.
            to: the rate of the output, in Hz, 48000 at most.
        Returns:
            The same kind, type and device, aligned with the input, with round(n to / sample_rate) samples, at least 1.
        Raises:
            ValueError: for another shape or type, an empty signal, samples that are NaN or infinite, or such rates.
        """
        if isinstance(signal, torch.Tensor):
            held = signal.detach().cpu()
            held = held.float() if held.dtype in (torch.float16, torch.bfloat16) else held
            return torch.from_numpy(self.extend(held.numpy(), sample_rate, to)).to(signal)
        check_rates(sample_rate, to)
        x = as_floats(signal)
        batch = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x[None, None]  # (b, channels, n)
        out = []
        for item in batch:
            reach = measure([item], sample_rate, len(item))
            blocks = (item[:, start : start + sample_rate] for start in range(0, item.shape[1], sample_rate))
            out.append(np.concatenate(list(self.stream(blocks, sample_rate, len(item), to, reach)), axis=1))
        y = np.stack(out)
        return as_type(y.reshape(*x.shape[:-1], y.shape[-1]), signal.dtype)

    def extend_file(
        self,
        in_path: AnyPath,
        out_path: AnyPath,
        *,
        to: int = MODEL_RATE,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Extension:
        """Extend a file of any length in bounded memory.

        Args:
            in_path: an audio file, or "-" for a WAV stream on stdin (whose bandwidth is measured on its first block).
            out_path: its extension chooses the format; "-" for a WAV stream on stdout. Written under a temporary name
                and moved when complete.
            to: the rate of the output, in Hz, 48000 at most.
            overwrite: replace `out_path` if it exists; never the input itself.
            progress: called after every block, and by diffusion models after every step, with the seconds done and in
                all (0 while the length is not known); an exception from it stops the work and leaves no output.
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy; no output is left then.
        """
        started = time.perf_counter()
        if os.fspath(out_path) != STDIO:  # before anything is read: hours of work must not end in a refusal
            check_target(os.fspath(out_path), os.fspath(in_path), overwrite)
        reach = None
        if os.path.isfile(in_path):  # what is no file cannot be read twice
            with open_reader(in_path) as source:
                check_rates(source.info.sample_rate, to, source.info.name)
                reach = measure(source.blocks(), source.info.sample_rate, source.info.channels)
        with open_reader(in_path) as source:
            info = source.info
            check_rates(info.sample_rate, to, info.name)
            blocks = source.blocks()
            if reach is None:
                first = next(blocks)
                reach = measure([first], info.sample_rate, info.channels)
                blocks = chained(first, blocks)
            frames = None if info.frames is None else length_at(info.frames, info.sample_rate, to)
            fine = {"ULAW": "PCM_16", "ALAW": "PCM_16", "PCM_U8": "PCM_16", "PCM_S8": "PCM_16"}
            like = replace(
                info, sample_rate=to, frames=frames, subtype=fine.get(info.subtype, info.subtype)
            )  # the hiss of 8 bits would drown what is added
            with open_writer(out_path, like, overwrite=overwrite) as sink:
                done = 0

                def within(share: float) -> None:  # of the block that is being worked on
                    if progress:
                        progress(done / to + share * BLOCK_SECONDS, info.seconds or 0.0)

                for y in self.stream(blocks, info.sample_rate, info.channels, to, reach, within):
                    sink.write(y)
                    done += y.shape[1]
                    if progress:
                        progress(done / to, info.seconds or 0.0)
        return Extension(
            os.fspath(in_path), os.fspath(out_path), done / to, info.sample_rate, to, info.channels, round(reach, 0),
            not is_whole(reach, to), time.perf_counter() - started,
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
        """Blocks (channels, n) at one rate to blocks (channels, m) at another, with the band above `reach` Hz."""
        whole = is_whole(reach, to)
        up = Rate(sample_rate, to if whole else MODEL_RATE, channels)
        down = Rate(up.to, to, channels)
        middle = None if whole else Blocks(self.model, channels, reach, self.sampling, within)
        received = produced = 0

        def part(x: Array, last: bool) -> Array:
            x = up.push(x, last)
            if middle:
                x = middle.push(x, last)
            return down.push(x, last)

        empty = np.zeros((channels, 0))
        dtype: Any = np.float64
        for block in blocks:
            dtype = block.dtype
            received += block.shape[1]
            y = part(block.astype(np.float64, copy=False), last=False)
            produced += y.shape[1]
            if y.shape[1]:
                yield y.astype(dtype, copy=False)
        rest, total = part(empty, last=True), length_at(received, sample_rate, to)
        missing = total - produced - rest.shape[1]  # soxr rounds in its own way: a sample more or less
        rest = np.pad(rest, ((0, 0), (0, max(0, missing))))[:, : total - produced]
        yield rest.astype(dtype, copy=False)


def extend(
    in_path: AnyPath,
    out_path: AnyPath,
    *,
    to: int = MODEL_RATE,
    model: AnyPath = DEFAULT_MODEL,
    steps: int | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Extension:
    """Extend the bandwidth of one file; `Extender.extend_file` explains the arguments."""
    extender = load_extender(model, steps=steps, seed=seed)
    return extender.extend_file(in_path, out_path, to=to, overwrite=overwrite, progress=progress)


def load_extender(model: AnyPath = DEFAULT_MODEL, *, steps: int | None = None, seed: int | None = None) -> Extender:
    """A trained model by its name or the folder of its weights, ready to extend signals and files.

    Raises:
        ValueError: for a name that is not known, a model of another task, or one without weights.
    """
    from clearstate.models import PRESETS, load_model

    name = os.fspath(model)
    if name in PRESETS and PRESETS[name].task != "extend":
        known = ", ".join(preset.name for preset in PRESETS.values() if preset.task == "extend")
        raise ValueError(f"{name!r} does not extend the bandwidth (it is there to {PRESETS[name].task}); take {known}")
    return Extender(load_model(name), steps=steps, seed=seed)


# -------------------------------------------------------------------------------------------------------------- rates


def check_rates(sample_rate: int, to: int, name: str = "the signal") -> None:
    """Raise a ValueError for rates between which nothing can be extended."""
    if to != int(to) or not 2 * LEAST_BANDWIDTH < to <= MODEL_RATE:
        raise ValueError(
            f"an output at {to} Hz: expected at most {MODEL_RATE}, the models' rate, such as 48000 or 44100"
        )
    if sample_rate != int(sample_rate) or not LEAST_RATE <= sample_rate <= to:
        remedy = "there is too little to go by" if sample_rate < LEAST_RATE else "resample it first"
        raise ValueError(f"{name} is at {sample_rate} Hz: expected {LEAST_RATE} to {to} Hz, the output's; {remedy}")


def length_at(samples: int, rate: int, to: int) -> int:
    """Samples of a signal after a change of rate; half a sample rounds up, and something stays something.

    >>> length_at(1, 8_000, 48_000), length_at(44_101, 44_100, 48_000), length_at(0, 8_000, 48_000)
    (6, 48001, 0)
    """
    return max(1, (2 * samples * to + rate) // (2 * rate)) if samples else 0


def is_whole(reach: float, to: int) -> bool:
    """Whether a signal that reaches to so many Hz lacks nothing at a rate."""
    return reach >= WHOLE * to / 2


class Rate:
    """soxr's sinc interpolation of one signal in chunks: aligned, and the same for all chunks. Equal rates pass."""

    def __init__(self, rate: int, to: int, channels: int) -> None:
        self.to = to
        self._stream = None if rate == to else soxr.ResampleStream(rate, to, channels, dtype="float64", quality=QUALITY)

    def push(self, x: Array, last: bool) -> Array:
        """x (channels, n) float64 -> (channels, m): what can be given so far, and with `last` all the rest."""
        if self._stream is None:
            return x
        return np.ascontiguousarray(self._stream.resample_chunk(np.ascontiguousarray(x.T), last=last).T)


# ---------------------------------------------------------------------------------------------------------- bandwidth


def measure(blocks: Iterable[Array], sample_rate: int, channels: int) -> float:
    """Up to where a signal reaches, in Hz, from all of its blocks (channels, n), full scale 1; all channels together.

    It is measured after the interpolation to MODEL_RATE, whose own filter counts.
    """
    up = Rate(sample_rate, MODEL_RATE, channels)
    held = np.zeros((channels, 0))
    power = torch.zeros(N_FFT // 2 + 1)

    def add(x: Array) -> None:
        nonlocal held, power
        held = np.concatenate([held, x], axis=1)
        frames = max(0, (held.shape[1] - N_FFT) // HOP + 1)
        if frames:
            part = torch.from_numpy(held[:, : N_FFT + (frames - 1) * HOP]).float()
            power = power + power_spectrum(part).sum(0)
            held = held[:, frames * HOP :]

    for block in blocks:
        for start in range(0, block.shape[1], MODEL_RATE):
            add(up.push(block[:, start : start + MODEL_RATE].astype(np.float64, copy=False), last=False))
    add(up.push(np.zeros((channels, 0)), last=True))
    if not power.any() and held.shape[1]:  # shorter than a frame
        power = power_spectrum(torch.from_numpy(held).float()).sum(0)
    return max(LEAST_BANDWIDTH, float(upper_edge(power[None], MODEL_RATE)))


# ------------------------------------------------------------------------------------------------------------- blocks


class Blocks:
    """A model on overlapping blocks of one signal at MODEL_RATE, with what the signal holds put back.

    A signal no longer than a block is one block. Blocks lie on a fixed grid from the start of the signal, so the result
    does not depend on the chunks in which it arrives.
    """

    def __init__(
        self, model: Any, channels: int, reach: float, sampling: dict[str, Any], within: Callable[[float], None]
    ) -> None:
        self.model, self.reach, self.sampling, self.within = model, reach, sampling, within
        self.device = device_of(model)
        known = inspect.signature(model.forward).parameters
        self.tells, self.places = "progress" in known, "position" in known  # diffusion models
        self.length, context = (round(s * MODEL_RATE / GRID) * GRID for s in (BLOCK_SECONDS, CONTEXT_SECONDS))
        fade = round(FADE_SECONDS * MODEL_RATE)
        self.hop = self.length - 2 * context
        self.start = context - fade // 2  # of a block's own part, in the block; it ends as far before the other end
        self.ramp = (np.arange(fade) + 0.5) / fade
        self.high = highpass(round(reach))
        self._held = np.zeros((channels, 0))
        self._position = 0  # in the signal, of the first sample held
        self._fading: Array | None = None  # the end of the block before, in the place of the cross-fade

    def push(self, x: Array, last: bool) -> Array:
        """x (channels, n) -> (channels, m): all that is determined so far, and with `last` all the rest."""
        self._held = np.concatenate([self._held, x], axis=1)
        parts = [np.zeros((len(x), 0))]
        while self._held.shape[1] > self.length:  # never equal: the last block then has something of its own
            parts.append(self._block(self._held[:, : self.length], last=False))
            self._held = self._held[:, self.hop :].copy()
            self._position += self.hop
        if last and self._held.shape[1]:
            parts.append(self._block(self._held, last=True))
        return np.concatenate(parts, axis=1)

    def _block(self, x: Array, last: bool) -> Array:
        y = x + np.stack([self._added(channel, c / len(x)) for c, channel in enumerate(x)])
        fade, start = len(self.ramp), 0
        end = y.shape[1] if last else self.start + self.hop
        if self._fading is not None:
            start = self.start
            y[:, start : start + fade] = self._fading + self.ramp * (y[:, start : start + fade] - self._fading)
        self._fading = None if last else y[:, end : end + fade].copy()
        return y[:, start:end]

    def _added(self, x: Array, share: float) -> Array:
        """What the model adds above the bandwidth to one channel (n,); channel by channel, for the memory."""
        told: dict[str, Any] = {"progress": self._progress(share)} if self.tells else {}
        if self.places:  # the same noise in both blocks where they overlap
            told["position"] = self._position
        with inference(self.model):
            narrow = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(self.device)[None]
            wide = self.model(narrow, bandwidth_hz=self.reach, **self.sampling, **told)
            change = (wide - narrow)[0].cpu().double()
            size = fft_size(len(x) + TAPS - 1)
            filtered = torch.fft.irfft(torch.fft.rfft(change, size) * torch.fft.rfft(self.high, size), size)
        return filtered[TAPS // 2 : TAPS // 2 + len(x)].numpy()

    def _progress(self, share: float) -> Callable[[int, int], None]:
        """What a diffusion model is to call after each step with the steps done and in all."""
        channels = len(self._held)
        return lambda done, steps: self.within(share + done / steps / channels)


@lru_cache(maxsize=8)
def highpass(reach: int) -> torch.Tensor:
    """Linear-phase high-pass (TAPS,) float64 that ends its rise `reach` Hz; 470 Hz below that it is down by STOP_DB.

    Unity minus a Kaiser-windowed sinc.
    """
    beta = 0.1102 * (STOP_DB - 8.7)
    transition = (STOP_DB - 7.95) / (14.36 * (TAPS - 1)) * MODEL_RATE  # Hz, Kaiser's length formula
    middle = (reach - transition / 2) / MODEL_RATE  # cycles a sample
    n = torch.arange(TAPS, dtype=torch.float64) - TAPS // 2
    low = 2 * middle * torch.sinc(2 * middle * n) * torch.kaiser_window(TAPS, periodic=False, beta=beta, dtype=n.dtype)
    high = -low / low.sum()
    high[TAPS // 2] += 1
    return high


def chained(first: Array, rest: Iterator[Array]) -> Iterator[Array]:
    """The blocks with the one in front that was already taken."""
    yield first
    yield from rest
