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
import torch
from numpy.typing import NDArray

from clearstate.audio.io import STDIO, check_target, open_reader, open_writer
from clearstate.audio.streams import is_stream
from clearstate.tasks.chain import BLOCK_SECONDS, Chain
from clearstate.tasks.first_pass import survey, wants_overview

Path = str | os.PathLike[str]
Signal = TypeVar("Signal", NDArray[Any], torch.Tensor)
Progress = Callable[[float, float], None]  # seconds of audio done, seconds in all (0 where the length is not known)

MOST_CHANNELS = 64  # more, and more than samples: somebody has put the samples first
FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}  # integer signals that are accepted


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

    >>> enhancer = Enhancer(model)  # doctest: +SKIP
    >>> clean = enhancer.enhance(noisy, 44_100)  # doctest: +SKIP
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval()

    def enhance(
        self,
        signal: Signal,
        sample_rate: int,
        strength: float | None = None,
        *,
        residual: bool = False,
        pcs: bool = False,
        warm_up: bool = True,
    ) -> Signal:
        """Enhance a signal in memory.

        Args:
            signal: NumPy array or torch tensor, (n,), (channels, n) or (batch, channels, n), at least one sample.
                Floating point with full scale at 1, or int16 or int32. The channels of a signal share their gains;
                the items of a batch have nothing to do with each other.
            sample_rate: of the signal, in Hz; any.
            strength: the most by which anything is attenuated, in dB; 0 changes nothing, None takes all that the
                model removes.
            residual: return what was removed, input - output, instead.
            pcs: stretch the perceptual contrast of the result (`audio/contrast.py`): PESQ rises, SI-SDR falls.
            warm_up: let a causal model hear the first 1.5 s once before they count, so that it knows voice and noise
                from the first sample on. False gives exactly what `Stream` does, which cannot look ahead.
        Returns:
            The same kind, shape, type and device, aligned with the input to the sample.
        Raises:
            ValueError: for another shape or type, an empty signal, or samples that are NaN or infinite.
        """
        if isinstance(signal, torch.Tensor):
            wide = signal.detach().cpu()
            wide = wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide
            y = self.enhance(wide.numpy(), sample_rate, strength, residual=residual, pcs=pcs, warm_up=warm_up)
            return torch.from_numpy(y).to(signal)
        x = as_floats(signal)
        batch = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x[None, None]  # (b, channels, n)
        out = np.empty_like(batch)
        for item, target in zip(batch, out, strict=True):
            overviews = None
            if wants_overview(self.model):
                overviews = survey(self.model, sample_rate, len(item), in_blocks(item), BLOCK_SECONDS)
            chain = Chain(
                self.model, sample_rate, len(item), strength, residual, overviews=overviews, pcs=pcs, warm_up=warm_up
            )
            done = 0
            for start in range(0, item.shape[1], chain.piece):
                y = chain.push(item[:, start : start + chain.piece])
                target[:, done : done + y.shape[1]] = y
                done += y.shape[1]
            target[:, done:] = chain.finish()
        return as_type(out.reshape(x.shape), signal.dtype)

    def enhance_file(
        self,
        in_path: Path,
        out_path: Path,
        *,
        strength: float | None = None,
        residual: bool = False,
        pcs: bool = False,
        warm_up: bool = True,
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
            overwrite: replace `out_path` if it exists; never the input itself.
            progress: called after every block with the seconds done and in all (0 while the length is not known); an
                exception from it stops the work and leaves no output.
        Returns:
            What was done.
        Raises:
            ValueError, OSError: one line with what arrived, what was expected and the remedy; no output is left then.
        """
        started = time.perf_counter()
        if os.fspath(out_path) != STDIO:  # before anything is read: hours of work must not end in a refusal
            check_target(os.fspath(out_path), os.fspath(in_path), overwrite)
        overviews = None
        if wants_overview(self.model) and not is_stream(in_path):  # a stream cannot be read twice
            with open_reader(in_path) as source:
                info = source.info
                overviews = survey(self.model, info.sample_rate, info.channels, source.blocks(), BLOCK_SECONDS)
        with open_reader(in_path) as source:
            info = source.info
            chain = Chain(
                self.model, info.sample_rate, info.channels, strength, residual, overviews=overviews, pcs=pcs,
                warm_up=warm_up,
            )  # fmt: skip
            with open_writer(out_path, info, overwrite=overwrite) as sink:
                frames = 0
                for block in source.blocks():
                    frames += block.shape[1]
                    sink.write(chain.push(block))
                    if progress:
                        progress(frames / info.sample_rate, info.seconds or 0.0)
                sink.write(chain.finish())
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
    from clearstate.models import load_model

    return Enhancer(load_model(os.fspath(name_or_path)))


def enhance(
    in_path: Path,
    out_path: Path,
    *,
    model: Path = "live",
    strength: float | None = None,
    residual: bool = False,
    pcs: bool = False,
    warm_up: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Enhance one file; for several, `load` once and call its `enhance_file`, which explains the arguments."""
    return load(model).enhance_file(
        in_path, out_path, strength=strength, residual=residual, pcs=pcs, warm_up=warm_up, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip


def as_floats(signal: NDArray[Any]) -> NDArray[np.floating]:
    """float32 or float64 with full scale at 1, or an error that says what is wrong with the signal."""
    if signal.ndim not in (1, 2, 3) or 0 in signal.shape:
        raise ValueError(
            f"signal of shape {signal.shape}: expected (n,), (channels, n) or (batch, channels, n), none of them 0"
        )
    if signal.ndim > 1 and signal.shape[-2] > max(MOST_CHANNELS, signal.shape[-1]):
        raise ValueError(
            f"signal of shape {signal.shape}: {signal.shape[-2]} channels of {signal.shape[-1]} samples; "
            "channels come first: transpose it"
        )
    if signal.dtype in FULL_SCALE:
        return signal / FULL_SCALE[signal.dtype]
    if signal.dtype.kind != "f":
        raise ValueError(f"signal of type {signal.dtype}: expected floating point (full scale 1), int16 or int32")
    if not np.isfinite(signal).all():
        where = np.argwhere(~np.isfinite(signal))[0]
        raise ValueError(
            f"signal[{', '.join(map(str, where))}] is {signal[tuple(where)]}: expected numbers; "
            "numpy.nan_to_num(signal, posinf=0, neginf=0) would make it silence"
        )
    return signal if signal.dtype == np.float64 else signal.astype(np.float32, copy=False)


def as_type(x: NDArray[np.floating], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Back from full scale 1; integers round to nearest and clip."""
    if dtype in FULL_SCALE:
        full = FULL_SCALE[dtype]
        return np.clip(np.rint(x * full), -full, full - 1).astype(dtype)
    return x.astype(dtype, copy=False)
