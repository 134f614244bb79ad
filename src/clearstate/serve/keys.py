"""API keys: who a request belongs to. Keys are compared in constant time and never written to a log."""

import hashlib
import hmac
import os

from clearstate.serve.errors import RefusedError

SHORTEST = 16  # characters of a key
VARIABLE = "CLEARSTATE_API_KEYS"  # keys, separated by commas, instead of a file


class Keys:
    """The keys of a service.

    Args:
        keys: empty if everybody may use the service.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, presented: str | None, host: str) -> str:
        """Return a name for the sender: of the key, or the address of the client if there are no keys.

        Raises:
            RefusedError: for a missing or wrong key.
        """
        if not self._digests:
            return f"host {host}"
        digest = _digest(presented or "")
        # Compare with every key: the time does not tell which key matched, or how much of it.
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(found):
            what = "the API key is wrong" if presented else "this service needs an API key"
            raise RefusedError("unauthorized", f"{what}; send it as 'Authorization: Bearer KEY'")
        return f"key {found.index(True) + 1}"


def bearer(header: str | None) -> str | None:
    """The key in an Authorization header.

    >>> bearer("Bearer abc"), bearer("Basic abc"), bearer(None)
    ('abc', None, None)
    """
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def read_keys(path: str | None) -> tuple[str, ...]:
    """Read keys from a file, one per line, or from the environment. Lines that start with # are comments.

    Raises:
        ValueError: for a file without keys, or a key that is too short. The message does not contain the key.
    """
    if path is None:
        where, lines = VARIABLE, os.environ.get(VARIABLE, "").split(",")
    else:
        with open(path, encoding="utf-8") as file:
            where, lines = path, file.read().splitlines()
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if path is not None and not keys:
        raise ValueError(f"{where}: holds no keys; expected one per line")
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not key.isascii() or " " in key:
            raise ValueError(
                f"{where}: key {number} has {len(key)} characters; expected at least {SHORTEST} letters and digits, "
                "such as the output of `openssl rand -hex 16`"
            )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
