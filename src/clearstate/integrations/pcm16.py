"""A stream for frameworks that pass 16-bit samples as bytes."""

from functools import cache

import numpy as np

from clearstate.audio import pcm
from clearstate.runtime import open_model
from clearstate.runtime.contract import EnhancementModel
from clearstate.tasks.bypass import Switch
from clearstate.tasks.stream import Stream

WARM_UP_SECONDS = 0.1  # of silence: compiles what the first call would compile in the middle of a call


@cache
def shared_model(model: str, backend: str = "auto") -> EnhancementModel:
    """A model, loaded once per process. Its streams share the weights and nothing else."""
    return open_model(model, "enhance", backend=backend)


class Pcm16Stream:
    """Remove noise from one live signal: interleaved 16-bit samples in, as many out, later by a constant latency.

    Args:
        sample_rate, channels: of the signal; any.
        model, strength, backend: as for `clearstate.Stream`.
    Attributes:
        enabled: set it to False to get the input back, with the same latency.
    """

    def __init__(
        self,
        sample_rate: int,
        channels: int = 1,
        *,
        model: str = "live",
        strength: float | None = None,
        backend: str = "auto",
    ) -> None:
        self.stream = Stream(shared_model(model, backend), sample_rate, channels, strength)
        self.stream.process(np.zeros((channels, round(WARM_UP_SECONDS * sample_rate)), np.float32))
        self.stream.reset()
        self.enabled = True
        self._switch, self._width, self._held = Switch(self.stream), 2 * channels, b""

    def process(self, audio: bytes) -> bytes:
        """Process the next bytes. A sample whose bytes have not all arrived waits for the rest."""
        audio = self._held + audio if self._held else audio
        whole = len(audio) - len(audio) % self._width
        self._held = bytes(audio[whole:])
        self._switch.bypass = not self.enabled
        return pcm.encode(self._switch.process(pcm.decode(audio[:whole], self.stream.channels)))
