"""Enhance an array with any sample rate and number of channels."""

import sys

import soundfile

import clearstate

noisy, rate = soundfile.read(sys.argv[1], always_2d=True)  # (samples, channels)
enhancer = clearstate.load()
clean = enhancer.enhance(noisy.T, rate)  # (channels, samples), the same shape back
soundfile.write(sys.argv[2], clean.T, rate)
