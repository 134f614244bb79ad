"""`njit` with a cache that cannot go stale.

Numba keeps compiled code beside each source file and trusts that file's date and size. It does not see that a
function in another file, inlined here, has changed; and files unpacked from a wheel can share a date. So the package's
compiled code lies in a folder of its own, named after a digest of every source file that is compiled.
"""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

PACKAGE = Path(__file__).resolve().parents[1]


def njit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit`; with ``cache=True`` the compiled code goes to `cache_folder`.

    The environment variable NUMBA_CACHE_DIR, if set, is obeyed as ever.
    """

    def decorate(function: Callable) -> Any:
        config: Any = numba.config  # its values appear at run time
        given = config.CACHE_DIR
        if options.get("cache") and not given:
            config.CACHE_DIR = str(cache_folder())
        try:
            return numba.njit(**options)(function)
        finally:
            config.CACHE_DIR = given

    return decorate


@cache
def cache_folder() -> Path:
    """Where compiled code is kept: ~/.cache/clearstate/kernels/<digest>, or under $XDG_CACHE_HOME."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "clearstate" / "kernels" / digest(PACKAGE)


def digest(folder: Path) -> str:
    """A name for the state of all compiled sources under a folder."""
    seen = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        text = path.read_bytes()
        if b"njit" in text or b"@intrinsic" in text:
            seen.update(path.relative_to(folder).as_posix().encode() + text)
    return seen.hexdigest()[:16]
