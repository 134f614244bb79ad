"""Noise suppression in a Pipecat pipeline: `pip install 'clearstate[pipecat]'`.

    from clearstate.integrations.pipecat import ClearstateFilter

    transport = DailyTransport(..., params=DailyParams(audio_in_enabled=True, audio_in_filter=ClearstateFilter()))

The filter receives the audio of the transport before voice activity detection and speech recognition do.
"""

import asyncio

from clearstate.integrations.pcm16 import Pcm16Stream

try:
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame
except ImportError as error:
    raise ImportError("this needs the package pipecat-ai: pip install 'clearstate[pipecat]'") from error


class ClearstateFilter(BaseAudioFilter):  # type: ignore[misc, unused-ignore]
    """An audio filter for the `audio_in_filter` of any Pipecat transport, at any sample rate.

    A `FilterEnableFrame` switches it off and on. Every transport needs a filter of its own; all share one model.

    Args:
        model: name or folder of a causal model.
        strength: maximum attenuation in dB; None sets no limit.
        channels: `audio_in_channels` of the transport.
        backend: "auto", "onnx" or "torch".
    """

    def __init__(
        self, model: str = "live", *, strength: float | None = None, channels: int = 1, backend: str = "auto"
    ) -> None:
        self._model, self._strength, self._channels, self._backend = model, strength, channels, backend
        self._enabled = True
        self._stream: Pcm16Stream | None = None

    async def start(self, sample_rate: int) -> None:
        """Load the model in a thread: other calls of this process go on. The transport calls this once."""
        self._stream = await asyncio.to_thread(
            Pcm16Stream,
            sample_rate,
            self._channels,
            model=self._model,
            strength=self._strength,
            backend=self._backend,
        )

    async def stop(self) -> None:
        """Release the stream. The transport calls this once."""
        self._stream = None

    async def process_frame(self, frame: FilterControlFrame) -> None:
        """Switch the filter off or on."""
        if isinstance(frame, FilterEnableFrame):
            self._enabled = frame.enable

    async def filter(self, audio: bytes) -> bytes:
        """Process 16-bit samples; returns as many."""
        if self._stream is None:  # not started
            return audio
        self._stream.enabled = self._enabled
        return self._stream.process(audio)
