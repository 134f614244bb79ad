"""clearstate models: list the models."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from clearstate.installed import has_torch

RECOMMENDED, WITH_WEIGHTS, UNTRAINED = GROUPS = (
    "recommended", "published, with our weights", "published, to be trained",
)  # fmt: skip


def run(
    every: Annotated[bool, typer.Option("--all", help="Also list the models without weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all models as JSON instead of a table.")] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Run each model and count its multiply-accumulates per second of audio.")
    ] = False,
) -> None:
    """List the models: task, size, sample rate, latency, weights and licence.

    The recommended models come first: those of `enhance --quality`, and the defaults of `separate` and `extend`. Models
    without weights are hidden without --all. Train one with `clearstate train`, then use it by its folder
    (`clearstate enhance talk.wav --model runs/mine/best`).

    **Examples**

    `clearstate models`

    `clearstate models --all --cost` counts projections, attention, scans and FFTs, which per-layer counters omit

    `clearstate models --json`
    """
    from clearstate.models import PRESETS

    shown = PRESETS if every or as_json else [name for name in PRESETS if group_of(name) != UNTRAINED]
    rows = [describe(name, cost=cost) for name in shown]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    show(rows, cost)
    if hidden := len(PRESETS) - len(rows):
        print(f"{hidden} models without weights are hidden; --all lists them")
    if not has_torch():
        print("without PyTorch, only models with all columns filled can run: pip install 'clearstate[torch]'")


def group_of(name: str) -> str:
    """The group of a preset, one of GROUPS."""
    from clearstate.models import PRESETS
    from clearstate.runtime.contract import KINDS, QUALITY

    if name in {*QUALITY.values(), *(default for _, default in KINDS.values())}:
        return RECOMMENDED
    return WITH_WEIGHTS if PRESETS[name].weights else UNTRAINED


def show(rows: Iterable[dict[str, Any]], cost: bool) -> None:
    """Print the rows as a table, group by group."""
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
    before = ""
    for row in sorted(rows, key=lambda row: GROUPS.index(row["group"])):
        if row["group"] != before:
            table.add_row(before := row["group"], style="bold")
        table.add_row(
            row["name"],
            row["task"],
            f"{row['parameters']:,}" if row["parameters"] else "–",
            *([f"{row['macs_per_second'] / 1e6:,.0f} M"] if cost else []),
            f"{row['sample_rate'] / 1000:g} kHz" if row["sample_rate"] else "–",
            {True: "yes", False: "no", None: "–"}[row["causal"]],
            f"{row['latency_ms']:g} ms" if row["causal"] else "–",
            "shipped" if row["weights"] else "to be trained",
            row["licence"],
            row["summary"],
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # pipes have no width; keep each row on one line
    console.print(table)


def figures(name: str, cost: bool) -> dict[str, Any]:
    """Size, rate, latency and work of a preset, from the network itself; without PyTorch, from its .onnx file."""
    from clearstate.models import PRESETS, build

    if not has_torch() and not cost:
        return figures_of_file(name)
    model: Any = build(name, **PRESETS[name].shipped_config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    latency = 1000 * (model.latency + model.hop) / model.sample_rate if model.causal else None
    found: dict[str, Any] = {
        "parameters": parameters, "sample_rate": model.sample_rate, "causal": model.causal, "latency_ms": latency,
    }  # fmt: skip
    if cost:
        from clearstate.metrics.cost import cost as count

        work = count(model)
        found |= {"macs_per_second": work.macs, "macs_by_kind": work.parts}
    return found


def figures_of_file(name: str) -> dict[str, Any]:
    """The same without the work; None for a model that has no .onnx file."""
    from clearstate.runtime import exported_file
    from clearstate.runtime.onnx import open_session

    file = exported_file(name)
    if file is None:
        return dict.fromkeys(("parameters", "sample_rate", "causal", "latency_ms"))
    known = open_session(str(file), 0)[1]
    rate, causal = int(known["sample_rate"]), known["causal"] == "1"
    latency = 1000 * (int(known["latency"]) + int(known["hop"])) / rate if causal else None
    return {"parameters": int(known["parameters"]), "sample_rate": rate, "causal": causal, "latency_ms": latency}


def describe(name: str, *, cost: bool = False) -> dict[str, Any]:
    """The entries of one preset in `clearstate models`. The latency is algorithmic, in milliseconds."""
    from clearstate.models import PRESETS

    preset = PRESETS[name]
    return {
        "name": name,
        "group": group_of(name),
        "task": preset.task,
        **figures(name, cost),
        "weights": preset.weights is not None,
        "licence": preset.licence,
        "summary": preset.summary,
    }
