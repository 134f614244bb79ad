"""A recipe is checked in full before anything starts, and says what to change."""

from pathlib import Path

import pytest
from tiny import tiny_recipe

from clearstate.train.command import build_model, main
from clearstate.train.plan import check_model
from clearstate.train.recipe import RecipeError, audio_path, load_recipe, recipe_from, set_dotted

MINIMAL = """
run: runs/x
model: {name: live}
data: {noisy: noisy, clean: clean}
loss: {magnitude: 1}
schedule: {max_steps: 5}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_reach_nested_keys_with_their_types(recipe_file):
    recipe = load_recipe(
        recipe_file,
        ["optimiser.lr=1e-3", "schedule.max_minutes=2", "optimiser.betas=[0.8, 0.9]", "model.config.bands=32"],
    )
    assert recipe.optimiser.lr == 1e-3
    assert recipe.schedule.max_minutes == 2.0
    assert recipe.optimiser.betas == (0.8, 0.9)
    assert recipe.model.config == {"bands": 32}


@pytest.mark.parametrize(
    "override, hint",
    [
        ("optimizer.lr=1", "unknown key optimizer; did you mean optimiser?"),
        ("optimiser.learning=1", "unknown key optimiser.learning"),
        ("loss.magnitud=1", "unknown key loss.magnitud; did you mean magnitude?"),
        ("valid.every_minute=1", "unknown key valid.every_minute; did you mean every_minutes?"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(recipe_file, override, hint):
    with pytest.raises(RecipeError, match="unknown key") as caught:
        load_recipe(recipe_file, [override])
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "override, words",
    [
        ("optimiser.lr=fast", ["optimiser.lr", "valid number", "'fast'"]),
        ("optimiser.lr=-1", ["optimiser.lr", "greater than 0"]),
        ("data.batch=2.5", ["data.batch", "integer"]),
        ("loss.complex=-1", ["loss.complex", "greater than or equal to 0"]),
        ("precision=float16", ["precision", "'float32' or 'bfloat16'"]),
        ("loss.magnitude=0", ["every weight in loss is 0"]),
        ("schedule.max_steps=null", ["no end", "schedule.max_minutes"]),
        ("data.clean=null", ["one of the two is missing"]),
        ("data={}", ["data.sources", "data.corpus"]),
        ("loss.distill=1", ["loss.teacher"]),
        ("run.plan.folder=1", ["run is a value"]),
        ("optimiser.lr", ["key=value"]),
        ("data.batch=[1", ["not YAML"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(recipe_file, override, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [override])
    for word in words:
        assert word in str(caught.value)


def test_a_missing_section_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"(?s)model.*Field required"):
        recipe_from({"run": "x", "data": {"noisy": "a", "clean": "b"}, "loss": {"l1": 1}, "schedule": {"max_steps": 1}})
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "nothing.yaml")


def test_numbers_with_an_exponent_are_numbers_wherever_they_stand():
    tree: dict = {}
    set_dotted(tree, "model.config.epsilon=1e-5")
    set_dotted(tree, "model.config.word=e5")
    assert tree == {"model": {"config": {"epsilon": 1e-5, "word": "e5"}}}


def test_an_unset_variable_in_a_path_is_an_error_that_says_how_to_set_it(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    monkeypatch.delenv("CLEARSTATE_DATA", raising=False)
    with pytest.raises(RecipeError, match="export CLEARSTATE_DATA=FOLDER, or say audio=FOLDER"):
        audio_path(recipe, "valid/noisy")
    monkeypatch.setenv("CLEARSTATE_DATA", str(tmp_path))
    assert audio_path(recipe, "valid/noisy") == tmp_path / "valid/noisy"
    assert audio_path(recipe, "/elsewhere").as_posix() == "/elsewhere"


@pytest.mark.parametrize(
    "override, hint",
    [
        ("data.mixture.snr_bd=[0, 5]", "unknown key data.mixture.snr_bd; did you mean snr_db?"),
        ("data.sources.speach=[x]", "unknown key data.sources.speach; did you mean speech?"),
        ("data.sources.speech=[not_there]", "docs/training.md says what to fetch"),
    ],
)
def test_data_that_cannot_be_opened_says_what_to_do(tmp_path, override, hint):
    from clearstate.train.items import open_items

    tree = {
        "run": "x",
        "audio": str(tmp_path),
        "model": {"name": "live"},
        "data": {"sources": {"speech": ["."]}},
        "loss": {"l1": 1},
        "schedule": {"max_steps": 1},
    }
    set_dotted(tree, override)
    with pytest.raises(RecipeError) as caught:
        open_items(recipe_from(tree), "enhance", 16_000)
    assert hint in str(caught.value)


def test_the_command_line_answers_a_bad_recipe_with_code_2(recipe_file, capsys):
    assert main([str(recipe_file), "loss.magnitud=1"]) == 2
    assert "did you mean magnitude?" in capsys.readouterr().err


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_checks_and_fits_its_model(path):
    recipe = load_recipe(path)
    check_model(recipe, build_model(recipe))
    assert recipe.run.startswith("runs/")


def test_an_unknown_model_or_setting_of_it_names_the_nearest(recipe_file):
    with pytest.raises(RecipeError, match=r"model\.name='life'; did you mean live\?"):
        build_model(load_recipe(recipe_file, ["model.name=life"]))
    with pytest.raises(RecipeError, match=r"model\.config\.block; did you mean blocks\?"):
        build_model(load_recipe(recipe_file, ["model.config.block=2"]))
