"""Remove noise from the audio of a LiveKit track. A file replaces the participant: livekit_agent.py noisy.wav clean.wav

In your agent, `track` is the one that a participant published. With LiveKit Agents, give
`AudioInputOptions(noise_cancellation=lambda _: ClearstateProcessor())`.
"""

import asyncio
import sys

import soundfile
from livekit import rtc

from clearstate.integrations.livekit import ClearstateProcessor


async def speak(source, samples, rate):
    """The participant: frames of 10 ms, as fast as they sound."""
    step = rate // 100
    for i in range(0, len(samples) - step + 1, step):
        await source.capture_frame(rtc.AudioFrame(samples[i : i + step].tobytes(), rate, 1, step))
    await source.wait_for_playout()


async def main(noisy, clean):
    samples, rate = soundfile.read(noisy, dtype="int16")
    processor = ClearstateProcessor()  # one for every participant
    source = rtc.AudioSource(rate, 1)
    track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
    audio = rtc.AudioStream.from_track(track=track, sample_rate=rate, num_channels=1, noise_cancellation=processor)
    speaking = asyncio.create_task(speak(source, samples, rate))
    with soundfile.SoundFile(clean, "w", rate, 1, "PCM_16") as file:
        async for event in audio:  # your speech recognition would be here
            file.buffer_write(event.frame.data, "int16")
            if speaking.done():
                break
    await speaking
    await audio.aclose()
    await source.aclose()


asyncio.run(main(*sys.argv[1:3]))
