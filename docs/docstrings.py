"""A Griffe extension for the page about Python: it prepares our docstrings for the parser of Google's style."""

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """Separates sections by blank lines, and shows examples as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """The docstring with blank lines before sections, and with its examples in fences."""
    text = re.sub(r"(?<!\n)\n(?=(?:Args|Returns|Raises|Yields|Attributes):\n)", "\n\n", text)
    text = re.sub(r" *# doctest: \+\w+", "", text)
    return re.sub(r"(?:^>>> .*(?:\n.+)*)", lambda found: f"```pycon\n{found[0]}\n```", text, flags=re.MULTILINE)
