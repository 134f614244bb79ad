"""Build leaderboards: your results and published ones, with size, cost, speed, causality and latency."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearstate.metrics.extras import need
from clearstate.metrics.results import markdown_table
from clearstate.metrics.table import SCORES

COLUMNS = (
    "pesq_wb",
    "csig",
    "cbak",
    "covl",
    "ssnr",
    "si_sdr",
    "si_sdri",
    "sdri",
    "snr",
    "lsd",
    "lsd_high",
    "lsd_1024",
    "stoi",
)
SCALED = frozenset({"csig", "cbak", "covl"})  # scores with two scales, see composite.py
MARKS = {"matlab": "", "divided": "†", "unknown": "?"}
FOOTNOTES = {
    "†": "† computed with frames divided by 32768 once more, which adds 0.1 to 0.3: not comparable with unmarked rows "
    "(ours on that scale: `clearstate score --metrics default,divided`)",
    "?": "? on which of the two scales is not known",
}


@dataclass(frozen=True)
class Row:
    """One system on one test set; unknown values are None."""

    name: str
    scores: dict[str, float]
    ours: bool = False
    parameters: float | None = None
    macs: float | None = None  # per second of audio
    rtf: float | None = None  # real-time factor, one thread of this machine; of published rows, see their source
    causal: bool | None = None
    latency_ms: float | None = None  # of the algorithm
    scale: str = "matlab"
    source: str = ""


@dataclass
class Board:
    """The rows of one test set, best first."""

    test_set: str
    title: str
    sort: str
    rows: list[Row] = field(default_factory=list)


def published() -> dict[str, Board]:
    """The rows of `published.yaml`, by test set."""
    yaml: Any = need("yaml", "metrics", "the leaderboard")
    data = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
    return {
        name: Board(name, board["title"], board["sort"], [_published_row(row) for row in board["rows"]])
        for name, board in data.items()
    }


def _published_row(row: dict[str, Any]) -> Row:
    about = [row["source"], f"via {row['via']}" if "via" in row else "", row.get("note", "")]
    return Row(
        name=row["name"],
        scores={key: float(row[key]) for key in SCORES if key in row},
        parameters=row.get("parameters"),
        macs=row.get("macs"),
        rtf=row.get("rtf"),
        causal=row.get("causal"),
        latency_ms=row.get("latency_ms"),
        scale=row.get("scale", "matlab"),
        source="; ".join(part for part in about if part),
    )


def read_results(word: str, default_set: str = "") -> tuple[str, Row]:
    """The test set and the row of a result file of `clearstate score --json`, given as FILE or NAME=FILE.

    If the name is that of a model (a preset, or a folder with weights), its size, work and speed are measured.

    Raises:
        ValueError: if the file is no such result.
    """
    name, equals, file = word.partition("=")
    path = Path(file if equals else word)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a file that `clearstate score --json` wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        scores = {key: float(value) for key, value in data["mean"].items() if value is not None}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result of `clearstate score --json` (no `mean` in it)") from error
    name = name if equals else data.get("name") or path.stem
    row = Row(name, scores, ours=True, source=f"{len(data.get('files', {}))} files, {path.name}", **traits(name))
    return default_set or data.get("test_set", ""), row


def traits(name: str) -> dict[str, Any]:
    """Parameters, cost, speed, causality and latency of a clearstate model; empty for other names."""
    from clearstate.metrics.cost import cost
    from clearstate.models import PRESETS, build, load_model

    if name not in PRESETS and not (Path(name) / "config.json").is_file():
        return {}
    model = build(name).eval() if name in PRESETS else load_model(name)
    counted = cost(model)
    latency = 1000 * (model.latency + model.hop) / model.sample_rate if model.causal else None  # type: ignore[operator]
    return {
        "parameters": counted.parameters,
        "macs": counted.macs,
        "rtf": real_time_factor(model),
        "causal": bool(model.causal),
        "latency_ms": latency,
    }


def real_time_factor(model: Any, seconds: float = 4.0, runs: int = 3) -> float:
    """Real-time factor, offline, on one thread: the fastest of `runs` after a warm-up run."""
    import torch

    threads = torch.get_num_threads()
    noise = 0.05 * torch.randn(1, round(seconds * model.sample_rate))
    try:
        torch.set_num_threads(1)
        with torch.inference_mode():
            model(noise)
            times = []
            for _ in range(runs):
                began = time.perf_counter()
                model(noise)
                times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return min(times) / seconds


def boards(words: Sequence[str], test_set: str = "", *, with_published: bool = True) -> list[Board]:
    """One board per test set in the results, with the published rows of that set."""
    known = published()
    found: dict[str, Board] = {}
    for word in words:
        own_set, row = read_results(word, test_set)
        if own_set not in found:
            public = known.get(own_set, Board(own_set, own_set or "a test set without a name", "pesq_wb"))
            found[own_set] = Board(own_set, public.title, public.sort, list(public.rows) if with_published else [])
        found[own_set].rows.append(row)
    for board in found.values():
        board.rows.sort(key=lambda row: _rank(row, board.sort))
    return list(found.values())


def _rank(row: Row, key: str) -> float:
    value = row.scores.get(key)
    return math.inf if value is None else -SCORES[key].better * value


def lines(board: Board) -> tuple[list[list[str]], list[str]]:
    """Header and rows of a board as text, and the footnotes of its marks."""
    keys = [key for key in COLUMNS if any(key in row.scores for row in board.rows)]
    rows = [["system", *(SCORES[key].label for key in keys), "params", "MACs/s", "RTF", "causal", "latency", "source"]]
    marks = set()
    for row in board.rows:
        cells = []
        for key in keys:
            mark = MARKS[row.scale] if key in SCALED and key in row.scores else ""
            marks.add(mark)
            cells.append(_as_printed(row, key) + mark if key in row.scores else "–")
        causal = "–" if row.causal is None else "yes" if row.causal else "no"
        latency = "–" if row.latency_ms is None else f"{row.latency_ms:.3g} ms"
        rtf = "–" if row.rtf is None else f"{row.rtf:.2g}"
        name = f"**{row.name}**" if row.ours else row.name
        rows.append(
            [name, *cells, engineering(row.parameters), engineering(row.macs), rtf, causal, latency, row.source]
        )
    return rows, [FOOTNOTES[mark] for mark in FOOTNOTES if mark in marks]


def _as_printed(row: Row, key: str) -> str:
    """Format a score: ours with the digits of the column, published ones with their printed digits."""
    digits = SCORES[key].digits
    if not row.ours:
        printed = len(f"{row.scores[key]}".partition(".")[2])
        digits = min(digits, max(printed, 1 if SCORES[key].unit else 2))
    return f"{row.scores[key]:.{digits}f}"


def engineering(value: float | None) -> str:
    """A count with three digits and its thousands.

    >>> engineering(48_200), engineering(43.9e9), engineering(None)
    ('48.2 k', '43.9 G', '–')
    """
    if value is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def as_markdown(found: Sequence[Board]) -> str:
    """The boards as a Markdown page."""
    parts = []
    for board in found:
        rows, notes = lines(board)
        parts.append("\n".join([f"## {board.title}", "", markdown_table(rows), *(f"\n{note}" for note in notes)]))
    return "\n\n".join(parts) + "\n"
