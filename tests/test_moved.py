"""Programs written for version 0.1 find its modules under their new names."""

import importlib
import sys

import pytest

from clearstate.moved import NEW_NAMES


@pytest.mark.parametrize("old", NEW_NAMES)
def test_an_old_module_name_is_the_new_module_and_says_so(old):
    sys.modules.pop(f"clearstate.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"is called clearstate.{NEW_NAMES[old]} since"):
        module = importlib.import_module(f"clearstate.{old}")
    assert module is importlib.import_module(f"clearstate.{NEW_NAMES[old]}")


def test_other_names_are_still_errors():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("clearstate.restoration")
