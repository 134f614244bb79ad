"""clearstate score: compute quality scores of enhanced files against clean references."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from clearstate.audio.paths import shown, why_no_file
from clearstate.cli.terminal import CommandError, UsageError, explain, note

if TYPE_CHECKING:
    from clearstate.metrics.files import Matches
    from clearstate.metrics.results import Results
    from clearstate.metrics.scoring import FileScores, Options

WARNINGS_SHOWN = 10
Entry = TypeVar("Entry")


def run(
    clean: Annotated[Path, typer.Option(metavar="DIR", help="Clean references: a folder or one file.")],
    enhanced: Annotated[Path, typer.Option(metavar="DIR", help="The files to score.")],
    noisy: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Noisy inputs; adds the improvements SI-SDRi and SDRi.")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            "-s",
            metavar="LIST",
            help="Scores or groups, comma-separated: default, divided, dnsmos, distillmos, …",
        ),
    ] = "default",
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Weights of a learned score, as in nisqa=nisqa.tar. Never downloaded."),
    ] = None,
    high_band: Annotated[
        float | None, typer.Option(min=0, metavar="HZ", help="Lower edge of LSD-high. Default: half of the band.")
    ] = None,
    asr: Annotated[
        str | None,
        typer.Option(
            metavar="RECOGNISER",
            help="Also compute word error rates, with pocketsphinx or whisper:MODEL (a model that you have).",
        ),
    ] = None,
    transcripts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For --asr: a text file with lines `name words`, or .json, .jsonl."),
    ] = None,
    meta: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of objects with a `file` key; adds one table per group."),
    ] = None,
    by: Annotated[str, typer.Option(metavar="LIST", help="Fields of --meta to group by.")] = "snr_db,noise",
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the system, for `clearstate leaderboard`.")] = "",
    test_set: Annotated[
        str, typer.Option("--set", metavar="NAME", help="Name of the test set, for `clearstate leaderboard`.")
    ] = "",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the means and the scores of every file as JSON."),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one line per file as CSV.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a report (.html or .md) with the best, median and worst file."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Number of worker processes; 0 uses all cores.")] = 0,
) -> None:
    """Score enhanced speech against clean speech.

    Files are paired by name. Extensions and common suffixes (`x.clear.wav`, `x_enhanced.flac`) do not matter. Files
    without a partner are listed. Different sample rates are resampled, longer files are cut, and delayed outputs are
    reported. The table shows the mean, its 95 % confidence interval (bootstrap over files) and the number of files.

    For separation, the clean folder contains s1/ and s2/. Each mixture is scored with the best order of its outputs.

    **Examples**

    `clearstate score --clean clean/ --enhanced out/`

    `clearstate score --clean clean/ --noisy noisy/ --enhanced out/ --json live.json --report live.html`

    `clearstate score --clean clean/ --enhanced out/ --metrics default,dnsmos --meta valid.json --by snr_db`

    `clearstate score --clean clean/ --enhanced out/ --asr pocketsphinx --transcripts text.txt`

    Exit codes: 0 success, 1 some files could not be scored, 2 wrong use, 130 interrupted.
    """
    from clearstate.metrics.files import match
    from clearstate.metrics.results import Results, read_records
    from clearstate.metrics.scoring import FileScores
    from clearstate.metrics.separation import is_separated, match_separated

    _check_outputs(json_file, csv_file, report)
    options, unavailable = _options(metrics, noisy, _named_files(weights or []), high_band, asr, transcripts)
    try:
        matches = (match_separated if is_separated(clean) else match)(clean, enhanced, noisy)
        records = read_records(meta, clean) if meta else {}
    except (ValueError, OSError) as error:
        raise UsageError(explain(error)) from error
    if not matches.pairs:
        raise CommandError(_no_pairs(matches, clean, enhanced))
    names = [pair.name for pair in matches.pairs]
    if asr:
        options = replace(options, transcripts=_belonging(options.transcripts, names, f"--transcripts {transcripts}"))
    if meta:
        records = _belonging(records, names, f"--meta {meta}")

    results = Results(
        files=[
            *_score(matches, options, jobs or os.cpu_count() or 1),
            *(FileScores(str(path), error=reason) for path, reason in matches.unusable),
        ],
        name=name,
        test_set=test_set,
        unmatched=matches.unmatched,
        unavailable=unavailable,
        records=records,
        by=[field.strip() for field in by.split(",")] if records else (),
        settings=_settings(clean, enhanced, noisy, options),
    )
    written, lost = _write(results, matches, json_file, csv_file, report)
    _show(results)
    for line in written:
        note(f"wrote {line}")
    if lost:
        raise CommandError("; ".join(lost))
    if results.failed:
        raise CommandError(f"{len(results.failed)} of {len(results.files)} files could not be scored (listed above)")


def _write(
    results: "Results", matches: "Matches", json_file: Path | None, csv_file: Path | None, report: Path | None
) -> tuple[list[Path], list[str]]:
    """Write the requested files; return those written and the reasons for the others, so the table is always shown."""
    from clearstate.metrics.report import write_report
    from clearstate.metrics.results import to_json_text, write

    wanted: list[tuple[Path | None, Callable[[Path], None]]] = [
        (json_file, lambda path: write(path, to_json_text(results))),
        (csv_file, lambda path: write(path, results.as_csv())),
        (report, lambda path: write_report(path, results, matches.pairs)),
    ]
    written, lost = [], []
    for path, produce in wanted:
        if path:
            try:
                produce(path)
                written.append(path)
            except (ValueError, OSError, ImportError) as error:
                lost.append(f"{path} was not written: {explain(error)}")
    return written, lost


def _check_outputs(json_file: Path | None, csv_file: Path | None, report: Path | None) -> None:
    if report and report.suffix not in (".html", ".md"):
        raise UsageError(f"--report {report} ends in {report.suffix!r}; expected .html or .md")
    for path in (json_file, csv_file, report):
        if path and path.exists() and not path.is_file():  # never replace a device
            raise UsageError(f"{path} {why_no_file(path)}")


def _named_files(words: list[str]) -> dict[str, Path]:
    from clearstate.metrics.learned import FILES

    named = {}
    for word in words:
        key, equals, path = word.partition("=")
        if not equals or key not in FILES:
            raise UsageError(f"--weights {word}: expected NAME=FILE with NAME one of {', '.join(FILES)}")
        named[key] = Path(path)
    return named


def _options(
    metrics: str,
    noisy: Path | None,
    named: dict[str, Path],
    high_band: float | None,
    asr: str | None,
    text: Path | None,
) -> tuple["Options", dict[str, str]]:
    """The scores to compute, and for each score that is not available the reason."""
    from clearstate.metrics.asr import check_recogniser, read_transcripts
    from clearstate.metrics.scoring import Options, available
    from clearstate.metrics.table import choose

    if (asr is None) != (text is None):
        raise UsageError("--asr needs --transcripts, and --transcripts needs --asr; give both")
    words = [word.strip() for word in metrics.split(",") if word.strip()]
    words += [group for group in named if group not in words and not any(w.startswith(f"{group}_") for w in words)]
    try:
        keys = choose(words, noisy=noisy is not None)
        spoken = read_transcripts(text) if text else {}
        if asr:
            check_recogniser(asr)
    except (ValueError, OSError) as error:
        raise UsageError(explain(error)) from error
    have, weights, missing = available(keys, named)
    return Options(tuple(have), high_band, weights, asr, spoken), missing


def _belonging(entries: Mapping[str, Entry], names: list[str], what: str) -> dict[str, Entry]:
    """The entries of the pairs that are scored; a list that names none of them is wrong use."""
    from clearstate.metrics.files import for_pairs

    found = for_pairs(entries, names)
    if not found:
        raise UsageError(f"{what} names none of the files: it has {_first(entries)}, the files are {_first(names)}")
    _warn(f"{len(names) - len(found)} files are not in {what}", [name for name in names if name not in found])
    return found


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:3])) + (", …" if len(listed) > 3 else "") if listed else "none"


def _no_pairs(matches: "Matches", clean: Path, enhanced: Path) -> str:
    lines = [f"{path} {reason}" for path, reason in matches.unusable] + matches.unmatched
    listed = "\n  ".join(map(shown, lines[:WARNINGS_SHOWN]))
    return f"no file of {enhanced} has a partner in {clean}; names must agree but for extension and suffix\n  {listed}"


def _score(matches: "Matches", options: "Options", jobs: int) -> list["FileScores"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from clearstate.metrics.scoring import score_pairs

    console = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    found = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(matches.pairs))
        for file in score_pairs(matches.pairs, options, jobs):
            found[file.name] = file
            bar.advance(task)
    return [found[pair.name] for pair in matches.pairs]


def _settings(clean: Path, enhanced: Path, noisy: Path | None, options: "Options") -> dict[str, Any]:
    from clearstate import __version__

    return {
        "clearstate": __version__,
        "clean": str(clean),
        "enhanced": str(enhanced),
        "noisy": str(noisy) if noisy else None,
        "high_band_hz": options.high_band,
        "asr": options.asr,
    }


def _show(results: "Results") -> None:
    """Print tables to stdout and warnings to stderr."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from clearstate.metrics.report import headlines
    from clearstate.metrics.results import group_table, lines_of_table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # pipes have no width; keep each row on one line
    head = ["score", "mean", "95 % interval", "files", ""]
    tables = [[head, *map(list, lines_of_table(results))]]
    tables += [group_table(results, by, headlines(results)) for by in results.groups()]
    for rows in tables:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, heading in enumerate(rows[0]):
            table.add_column(heading, justify="right" if i and heading else "left")
        for row in rows[1:]:
            table.add_row(*map(escape, map(shown, row)))
        console.print(table)

    silent = [file.name for file in results.scored if file.silent]
    _warn(f"{len(silent)} outputs contain only zeros (they get the worst score)", silent)
    _warn(f"{len(results.unmatched)} files have no partner and are not scored", results.unmatched)
    noted = [f"{file.name}: {text}" for file in results.scored for text in file.notes]
    _warn(f"{len({line.partition(':')[0] for line in noted})} files with a note", noted)
    _warn(f"{len(results.failed)} files could not be scored", [f"{f.name}: {f.error}" for f in results.failed])


def _warn(title: str, lines: list[str]) -> None:
    if lines:
        note(f"{title}:")
        for line in lines[:WARNINGS_SHOWN]:
            note(f"  {shown(line)}")
        if len(lines) > WARNINGS_SHOWN:
            note(f"  … and {len(lines) - WARNINGS_SHOWN} more (--json and --report list all)")
