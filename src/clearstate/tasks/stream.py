"""Live sound: chunks of any size in, chunks of the same size out, a constant delay later."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.arrays import as_array
from clearstate.audio.rates import whole_rate
from clearstate.runtime import open_model
from clearstate.tasks.chain import LOUDEST, open_chain


class Stream:
    """One live signal through a causal model.

    The delay is constant and known beforehand. `process` returns as many samples as it was given: the first
    `latency_samples` of all are silence, sample i of the input comes out as sample i + latency_samples, and `flush`
    returns the last `latency_samples`. So, for n samples in all,

        y = concatenate([stream.process(chunk) for chunk in chunks] + [stream.flush()])   # n + latency_samples
        y[latency_samples:]                                                               # aligned with the input

    The result does not depend on how the signal was cut into chunks. All state is in the object: streams that share a
    model know nothing of each other. Memory and the work per sample are constant; nothing is kept of the past but the
    model's state and less than a frame of sound. One thread may use a stream at a time.

    Args:
        model_or_name: a causal model, the name of one, or the folder of its weights.
        sample_rate: of the signal, in Hz; any. At the model's own rate the delay is shortest.
        channels: rows of every chunk.
        strength: the most by which anything is attenuated, in dB; 0 changes nothing, None takes all the model removes.
        channels_mode: "linked": one gain for all channels; "apart": each channel by itself, such as the two parties of
            a call.
        on_bad: what to do with samples that are NaN or infinite: "silence" replaces and counts them, "raise" raises a
            ValueError.

    Attributes:
        bad_samples: how many samples have been replaced since the stream was made.
        latency_samples: the delay.

    A stream cannot be copied or pickled, as its state is partly in compiled code: make another one.

    Raises:
        ValueError: for a model that is not causal, and for settings that cannot be.

    >>> stream = Stream("live", sample_rate=48_000)  # doctest: +SKIP
    >>> speaker.write(stream.process(microphone.read(480)))  # doctest: +SKIP
    """

    def __init__(
        self,
        model_or_name: Any = "live",
        sample_rate: int = 16_000,
        channels: int = 1,
        strength: float | None = None,
        *,
        channels_mode: str = "linked",
        on_bad: str = "silence",
    ) -> None:
        self.model = open_model(model_or_name, "enhance")
        if on_bad not in ("silence", "raise"):
            raise ValueError(f"on_bad {on_bad!r}: expected 'silence' or 'raise'")
        self.sample_rate, self.channels, self.strength = whole_rate(sample_rate), channels, strength
        self.channels_mode, self.on_bad = channels_mode, on_bad
        self.bad_samples = 0
        self._flat = channels == 1  # the result has the shape of the chunks: (n,) or (1, n)
        self.reset()

    def reset(self) -> None:
        """Begin a new signal: as if the stream had just been made."""
        chain = open_chain(
            self.model, self.sample_rate, self.channels, self.strength, channels_mode=self.channels_mode, live=True
        )
        if chain.latency is None:
            raise ValueError(f"{self.model.name} needs the whole signal; to stream, use {causal_names()}")
        self._chain = chain
        self.latency_samples = chain.latency
        self._ready = np.zeros((self.channels, self.latency_samples), dtype=np.float32)

    @property
    def latency_seconds(self) -> float:
        return self.latency_samples / self.sample_rate

    def process(self, chunk: Any) -> NDArray[np.float32]:
        """The next chunk of the signal in, the next chunk of the result out.

        Args:
            chunk: floating point with full scale at 1, (channels, n), or (n,) for one channel; any n, also 0. It is
                copied, so its memory may be used again.
        Returns:
            The same shape, float32.
        Raises:
            ValueError: for another shape or type. The stream is then as if the chunk had not come.
        """
        chunk = as_array(chunk, "chunk")
        x = self._checked(chunk)
        y = self._chain.push(x)
        ready = np.concatenate([self._ready, y], axis=1)
        self._ready, self._flat = ready[:, x.shape[1] :], chunk.ndim == 1
        return ready[:, : x.shape[1]].reshape(chunk.shape)

    def flush(self) -> NDArray[np.float32]:
        """The last `latency_samples` of the result, shaped like the chunks; the stream is then as good as new."""
        out = np.concatenate([self._ready, self._chain.finish()], axis=1)
        self.reset()
        return out[0] if self._flat else out

    def _checked(self, chunk: NDArray[Any]) -> NDArray[np.float32]:
        x = chunk[None] if chunk.ndim == 1 and self.channels == 1 else chunk
        if x.ndim != 2 or x.shape[0] != self.channels:
            expected = f"{'(n,) or ' if self.channels == 1 else ''}({self.channels}, n)"
            raise ValueError(
                f"chunk of shape {chunk.shape}: expected {expected}, as channels={self.channels} was given"
            )
        if chunk.dtype.kind != "f":
            raise ValueError(f"chunk of type {chunk.dtype}: expected floating point; divide int16 samples by 32768")
        good = np.isfinite(x)
        if not good.all():
            bad = int(good.size - np.count_nonzero(good))
            if self.on_bad == "raise":
                raise ValueError(f"chunk with {bad} NaN or infinite samples: expected numbers; send silence for them")
            x = np.where(good, x, 0)
            self.bad_samples += bad
        return np.clip(x, -LOUDEST, LOUDEST).astype(np.float32, copy=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a Stream cannot be copied or pickled, as its state is partly in compiled code: make another one"
        )


def causal_names() -> str:
    """The models that can stream and are there to be loaded, for an error message."""
    from clearstate.models import PRESETS, build

    shipped = [name for name, preset in PRESETS.items() if preset.task == "enhance" and preset.weights]
    return " or ".join(repr(name) for name in shipped if build(name).causal) or "a causal one (`clearstate models`)"
