"""Signals: files, rates and spectra. Nothing here knows about models."""
