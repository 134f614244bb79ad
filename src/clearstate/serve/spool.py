"""The folder for uploads and results. Nothing in it survives the service, not even `kill -9`.

Each service has its own folder inside the spool and holds a lock on it. The system releases the lock when the process
ends, however it ends, so the next service that starts deletes every folder whose lock is free.
"""

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = "lock"
PREFIX = "service-"


class Spool:
    """A private folder inside `root`.

    Args:
        root: the spool; None: a folder of this user for temporary files.
    Raises:
        OSError: if the folder cannot be created.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = self.root / f"{PREFIX}{secrets.token_hex(8)}"
        with open(self.root / LOCK, "wb") as one_at_a_time:  # a folder without a lock yet would look abandoned
            lock(one_at_a_time, wait=True)
            remove_abandoned(self.root)
            self.folder.mkdir(mode=0o700)
            self._lock: IO[bytes] | None = open(self.folder / LOCK, "wb")  # noqa: SIM115 - open as long as the service
            lock(self._lock)

    def new_folder(self) -> Path:
        """Create a folder for one job."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        return folder

    def free_bytes(self) -> int:
        """Free space on the disk."""
        return shutil.disk_usage(self.folder).free

    def close(self) -> None:
        """Delete the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None
        shutil.rmtree(self.folder, ignore_errors=True)


def default_root() -> Path:
    """The spool of this user."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    root = Path(tempfile.gettempdir(), f"clearstate-serve-{user}")
    if root.exists() and hasattr(os, "getuid") and root.lstat().st_uid != os.getuid():
        raise PermissionError(f"{root}: belongs to another user; choose another folder with --spool")
    return root


def remove_abandoned(root: Path) -> None:
    """Delete the folders of services that no longer run."""
    for folder in root.glob(f"{PREFIX}*"):
        if not folder.is_symlink() and not _in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def lock(file: IO[bytes], wait: bool = False) -> bool:
    """Lock an open file until its process ends; False if another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows: an open file cannot be deleted, which has the same effect
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _in_use(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        if not hasattr(os, "getuid"):
            os.unlink(folder / LOCK)  # fails while it is open
            return False
        with open(folder / LOCK, "rb") as file:
            return not lock(file)
    return False
