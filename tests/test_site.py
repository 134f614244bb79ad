"""The documentation site builds without warnings, works offline, and has the pages that are generated."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clearstate.cli import VERBS
from clearstate.models import PRESETS

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_no_page_loads_anything_from_outside(site):
    """Links may lead outside; scripts, styles, fonts and pictures may not come from there."""
    loads = re.compile(r"""<(?:script|img|iframe|source)[^>]* src="(?:https?:)?//[^"]*"|<link[^>]*>""")
    outside = []
    for page in site.rglob("*.html"):
        found = loads.findall(page.read_text(encoding="utf-8"))
        outside += [(page.name, tag) for tag in found if "//" in tag and 'rel="canonical"' not in tag]
    for sheet in site.rglob("*.css"):
        outside += [
            (sheet.name, url) for url in re.findall(r"url\((?:https?:)?//[^)]*\)", sheet.read_text(encoding="utf-8"))
        ]
    assert outside == []


def test_the_command_line_page_has_every_verb_and_its_options(site):
    page = (site / "cli.html").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f'<h2 id="{verb}">' not in page] == []
    assert "<code>--strength DB</code>" in page and "Attenuate noise by at most DB" in page


def test_every_shipped_model_has_its_card_and_a_row(site):
    table = (site / "models.html").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        assert f"<code>{name}</code>" in table
        assert (site / f"cards/{name}.html").is_file() == (preset.weights is not None)


def test_links_to_files_of_the_repository_lead_to_its_source(site):
    page = (site / "agents.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/clearstate/clearstate/blob/main/examples/pipecat_agent.py"' in page
    assert 'href="browser.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_sections_and_examples_of_docstrings_are_prepared_for_the_parser():
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs/docstrings.py")
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    text = "Args:\n    x: one.\nReturns:\n    two.\n\n>>> f(1)  # doctest: +SKIP\n2"
    expected = "Args:\n    x: one.\n\nReturns:\n    two.\n\n```pycon\n>>> f(1)\n2\n```"
    assert docstrings.rewritten(text) == expected
