"""`njit` with a cache that cannot go stale, and that nothing depends on.

Numba keeps compiled code beside each source file. It does not see that a function in another file, inlined here, has
changed, and it raises whatever a damaged or unwritable cache raises. So the package keeps compiled code in a folder of
its own, named after a digest of every source file that is compiled. Every file there carries a checksum. A file that
cannot be read, is damaged or belongs to another user means that its kernel is compiled again. A folder that cannot be
written to is replaced by one for temporary files, and that one by memory. Each is said once, in one line.
"""

import hashlib
import logging
import os
import pickle
import platform
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import compiler
from numba.core.caching import _Cache
from numba.core.serialize import dumps

from clearstate import __version__

PACKAGE = Path(__file__).resolve().parents[1]
OWNER = "installation.txt"  # in a cache folder: the package that it belongs to
TRUSTED = (0,)  # users beside our own whose compiled code is run: root may have filled a cache for everyone

logger = logging.getLogger(__name__)


def njit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit`; with ``cache=True`` the compiled code is kept in `cache_folders`."""
    kept = options.pop("cache", False)

    def decorate(function: Callable) -> Any:
        dispatcher = numba.njit(**options)(function)
        if kept:
            dispatcher._cache = KernelCache(function)
        return dispatcher

    return decorate


class KernelCache(_Cache):
    """Compiled forms of one function, a file for each signature: its SHA-256, then the pickle that Numba makes."""

    def __init__(self, function: Callable) -> None:
        self._function = function
        self._enabled = True

    @property
    def cache_path(self) -> str:
        """The folder that is tried first, for Numba's statistics."""
        return str(next(iter(cache_folders()), ""))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        if not self._enabled:
            return None
        name = self._file_name(sig, target_context.codegen())
        for folder in _folders_in_use():
            try:
                return compiler.CompileResult._rebuild(target_context, *pickle.loads(_read(folder / name)))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except Exception as error:  # whatever a foreign or damaged file can raise
                _tell(f"{folder / name} is not used ({_why(error)}): its kernel is compiled again", folder)
        _announce()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        if not self._enabled or data.library.has_dynamic_globals or any(not code.can_cache for code in data.lifted):
            return
        name, content = self._file_name(sig, data.codegen), dumps(data._reduce())
        for folder in _folders_in_use():
            error = _attempt(_write, folder, name, content)
            if error is None:
                return
            _tell(f"compiled kernels cannot be kept in {folder} ({_why(error)}); `clearstate doctor` says more", folder)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Nothing to forget: what changes the code changes the name of its file."""

    def _file_name(self, sig: Any, codegen: Any) -> str:
        """The function's name, and a digest of all that its machine code depends on beside the package's sources."""
        function = self._function
        closure = dumps(tuple(cell.cell_contents for cell in function.__closure__ or ()))
        parts = numba.__version__, platform.python_version(), codegen.magic_tuple(), str(sig), function.__qualname__
        seen = hashlib.sha256(repr((*parts, function.__module__)).encode() + function.__code__.co_code + closure)
        return f"{function.__module__}.{function.__name__}-{seen.hexdigest()[:16]}.nbc"


@cache
def cache_folders() -> tuple[Path, ...]:
    """Where compiled code is kept and looked for, the best place first; the later ones stand in for those before.

    The first is clearstate/kernels/<digest> in $XDG_CACHE_HOME or ~/.cache, or kernels/<digest> in $NUMBA_CACHE_DIR.
    """
    config: Any = numba.config  # its values appear at run time
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    places: tuple[Callable[[], Path], ...] = (
        lambda: Path(config.CACHE_DIR) if config.CACHE_DIR else user_cache() / "clearstate",
        lambda: Path(tempfile.gettempdir(), f"clearstate-{user}"),
    )
    name = Path("kernels", digest(PACKAGE))
    found = (_attempt(place) for place in places)  # without a home, or any folder for temporary files, there is none
    return tuple(place / name for place in found if isinstance(place, Path))


def user_cache() -> Path:
    """$XDG_CACHE_HOME, or ~/.cache. RuntimeError if nothing says where the home folder is."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def digest(folder: Path) -> str:
    """A name for the state of all compiled sources under a folder."""
    seen = hashlib.sha256(__version__.encode())
    for path in sorted(folder.rglob("*.py")):
        text = path.read_bytes()
        if b"njit" in text or b"@intrinsic" in text:
            seen.update(path.relative_to(folder).as_posix().encode() + text)
    return seen.hexdigest()[:16]


@cache
def reason_unwritable(folder: Path) -> str | None:
    """Why nothing can be kept in a cache folder, in a few words, or None if something can."""
    probe = f".{uuid.uuid4().hex}"
    error = _attempt(_write, folder, probe, b"")
    _attempt((folder / probe).unlink)
    return _why(error) if isinstance(error, Exception) else None


def _folders_in_use() -> Iterator[Path]:
    """The cache folders up to the first that can be written to."""
    for folder in cache_folders():
        yield folder
        if reason_unwritable(folder) is None:
            return


def _read(path: Path) -> bytes:
    """What `_write` was given; an error if that is not what is there, or if another user may have put it there."""
    _check_owner(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a file")
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise ValueError("damaged")
    return content[32:]


def _write(folder: Path, name: str, content: bytes) -> None:
    """Put a file in its place in one step: a reader finds all of it or none, however many write it at once."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        (folder / OWNER).write_text(str(PACKAGE), encoding="utf-8")
        _remove_stale(folder)
    _check_owner(folder)
    partial = folder / f"{name}.{uuid.uuid4().hex[:8]}"
    try:
        partial.write_bytes(hashlib.sha256(content).digest() + content)
        partial.replace(folder / name)
    except OSError:
        _attempt(partial.unlink)
        raise


def _remove_stale(folder: Path) -> None:
    """Remove the folders beside a new one that held the code of an earlier version, or of a package that is gone."""
    for other in folder.parent.iterdir():
        owner = _attempt((other / OWNER).read_text, encoding="utf-8")
        if other != folder and (not isinstance(owner, str) or owner == str(PACKAGE) or not Path(owner).is_dir()):
            shutil.rmtree(other, ignore_errors=True)


def _check_owner(path: Path) -> None:
    """What is loaded from a cache is run: it must be our own, or the system's."""
    if hasattr(os, "geteuid") and path.stat().st_uid not in (os.geteuid(), *TRUSTED):
        raise PermissionError("belongs to another user")


def _attempt(function: Callable, *arguments: Any, **options: Any) -> Any:
    """What a function returns, or the exception that it raises."""
    try:
        return function(*arguments, **options)
    except (OSError, ValueError, RuntimeError) as error:
        return error


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@cache
def _announce() -> None:
    logger.info("compiling kernels, once per machine ...")


_told: set[Path] = set()


def _tell(message: str, folder: Path) -> None:
    """Say what is wrong with a folder once in a process."""
    if folder not in _told:
        _told.add(folder)
        logger.warning(message)
