"""Signals, as every test found them."""

import signal

import pytest


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    """The command line installs a handler for SIGTERM; pytest's own process keeps what it had."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
