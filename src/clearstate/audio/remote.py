"""Files at a URL, such as s3://bucket/talk.wav, through fsspec (extra `[remote]`).

`open_file` reads a file block by block. `audio/io.py` does so with WAV, AIFF, CAF and Wave64, whose headers tell what
follows. `local_copies` fetches any source into a temporary folder, which is faster for short files. It also uploads the
outputs when they are complete. Credentials come from the environment or the configuration files of the storage.
"""

import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
SECRET = re.compile(r"(://)[^/@\s]*@|\?[^\s'\"]*")  # user and password, and the signature of a signed URL
WEB = ("http://", "https://")
BLOCK = 1 << 22  # bytes of sound
HEAD_BLOCK = 1 << 16  # bytes of headers and tags
KEPT_BLOCKS = 4  # of a file that is read block by block


class Entry(NamedTuple):
    """A file in a storage."""

    url: str
    size: int
    stamp: str  # changes when the file changes


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a name is a URL.

    >>> is_remote("s3://bucket/talk.wav"), is_remote("talk.wav")
    (True, False)
    """
    return URL.match(os.fspath(name)) is not None


def without_secrets(text: str) -> str:
    """Remove passwords and signatures from the URLs in a text.

    >>> without_secrets("https://me:secret@host/talk.wav?X-Amz-Signature=abc")
    'https://host/talk.wav'
    """
    return SECRET.sub(lambda found: found[1] or "", text) if URL.search(text) else text


def base_name(url: str) -> str:
    """The last part of a URL's path.

    >>> base_name("https://host/archive/talk.wav?token=1")
    'talk.wav'
    """
    return posixpath.basename(url.split("?")[0].rstrip("/"))


def parent(url: str) -> str:
    """The folder of a URL.

    >>> parent("s3://bucket/archive/talk.wav")
    's3://bucket/archive'
    """
    return url.split("?")[0].rstrip("/").rpartition("/")[0]


def join(folder: str, name: str) -> str:
    """Join a URL or a local folder with a relative path."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        ImportError: if fsspec or the driver of this storage is not installed.
        ValueError: if no driver knows the protocol.
    """
    protocol = url.split("://")[0]
    if find_spec("fsspec") is None:
        raise ImportError(f"{protocol}:// needs fsspec: pip install 'clearstate[remote]'")
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{protocol}:// needs a driver: {without_secrets(str(error))}") from error
    except ValueError as error:
        raise ValueError(f"{without_secrets(url)}: {without_secrets(str(error))}") from error


def find(url: str, suffixes: Collection[str] | None = None) -> list[Entry]:
    """The files that a URL names: the file itself, all files in a folder and its subfolders, or those of a pattern.

    Args:
        suffixes: in lower case; other files of a folder or a pattern are left out. None keeps all.
    """
    fs, path = file_system(url)
    pattern = not url.startswith(WEB) and any(sign in path for sign in "*?[")
    try:
        info = None if pattern else fs.info(path)
    except FileNotFoundError:
        return []
    if info and info["type"] != "directory":
        return [_entry(url, info)]
    found = fs.glob(path, detail=True) if pattern else fs.find(path, detail=True)
    top = root(url)
    _, base = file_system(top)
    entries = []
    for name, info in sorted(found.items()):
        wanted = suffixes is None or posixpath.splitext(name)[1].lower() in suffixes
        if info["type"] == "file" and wanted and not posixpath.basename(name).startswith("."):
            entries.append(_entry(join(top, posixpath.relpath(name, base)), info))
    return entries


def root(url: str) -> str:
    """The folder in which a search begins: the part of a pattern without wildcards."""
    fixed = re.split(r"[*?\[]", url, maxsplit=1)[0]
    return (fixed if fixed == url else fixed.rpartition("/")[0]).rstrip("/")


def under(url: str, word: str) -> str:
    """The path of a found file under the folder that was searched; a match of a pattern has its name alone."""
    return base_name(url) if root(word) != word.rstrip("/") else url.removeprefix(root(word) + "/")


def is_folder(url: str) -> bool:
    """Whether a URL is a folder in its storage."""
    fs, path = file_system(url)
    return not url.startswith(WEB) and bool(fs.isdir(path))


def open_file(name: str | os.PathLike[str], block: int = HEAD_BLOCK) -> Any:
    """Open a file or a URL to read bytes. At a URL, only blocks that are read are fetched.

    Args:
        block: bytes that are fetched at a time.
    Raises:
        ImportError, ValueError: see `file_system`.   OSError: if it cannot be opened.
    """
    if not is_remote(name):
        return open(name, "rb")
    fs, path = file_system(os.fspath(name))
    cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": KEPT_BLOCKS}}
    return fs.open(path, "rb", block_size=block, **cache)


def read(url: str) -> bytes:
    """The contents of a small file."""
    fs, path = file_system(url)
    return bytes(fs.cat_file(path))


def write(source: Any, url: str) -> None:
    """Copy an open binary file to a URL, where it appears complete or not at all."""
    fs, path = file_system(url)
    with suppress(Exception):  # object storage has no folders, and may forbid new buckets
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
    with fs.transaction, fs.open(path, "wb") as target:
        shutil.copyfileobj(source, target, BLOCK)
    fs.invalidate_cache(posixpath.dirname(path))


@contextmanager
def local_copies(source: str, target: str, places: dict[str, str], in_place: bool = False) -> Iterator[tuple[str, str]]:
    """Yield local names for a source and a target that may be URLs; upload the outputs when the block ends well.

    Args:
        target: a URL of a folder ends in "/".
        places: receives the URL of each local folder, for `back`.
        in_place: the source is not copied.
    """
    with tempfile.TemporaryDirectory(prefix="clearstate-") as folder:
        inside, outputs = os.path.join(folder, "in"), os.path.join(folder, "out")
        os.mkdir(inside)
        os.mkdir(outputs)
        here, there, home = source, target, ""
        if is_remote(source) and not in_place:
            here = os.path.join(inside, base_name(source))
            places[inside] = parent(source)
            fs, path = file_system(source)
            with fs.open(path, "rb") as remote, open(here, "wb") as copy:
                shutil.copyfileobj(remote, copy, BLOCK)
        if is_remote(target):
            home = target.rstrip("/") if target.endswith("/") else parent(target)
            there = outputs if target.endswith("/") else os.path.join(outputs, base_name(target))
            places[outputs] = home
        yield here, there
        for name in sorted(os.listdir(outputs), key=lambda name: name.endswith(".json")):  # a timeline is last
            with open(os.path.join(outputs, name), "rb") as file:
                write(file, join(home, name))


def back(value: Any, places: dict[str, str]) -> Any:
    """Replace the local names in a text, list or dictionary by the URLs that they stand for."""
    if isinstance(value, str):
        for folder, url in places.items():
            value = value.replace(folder, without_secrets(url))
        return value
    if isinstance(value, dict):
        return {name: back(part, places) for name, part in value.items()}
    if isinstance(value, list):
        return [back(part, places) for part in value]
    return value


def _entry(url: str, info: dict[str, Any]) -> Entry:
    size = info.get("size") or 0
    changed = (
        info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or info.get("created")
    )
    return Entry(url, size, f"{size} {changed}")
