"""clearstate export: write a model to one ONNX file, and compare the file with the model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clearstate.cli.terminal import CommandError, UsageError, note


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Name of a model (see `clearstate models`), or a folder with weights.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Output file. Default: MODEL.onnx in the current folder."),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store the weights as float16: half the size. They are computed in float32.")
    ] = False,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Use fresh weights, to measure the speed of a model that has none.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
) -> None:
    """Write a model to one ONNX file that runs anywhere: samples in, samples out.

    The file needs no other code: the transforms and the recurrences are inside, from the standard set of operators
    (opset 18). After writing, the file is run in ONNX Runtime and compared with the model: several lengths, batches
    and, for a causal model, chunks with the state carried on. A difference of more than 1e-4 of the peak is an error
    (with --half, 2e-2).

    Every verb accepts the file as its --model, without PyTorch. docs/embed.md shows how to run it from C++, Node.js and
    Python alone.

    **Examples**

    `clearstate export live`

    `clearstate export runs/mine -o mine.onnx --half`
    """
    from clearstate.metrics.extras import need

    for library in ("torch", "onnx", "onnxscript", "onnxruntime"):
        need(library, "export", "clearstate export")
    target = output or Path(f"{Path(model).name}.onnx")
    if target.suffix != ".onnx":
        raise UsageError(f"-o {target}: expected a name that ends in .onnx")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} already exists; add --overwrite, or give another -o")
    from clearstate.models import PRESETS, build, load_model
    from clearstate.models.export import export_onnx
    from clearstate.runtime import open_model
    from clearstate.runtime.agreement import HALF_LIMIT, LIMIT, compare

    try:
        network = build(model).eval() if untrained else load_model(model)
    except (ValueError, OSError) as error:
        raise UsageError(f"{model}: {error}") from error
    licence = PRESETS[model].licence if model in PRESETS and not untrained else ""
    try:
        export_onnx(network, target, name=Path(model).name, licence=licence, half=half)
    except ValueError as error:
        raise CommandError(str(error)) from error
    task: Any = getattr(network, "task", "enhance")
    found = compare(open_model(target, task), open_model(network, task))
    note(
        f"{target.stat().st_size / 1e6:.1f} MB; largest difference from PyTorch {found.difference:.1e} of the peak in "
        f"{found.cases} comparisons; {found.real_time_factor:.4f} s per second of audio on one thread"
        + (f", {found.hop_ms:.2f} ms a hop" if found.hop_ms is not None else "")
    )
    if not found.holds(HALF_LIMIT if half else LIMIT):
        raise CommandError(f"{target} does not compute what {model} does; it was left for inspection")
    print(target)
