"""Enhance live audio: `process` returns a chunk of the same size for every chunk, with a constant latency."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearstate.audio.arrays import as_array
from clearstate.audio.rates import whole_rate
from clearstate.runtime import open_model
from clearstate.tasks.chain import LOUDEST, open_chain


class Stream:
    """Run a causal model on one live signal.

    The latency is constant and known before the start. `process` returns as many samples as it receives. The output
    starts with `latency_samples` of silence, so sample i of the input is sample i + latency_samples of the output.
    `flush` returns the last `latency_samples`. For n samples in total,

        y = concatenate([stream.process(chunk) for chunk in chunks] + [stream.flush()])   # n + latency_samples
        y[latency_samples:]                                                               # aligned with the input

    The result does not depend on the chunk sizes. All state is in this object, so several streams can share a model.
    Memory and work per sample are constant. Only one thread may use a stream at a time.

    Args:
        model_or_name: a causal model, the name of one, or the folder of its weights.
        sample_rate: of the signal, in Hz; any. The latency is lowest at the model's own rate.
        channels: rows of every chunk.
        strength: maximum attenuation in dB; 0 changes nothing, None sets no limit.
        channels_mode: "linked": one gain for all channels. "apart": every channel separately, for example the two
            speakers of a call.
        on_bad: what to do with NaN or infinite samples: "silence" replaces and counts them, "raise" raises a
            ValueError.
        backend: "auto", "onnx" or "torch"; see `runtime.choose`.

    Attributes:
        bad_samples: number of replaced samples since the stream was created.
        latency_samples: the latency in samples.

    A stream cannot be copied or pickled, because part of its state is in compiled code. Create another one.

    Raises:
        ValueError: for a model that is not causal, and for invalid settings.

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
        backend: str = "auto",
    ) -> None:
        self.model = open_model(model_or_name, "enhance", backend=backend)
        if on_bad not in ("silence", "raise"):
            raise ValueError(f"on_bad {on_bad!r}: expected 'silence' or 'raise'")
        self.sample_rate, self.channels, self.strength = whole_rate(sample_rate), channels, strength
        self.channels_mode, self.on_bad = channels_mode, on_bad
        self.bad_samples = 0
        self._flat = channels == 1  # return the shape of the chunks: (n,) or (1, n)
        self.reset()

    def reset(self) -> None:
        """Start a new signal, as if the stream were new."""
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
        """The delay in seconds."""
        return self.latency_samples / self.sample_rate

    def process(self, chunk: Any) -> NDArray[np.float32]:
        """Process the next chunk of the signal and return the next chunk of the output.

        Args:
            chunk: floating point with full scale at 1, (channels, n), or (n,) for one channel; any n, also 0. It is
                copied, so you can reuse its memory.
        Returns:
            The same shape, float32.
        Raises:
            ValueError: for another shape or type. The state of the stream does not change.
        """
        chunk = as_array(chunk, "chunk")
        x = self._checked(chunk)
        y = self._chain.push(x)
        ready = np.concatenate([self._ready, y], axis=1)
        self._ready, self._flat = ready[:, x.shape[1] :], chunk.ndim == 1
        return ready[:, : x.shape[1]].reshape(chunk.shape)

    def flush(self) -> NDArray[np.float32]:
        """Return the last `latency_samples` of the output, and reset the stream."""
        out = np.concatenate([self._ready, self._chain.finish()], axis=1)
        self.reset()
        return out[0] if self._flat else out

    async def aiter(self, source: AsyncIterable[Any]) -> AsyncIterator[NDArray[np.float32]]:
        """Process an asynchronous source, and flush at its end.

        A thread does the work, so the event loop stays free, and many streams can run at once. The next chunk is taken
        when the output of the last one has been used, so a slow consumer holds back the source.

        Args:
            source: chunks, as for `process`.
        Yields:
            One output for every chunk, and the last `latency_samples`.

        >>> async for chunk in stream.aiter(microphone):  # doctest: +SKIP
        ...     await speaker.write(chunk)
        """
        async for chunk in source:
            yield await _to_its_end(self.process, chunk)
        yield await _to_its_end(self.flush)

    def _checked(self, chunk: NDArray[Any]) -> NDArray[np.float32]:
        x = chunk[None] if chunk.ndim == 1 and self.channels == 1 else chunk
        if x.ndim != 2 or x.shape[0] != self.channels:
            expected = f"{'(n,) or ' if self.channels == 1 else ''}({self.channels}, n)"
            raise ValueError(f"chunk of shape {chunk.shape}: expected {expected} for channels={self.channels}")
        if chunk.dtype.kind != "f":
            raise ValueError(f"chunk of type {chunk.dtype}: expected floating point; divide int16 samples by 32768")
        if np.vdot(x, x) <= LOUDEST**2:  # then every sample is below LOUDEST; False for NaN, too
            return x.astype(np.float32, copy=False)
        good = np.isfinite(x)
        if not good.all():
            bad = int(good.size - np.count_nonzero(good))
            if self.on_bad == "raise":
                raise ValueError(f"chunk with {bad} NaN or infinite samples: expected numbers; replace them by silence")
            x = np.where(good, x, 0)
            self.bad_samples += bad
        return np.clip(x, -LOUDEST, LOUDEST).astype(np.float32, copy=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a Stream cannot be copied or pickled, because part of its state is in compiled code; create another one"
        )


async def _to_its_end(call: Callable[..., NDArray[np.float32]], *arguments: Any) -> NDArray[np.float32]:
    """Run a call in a thread. If this task is cancelled, wait for the thread: it must not change the stream later."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def causal_names() -> str:
    """The causal models with weights, for an error message."""
    from clearstate.models import PRESETS, build

    shipped = [name for name, preset in PRESETS.items() if preset.task == "enhance" and preset.weights]
    return " or ".join(repr(name) for name in shipped if build(name).causal) or "a causal one (`clearstate models`)"
