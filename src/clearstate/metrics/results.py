"""The results of a scored set: means with intervals, groups and failures, as JSON, CSV and terminal tables."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearstate.audio.atomic import write_text
from clearstate.metrics.files import read_json
from clearstate.metrics.scoring import FileScores
from clearstate.metrics.summary import Summary, groups, summarise
from clearstate.metrics.table import SCORES


@dataclass
class Results:
    """All results of one run of `clearstate score`."""

    files: list[FileScores]  # sorted by name, including failed files
    name: str = ""  # of the system, for the leaderboard
    test_set: str = ""  # rows of one leaderboard share it
    unmatched: list[str] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)  # score -> reason
    records: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # metadata by file name
    by: Sequence[str] = ()  # fields of the records to group by
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def scored(self) -> list[FileScores]:
        """The files that have scores."""
        return [file for file in self.files if file.error is None]

    @property
    def failed(self) -> list[FileScores]:
        """The files that could not be scored."""
        return [file for file in self.files if file.error is not None]

    @property
    def keys(self) -> list[str]:
        """The scores that at least one file has, in the order of `SCORES`."""
        present = {key for file in self.files for key in file.scores}
        return [key for key in SCORES if key in present]

    def summary(self, key: str, names: Sequence[str] | None = None) -> Summary:
        """Mean, interval and count of a score, over all or the given files. Word error rates are weighted by words."""
        chosen = self.scored if names is None else [file for file in self.scored if file.name in set(names)]
        chosen = [file for file in chosen if key in file.scores]
        weights = [file.words for file in chosen] if key.startswith("wer") else None
        return summarise([file.scores[key] for file in chosen], weights)

    def undefined(self, key: str) -> int:
        """The number of scored files without a value."""
        return sum(math.isnan(file.scores[key]) for file in self.scored if key in file.scores)

    def groups(self) -> dict[str, dict[str, list[str]]]:
        """Field -> value -> names of the files."""
        names = [file.name for file in self.scored]
        return {by: found for by in self.by if (found := groups(self.records, names, by))}

    def as_json(self) -> dict[str, Any]:
        """The content of the JSON file; undefined values are null."""

        def means(names: Sequence[str] | None) -> dict[str, Any]:
            found = {key: self.summary(key, names) for key in self.keys}
            return {
                "mean": {key: _number(s.mean) for key, s in found.items()},
                "ci95": {key: [_number(s.low), _number(s.high)] for key, s in found.items()},
                "count": {key: s.files for key, s in found.items()},
            }

        return {
            "name": self.name,
            "test_set": self.test_set,
            **means(None),
            "undefined": {key: n for key in self.keys if (n := self.undefined(key))},
            "silent_outputs": [file.name for file in self.scored if file.silent],
            "unavailable": self.unavailable,
            "unmatched": self.unmatched,
            "failed": {file.name: file.error for file in self.failed},
            "groups": {by: {value: means(names) for value, names in g.items()} for by, g in self.groups().items()},
            "settings": self.settings,
            "files": {
                file.name: {key: _number(value) for key, value in file.scores.items()}
                | ({"words": file.words} if file.words else {})
                | ({"notes": list(file.notes)} if file.notes else {})
                for file in self.scored
            },
        }

    def as_csv(self) -> str:
        """One line per file; undefined scores are empty cells."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["file", *self.keys, "notes", "error"])
        for file in self.files:
            row = [file.scores.get(key, math.nan) for key in self.keys]
            cells = ["" if math.isnan(value) else f"{value:.6g}" for value in row]
            writer.writerow([file.name, *cells, "; ".join(file.notes), file.error or ""])
        return out.getvalue()

    def ranked(self, key: str) -> list[FileScores]:
        """Scored files from the best to the worst."""
        have = [file for file in self.scored if not math.isnan(file.scores.get(key, math.nan))]
        return sorted(have, key=lambda file: -SCORES[key].better * file.scores[key])


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def write(path: Path, text: str) -> None:
    """Write a file atomically, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def to_json_text(results: Results) -> str:
    """The results as the text of a JSON file."""
    return json.dumps(results.as_json(), indent=1, ensure_ascii=False) + "\n"


def lines_of_table(results: Results) -> list[tuple[str, str, str, str, str]]:
    """Label, mean, interval, count and remark of every score, for the terminal and the report."""
    lines = []
    for key in results.keys:
        score, s = SCORES[key], results.summary(key)
        label = f"{score.label} ({score.unit})" if score.unit else score.label
        if not s.files:
            lines.append((label, "n/a", "", "0", "undefined for every file"))
            continue
        missing = results.undefined(key)
        remark = f"undefined for {missing}" if missing else ""
        d = score.digits
        lines.append((label, f"{s.mean:.{d}f}", f"{s.low:.{d}f} … {s.high:.{d}f}", str(s.files), remark))
    lines += [(SCORES[key].label, "n/a", "", "0", why) for key, why in results.unavailable.items()]
    return lines


def group_table(results: Results, by: str, keys: Sequence[str]) -> list[list[str]]:
    """Header and one row a value of the field: files and means."""
    rows = [[by, "files", *(SCORES[key].label for key in keys)]]
    for value, names in results.groups()[by].items():
        means = [results.summary(key, names) for key in keys]
        cells = [f"{s.mean:.{SCORES[key].digits}f}" if s.files else "n/a" for key, s in zip(keys, means, strict=True)]
        rows.append([value, str(len(names)), *cells])
    return rows


def read_records(path: Path, clean: Path) -> dict[str, dict[str, object]]:
    """Metadata by file name, from a JSON list (or JSON lines) of objects with a `file` or `name`.

    Several sets may share one list: where objects of one name differ in their `task`, the one whose task is a folder on
    the way to the clean files is taken.

    Raises:
        ValueError: if the list has another form, or a name stays ambiguous.
    """
    data = read_json(path)
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise ValueError(f"{path}: expected a list of objects, each with a 'file'")
    folders = set(clean.absolute().parts)
    result: dict[str, dict[str, object]] = {}
    for item in data:
        named = item.get("file", item.get("name"))
        if named is None:
            raise ValueError(f"{path}: an object has neither 'file' nor 'name': {json.dumps(item)[:120]}")
        if "task" in item and len({i.get("task") for i in data}) > 1 and item["task"] not in folders:
            continue
        name = str(named)
        if name in result:
            raise ValueError(f"{path}: two objects are called {name!r}")
        result[name] = item
    return result


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; its first row is the head.

    >>> print(markdown_table([["", "PESQ"], ["live", "2.20"]]))
    |  | PESQ |
    |---|---|
    | live | 2.20 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
