"""clearstate leaderboard: compare your scores with published results."""

from pathlib import Path
from typing import Annotated

import typer

from clearstate.cli.terminal import UsageError, note


def run(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT...", help="Output files of `clearstate score --json`; NAME=FILE also names the system."
        ),
    ],
    test_set: Annotated[
        str, typer.Option("--set", metavar="NAME", help="The test set, if the files do not name it.")
    ] = "",
    published: Annotated[bool, typer.Option(help="Show the published results on the same test set.")] = True,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown.")] = None,
) -> None:
    """Compare scored systems with published results: one table per test set, best first.

    If a system has the name of a model (`clearstate models`) or of a folder with weights, the table also shows its
    parameters, multiply-accumulates (including projections and the scan), real-time factor on one thread of this
    machine, and latency. Published rows name their source. A mark shows composite scores on a different scale.

    **Examples**

    `clearstate leaderboard live=live.json` for a file written by `clearstate score --set voicebank-demand`

    `clearstate leaderboard *.json --set clearstate-valid-denoise --markdown board.md`
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from clearstate.metrics.leaderboard import as_markdown, boards, lines
    from clearstate.metrics.leaderboard import published as all_published
    from clearstate.metrics.results import write

    try:
        found = boards(results, test_set, with_published=published)
    except ValueError as error:
        raise UsageError(str(error)) from error
    known = all_published()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 220  # pipes have no width; keep each row on one line
    for board in found:
        rows, notes = lines(board)
        table = Table(title=escape(board.title), box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        for i, heading in enumerate(rows[0]):
            table.add_column(heading, justify="left" if i in (0, len(rows[0]) - 1) else "right", overflow="fold")
        for cells, row in zip(rows[1:], board.rows, strict=True):
            table.add_row(escape(row.name), *map(escape, cells[1:]), style="bold green" if row.ours else None)
        console.print(table)
        for line in notes:
            console.print(escape(line))
        if published and board.test_set not in known:
            note(f"no published results for test set {board.test_set!r}; expected --set with one of {', '.join(known)}")
    if markdown:
        write(markdown, as_markdown(found))
        note(f"wrote {markdown}")
