"""clearstate models: what there is to choose from."""

import json
from typing import Annotated, Any

import typer


def run(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects instead of a table.")] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Run each model and count its multiply-accumulates for a second of audio.")
    ] = False,
) -> None:
    """List every model: what it does, its size, whether it can stream, and whether its weights are shipped.

    A model whose weights are not shipped can be trained, and is then used by the path of its folder
    (`clearstate enhance talk.wav --model runs/mine`).

    **Examples**

    `clearstate models`

    `clearstate models --json`

    `clearstate models --cost` with projections, attention, scans and FFTs, which counts by layers leave out
    """
    from clearstate.models import PRESETS

    rows = [describe(name, cost=cost) for name in PRESETS]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "task"):
        table.add_column(heading)
    table.add_column("parameters", justify="right")
    if cost:
        table.add_column("MACs/s", justify="right")
    for heading in ("rate", "causal", "latency", "weights", "licence", "what it is"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            row["task"],
            f"{row['parameters']:,}",
            *([f"{row['macs_per_second'] / 1e6:,.0f} M"] if cost else []),
            f"{row['sample_rate'] / 1000:g} kHz",
            "yes" if row["causal"] else "no",
            f"{row['latency_ms']:g} ms" if row["causal"] else "–",
            "shipped" if row["weights"] else "to be trained",
            row["licence"],
            row["summary"],
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width; rows should stay on one line
    console.print(table)


def describe(name: str, *, cost: bool = False) -> dict[str, Any]:
    """What `clearstate models` says of one preset; the latency is that of the algorithm, in milliseconds."""
    from clearstate.models import PRESETS, build

    preset = PRESETS[name]
    model: Any = build(name, **preset.shipped_config)
    counted: dict[str, Any] = {}
    if cost:
        from clearstate.metrics.cost import cost as count

        found = count(model)
        counted = {"macs_per_second": found.macs, "macs_by_kind": found.parts}
    latency = 1000 * (model.latency + model.hop) / model.sample_rate if model.causal else None
    return {
        "name": name,
        "task": preset.task,
        "parameters": sum(p.numel() for p in model.parameters()),
        **counted,
        "sample_rate": model.sample_rate,
        "causal": model.causal,
        "latency_ms": latency,
        "weights": preset.weights is not None,
        "licence": preset.licence,
        "summary": preset.summary,
    }
