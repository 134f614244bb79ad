"""Run an experiment: train each of its rows, score it on held-out pairs, write the scores as JSON and as tables.

    python recipes/experiments/run.py recipes/experiments/semamba-basic.yaml audio=FOLDER
    python recipes/experiments/run.py recipes/experiments/semamba-basic.yaml audio=FOLDER schedule.max_minutes=0.1
    python recipes/experiments/run.py --tables

An experiment is a YAML file: a recipe that all rows share, and what each row changes. A row with a result is not run
again; a run that was stopped continues. The scores of every pair go to docs/results/NAME.json, and `--tables` writes
the tables and plots of all results into the pages of docs/ that have a place for them.
"""

import argparse
import copy
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clearstate.metrics.results import markdown_table
from clearstate.metrics.summary import summarise

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGES = ROOT / "docs" / "results", ROOT / "docs"
KEYS = {"title", "about", "columns", "seeds", "recipe", "rows", "noise_db"}
ROW_KEYS = {"set", "weights", "of", "pcs", "enhanced", "noisy"}
LABELS = {
    "pesq": "PESQ", "stoi": "STOI", "si_sdr": "SI-SDR, dB", "si_sdri": "SI-SDR gain, dB", "snr": "SNR, dB",
    "lsd": "LSD 2048/512", "lsd_1024": "LSD 1024/256", "lsd_high": "LSD above 12 kHz",
}  # fmt: skip
DIGITS = {"pesq": 3, "stoi": 3, "lsd": 3, "lsd_1024": 3, "lsd_high": 3}


# --------------------------------------------------------------------------------------------------- experiments


def read(path: Path) -> dict[str, Any]:
    """An experiment, with its keys checked."""
    experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
    wrong = set(experiment) - KEYS
    wrong |= {f"rows.{name}.{key}" for name, row in experiment["rows"].items() for key in set(row or {}) - ROW_KEYS}
    if wrong:
        raise SystemExit(f"{path}: unknown keys {', '.join(sorted(wrong))}")
    experiment["rows"] = {name: row or {} for name, row in experiment["rows"].items()}
    return experiment


def trained(row: dict[str, Any]) -> bool:
    """Whether a row has weights of its own to train."""
    return not {"weights", "of", "enhanced"} & set(row)


def recipe_of(experiment: dict[str, Any], name: str, row: str, seed: int, overrides: list[str], runs: Path) -> Any:
    """The recipe of a row."""
    from clearstate.train.recipe import recipe_from, set_dotted

    tree = copy.deepcopy(experiment["recipe"])
    tree["run"] = str(runs / name / f"{slug(row)}-{seed}")
    tree["seed"] = seed
    for override in [*experiment["rows"][row].get("set", []), *overrides]:
        set_dotted(tree, override)
    return recipe_from(tree, f"{name}, {row}")


def slug(text: str) -> str:
    """A file name of a row's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ------------------------------------------------------------------------------------------------------- scoring


def score(experiment: dict[str, Any], row: dict[str, Any], recipe: Any, weights: str | None) -> dict[str, Any]:
    """The scores of every held-out pair, and the size and work of the model."""
    import torch

    from clearstate.models import find, load_model
    from clearstate.train.command import build_model
    from clearstate.train.items import open_pairs

    torch.manual_seed(0)
    model = None if weights is None else load_model(weights).eval()
    task = find(recipe.model.name).task
    rate = int((build_model(recipe) if model is None else model).sample_rate)
    pairs = enhanced_pairs(row, recipe, rate) if "enhanced" in row else open_pairs(recipe, task, rate)
    found: dict[str, list[float]] = {}
    count = len(pairs) if recipe.valid.items is None else min(recipe.valid.items, len(pairs))
    for i in range(count):
        noisy, clean = pairs.pair(i)
        if row.get("noisy"):
            noisy = noisy + noise_of(recipe, i, noisy, experiment["noise_db"])
        estimate = noisy if model is None else run(model, noisy)
        estimate = estimate.numpy()
        if row.get("pcs"):
            from clearstate.audio.contrast import stretch_contrast

            estimate = stretch_contrast(estimate, row["pcs"] if isinstance(row["pcs"], str) else "rms")
        for metric, value in pair_scores(task, noisy.numpy(), clean.numpy(), estimate, rate).items():
            found.setdefault(metric, []).append(round(float(value), 4))
    return {"scores": found, **({} if model is None else cost_of(model))}


def run(model: Any, noisy: Any) -> Any:
    """The model's output for one signal."""
    import torch

    with torch.inference_mode():
        return model(noisy[None])[0].float()


def pair_scores(task: str, noisy: Any, clean: Any, estimate: Any, rate: int) -> dict[str, float]:
    """The scores of one pair, as validation computes them, and what only the tables have."""
    from clearstate.metrics.intrusive import lsd, si_sdr
    from clearstate.train.scoring import extension_scores, scores

    if task == "extend":
        return {**extension_scores(clean, estimate, rate), "lsd_1024": lsd(clean, estimate, rate, n_fft=1024)}
    if task == "separate":
        found = scores(clean, np.stack([noisy] * len(clean)) if estimate.ndim == 1 else estimate, rate)
        before = float(np.mean([si_sdr(voice, noisy) for voice in clean]))
        return {"si_sdr": found["si_sdr"], "si_sdri": found["si_sdr"] - before, "snr": found["snr"]}
    return scores(clean, estimate, rate)


def enhanced_pairs(row: dict[str, Any], recipe: Any, rate: int) -> Any:
    """Outputs that somebody published, in the place of the noisy signals."""
    from clearstate.data import PairedFolder
    from clearstate.train.items import Drawn
    from clearstate.train.recipe import audio_path

    folders = [audio_path(recipe, folder) for folder in (row["enhanced"], recipe.valid.clean)]
    return Drawn(Shortest(PairedFolder(*folders, rate, validate_on_test_set=True)))


class Shortest:
    """Pairs cut to the shorter of both: the published outputs lack the last samples."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        from clearstate.data.paired import as_mono, read_file

        noisy, clean = as_mono(*(read_file(path, self.pairs.rate) for path in self.pairs.paths[i]))
        n = min(len(noisy), len(clean))
        return {"noisy": noisy[:n], "clean": clean[:n]}


def noise_of(recipe: Any, i: int, mixture: Any, snr_db: float) -> Any:
    """Held-out noise at an SNR under a mixture: what the noisy pairs of valid/denoise have and the clean ones lack."""
    import torch

    from clearstate.data import PairedFolder
    from clearstate.train.recipe import audio_path

    folders = [audio_path(recipe, f"valid/denoise/{kind}") for kind in ("noisy", "clean")]
    pair = PairedFolder(*folders)[i % 100]
    noise = torch.from_numpy(np.resize(pair["noisy"] - pair["clean"], len(mixture)))
    gain = mixture.square().mean().sqrt() / noise.square().mean().sqrt().clamp_min(1e-8) * 10 ** (-snr_db / 20)
    return noise * gain


def cost_of(model: Any) -> dict[str, float]:
    """Parameters, and multiply-accumulates per second of audio."""
    from clearstate.metrics.cost import cost

    counted = cost(model)
    return {"parameters": counted.parameters, "gmacs": round(counted.macs / 1e9, 3)}


# ----------------------------------------------------------------------------------------------------- the course


def main() -> None:
    """Run an experiment, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, nargs="?", help="a file of recipes/experiments")
    parser.add_argument("overrides", nargs="*", help="key=value, for the recipes of all rows")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the experiment's")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="folder for the training runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument(
        "--no-speed",
        action="store_true",
        help="leave out the real-time factor: the machine is busy; the same command without it adds it later",
    )
    parser.add_argument("--tables", action="store_true", help="write the tables and plots of all results")
    arguments = parser.parse_args()
    if arguments.experiment is not None:
        run_experiment(arguments)
    if arguments.tables:
        for page in sorted(PAGES.rglob("*.md")):
            fill_page(page, arguments.results)
        length_plot(arguments.results)


def run_experiment(arguments: argparse.Namespace) -> None:
    """Train and score the rows of an experiment that have no result yet, and measure the speed where it is missing."""
    from clearstate.metrics.leaderboard import real_time_factor
    from clearstate.models import load_model

    experiment, name = read(arguments.experiment), arguments.experiment.stem
    file = arguments.results / f"{name}.json"
    document = json.loads(file.read_text()) if file.is_file() else {"title": experiment["title"], "rows": []}
    document["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    seeds = arguments.seeds or experiment.get("seeds", [1])
    for name_of_row in arguments.rows or experiment["rows"]:
        row = experiment["rows"][name_of_row]
        for seed in seeds if trained(row) or "of" in row else seeds[:1]:
            print(f"{name}: {name_of_row}, seed {seed}", file=sys.stderr)
            source = name_of_row if trained(row) else row.get("of", next(iter(experiment["rows"])))
            recipe = recipe_of(experiment, name, source, seed, arguments.overrides, arguments.runs)
            weights = row.get("weights") or str(Path(recipe.run) / "best")
            known = None if "enhanced" in row or weights == "none" else weights
            result = next((r for r in document["rows"] if (r["row"], r["seed"]) == (name_of_row, seed)), None)
            if result is None:
                about = train(recipe) if trained(row) else {}
                result = {"row": name_of_row, "seed": seed, **about, **score(experiment, row, recipe, known)}
                document["rows"].append(result)
            if known and not arguments.no_speed and "rtf" not in result:
                result["rtf"] = round(real_time_factor(load_model(known)), 4)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(as_text(document))


def as_text(document: dict[str, Any]) -> str:
    """A JSON file with the scores of all pairs, some hundred numbers a list, on one line."""
    text = json.dumps(document, indent=1) + "\n"
    return re.sub(r"\[\n([^][{}\"]*)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)


def train(recipe: Any) -> dict[str, Any]:
    """Train the weights of a row; returns how long that was."""
    from clearstate.train.command import run_recipe
    from clearstate.train.report import read_log

    outcome = run_recipe(recipe)
    if not outcome.finished:
        raise SystemExit(f"{recipe.run} was stopped at step {outcome.step}: the same command continues it")
    lines = read_log(Path(recipe.run) / "log.jsonl")
    last = next((line for line in reversed(lines) if "hours" in line), {})
    return {
        "steps": outcome.step, "minutes": round(last.get("minutes", 0.0), 1), "hours": round(last.get("hours", 0.0), 3),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- tables


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over the pairs, and half the width of its 95 % confidence interval."""
    found = summarise(values)
    return found.mean, (found.high - found.low) / 2


def table(experiment: dict[str, Any], document: dict[str, Any]) -> str:
    """A Markdown table with the rows of an experiment in its order, each the mean over its seeds."""
    columns = experiment["columns"]
    labels = [LABELS[c] for c in columns]
    lines = [["", *labels, "parameters", "GMAC/s", "real-time factor", "training"]]
    for name in experiment["rows"]:
        found = [row for row in document["rows"] if row["row"] == name]
        if not found:
            lines.append([name, *["not run yet"] * len(columns), "", "", "", ""])
            continue
        cells = []
        for column in columns:
            seeds = np.array([row["scores"][column] for row in found], float)  # (seeds, pairs)
            mean, half = interval(seeds.mean(0))
            digits = DIGITS.get(column, 2)
            spread = (
                f" ({seeds.mean(1).min():.{digits}f} to {seeds.mean(1).max():.{digits}f})" if len(found) > 1 else ""
            )
            cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}{spread}")
        first = found[0]
        size = [
            f"{first[key]:{form}}" if key in first else ""
            for key, form in (("parameters", ","), ("gmacs", ".3g"), ("rtf", ".3g"))
        ]
        done = f"{first['steps']:,} steps, {first['hours']:.2g} h of audio" if "steps" in first else ""
        lines.append([name, *cells, *size, done])
    filled = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    lines = [[line[i] for i in filled] for line in lines]
    pairs = next((len(next(iter(row["scores"].values()))) for row in document["rows"]), 0)
    seeds = len({row["seed"] for row in document["rows"]})
    where = experiment.get("about", "Small scale, another corpus")
    about = f"{where}: {pairs} pairs, mean ± half of the 95 % confidence interval over the pairs"
    about += f", lowest and highest of {seeds} seeds in brackets." if seeds > 1 else "."
    return "\n".join([markdown_table(lines), "", about])


PLACE = re.compile(r"(<!-- experiment: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_page(page: Path, results: Path) -> None:
    """Write the tables that a page has places for."""
    text = page.read_text(encoding="utf-8")
    filled = PLACE.sub(lambda place: place[1] + "\n" + content(place[2], results) + "\n\n" + place[3], text)
    if filled != text:
        page.write_text(filled, encoding="utf-8")


def content(name: str, results: Path) -> str:
    """What stands in the place of an experiment."""
    file = results / f"{name}.json"
    recipe = f"recipes/experiments/{name}.yaml"
    if not file.is_file():
        return f"Not run yet: `python recipes/experiments/run.py {recipe} audio=FOLDER`."
    document = json.loads(file.read_text())
    if name == "length":
        return length_table(document)
    return f"{table(read(ROOT / recipe), document)}\n\n`python recipes/experiments/run.py {recipe} audio=FOLDER`"


# ----------------------------------------------------------------------------------------------- cost over length


def length_table(document: dict[str, Any]) -> str:
    """Seconds and memory of each network for each length of signal."""
    lengths = sorted({row["seconds"] for row in document["rows"]})
    lines = [["", *(f"{length:g} s" for length in lengths)]]
    for network in dict.fromkeys(row["network"] for row in document["rows"]):
        own = {row["seconds"]: row for row in document["rows"] if row["network"] == network}
        cells = (f"{own[n]['time']:.3g} s, {own[n]['memory_gib']:.2g} GiB" if n in own else "–" for n in lengths)
        lines.append([network, *cells])
    about = f"{document['machine']}. `{document['command']}`"
    return "\n".join([markdown_table(lines), "", about, "", "![time and memory over length](../images/length.svg)"])


def length_plot(results: Path) -> None:
    """Draw time and memory over length."""
    file = results / "length.json"
    if not file.is_file():
        return
    from matplotlib.figure import Figure

    rows = json.loads(file.read_text())["rows"]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, key, label in zip(figure.subplots(1, 2), ("time", "memory_gib"), ("seconds", "GiB"), strict=True):
        for network in dict.fromkeys(row["network"] for row in rows):
            own = sorted((row["seconds"], row[key]) for row in rows if row["network"] == network)
            axes.plot(*zip(*own, strict=True), marker="o", label=network)
        axes.set(xscale="log", yscale="log", xlabel="length of the signal, s", ylabel=label)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(PAGES / "images" / "length.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
