"""Hooks of MkDocs: pages that are generated or taken from elsewhere in the repository, and the links between them.

The command line page is made from what `--help` shows, the table of models from the presets, and cards, the browser
page, CONTRIBUTING and CHANGELOG are the files of the repository. So none of them can go stale.
"""

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from clearstate.cli import VERBS, app
from clearstate.models import PRESETS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://github.com/clearstate/clearstate/blob/main/"  # of files that are not pages
CARDS = sorted(ROOT.glob("src/clearstate/weights/*/README.md"))
PAGES = {  # page of the site: file of the repository
    "browser.md": "web/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **{f"cards/{card.parent.name}.md": str(card.relative_to(ROOT)) for card in CARDS},
}
PAGE_OF = {source: page for page, source in PAGES.items()}


def on_config(config: Any) -> Any:
    """Add the cards to the navigation, after the other pages about models."""
    models = next(section["Models"] for section in config["nav"] if "Models" in section)
    models.append({"Cards": [{Path(page).stem: page} for page in sorted(PAGES) if page.startswith("cards/")]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that have no file in docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "cli.md", content=command_line()))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the tables, and turn links to files of the repository into links to pages, or to the source."""
    here = page.file.src_uri
    text = text.replace("<!-- table of models -->", models_table())
    source = PAGES.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        page_of = path.removeprefix("docs/") if path.startswith("docs/") else PAGE_OF.get(path)
        if page_of and files.get_file_from_path(page_of):
            to = posixpath.relpath(page_of, posixpath.dirname(here) or ".")
        elif (ROOT / path).exists():
            to = SOURCE + path
        else:
            raise PluginError(f"{source} links to {target}, which does not exist")
        return f"]({to}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.MULTILINE | re.DOTALL)  # code stays
    parts[::2] = [re.sub(r"\]\(([^)\s]+)\)", link, part) for part in parts[::2]]
    return "".join(parts)


def command_line() -> str:
    """The page about the command line: for each verb, its help text and its options."""
    import typer

    group = typer.main.get_command(app)
    text = ["# Command line\n\nThis page shows what `clearstate VERB --help` shows.\n\n| verb | |\n|---|---|"]
    for verb, run in VERBS.items():
        text.append(f"| [`{verb}`](#{verb}) | {inspect.getdoc(run).splitlines()[0]} |")
    for verb, run in VERBS.items():
        command = group.commands[verb]
        context = command.make_context(verb, [], resilient_parsing=True)
        text.append(f"\n## {verb}\n\n{inspect.getdoc(run)}\n\n| option | |\n|---|---|")
        for parameter in command.get_params(context):
            names, about = parameter.get_help_record(context)
            text.append(f"| `{names.strip()}` | {escaped(about)} |")
    return "\n".join(text) + "\n"


def escaped(text: str) -> str:
    """Text of a terminal as a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def models_table() -> str:
    """The models that `clearstate models --all` lists."""
    rows = ["| model | task | what | weights |", "|---|---|---|---|"]
    for name, preset in PRESETS.items():
        weights = f"[{preset.licence}](cards/{name}.md)" if preset.weights else ""
        rows.append(f"| `{name}` | {preset.task} | {preset.summary} | {weights} |")
    return "\n".join(rows)
