"""The filter in real Pipecat pipelines, with Pipecat's own frames."""

import asyncio
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("pipecat", reason="needs the package pipecat-ai: pip install 'clearstate[pipecat]'")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Pipecat imports audioop
    from pipecat.frames.frames import EndFrame, FilterEnableFrame, InputAudioRawFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.transports.base_input import BaseInputTransport
    from pipecat.transports.base_transport import TransportParams

    from clearstate.integrations.pipecat import ClearstateFilter

from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.workers.runner import WorkerRunner

from clearstate.integrations.pcm16 import Pcm16Stream
from clearstate.metrics.intrusive import si_sdr
from clearstate.models import PRESETS

pytestmark = pytest.mark.skipif(PRESETS["live"].weights is None, reason="the package holds no weights of 'live'")

CALLS, SECONDS, PATIENCE = 20, 0.5, 120


def pieces(rate, channels=1, seed=0, seconds=SECONDS):
    """20 ms each, as bytes."""
    x = np.random.default_rng(seed).normal(0, 3_000, (round(seconds * rate), channels)).astype("<i2")
    return [x[i : i + rate // 50].tobytes() for i in range(0, len(x), rate // 50)]


def same(first, second):
    """Whether 16-bit samples agree: other chunks round differently."""
    x, y = (np.frombuffer(data, "<i2").astype(int) for data in (first, second))
    return x.shape == y.shape and np.abs(x - y).max() <= 2


class Microphone(BaseInputTransport):
    """A transport whose frames come from a list."""

    def __init__(self, sent, rate, channels, audio_filter):
        params = TransportParams(
            audio_in_enabled=True, audio_in_sample_rate=rate, audio_in_channels=channels, audio_in_filter=audio_filter
        )
        super().__init__(params)
        self.sent = [InputAudioRawFrame(piece, rate, channels) for piece in sent]

    async def start(self, frame):
        await super().start(frame)
        await self.set_transport_ready(frame)
        for each in self.sent:
            await self.push_audio_frame(each)


class Listener(FrameProcessor):
    """Keeps the audio frames, and is done when `count` have arrived."""

    def __init__(self, count):
        super().__init__()
        self.count, self.frames, self.done = count, [], asyncio.Event()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self.frames.append(frame)
            if len(self.frames) == self.count:
                self.done.set()
        await self.push_frame(frame, direction)


async def call(sent, rate=16_000, channels=1, audio_filter=None):
    """One pipeline from start to end; the audio frames that passed the filter."""
    audio_filter = audio_filter or ClearstateFilter(channels=channels)
    listener = Listener(len(sent))
    pipeline = Pipeline([Microphone(sent, rate, channels, audio_filter), listener])
    worker = PipelineWorker(pipeline, params=PipelineParams(audio_in_sample_rate=rate), cancel_on_idle_timeout=False)

    async def hang_up():
        await asyncio.wait_for(listener.done.wait(), PATIENCE)
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), hang_up())
    return listener.frames


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (24_000, 1), (48_000, 2)])
def test_the_audio_of_a_transport_is_filtered_at_any_rate(rate, channels):
    sent = pieces(rate, channels)
    frames = asyncio.run(call(sent, rate, channels))
    assert [len(frame.audio) for frame in frames] == [len(piece) for piece in sent]
    assert {(frame.sample_rate, frame.num_channels) for frame in frames} == {(rate, channels)}
    assert same(b"".join(frame.audio for frame in frames), Pcm16Stream(rate, channels).process(b"".join(sent)))


def test_twenty_calls_at_once_hear_themselves_only():
    async def everybody():
        return await asyncio.gather(*(call(pieces(16_000, seed=seed)) for seed in range(CALLS)))

    for seed, frames in enumerate(asyncio.run(everybody())):
        expected = Pcm16Stream(16_000).process(b"".join(pieces(16_000, seed=seed)))
        assert same(b"".join(frame.audio for frame in frames), expected), seed


def test_a_frame_of_pipecat_switches_it_off_without_a_jump_in_time():
    async def talk():
        audio_filter, sent = ClearstateFilter(), pieces(16_000)
        await audio_filter.start(16_000)
        await audio_filter.process_frame(FilterEnableFrame(enable=False))
        off = [await audio_filter.filter(piece) for piece in sent]
        await audio_filter.process_frame(FilterEnableFrame(enable=True))
        on = [await audio_filter.filter(piece) for piece in sent]
        await audio_filter.stop()
        assert await audio_filter.filter(sent[0]) == sent[0]
        return b"".join(sent), b"".join(off), b"".join(on)

    sent, off, on = asyncio.run(talk())
    late = 2 * Pcm16Stream(16_000).stream.latency_samples
    assert off[2 * 320 + late :] == sent[2 * 320 : -late]  # after the cross-fade of the first 20 ms
    assert on[-640:] != sent[-640 - late : -late]


def test_the_example_removes_noise(tmp_path):
    examples = Path(__file__).resolve().parents[2] / "examples"
    noisy, clean = (examples / "clips" / f"fire_10db.{kind}.flac" for kind in ("noisy", "clean"))
    command = [sys.executable, str(examples / "pipecat_agent.py"), str(noisy), str(tmp_path / "out.wav")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (reference, _), (before, _), (after, _) = map(soundfile.read, (clean, noisy, tmp_path / "out.wav"))
    reference, before = reference[8_000:40_000], before[8_000:40_000]
    late = int(np.argmax(np.correlate(after, reference)))
    assert si_sdr(reference, after[late : late + 32_000]) > si_sdr(reference, before) + 6
