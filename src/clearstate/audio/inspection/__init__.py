"""Measure a recording: level, clipping, offset, hum, noise, bandwidth, channels, speech. Nothing here knows models."""
