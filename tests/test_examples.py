"""The examples run as they are shipped, and the shipped clips are what their credits say."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PAIRS = {"helicopter_0db": 0, "chainsaw_5db": 5, "fire_10db": 10}


def run(script, *args, cwd):
    command = [sys.executable, str(EXAMPLES / script), *map(str, args)]
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("name", "decibels"), PAIRS.items())
def test_a_clip_has_the_signal_to_noise_ratio_in_its_name_and_does_not_clip(name, decibels):
    noisy, rate = soundfile.read(EXAMPLES / "clips" / f"{name}.noisy.flac")
    clean, _ = soundfile.read(EXAMPLES / "clips" / f"{name}.clean.flac")
    assert rate == 16_000
    assert noisy.shape == clean.shape
    assert 3 <= len(noisy) / rate <= 5
    assert 10 * np.log10((clean**2).sum() / ((noisy - clean) ** 2).sum()) == pytest.approx(decibels, abs=0.05)
    assert 0.5 < np.abs(noisy).max() < 0.75  # -3 dBFS


def test_every_clip_is_credited():
    credits = (EXAMPLES / "credits.txt").read_text()
    for clip in (EXAMPLES / "clips").iterdir():
        assert credits.count(clip.name.partition(".")[0]) == 2, clip  # its speech and its noise
