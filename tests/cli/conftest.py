"""A model small enough to run in every test, and a folder that `--model` takes."""

import signal

import pytest
import torch


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a small `live` model whose weights were drawn at random (and change what goes through it)."""
    from clearstate.models import build, save_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(build("live", fine_channels=4, channels=6, bands=8, blocks=1, states=4, wide=8), "live", folder)
    return folder


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    """The command line installs a handler for SIGTERM; pytest's own process keeps what it had."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
