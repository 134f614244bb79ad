"""Each test has its own cache, and a folder of small shards to draw from."""

from pathlib import Path

import numpy as np
import pytest
from corpora_in_miniature import hiss, make_shards, voice


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder of shards: four labelled voices of two clips, an unlabelled source, three noises, two rooms."""
    folder = tmp_path / "shards"
    speech: list = [
        ({"file": f"a/{s}-{i}.flac", "speaker": f"so_{s}", "source": "a"}, voice(90 + 40 * s, 2 + i, seed=s))
        for s in range(4)
        for i in range(2)
    ]
    speech += [
        ({"file": f"b/{i}-{j}.flac", "speaker": "b_unknown", "source": "b"}, voice(110 + 15 * i, 3))
        for i in range(3)
        for j in range(2)
    ]
    make_shards(folder, "speech16k", speech)
    noises = [({"file": f"n/{i}.flac", "group": f"g{i}", "source": "n"}, hiss(2 + 3 * i, i)) for i in range(3)]
    make_shards(folder, "noise16k", noises)
    responses = []
    for i, split in enumerate(["train", "valid"]):
        h = np.random.default_rng(i).standard_normal(24000) * np.exp(-np.arange(24000) / 4000) * 0.05
        h[:480] = 0
        h[480] = 0.9
        responses.append(({"file": f"r/{i}.flac", "source": "r", "split": split}, h.astype(np.float32)))
    make_shards(folder, "rir48k", responses, rate=48_000)
    return folder
