"""Write files atomically: a file appears complete or not at all.

    with replacing("talk.wav") as temporary:
        write_somehow(temporary)           # after an error, talk.wav is unchanged

The temporary file is in the same folder, so the final rename is one step. Its name does not depend on the target's
name, so the target name may be as long as the file system allows. Errors of the system become one line with a remedy.
"""

import atexit
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from clearstate.audio.streams import close_stream, is_stream, open_stream

AnyPath = str | os.PathLike[str]

PROBE = 1 << 16  # bytes; more than the unused rest of a file system block
WHILE_WRITING = {
    errno.ENOSPC: "the disk is full (no space left); free some space, or choose another place",
    errno.EDQUOT: "your quota on this disk is used up; free some space, or choose another place",
    errno.EFBIG: "the file cannot grow (the disk is full, or the file size is limited); choose another place",
}
AT_THE_PLACE = {
    errno.EACCES: "cannot write into {folder}; change its permissions, or choose another place",
    errno.EPERM: "cannot write into {folder}; change its permissions, or choose another place",
    errno.EROFS: "cannot write into {folder}, which is on a read-only file system; choose another place",
    errno.ENAMETOOLONG: "the name is {bytes} bytes long, more than the file system allows (usually 255); shorten it",
    errno.ENOENT: "the folder {folder} does not exist; create it first",
    errno.ENOTDIR: "{folder} is not a folder; choose another place",
}


_mark: ContextVar[str] = ContextVar("mark", default="")  # in the temporary names; see `marked`
_process = os.getpid()
_unfinished: set[str] = set()  # temporary files of this process


@atexit.register
def _remove_unfinished() -> None:
    """Remove what a signal left between the creation of a file and the block that removes it."""
    for path in _unfinished if os.getpid() == _process else ():  # a forked child leaves its parent's files alone
        with suppress(OSError):
            os.unlink(path)


class Replacement:
    """A temporary file. `commit` renames it to `path`; `discard` deletes it.

    Raises:
        OSError: one line with the remedy, if the folder or the name does not allow the file.
    """

    def __init__(self, path: AnyPath, suffix: str = ".part") -> None:
        self.name = os.fspath(path)
        check_name(self.name)
        if is_stream(self.name):
            raise OSError(f"{self.name}: is a pipe or a device, which cannot be replaced; choose another name")
        self.path = os.path.join(_folder(self.name), f".{_mark.get()}{secrets.token_hex(6)}{suffix}")
        _unfinished.add(self.path)  # before it exists: a signal may come at any time
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            _unfinished.discard(self.path)
            raise explained(error, self.name) from error

    def commit(self) -> None:
        """Rename the file to its final name, with the usual permissions."""
        try:
            os.chmod(self.path, 0o666 & ~_umask())  # only its owner may read a temporary file
            os.replace(self.path, self.name)
        except OSError as error:
            raise explained(error, self.name) from error
        _unfinished.discard(self.path)

    def discard(self) -> None:
        """Delete the temporary file, if it still exists."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        _unfinished.discard(self.path)

    def refusal(self) -> OSError | None:
        """The system's reason why the file cannot grow; None if it can.

        Libraries report a full disk as "System error" or "unexpected position". Here the system gives the real reason.
        """
        try:
            with open(self.path, "ab") as file:
                file.write(bytes(PROBE))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return explained(error, self.name)
        return None


@contextmanager
def replacing(path: AnyPath, suffix: str = ".part") -> Iterator[str]:
    """Yield a temporary name, and rename the file to `path` when the block ends without an error.

    Args:
        suffix: of the temporary name, for writers that select a format by it.
    Raises:
        OSError: one line with the remedy: a full disk, a folder without write permission, a name that is too long.
    """
    file = Replacement(path, suffix)
    try:
        try:
            yield file.path
        except OSError as error:
            raise explained(error, file.name) from error
        except Exception as error:
            if refusal := file.refusal():
                raise refusal from error
            raise
        file.commit()
    finally:
        file.discard()


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Begin the temporary names in this block with `mark`, so that `remove_leftovers` finds them after a crash."""
    before = _mark.set(f"{mark}-")
    try:
        yield
    finally:
        _mark.reset(before)


def remove_leftovers(mark: str, folder: AnyPath) -> None:
    """Delete the temporary files that a killed process left in `folder` under this mark."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(f".{mark}-"):
                with suppress(OSError):
                    os.unlink(entry.path)


def check_name(path: AnyPath) -> None:
    """Raise an OSError for a name that the file system refuses, before hours of work."""
    name = os.fspath(path)
    try:
        with suppress(FileNotFoundError):
            os.lstat(name)
    except OSError as error:
        raise explained(error, name) from error


def write_text(path: AnyPath, text: str) -> None:
    r"""Write a UTF-8 text file atomically; a pipe or a device receives the text directly.

    Bytes of a file name that are not valid text become \udcXX, which JSON decodes again.
    """
    if is_stream(path):
        stream = open_stream(path, "wb")
        try:
            stream.write(text.encode(errors="backslashreplace"))
            stream.flush()
        except OSError as error:
            raise explained(error, os.fspath(path)) from error
        finally:
            close_stream(stream)
        return
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def explained(error: OSError, name: str) -> OSError:
    """Turn an error into one line with the file and the remedy; return other kinds of error unchanged."""
    text = WHILE_WRITING.get(error.errno or 0)
    if (
        text is None and error.filename and _folder(error.filename) == _folder(name)
    ):  # not an error of a file that was read
        text = AT_THE_PLACE.get(error.errno or 0)
    if text is None:
        return error
    size = len(os.fsencode(os.path.basename(name)))
    return type(error)(f"{name}: {text.format(folder=_folder(name), bytes=size)}")


def _folder(name: str) -> str:
    return os.path.dirname(os.path.abspath(name))


def _umask() -> int:
    mask = os.umask(0o077)  # it cannot be read without setting it
    os.umask(mask)
    return mask
