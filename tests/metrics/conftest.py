"""A made-up noisy sentence, so that no test of a score needs a corpus."""

import numpy as np
import pytest

RATE = 16_000


def noisy_speech(seconds: float = 2.0, snr_db: float = 5.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A clean signal with a speech-like envelope and spectrum, and a noisy copy: (samples,) each."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    time = np.arange(n) / RATE
    voiced = sum(np.sin(2 * np.pi * 120 * k * time + rng.uniform(0, 6)) / k for k in range(1, 25))
    clean = 0.1 * voiced * np.clip(np.sin(2 * np.pi * 2.5 * time), 0.02, None)
    noise = rng.standard_normal(n)
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise) / 10 ** (snr_db / 20)
    return clean, clean + noise


@pytest.fixture(scope="session")
def make_pair():
    return noisy_speech


@pytest.fixture(scope="session")
def pair():
    return noisy_speech(seconds=3)
