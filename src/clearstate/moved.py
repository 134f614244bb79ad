"""Module names of version 0.1 still import, with a DeprecationWarning that names the new one."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NEW_NAMES = {
    "compiled": "kernels.cache",
    "convert": "models.convert",
    "discriminator": "train.discriminator",
    "extension": "tasks.extend",
    "losses": "train.losses",
    "pipeline": "tasks.chain",
    "plot": "audio.pictures",
    "restore": "tasks.enhance",
    "separation": "tasks.separate",
    "speakers": "tasks.voices",
    "streaming": "tasks.stream",
}


class Moved(MetaPathFinder, Loader):
    """Finds the modules of `NEW_NAMES` under their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an old name; None for any other."""
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == "clearstate" and name in NEW_NAMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module; `exec_module` puts the real one in its place."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Let the old name stand for the module itself."""
        new = f"clearstate.{NEW_NAMES[module.__name__.rpartition('.')[2]]}"
        warnings.warn(f"{module.__name__} is called {new} since version 0.2", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def follow() -> None:
    """Make the old names importable."""
    sys.meta_path.append(Moved())
