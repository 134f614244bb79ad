"""The remedy in an error message about an unknown name: the nearest known name, or all of them."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is closest to `name`; list all known names if none is close.

    >>> nearest("lvie", ["live", "saf"])
    "did you mean 'live'?"
    >>> nearest("x", ["live", "saf"])
    'expected one of live, saf'
    """
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"
