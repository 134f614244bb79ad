"""Remove noise before a Pipecat pipeline. A file replaces the caller: pipecat_agent.py noisy.wav clean.wav

In your agent, keep the transport that you have (Daily, LiveKit, WebRTC, a telephone) and add `audio_in_filter` to it.
"""

import asyncio
import sys

import soundfile
from pipecat.frames.frames import EndFrame, InputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from clearstate.integrations.pipecat import ClearstateFilter


class Caller(BaseInputTransport):
    """A transport that plays a file in frames of 20 ms, and then hangs up."""

    def __init__(self, samples, rate):
        super().__init__(
            TransportParams(audio_in_enabled=True, audio_in_sample_rate=rate, audio_in_filter=ClearstateFilter())
        )
        step = rate // 50
        pieces = [samples[i : i + step].tobytes() for i in range(0, len(samples), step)]
        self.frames = [InputAudioRawFrame(piece, rate, 1) for piece in pieces]

    async def start(self, frame):
        await super().start(frame)
        await self.set_transport_ready(frame)
        for each in self.frames:
            await self.push_audio_frame(each)


class Writer(FrameProcessor):
    """Your speech recognition would be here. This one writes a file."""

    def __init__(self, file, count):
        super().__init__()
        self.file, self.left, self.done = file, count, asyncio.Event()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self.file.buffer_write(frame.audio, "int16")
            self.left -= 1
            if not self.left:
                self.done.set()
        await self.push_frame(frame, direction)


async def main(source, target):
    samples, rate = soundfile.read(source, dtype="int16")
    with soundfile.SoundFile(target, "w", rate, 1, "PCM_16") as file:
        caller = Caller(samples, rate)
        writer = Writer(file, len(caller.frames))
        worker = PipelineWorker(Pipeline([caller, writer]), cancel_on_idle_timeout=False)

        async def hang_up():
            await writer.done.wait()
            await worker.queue_frame(EndFrame())

        runner = WorkerRunner()
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), hang_up())


asyncio.run(main(*sys.argv[1:3]))
