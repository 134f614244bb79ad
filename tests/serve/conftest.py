"""A service for the tests that need no other one, and a file for it."""

import pytest
import soundfile
from serving import in_a_thread, noise


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service with the default model on ONNX Runtime."""
    with in_a_thread("live", tmp_path_factory.mktemp("spool"), keep_seconds=600) as service:
        yield service


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A noisy stereo WAV file of half a second."""
    path = tmp_path_factory.mktemp("clips") / "clip.wav"
    soundfile.write(path, noise(22_050, 2), 44_100)
    return path
