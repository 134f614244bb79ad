"""What readers and writers of audio share: the properties of a file, its blocks, and the errors of a damaged one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from clearstate.audio.streams import STDIO
from clearstate.audio.tags import Metadata

Block = NDArray[np.float64]  # (channels, n)

BLOCK_SECONDS = 2.0
MOST_SAMPLES = 2**23  # of all channels in a block; 64 MB
LEAST_HERTZ, MOST_HERTZ = 1_000, 1_000_000  # sample rates; a header with any other rate is damaged
UNKNOWN_FRAMES = 2**40  # libsndfile returns a huge number for "unknown"
MOST_SECONDS = UNKNOWN_FRAMES / MOST_HERTZ
BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}


class AudioError(ValueError):
    """An invalid file. The message has the file, what was expected and the remedy."""


@dataclass(frozen=True)
class AudioInfo:
    """The properties of a file."""

    name: str
    sample_rate: int  # Hz
    channels: int
    frames: int | None  # samples per channel; None if only reading to the end tells
    seconds: float | None  # approximate length; None if unknown
    container: str = "WAV"  # in libsndfile's terms
    subtype: str = "PCM_16"
    endian: str = "FILE"
    tags: dict[str, str] = field(default_factory=dict)
    metadata: Metadata | None = field(default=None, compare=False)  # None: read it from the file
    codec: str = ""  # name of a coding that PyAV reads; "" for the others, which `subtype` names


class Reader(Protocol):
    """An open file: what it says about itself, and its samples."""

    info: AudioInfo

    def blocks(self) -> Iterator[Block]:
        """The samples, block by block, to the end."""
        ...

    def __enter__(self) -> "Reader": ...
    def __exit__(self, *error: Any) -> None: ...


class Writer(Protocol):
    """A file that is being written. It appears under its name when the `with` block ends without an error."""

    def write(self, block: Block) -> None:
        """Append samples (channels, n)."""
        ...

    def __enter__(self) -> "Writer": ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None: ...


@dataclass(frozen=True)
class Shortfall:
    """The end of the readable part of a damaged file."""

    done: float  # readable seconds
    of: float | None  # declared seconds, None if unknown
    reason: str


class BrokenOffError(AudioError):
    """A truncated or damaged file. It is raised after the last readable block."""

    def __init__(self, name: str, lost: Shortfall, saved: str = "") -> None:
        self.name, self.lost = name, lost
        of = f" of {lost.of:.3f} s" if lost.of else ""
        kept = f"the readable part is in {saved}; fetch it again for the rest" if saved else "fetch it again"
        super().__init__(f"{name}: broken after {lost.done:.3f} s{of} ({lost.reason}); {kept}")

    def saved(self, target: str | os.PathLike[str]) -> "BrokenOffError":
        """The same error, with the place of the readable part."""
        return BrokenOffError(self.name, self.lost, "stdout" if target == STDIO else os.fspath(target))


def until_broken(blocks: Iterator[Block], broken: list[BrokenOffError]) -> Iterator[Block]:
    """Yield the blocks of a reader. For a damaged file they end early, and the error is appended to `broken`.

    If nothing is readable, the error is raised.
    """
    some = False
    try:
        for block in blocks:
            some = True
            yield block
    except BrokenOffError as error:
        if not some:
            raise
        broken.append(error)


def block_size(rate: int, channels: int) -> int:
    """Samples per channel in a block of BLOCK_SECONDS; fewer if a header claims very many channels."""
    return max(1, min(int(BLOCK_SECONDS * rate), MOST_SAMPLES // channels))


def converted(blocks: Iterator[Block], rate: int, to: int, channels: int) -> Iterator[Block]:
    """Convert blocks to another rate and number of channels."""
    stream = soxr.ResampleStream(rate, to, channels, dtype="float64", quality="VHQ") if rate != to else None
    for block in blocks:
        x = with_channels(block, channels)
        yield x if stream is None else stream.resample_chunk(np.ascontiguousarray(x.T)).T
    if stream is not None:
        yield stream.resample_chunk(np.zeros((0, channels)), last=True).T


def with_channels(x: Block, channels: int) -> Block:
    """Change the number of channels: copy one to all, average all to one, or drop or add silent channels."""
    if len(x) == channels:
        return x
    if channels == 1:
        return x.mean(axis=0, keepdims=True)
    if len(x) == 1:
        return np.repeat(x, channels, axis=0)
    return np.concatenate([x[:channels], np.zeros((max(0, channels - len(x)), x.shape[1]))])


def checked(block: Block, info: AudioInfo, start: int) -> Block:
    """Return the block, or raise an AudioError with its first NaN or infinite sample."""
    finite = np.isfinite(block)
    if finite.all():
        return block
    sample = int(np.argmin(finite.all(axis=0)))
    channel = int(np.argmin(finite[:, sample]))
    at = start + sample
    raise AudioError(
        f"{info.name}: sample {at} of channel {channel} ({at / info.sample_rate:.3f} s) is {block[channel, sample]}, "
        "expected a finite number; export the file again, for example as 24-bit integers"
    )


def in_words(subtype: str) -> str:
    """Describe a coding in words.

    >>> in_words("PCM_16"), in_words("ALAW")
    ('16-bit PCM', 'ALAW')
    """
    return f"{subtype[4:]}-bit PCM" if subtype.startswith("PCM_") else subtype
