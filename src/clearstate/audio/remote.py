"""Files at a URL, such as s3://bucket/talk.wav, through fsspec (extra `[remote]`).

Any format and any verb works on local copies: `local_copies` fetches the source into a temporary folder and uploads the
outputs when they are complete. Credentials come from the environment or the configuration files of the storage.
"""

import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from clearstate.audio.streams import is_stream

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
SECRET = re.compile(r"(://)[^/@\s]*@|\?[^\s'\"]*")  # user and password, and the signature of a signed URL
BLOCK = 1 << 22  # bytes


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
    protocol = url.split("://")[0]
    if protocol in ("http", "https"):
        return [_entry(url, fs.info(path))]
    if any(sign in path for sign in "*?["):
        found = fs.glob(path, detail=True)
    else:
        try:
            info = fs.info(path)
        except FileNotFoundError:
            return []
        found = fs.find(path, detail=True) if info["type"] == "directory" else {path: info}
        if info["type"] != "directory":
            suffixes = None
    entries = []
    for name, info in sorted(found.items()):
        if info["type"] == "file" and (suffixes is None or posixpath.splitext(name)[1].lower() in suffixes):
            entries.append(_entry(f"{protocol}://{fs._strip_protocol(name).lstrip('/')}", info))
    return entries


def exists(url: str) -> bool:
    """Whether a file or folder exists at a URL."""
    fs, path = file_system(url)
    return bool(fs.exists(path))


def is_folder(url: str) -> bool:
    """Whether a URL is a folder in its storage."""
    fs, path = file_system(url)
    return url.split("://")[0] not in ("http", "https") and bool(fs.isdir(path))


def upload(local: str, url: str) -> int:
    """Copy a file to a URL, where it appears complete or not at all; returns its bytes."""
    with open(local, "rb") as source:
        write(source, url)
    return os.path.getsize(local)


def write(source: Any, url: str) -> None:
    """Copy an open binary file to a URL, where it appears complete or not at all."""
    fs, path = file_system(url)
    if not hasattr(fs, "bucket_exists") and url.split("://")[0] not in ("http", "https"):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
    with fs.transaction, fs.open(path, "wb") as target:
        shutil.copyfileobj(source, target, BLOCK)
    fs.invalidate_cache(posixpath.dirname(path))


@contextmanager
def local_copies(source: str, target: str, target_is_folder: bool) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield local names for a source and a target that may be URLs; upload the outputs when the block ends well.

    Yields:
        The source, the target, and the URL of each local folder, for `back` to translate names.
    """
    with tempfile.TemporaryDirectory(prefix="clearstate-") as folder:
        here, places = source, {}
        if is_remote(source):
            os.mkdir(os.path.join(folder, "in"))
            here = os.path.join(folder, "in", base_name(source))
            fs, path = file_system(source)
            with fs.open(path, "rb") as remote, open(here, "wb") as copy:
                shutil.copyfileobj(remote, copy, BLOCK)
            places[os.path.join(folder, "in")] = parent(source)
        there = target
        if is_remote(target) and not is_stream(target):
            outputs = os.path.join(folder, "out")
            os.mkdir(outputs)
            home = target if target_is_folder else parent(target)
            there = outputs if target_is_folder else os.path.join(outputs, base_name(target))
            places[outputs] = home
            yield here, there, places
            # `separate` writes its timeline last; here, too, it comes last
            for name in sorted(os.listdir(outputs), key=lambda name: name.endswith(".json")):
                upload(os.path.join(outputs, name), join(home, name))
        else:
            yield here, there, places


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
