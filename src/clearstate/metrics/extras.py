"""Optional libraries, imported when first needed, with an error that names the extra to install."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class MissingExtra(ImportError):  # noqa: N818  (it is what the user lacks, not a fault)
    """An optional library is not installed; the message says how to get it."""


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import `module`, or say which extra of the package brings it.

    Raises:
        MissingExtra: naming the metric, the library and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtra(
            f"{what} needs {library}, which is not installed: pip install 'clearstate[{extra}]'"
        ) from error


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'stoi'?`, or nothing when no known name is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
