"""Frames of the LiveKit SDK through the processor, and through an `AudioStream` that has one."""

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

rtc = pytest.importorskip("livekit.rtc", reason="needs the package livekit: pip install 'clearstate[livekit]'")

from clearstate.installed import has_torch  # noqa: E402
from clearstate.integrations.livekit import ClearstateProcessor  # noqa: E402
from clearstate.integrations.pcm16 import Pcm16Stream  # noqa: E402
from clearstate.metrics.intrusive import si_sdr  # noqa: E402
from clearstate.models import PRESETS  # noqa: E402

pytestmark = pytest.mark.skipif(PRESETS["live"].weights is None, reason="the package holds no weights of 'live'")

STREAMS = 20 if has_torch() else 5  # in one event loop, in real time; ONNX Runtime takes four times as long
SECONDS = 0.5


def frames(rate, channels=1, seed=0, seconds=SECONDS):
    x = np.random.default_rng(seed).normal(0, 3_000, (round(seconds * rate), channels)).astype("<i2")
    step = rate // 100
    return [rtc.AudioFrame(x[i : i + step].tobytes(), rate, channels, step) for i in range(0, len(x) - step + 1, step)]


def joined(all_frames):
    return b"".join(bytes(frame.data.cast("B")) for frame in all_frames)


def same(first, second):
    """Whether 16-bit samples agree: other chunks round differently."""
    x, y = (np.frombuffer(data, "<i2").astype(int) for data in (first, second))
    return x.shape == y.shape and np.abs(x - y).max() <= 2


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (24_000, 1), (48_000, 1), (48_000, 2)])
def test_a_frame_returns_with_its_form(rate, channels):
    processor, sent = ClearstateProcessor(), frames(rate, channels)
    sent[0].userdata["mark"] = 1
    returned = [processor._process(frame) for frame in sent]
    for before, after in zip(sent, returned, strict=True):
        assert isinstance(after, rtc.AudioFrame)
        assert (after.sample_rate, after.num_channels) == (rate, channels)
        assert after.samples_per_channel == before.samples_per_channel
        assert after.userdata is before.userdata
    assert same(joined(returned), Pcm16Stream(rate, channels).process(joined(sent)))


def test_a_buffer_may_be_longer_than_its_frame():
    sent = rtc.AudioFrame(bytes(1_000), 16_000, 1, 160)
    assert ClearstateProcessor()._process(sent).samples_per_channel == 160


def test_another_rate_or_another_track_starts_a_new_stream():
    processor, sent = ClearstateProcessor(), frames(16_000)
    fresh = joined([processor._process(frame) for frame in sent])
    assert joined([processor._process(frame) for frame in sent]) != fresh  # the state goes on
    processor._process(frames(48_000)[0])
    assert joined([processor._process(frame) for frame in sent]) == fresh
    for track in ("one", "two"):
        processor._on_stream_info_updated(room_name="r", participant_identity="p", publication_sid=track)
        assert joined([processor._process(frame) for frame in sent]) == fresh
    processor._on_stream_info_updated(room_name="r", participant_identity="p", publication_sid="two")
    assert joined([processor._process(frame) for frame in sent]) != fresh


def test_it_can_be_switched_off_and_closed():
    processor = ClearstateProcessor()
    assert isinstance(processor, rtc.FrameProcessor) and processor.enabled
    processor.enabled = False
    assert not processor.enabled
    processor._close()


class Watched(ClearstateProcessor):
    """Keeps what the SDK hands to it."""

    def __init__(self):
        super().__init__()
        self.received = []

    def _process(self, frame):
        self.received.append(frame)
        return super()._process(frame)


async def _participant(seed, processor, rate=16_000):
    """A track of the SDK, read through an AudioStream with the processor; what arrived."""
    source = rtc.AudioSource(rate, 1)
    track = rtc.LocalAudioTrack.create_audio_track(f"voice {seed}", source)
    stream = rtc.AudioStream.from_track(track=track, sample_rate=rate, num_channels=1, noise_cancellation=processor)
    sent, arrived = frames(rate, seed=seed), []

    async def speak():
        for frame in sent:
            await source.capture_frame(frame)
        await source.wait_for_playout()

    speaking = asyncio.create_task(speak())
    async for event in stream:
        arrived.append(event.frame)
        if speaking.done() and len(arrived) > len(sent):
            break
    await speaking
    await stream.aclose()
    await source.aclose()
    return arrived


def test_twenty_participants_at_once_hear_themselves_only():
    processors = [Watched() for _ in range(STREAMS)]

    async def call():
        return await asyncio.wait_for(asyncio.gather(*map(_participant, range(STREAMS), processors)), 120)

    for seed, (processor, arrived) in enumerate(zip(processors, asyncio.run(call()), strict=True)):
        received = joined(processor.received)
        loud = np.frombuffer(received, "<i2").astype(float)
        sent = [np.frombuffer(joined(frames(16_000, seed=s)), "<i2").astype(float) for s in (seed, seed + 1)]
        # The SDK may lose frames while a track starts, and resamples others, so the best of several parts counts.
        parts = range(0, len(sent[0]) - 800, 800)
        likeness = [max(np.abs(np.correlate(loud, x[i : i + 800])).max() for i in parts) for x in sent]
        assert likeness[0] > 3 * likeness[1]  # the sound of this participant
        expected = Pcm16Stream(16_000).process(received)
        assert same(joined(arrived), expected[: len(joined(arrived))])


def test_the_example_removes_noise(tmp_path):
    examples = Path(__file__).resolve().parents[2] / "examples"
    noisy, clean = (examples / "clips" / f"fire_10db.{kind}.flac" for kind in ("noisy", "clean"))
    command = [sys.executable, str(examples / "livekit_agent.py"), str(noisy), str(tmp_path / "out.wav")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (reference, _), (before, _), (after, _) = map(soundfile.read, (clean, noisy, tmp_path / "out.wav"))
    reference, before = reference[8_000:40_000], before[8_000:40_000]
    late = int(np.argmax(np.correlate(after, reference)))
    assert si_sdr(reference, after[late : late + 32_000]) > si_sdr(reference, before) + 6
