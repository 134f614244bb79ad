"""Enhance live audio in blocks of 20 ms. A file replaces the microphone."""

import sys

import soundfile

import clearstate

with soundfile.SoundFile(sys.argv[1]) as microphone:
    rate, channels = microphone.samplerate, microphone.channels
    stream = clearstate.Stream("live", rate, channels=channels)
    print(f"latency: {stream.latency_samples} samples, {1000 * stream.latency_seconds:.1f} ms")
    with soundfile.SoundFile(sys.argv[2], "w", rate, channels) as speaker:
        for block in microphone.blocks(rate // 50, always_2d=True):  # (samples, channels)
            speaker.write(stream.process(block.T).T)
        speaker.write(stream.flush().T)
