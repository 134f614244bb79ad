"""Record the sound before and after the model, in two files that appear complete or not at all."""

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.formats import WRITABLE, examples
from clearstate.audio.info import AudioInfo
from clearstate.audio.io import check_target, open_writer
from clearstate.audio.streams import STDIO
from clearstate.audio.tags import Metadata

Block = NDArray[np.float32]  # (channels, n)


def before_and_after(path: str) -> tuple[str, str]:
    """The names of both files.

    >>> before_and_after("call.wav")
    ('call.before.wav', 'call.after.wav')
    """
    name = Path(path)
    return str(name.with_suffix(f".before{name.suffix}")), str(name.with_suffix(f".after{name.suffix}"))


class _Discarded(Exception):  # noqa: N818 - ends the writer, nothing went wrong
    """The files are not wanted."""


class Recorder:
    """Writes in its own thread, so that a slow disk does not stop the sound.

    Both files have the same length, and sample i of one belongs to sample i of the other.

    Args:
        path: `call.wav` stands for call.before.wav and call.after.wav.
        latency: samples by which the blocks after the model are late.
    Attributes:
        error: why the recording ended early, if it did. Then neither file exists.
    Raises:
        OSError: if a file exists (without `overwrite`) or its folder does not.
        ValueError: for an unknown extension.
    """

    def __init__(self, path: str, rate: int, channels: int, latency: int, overwrite: bool = False) -> None:
        if Path(path).suffix.lower() not in WRITABLE:
            raise ValueError(f"{path}: expected a name that ends in one of {examples(WRITABLE)}")
        self.names = before_and_after(path)
        for name in self.names:
            check_target(name, STDIO, overwrite)
        self.error: Exception | None = None
        self._latency = latency
        self._info = AudioInfo(STDIO, rate, channels, None, None, metadata=Metadata())
        self._overwrite = overwrite
        self._blocks: queue.SimpleQueue[tuple[Block, Block] | _Discarded | None] = queue.SimpleQueue()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self.error:
            raise self.error

    def put(self, before: Block, after: Block) -> None:
        """Append a block; returns at once."""
        if self.error is None:
            self._blocks.put((before.copy(), after.copy()))

    def close(self, complete: bool = True) -> None:
        """Complete both files, or remove what was written."""
        self._blocks.put(None if complete else _Discarded())
        self._thread.join()
        if isinstance(self.error, _Discarded):
            self.error = None

    def _write(self) -> None:
        try:
            with ExitStack() as files:
                writers = [
                    files.enter_context(open_writer(name, self._info, overwrite=self._overwrite)) for name in self.names
                ]
                self._opened.set()
                late = self._latency
                for before, after in self._taken():
                    skipped = min(late, after.shape[1])
                    late -= skipped
                    writers[0].write(before.astype(np.float64))
                    writers[1].write(after[:, skipped:].astype(np.float64))
        except Exception as error:
            self.error = error
        finally:
            self._opened.set()

    def _taken(self) -> Iterator[tuple[Block, Block]]:
        while (blocks := self._blocks.get()) is not None:
            if isinstance(blocks, _Discarded):
                raise blocks
            yield blocks
