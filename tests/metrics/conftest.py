"""A made-up noisy sentence, so that no test of a score needs a corpus."""

import numpy as np
import pytest

RATE = 16_000


def noisy_speech(seconds: float = 2.0, snr_db: float = 5.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A clean signal with a speech-like envelope and spectrum, and a noisy copy: (samples,) each."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)

    def wander(points_per_second: float) -> np.ndarray:
        points = rng.uniform(0, 1, int(seconds * points_per_second) + 2)
        return np.interp(np.arange(n) / RATE * points_per_second, np.arange(len(points)), points)

    phase = 2 * np.pi * np.cumsum(100 + 60 * wander(4)) / RATE
    voiced = sum(np.sin(k * phase) / k for k in range(1, 25))
    syllables = np.clip(3 * wander(6) - 1.2, 0.0, 1.0)
    clean = 0.1 * voiced * syllables + 1e-4 * rng.standard_normal(n)
    noise = rng.standard_normal(n)
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise) / 10 ** (snr_db / 20)
    return clean, clean + noise


@pytest.fixture(scope="session")
def make_pair():
    return noisy_speech


@pytest.fixture(scope="session")
def pair():
    return noisy_speech(seconds=3)
