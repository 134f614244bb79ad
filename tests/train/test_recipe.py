"""A recipe is checked in full before anything starts, and says what to change."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_recipe

from clearstate.data import MixtureConfig
from clearstate.train.command import build_model, main
from clearstate.train.doubts import doubts
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
        ("optimizer.lr=1", "unknown key optimizer; did you mean 'optimiser'?"),
        ("optimiser.learning=1", "unknown key optimiser.learning"),
        ("loss.magnitud=1", "unknown key loss.magnitud; did you mean 'magnitude'?"),
        ("valid.every_minute=1", "unknown key valid.every_minute; did you mean 'every_minutes'?"),
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
        ("data.clean=null", ["go together; set both"]),
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
    with pytest.raises(RecipeError, match="export CLEARSTATE_DATA=FOLDER, or set audio=FOLDER"):
        audio_path(recipe, "valid/noisy")
    monkeypatch.setenv("CLEARSTATE_DATA", str(tmp_path))
    assert audio_path(recipe, "valid/noisy") == tmp_path / "valid/noisy"
    assert audio_path(recipe, "/elsewhere").as_posix() == "/elsewhere"


@pytest.mark.parametrize(
    "override, hint",
    [
        ("data.mixture.snr_bd=[0, 5]", "unknown key data.mixture.snr_bd; did you mean 'snr_db'?"),
        ("data.sources.speach=[x]", "unknown key data.sources.speach; did you mean 'speech'?"),
        ("data.sources.speech=[not_there]", "docs/training.md lists the audio to download"),
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
    assert "did you mean 'magnitude'?" in capsys.readouterr().err


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_checks_and_fits_its_model(path):
    recipe = load_recipe(path)
    check_model(recipe, build_model(recipe))
    assert recipe.run.startswith("runs/")


def test_an_unknown_model_or_setting_of_it_names_the_nearest(recipe_file):
    with pytest.raises(RecipeError, match=r"model\.name='life'; did you mean 'live'\?"):
        build_model(load_recipe(recipe_file, ["model.name=life"]))
    with pytest.raises(RecipeError, match=r"model\.config\.block; did you mean 'blocks'\?"):
        build_model(load_recipe(recipe_file, ["model.config.block=2"]))


@pytest.mark.parametrize("text", ["1e3", "null", "yes", "2024-01-01", "0x10", "[a]b", r"C:\x: y", "{a", "3", "a #b"])
def test_a_path_in_an_override_is_taken_as_it_is(recipe_file, text):
    recipe = load_recipe(recipe_file, [f"run={text}", f"audio={text}", f"data.noisy={text}1", f"model.start=x{text}"])
    assert (recipe.run, recipe.audio, recipe.data.noisy) == (text, text, f"{text}1")
    assert recipe.model.start == f"x{text}"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("valid.noisy=null", None),
        ("valid.noisy=", None),
        ("valid.noisy='null'", "null"),
        ("valid.clean=[2024-01-01, 1e3]", ["2024-01-01", "1e3"]),
        ("valid.clean=[a]b", "[a]b"),
        ("data.sources.speech=[2024-01-01, ~/x]", ["2024-01-01", "~/x"]),
        ("data.sources.noise=1e3", "1e3"),
        ("data.sources.valid_share=1e-1", 0.1),
        ("data.sources={speech: [2024-01-01]}", {"speech": ["2024-01-01"]}),
        ("valid.items=null", None),
        ("tensorboard=yes", True),
    ],
)
def test_none_lists_and_numbers_are_still_read(override, value):
    tree: dict = {}
    set_dotted(tree, override)
    for key in override.partition("=")[0].split("."):
        tree = tree[key]
    assert tree == value


def test_home_folders_are_found_in_a_recipe(tmp_path, monkeypatch, recipe_file):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe_file.write_text(MINIMAL.replace("runs/x", "~/x"))
    recipe = load_recipe(recipe_file, ["model.start=~/w"])
    assert (recipe.run, recipe.model.start) == (f"{tmp_path}/x", f"{tmp_path}/w")


def test_a_date_in_a_recipe_is_a_name(recipe_file):
    recipe_file.write_text(MINIMAL.replace("runs/x", "2024-01-01"))
    assert load_recipe(recipe_file).run == "2024-01-01"


@pytest.mark.parametrize(
    "override",
    ["seed=-1", "seed=abc", "seed=1e30", "devices=0", "precision=float8", "data.batch=0", "accelerator=gpu",
     "optimiser.lr=nan", "loss.magnitude=inf", "run=", "schedule.max_steps=[", "data=3"],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_the_key(recipe_file, override, capsys):
    assert main([str(recipe_file), override]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert override.partition("=")[0] in err


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- 1", b"", b"{" * 3000])
def test_a_damaged_recipe_is_one_line(tmp_path, content, capsys):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    assert main([str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "word"),
    [("accelerator=cuda", "finds no GPU"), ("devices=9999", "set devices="), ("model.start=/nowhere", "model.start")],
)
def test_what_this_machine_lacks_is_wrong_use(recipe_file, override, word, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert main([str(recipe_file), override]) == 2
    err = capsys.readouterr().err
    assert word in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("run", ["recipe.yaml", "recipe.yaml/below"])
def test_a_run_folder_that_cannot_be_is_refused_before_the_work(recipe_file, run, capsys):
    assert main([str(recipe_file), f"run={recipe_file.parent / run}"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_run_folder_that_may_not_be_written_into_names_the_remedy(recipe_file, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main([str(recipe_file), f"run={recipe_file.parent / 'x'}"]) == 2
    assert "run=FOLDER" in capsys.readouterr().err
    assert not (recipe_file.parent / "x").exists()


def test_a_missing_library_names_the_extra(recipe_file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    assert main([str(recipe_file)]) == 1
    err = capsys.readouterr().err
    assert "pip install 'clearstate[train]'" in err and len(err.splitlines()) == 1


class Heard:
    """A set of training items, as far as the doubts look at it."""

    def __init__(self, noise=("n",), narrow=0):
        clips = SimpleNamespace(clips=["a", "b"], narrow=narrow)
        self.config = MixtureConfig()
        self.sources = SimpleNamespace(noise=noise, speech=SimpleNamespace(sets=[clips]))


@pytest.mark.parametrize(
    ("overrides", "heard", "words"),
    [
        ([], Heard(), []),
        ([], Heard(noise=()), ["names no noise"]),
        ([], Heard(narrow=1), []),
        ([], Heard(narrow=2), ["all speech is below the 16000 Hz"]),
        (["optimiser.lr=1"], Heard(), ["optimiser.lr=1"]),
        (["optimiser.lr=1e-9"], Heard(), ["optimiser.lr=1e-09"]),
        (["data.seconds=0.03"], Heard(), ["data.seconds=0.03 is 480 samples"]),
        (["valid.noisy=null", "valid.clean=null"], Heard(), ["no validation set"]),
        (["valid.noisy=speech/anna", "valid.clean=speech/anna"], Heard(), ["among the training files in speech"]),
        (["valid.noisy=speech2", "valid.clean=speech2"], Heard(), []),
    ],
)
def test_a_doubtful_recipe_is_questioned_in_one_line_each(tmp_path, overrides, heard, words):
    tree = {
        "run": "x", "audio": str(tmp_path), "model": {"name": "live"}, "data": {"sources": {"speech": ["speech"]}},
        "loss": {"l1": 1}, "schedule": {"max_steps": 1}, "valid": {"noisy": "valid/noisy", "clean": "valid/clean"},
    }  # fmt: skip
    for override in overrides:
        set_dotted(tree, override)
    model = SimpleNamespace(sample_rate=16_000, config=SimpleNamespace(n_fft=512))
    found = doubts(recipe_from(tree), model, heard)
    assert len(found) == len(words)
    assert all(word in line and "\n" not in line for word, line in zip(words, found, strict=True))


def test_a_loss_that_measures_at_one_rate_refuses_models_of_another(recipe_file):
    recipe = load_recipe(recipe_file, ["loss.perceptual=1", "model.config.sample_rate=48000"])
    with pytest.raises(RecipeError, match=r"perceptual.*48000"):
        check_model(recipe, build_model(recipe))
