"""Paths of audio files: the one rule for searching folders, and names for libraries that want bytes."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

# Characters that move the cursor, recolour or reorder what a terminal shows. A file name may hold any of them.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
KINDS = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class Found(NamedTuple):
    """What a search found, and what it cannot use: (path, reason)."""

    files: list[Path]
    unusable: list[tuple[Path, str]]


def walk(folder: str | os.PathLike[str], suffixes: Collection[str], leave_out: str | Path | None = None) -> Found:
    """Files in `folder` and below whose suffix, in lower case, is one of `suffixes`; sorted.

    Links to files and folders are followed. A folder that can be reached in several ways is searched once, under its
    own path if that lies inside `folder`, so cycles of links end. Hidden files and folders are left out. An entry that
    cannot be used (a link to nothing, a socket, a folder that may not be searched) is listed and does not stop the
    search.

    Args:
        leave_out: a folder that is not searched, for instance where results are written.
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
    """Why `path` is not a regular file, in words; None if it is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            return f"is a link to {os.readlink(path)}, which does not exist; restore it, or remove the link"
        return f"no such file or folder (looked in {Path(path).absolute().parent})"
    except PermissionError as error:
        return f"cannot be reached ({error.strerror}); check the permissions of its folder"
    except (OSError, ValueError) as error:  # too long a name, a cycle of links, a null character
        return f"cannot be reached ({getattr(error, 'strerror', None) or error})"
    kind = KINDS.get(stat.S_IFMT(mode), "folder" if stat.S_ISDIR(mode) else "special file")
    return None if stat.S_ISREG(mode) else f"is a {kind}; expected a regular file"


def native_name(path: str | os.PathLike[str]) -> str | bytes:
    r"""A path as soundfile needs it: it cannot encode names that are not valid in the file system's encoding.

    >>> native_name("caf\udce9.wav") if os.name == "posix" else b"caf\xe9.wav"
    b'caf\xe9.wav'
    """
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


def shown(name: str) -> str:
    r"""A name as it may be printed: control characters are spelled out.

    >>> shown("a\nb.wav")
    'a\\nb.wav'
    """
    return CONTROL.sub(lambda found: escaped(found.group()), name)


def drawn(name: str) -> str:
    """A name as text of a picture or a page, which must be valid Unicode."""
    return "".join(escaped(c) if "\ud800" <= c <= "\udfff" else c for c in shown(name))


def escaped(character: str) -> str:
    r"""A character by its number; a byte of a file name that is no text by its value.

    >>> escaped("\n"), escaped("é"), escaped("\udce9")
    ('\\n', '\\xe9', '\\xe9')
    """
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
