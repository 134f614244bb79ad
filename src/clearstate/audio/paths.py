"""Paths of audio files: search a folder, and print or pass on names that are not valid text."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

# Characters that move the cursor, or change colour or order on a terminal. File names may contain any of them.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
KINDS = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class Found(NamedTuple):
    """The result of a search: files, and unusable entries as (path, reason)."""

    files: list[Path]
    unusable: list[tuple[Path, str]]


def walk(folder: str | os.PathLike[str], suffixes: Collection[str], leave_out: str | Path | None = None) -> Found:
    """Find files in `folder` and its subfolders with one of `suffixes` (in lower case); sorted.

    Links to files and folders are followed. A folder with several paths is searched once, under its own path if that is
    inside `folder`, so cycles of links end. Hidden files and folders are skipped. Unusable entries (a broken link, a
    socket, a folder without permission) are listed and do not stop the search.

    Args:
        leave_out: a folder to skip, for example the output folder.
    """
    found = Found([], [])
    seen = set()
    if leave_out is not None and os.path.isdir(leave_out) and not os.path.samefile(leave_out, folder):
        seen.add(_identity(leave_out))
    own, linked = [Path(folder)], deque[Path]()
    while own or linked:
        here = own.pop() if own else linked.popleft()
        try:
            if (identity := _identity(here)) in seen:
                continue
            seen.add(identity)
            with os.scandir(here) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.unusable.append((here, f"this folder cannot be searched ({error.strerror}); check its permissions"))
            continue
        for entry in listed:
            path, suffix = here / entry.name, Path(entry.name).suffix.lower()
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if os.path.isdir(path):
                (linked if entry.is_symlink() else own).append(path)
            elif suffix in suffixes or (not suffix and entry.is_symlink() and not os.path.exists(path)):
                if reason := why_no_file(path):
                    found.unusable.append((path, reason))
                else:
                    found.files.append(path)
    return Found(sorted(found.files), sorted(found.unusable))


def why_no_file(path: str | Path) -> str | None:
    """The reason why `path` is not a regular file; None if it is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            return f"is a link to {os.readlink(path)}, which does not exist; restore it, or remove the link"
        return f"no such file or folder (looked in {Path(path).absolute().parent})"
    except PermissionError as error:
        return f"cannot be reached ({error.strerror}); check the permissions of its folder"
    except (OSError, ValueError) as error:  # name too long, cycle of links, null character
        return f"cannot be reached ({getattr(error, 'strerror', None) or error})"
    kind = KINDS.get(stat.S_IFMT(mode), "folder" if stat.S_ISDIR(mode) else "special file")
    return None if stat.S_ISREG(mode) else f"is a {kind}; expected a regular file"


def native_name(path: str | os.PathLike[str]) -> str | bytes:
    r"""Convert a path for soundfile, which cannot encode names that are invalid in the file system's encoding.

    >>> native_name("caf\udce9.wav") if os.name == "posix" else b"caf\xe9.wav"
    b'caf\xe9.wav'
    """
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


def shown(name: str) -> str:
    r"""Escape the control characters of a name, so that it is safe to print.

    >>> shown("a\nb.wav")
    'a\\nb.wav'
    """
    return CONTROL.sub(lambda found: escaped(found.group()), name)


def drawn(name: str) -> str:
    """Convert a name for pictures and web pages, which need valid Unicode."""
    return "".join(escaped(c) if "\ud800" <= c <= "\udfff" else c for c in shown(name))


def escaped(character: str) -> str:
    r"""Escape a character by its code; escape a byte of an invalid file name by its value.

    >>> escaped("\n"), escaped("é"), escaped("\udce9")
    ('\\n', '\\xe9', '\\xe9')
    """
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
