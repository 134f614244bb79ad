"""Engines: what runs the jobs of a batch. One file per engine; each has a function `run` as in `contract.Engine`."""

import functools
from enum import Enum

from clearstate.cli.engines import local
from clearstate.cli.engines.contract import Engine


class EngineName(str, Enum):
    """The engines that `--engine` accepts."""

    local = "local"
    ray = "ray"


def find(name: EngineName, address: str | None = None) -> Engine:
    """The engine of this name.

    Raises:
        UsageError: if its library is not installed.
    """
    if name == EngineName.local:
        return local.run
    from clearstate.cli.engines.ray import check_installed, run

    check_installed()
    return functools.partial(run, address=address)
