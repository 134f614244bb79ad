"""A stream that can be switched off and on while it runs, without a jump in time and without a click."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float32]  # (channels, n)


class LiveStream(Protocol):
    """What this needs from `Stream`."""

    sample_rate: int
    channels: int
    latency_samples: int

    def process(self, chunk: Any) -> Block:
        """The next samples of the output, as many as in `chunk`."""
        ...

    def flush(self) -> Block:
        """The last `latency_samples` of the output."""
        ...


class Switch:
    """`process` and `flush` are those of `stream`; while `bypass` is True they return the input with the same delay.

    A change takes effect in the next chunk, as a cross-fade over the chunk. The model always runs, so its state is up
    to date when the bypass ends.
    """

    def __init__(self, stream: LiveStream) -> None:
        self.stream, self.bypass = stream, False
        self._dry = np.zeros((stream.channels, stream.latency_samples), np.float32)
        self._share = 0.0  # of the input in the output, 0 to 1

    def process(self, chunk: Block) -> Block:
        """The next samples of the output (channels, n), as many as in `chunk`."""
        wet, both = self.stream.process(chunk), np.concatenate([self._dry, chunk], axis=1)
        late, self._dry = both[:, : wet.shape[1]], both[:, wet.shape[1] :]
        return self._mixed(wet, late)

    def flush(self) -> Block:
        """The last `latency_samples` of the output."""
        wet, late = self.stream.flush(), self._dry
        self._dry = np.zeros_like(late)
        return self._mixed(wet, late)

    def _mixed(self, wet: Block, late: Block) -> Block:
        before, self._share = self._share, float(self.bypass) if wet.size else self._share
        if before == self._share:
            return late if before else wet
        share = np.linspace(before, self._share, wet.shape[1], dtype=np.float32)
        return np.asarray(wet + share * (late - wet), np.float32)
