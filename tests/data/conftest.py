"""Each test has its own cache, and a folder of small shards to draw from."""

from pathlib import Path

import pytest
from corpora_in_miniature import make_corpus


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder of shards."""
    return make_corpus(tmp_path / "shards")
