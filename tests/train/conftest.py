"""The presets of the tests of training, which no other test may see."""

from collections.abc import Iterator

import pytest
from tiny import TINY_PRESETS

from clearstate.models import PRESETS


@pytest.fixture(scope="module", autouse=True)  # a worker runs files of several folders in turn
def tiny_presets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in TINY_PRESETS.items():
            patch.setitem(PRESETS, name, preset)
        yield
