"""Which of the libraries that make things faster are installed. Importing this module imports none of them."""

import sys
from functools import cache
from importlib.util import find_spec


@cache
def can_compile() -> bool:
    """Whether Numba, which compiles the kernels, is installed."""
    return _has("numba")


@cache
def has_torch() -> bool:
    """Whether PyTorch and Numba are installed."""
    return _has("torch") and can_compile()


def _has(name: str) -> bool:
    return sys.modules.get(name, ...) is not None and (name in sys.modules or find_spec(name) is not None)


def need_torch(what: str) -> None:
    """Raise an ImportError with the command that installs PyTorch, if it is not installed."""
    if not has_torch():
        raise ImportError(f"{what} needs PyTorch and Numba: pip install 'clearstate[torch]'")
