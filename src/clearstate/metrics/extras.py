"""Import optional libraries on first use, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtra(ImportError):  # noqa: N818  (it is what the user lacks, not a fault)
    """An optional library is not installed. The message has the command that installs it."""


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import `module`, or raise an error with the extra that installs it.

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
