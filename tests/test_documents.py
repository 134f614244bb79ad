"""What the documents say is so: files, error messages, names, latencies, figures and pictures."""

import ast
import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import pytest

import clearstate

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


@cache
def messages() -> list[str]:
    """Every text in the package, with \0 for the values that it is formatted with; adjacent texts are joined."""
    found = []
    for path in (ROOT / "src/clearstate").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def is_message(entry: str, known: list[str]) -> bool:
    """Whether one text has the parts of an entry, between its ellipses, in their order."""
    parts = [part.strip(" :;,") for part in entry.split("…") if part.strip(" :;,.()")]  # joints may be made elsewhere
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in known)


def test_the_catalogue_of_errors_has_messages_that_exist():
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\| `(.*?)` \| ", page.partition("## Inputs")[2], re.MULTILINE)
    known = messages()
    assert len(entries) > 50
    assert [entry for entry in entries if not is_message(entry, known)] == []


def test_a_message_that_does_not_exist_is_found():
    assert not is_message("…: already exists; press any key", messages())


@cache
def options() -> dict[str, set[str]]:
    """The options of each verb."""
    import typer

    from clearstate.cli import app

    commands = typer.main.get_command(app).commands
    own = {
        name: {word for option in verb.params for word in (*option.opts, *option.secondary_opts)}
        for name, verb in commands.items()
    }
    return {name: words | {"--help", "-h", "--verbose"} for name, words in own.items()}


def wrong_commands(text: str) -> list[str]:
    """The commands in the code of a page whose verb or option does not exist."""
    code = re.findall(r"^(?: {4}|\$ )(.*)|`([^`\n]+)`", text, re.MULTILINE)
    wrong = []
    for line in ("".join(parts) for parts in code):
        for verb, rest in re.findall(r"(?:^|[|>] )clearstate ([a-z]+\b)([^|#>]*)", line):
            unknown = [
                word for word in re.findall(r" (--?[a-zA-Z][\w-]*)", rest) if word not in options().get(verb, ())
            ]
            wrong += [f"{verb} {word}" for word in unknown] if verb in options() else [verb]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_commands_that_exist(page):
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


def test_a_command_that_does_not_exist_is_found():
    text = "    clearstate enhance x.wav --loud 3\n\n`clearstate sing`, `clearstate stream --rate 8000`"
    assert wrong_commands(text) == ["enhance --loud", "sing"]


def test_the_page_about_python_has_every_public_name():
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    named = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    assert set(clearstate.__all__) - {"__version__"} <= named


def test_the_stated_latencies_are_those_of_streams():
    page = (ROOT / "docs/streaming.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([\d,]+) Hz \| (\d+) samples, ([\d.]+) ms \| (\d+) samples, ([\d.]+) ms \|$", page, re.MULTILINE
    )
    assert len(rows) == 4
    for rate, *told in rows:
        for channels in (1, 2):
            stream = clearstate.Stream("live", int(rate.replace(",", "")), channels, backend="onnx")
            samples, ms = told[2 * channels - 2 : 2 * channels]
            assert (stream.latency_samples, f"{1000 * stream.latency_seconds:.1f}") == (int(samples), ms)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_of_the_rooms_is_that_of_the_import_rules(pictures):
    assert (ROOT / "docs/images/layers.svg").read_text(encoding="utf-8") == pictures.layers()
    assert ["tasks", "metrics"] in pictures.rooms()


@pytest.mark.parametrize(("plot", "data"), [("quality-cost.svg", "peers.json"), ("hops.svg", "streaming.json")])
def test_a_plot_is_as_new_as_its_data(pictures, plot, data):
    drawn = (ROOT / "docs/images" / plot).read_text(encoding="utf-8")
    assert f"{data} {pictures.digest(data)}" in drawn, "run python docs/pictures.py"


def test_pictures_are_small():
    assert {
        path.name: path.stat().st_size for path in (ROOT / "docs/images").iterdir() if path.stat().st_size > 200_000
    } == {}


@pytest.mark.parametrize(
    ("system", "row"),
    [
        ("noisy", "noisy"),
        ("rnnoise", "RNNoise"),
        ("gtcrn", "GTCRN (trained on DNS3)"),
        ("dtln", "DTLN (trained on DNS)"),
        ("deepfilternet3", "DeepFilterNet3 (48 kHz)"),
        ("live:torch", "**live**, on a file"),
    ],
)
def test_the_table_of_quality_has_the_figures_of_the_plot(system, row):
    table = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    cells = next(line for line in table.splitlines() if line.startswith(f"| {row} |")).strip("| ").split(" | ")
    found = json.loads((ROOT / "docs/results/peers.json").read_text(encoding="utf-8"))
    means = dict(zip(found["columns"], found["means"][system], strict=True))
    told = dict(zip(("PESQ", "STOI", "SI-SDR", "SSNR", "CSIG", "CBAK", "COVL"), map(float, cells[-7:]), strict=True))
    assert told == {name: pytest.approx(value, abs=0.006) for name, value in means.items()}
