"""clearstate models: what there is to choose from."""

import json
from typing import Annotated, Any

import typer


def run(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects instead of a table.")] = False,
) -> None:
    """List every model: what it does, its size, whether it can stream, and whether its weights are shipped.

    A model whose weights are not shipped can be trained, and is then used by the path of its folder
    (`clearstate enhance talk.wav --model runs/mine`).

    **Examples**

    `clearstate models`

    `clearstate models --json`
    """
    from clearstate.models import PRESETS

    rows = [describe(name) for name in PRESETS]
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
    for heading in ("rate", "causal", "latency", "weights", "licence", "what it is"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            row["task"],
            f"{row['parameters']:,}",
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


def describe(name: str) -> dict[str, Any]:
    """What `clearstate models` says of one preset; the latency is that of the algorithm, in milliseconds."""
    from clearstate.models import PRESETS, build

    preset, model = PRESETS[name], build(name)
    latency = 1000 * (model.latency + model.hop) / model.sample_rate if model.causal else None
    return {
        "name": name,
        "task": preset.task,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sample_rate": model.sample_rate,
        "causal": model.causal,
        "latency_ms": latency,
        "weights": has_weights(name),
        "licence": preset.licence,
        "summary": preset.summary,
    }


def has_weights(name: str) -> bool:
    """Whether the package holds trained weights of this preset."""
    from importlib.resources import files

    return (files("clearstate") / "weights" / name / "model.safetensors").is_file()
