"""Noise suppression for LiveKit: `pip install 'clearstate[livekit]'`.

from clearstate.integrations.livekit import ClearstateProcessor

audio = rtc.AudioStream(track, noise_cancellation=ClearstateProcessor())     # with the LiveKit SDK

room_io.AudioInputOptions(noise_cancellation=lambda _: ClearstateProcessor())    # with LiveKit Agents
"""

from clearstate.integrations.pcm16 import Pcm16Stream

try:
    from livekit import rtc

    _Base = rtc.FrameProcessor[rtc.AudioFrame]
except (ImportError, AttributeError) as error:
    raise ImportError("this needs the package livekit, 1.0.23 or later: pip install 'clearstate[livekit]'") from error

USUAL_RATE = 48_000  # Hz


class ClearstateProcessor(_Base):  # type: ignore[misc, valid-type, unused-ignore]
    """A frame processor for the `noise_cancellation` of an `AudioStream`, at any sample rate.

    LiveKit passes frames around it while `enabled` is False. Every participant needs a processor of its own; all share
    one model, which the constructor loads so that the first frame need not wait.

    Args:
        model: name or folder of a causal model.
        strength: maximum attenuation in dB; None sets no limit.
        backend: "auto", "onnx" or "torch".
    """

    def __init__(self, model: str = "live", *, strength: float | None = None, backend: str = "auto") -> None:
        self._model, self._strength, self._backend = model, strength, backend
        self._enabled = True
        self._stream: Pcm16Stream | None = None
        self._publication = ""
        Pcm16Stream(USUAL_RATE, model=model, strength=strength, backend=backend)

    @property
    def enabled(self) -> bool:
        """Whether frames are processed."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value and not self._enabled:
            self._stream = None  # it missed frames
        self._enabled = value

    def _on_stream_info_updated(self, *, room_name: str, participant_identity: str, publication_sid: str) -> None:
        if publication_sid != self._publication:  # another voice
            self._publication, self._stream = publication_sid, None

    def _process(self, frame: rtc.AudioFrame) -> rtc.AudioFrame:
        form = frame.sample_rate, frame.num_channels
        stream = self._stream
        if stream is None or (stream.stream.sample_rate, stream.stream.channels) != form:
            stream = self._stream = Pcm16Stream(
                *form, model=self._model, strength=self._strength, backend=self._backend
            )
        size = 2 * frame.num_channels * frame.samples_per_channel  # the buffer may be longer
        audio = stream.process(bytes(frame.data.cast("B")[:size]))
        return rtc.AudioFrame(audio, *form, frame.samples_per_channel, userdata=frame.userdata)

    def _close(self) -> None:
        self._stream = None
