"""Write the report of a scored set: tables, and spectrograms of the best, median and worst file.

`.html` embeds its pictures and sounds; `.md` stores the pictures in a folder next to it.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clearstate.audio.pictures import new_figure, show, spectrogram_of
from clearstate.metrics.extras import need
from clearstate.metrics.files import Pair, load
from clearstate.metrics.results import Results, group_table, lines_of_table, markdown_table, write
from clearstate.metrics.table import SCORES

HEADLINES = ("pesq_wb", "stoi", "si_sdr", "ssnr", "csig", "cbak", "covl")
SOUND_SECONDS = 10  # of each example that goes into the page


def headlines(results: Results) -> list[str]:
    """The scores for group tables and captions: the usual seven, or the first seven available."""
    usual = [key for key in HEADLINES if key in results.keys]
    return usual or results.keys[:7]


def write_report(path: Path, results: Results, pairs: Sequence[Pair]) -> None:
    """Write the page, `.html` or `.md`, atomically.

    Raises:
        ValueError: for another extension.   MissingExtra: without matplotlib.
    """
    if path.suffix not in (".html", ".md"):
        raise ValueError(f"--report {path} ends in {path.suffix!r}, expected .html or .md")
    examples = _examples(results, pairs)
    pictures = [(title, pair, _picture(pair)) for title, pair in examples]
    if path.suffix == ".html":
        write(path, _html(results, pictures))
        return
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for (_, _, png), label in zip(pictures, ("best", "median", "worst"), strict=False):
        (folder / f"{label}.png").write_bytes(png)
        names.append(f"{folder.name}/{label}.png")
    write(path, _markdown(results, [(title, name) for (title, _, _), name in zip(pictures, names, strict=True)]))


def _examples(results: Results, pairs: Sequence[Pair]) -> list[tuple[str, Pair]]:
    """Best, median and worst by the first headline score that has values."""
    by_name = {pair.name: pair for pair in pairs}
    for key in headlines(results):
        ranked = results.ranked(key)
        if ranked:
            chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
            seen: dict[str, str] = {}
            for label, file in chosen.items():
                seen.setdefault(file.name, label)
            score = SCORES[key]
            return [
                (
                    f"{label.capitalize()} by {score.label}: {name} "
                    f"({', '.join(_value(results, name, k) for k in headlines(results))})",
                    by_name[name],
                )
                for name, label in seen.items()
            ]
    return []


def _value(results: Results, name: str, key: str) -> str:
    file = next(file for file in results.scored if file.name == name)
    return f"{SCORES[key].label} {file.scores.get(key, float('nan')):.{SCORES[key].digits}f}"


def _picture(pair: Pair) -> bytes:
    """Spectrograms of clean, noisy (if there is one) and enhanced on one scale, as PNG."""
    need("matplotlib", "demo", "--report")
    loaded = load(pair)
    rows = [("clean", loaded.clean), ("noisy", loaded.noisy), ("enhanced", loaded.enhanced)]
    panels = [(title, spectrogram_of(x, loaded.rate)) for title, x in rows if x is not None]
    top = max(float(one.level.max()) for _, one in panels)
    figure = new_figure((9, 2.1 * len(panels)))
    axes = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
    for axis, (title, one) in zip(axes, panels, strict=True):
        show(axis, one, top, 80)
        axis.set_ylabel(f"{title}\nkHz")
    axes[-1].set_xlabel("seconds")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return out.getvalue()


def _tables(results: Results) -> list[tuple[str, list[list[str]]]]:
    """Title and rows (header first) of every table of the page."""
    tables = [("Scores", [["score", "mean", "95 % interval", "files", ""], *map(list, lines_of_table(results))])]
    tables += [(f"By {by}", group_table(results, by, headlines(results))) for by in results.groups()]
    return tables


def _remarks(results: Results) -> list[tuple[str, list[str]]]:
    """Title and lines of every list of remarks."""
    noted = [f"{file.name}: {note}" for file in results.scored for note in file.notes]
    silent = [file.name for file in results.scored if file.silent]
    lists = [
        ("Failed", [f"{file.name}: {file.error}" for file in results.failed]),
        ("All-zero outputs", silent),
        ("Without a partner", results.unmatched),
        ("Notes", noted),
    ]
    return [(f"{title} ({len(lines)})", lines) for title, lines in lists if lines]


def _title(results: Results) -> str:
    return f"Scores of {results.name}" if results.name else "Scores"


def _markdown(results: Results, pictures: Sequence[tuple[str, str]]) -> str:
    parts = [f"# {_title(results)}"]
    parts += [f"## {title}\n\n{markdown_table(rows)}" for title, rows in _tables(results)]
    parts += [f"## {caption}\n\n![{caption}]({name})" for caption, name in pictures]
    parts += ["\n".join([f"## {title}", "", *(f"- {line}" for line in lines)]) for title, lines in _remarks(results)]
    return "\n\n".join(parts) + "\n"


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .8rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}img{max-width:100%}audio{width:16rem}summary{cursor:pointer}"""


def _html(results: Results, pictures: Sequence[tuple[str, Pair, bytes]]) -> str:
    e = html.escape
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{e(_title(results))}</title>"]
    parts.append(f"<style>{_STYLE}</style><h1>{e(_title(results))}</h1>")
    for title, rows in _tables(results):
        head = "".join(f"<th>{e(cell)}" for cell in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{e(cell)}" for cell in row) for row in rows[1:])
        parts.append(f"<h2>{e(title)}</h2><table><tr>{head}{body}</table>")
    for caption, pair, png in pictures:
        image = base64.b64encode(png).decode()
        parts.append(
            f'<h2>{e(caption)}</h2><img alt="{e(caption)}" src="data:image/png;base64,{image}"><p>{_sounds(pair)}'
        )
    for title, lines in _remarks(results):
        items = "".join(f"<li>{e(line)}" for line in lines)
        parts.append(f"<details><summary>{e(title)}</summary><ul>{items}</ul></details>")
    return "\n".join(parts) + "\n"


def _sounds(pair: Pair) -> str:
    """Audio players for the first seconds of each signal, as embedded 16-bit WAV."""
    import soundfile

    loaded, players = load(pair), []
    for title, x in (("clean", loaded.clean), ("noisy", loaded.noisy), ("enhanced", loaded.enhanced)):
        if x is not None:
            out = io.BytesIO()
            soundfile.write(out, np.clip(x[: SOUND_SECONDS * loaded.rate], -1, 1), loaded.rate, "PCM_16", format="WAV")
            data = base64.b64encode(out.getvalue()).decode()
            players.append(f'{title} <audio controls src="data:audio/wav;base64,{data}"></audio>')
    return " ".join(players)
