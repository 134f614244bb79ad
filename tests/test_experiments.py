"""The experiments of recipes/experiments: their recipes, the driver on a tiny budget, and the tables in the pages."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from corpora_in_miniature import hiss, voice

from clearstate.train.command import build_model
from clearstate.train.plan import check_model

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "recipes" / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def driver():
    spec = importlib.util.spec_from_file_location("experiments", ROOT / "recipes" / "experiments" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = [
    pytest.param(file, row, id=f"{file.stem}-{row}")
    for file in FILES
    for row, changes in yaml.safe_load(file.read_text())["rows"].items()
    if not {"weights", "of", "enhanced"} & set(changes or {})
]


@pytest.mark.parametrize("file, row", ROWS)
def test_every_row_has_a_recipe_that_fits_its_model(driver, file, row):
    recipe = driver.recipe_of(driver.read(file), file.stem, row, 1, [], Path("runs"))
    check_model(recipe, build_model(recipe))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rows_that_train_nothing_name_weights_or_a_row(driver, file):
    experiment = driver.read(file)
    assert set(experiment["columns"]) <= set(driver.LABELS)
    for row in experiment["rows"].values():
        assert row.get("of", next(iter(experiment["rows"]))) in experiment["rows"]


def test_an_unknown_key_is_named(driver, tmp_path):
    (tmp_path / "x.yaml").write_text("{title: t, rows: {a: {sets: [b=1]}}, colums: []}")
    with pytest.raises(SystemExit, match=r"unknown keys colums, rows\.a\.sets"):
        driver.read(tmp_path / "x.yaml")


EXPERIMENT = {
    "title": "a tiny one",
    "columns": ["stoi", "si_sdr"],
    "seeds": [1, 2],
    "recipe": {
        "model": {"name": "live"},
        "data": {"noisy": "noisy", "clean": "clean", "seconds": 0.5, "batch": 1, "workers": 0},
        "loss": {"l1": 1.0},
        "schedule": {"max_steps": 1},
        "valid": {
            "noisy": "noisy", "clean": "clean", "every_minutes": None, "workers": 1, "best": "si_sdr",
            "pictures": False, "items": 1,
        },
        "threads": 1,
    },
    "rows": {"noisy": {"weights": "none"}, "trained": {}, "trained + PCS": {"of": "trained", "pcs": "rms"}},
}  # fmt: skip


@pytest.mark.slow  # trains twice, for one step each
def test_an_experiment_trains_scores_and_fills_its_table(driver, tmp_path, monkeypatch):
    for name in ("p226_001", "p227_001"):  # one of them is VoiceBank's held-out speaker
        clean = voice(150, 1.0)
        for folder, sound in (("clean", clean), ("noisy", clean + hiss(1.0))):
            (tmp_path / folder).mkdir(exist_ok=True)
            soundfile.write(tmp_path / folder / f"{name}.wav", sound, 16_000)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    call = [
        "run.py",
        str(file),
        f"audio={tmp_path}",
        "--runs",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "r"),
    ]
    monkeypatch.setattr(sys, "argv", [*call, "--no-speed"])
    driver.main()
    document = json.loads((tmp_path / "r" / "tiny.json").read_text())
    found = [(row["row"], row["seed"]) for row in document["rows"]]
    assert found == [("noisy", 1), ("trained", 1), ("trained", 2), ("trained + PCS", 1), ("trained + PCS", 2)]
    noisy, first, *_ = document["rows"]
    assert len(first["scores"]["stoi"]) == 1 and first["steps"] == 1 and first["parameters"] > 1e5
    assert noisy["scores"]["si_sdr"] != first["scores"]["si_sdr"]
    monkeypatch.setattr(driver, "train", lambda recipe: pytest.fail("a row with a result is not run again"))
    driver.main()
    assert "rtf" not in document["rows"][1]
    monkeypatch.setattr(sys, "argv", call)
    driver.main()  # what --no-speed left out
    document = json.loads((tmp_path / "r" / "tiny.json").read_text())
    assert ["rtf" in row for row in document["rows"]] == [False, True, True, True, True]
    lines = driver.table(driver.read(file), document).splitlines()
    assert lines[0] == "|  | STOI | SI-SDR, dB | parameters | GMAC/s | real-time factor | training |"
    assert lines[3].startswith("| trained | ") and lines[3].endswith("1 steps, 0 h of audio |")
    assert lines[-1].startswith("Small scale, another corpus: 1 pairs")


def test_an_interval_holds_the_mean_nineteen_times_of_twenty(driver):
    rng = np.random.default_rng(0)
    caught = 0
    for _ in range(100):
        mean, half = driver.interval(rng.standard_normal(60))
        caught += abs(mean) <= half
    assert 88 <= caught <= 99


def test_the_pages_have_the_tables_of_the_results(driver, tmp_path):
    """`python recipes/experiments/run.py --tables` would change nothing, and every experiment has a place."""
    places = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        copy = tmp_path / page.name
        shutil.copy(page, copy)
        places += [place[2] for place in driver.PLACE.finditer(copy.read_text())]
        driver.fill_page(copy, ROOT / "docs" / "results")
        assert copy.read_text() == page.read_text(), f"{page}: run `python recipes/experiments/run.py --tables`"
    assert set(places) >= {file.stem for file in FILES} | {"length"}
