"""The documents name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if page.name not in ("LOG.md", "CHANGELOG.md")
]
SUFFIXES = "py|yaml|toml|md|txt"


def missing(text: str, folder: Path) -> list[str]:
    """The files that a page in `folder` links to, or names in code, and that are not there."""
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    named = re.findall(rf"`((?:[\w-]+/)*[\w-]+\.(?:{SUFFIXES}))`", text)
    names = [name for name in named if "/" in name]
    bases = (ROOT, ROOT / "src", ROOT / "src/clearstate", ROOT / "src/clearstate/models")
    return [link for link in links if not (folder / link).exists()] + [
        name for name in names if not any((base / name).exists() for base in bases)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_files_that_exist(page):
    assert missing(page.read_text(encoding="utf-8"), page.parent) == []


def test_a_file_that_is_gone_is_found():
    assert missing("see `tasks/gone.py`, [this](gone.md#part) and [that](README.md)", ROOT) == [
        "gone.md",
        "tasks/gone.py",
    ]
