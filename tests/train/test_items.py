"""What a recipe's data and valid sections open: corpora by split, folders of pairs, mixtures; never a test set."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpora_in_miniature import hiss, make_corpus, voice, write

from clearstate.audio.contrast import stretch_contrast
from clearstate.train.command import main, run_recipe, write_preview
from clearstate.train.items import open_items, open_pairs
from clearstate.train.recipe import Recipe, RecipeError, recipe_from, set_dotted
from clearstate.train.report import read_log

SPEAKERS = {"noisy_trainset_28spk_wav": ("p227", "p228", "p226", "p287"), "noisy_testset_wav": ("p232", "p257")}


@pytest.fixture
def voicebank(tmp_path) -> Path:
    """VoiceBank+DEMAND's layout with two short files a speaker."""
    for folder, speakers in SPEAKERS.items():
        for kind in ("noisy", "clean"):
            where = tmp_path / "VB" / folder.replace("noisy", kind)
            where.mkdir(parents=True)
            for number, speaker in enumerate(speakers):
                for take in ("001", "002"):
                    sound = 0.1 * np.random.default_rng(number).standard_normal(12_000)
                    soundfile.write(where / f"{speaker}_{take}.wav", sound, 16_000)
    return tmp_path


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    tree: dict = {
        "run": str(folder / "run"),
        "audio": str(folder),
        "model": {"name": "live"},
        "data": {"corpus": "VB", "seconds": 0.5},
        "loss": {"l1": 1},
        "schedule": {"max_steps": 2},
        "valid": {"corpus": "VB"},
    }
    for override in overrides:
        set_dotted(tree, override)
    return recipe_from(tree)


def test_a_corpus_is_split_by_speaker_without_its_test_set(voicebank):
    recipe = recipe_of(voicebank)
    train, valid = open_items(recipe, "enhance", 16_000), open_pairs(recipe, "enhance", 16_000)
    assert len(train) == 4 and len(valid) == 4
    assert {name[:4] for name in train.dataset.pairs.names} == {"p227", "p228"}
    assert {name[:4] for name in valid.dataset.names} == {"p226", "p287"}
    item = train.example(0, 0)
    assert item["noisy"].shape == item["clean"].shape == (8_000,) and item["noisy"].dtype == torch.float32
    noisy, clean = valid.pair(0)
    assert noisy.shape == clean.shape == (12_000,)


def test_crops_differ_between_epochs_and_repeat_with_the_seed(voicebank):
    one, two = (open_items(recipe_of(voicebank), "enhance", 16_000) for _ in range(2))
    assert torch.equal(one.example(3, 1)["noisy"], two.example(3, 1)["noisy"])
    assert not torch.equal(one.example(3, 1)["noisy"], one.example(4, 1)["noisy"])


def test_with_pcs_the_target_is_stretched_and_the_input_is_not(voicebank, monkeypatch):
    given = []
    monkeypatch.setattr("clearstate.train.loop.Run", lambda plan, quiet: given.append(plan.items) or Ran())
    for override in ("data.pcs=null", "data.pcs=rms"):
        run_recipe(recipe_of(voicebank, override))
    plain, stretched = (items.example(0, 1) for items in given)
    assert len(given[0]) == len(given[1])
    assert torch.equal(stretched["noisy"], plain["noisy"])
    torch.testing.assert_close(stretched["clean"], torch.from_numpy(stretch_contrast(plain["clean"].numpy(), "rms")))
    assert (stretched["clean"] - plain["clean"]).abs().max() > 0.01
    with pytest.raises(RecipeError, match="16000 Hz; the task of this one is separate, at 8000"):
        run_recipe(
            recipe_of(voicebank, "data.pcs=peak", "model.name=s4m-tiny", "data.clean=[VB, VB]", "data.corpus=null")
        )


class Ran:
    """In the place of a run."""

    def run(self) -> None: ...


TEST_SET = ("valid.corpus=null", "valid.noisy=VB/noisy_testset_wav", "valid.clean=VB/clean_testset_wav")


def test_validating_on_a_test_set_is_refused_unless_spelled_out(voicebank):
    with pytest.raises(RecipeError, match=r"is a test set.*valid\.allow_test_set=true"):
        open_pairs(recipe_of(voicebank, *TEST_SET), "enhance", 16_000)
    allowed = recipe_of(voicebank, *TEST_SET, "valid.allow_test_set=true")
    assert len(open_pairs(allowed, "enhance", 16_000)) == 4


def test_a_test_set_is_never_trained_on(voicebank):
    changes = ("data.corpus=null", "data.noisy=VB/noisy_testset_wav", "data.clean=VB/clean_testset_wav")
    with pytest.raises(RecipeError, match="is a test set"):
        open_items(recipe_of(voicebank, *changes), "enhance", 16_000)


def test_one_pair_of_folders_for_both_is_told_apart_by_speaker(voicebank):
    folders = "{noisy: VB/noisy_trainset_28spk_wav, clean: VB/clean_trainset_28spk_wav}"
    recipe = recipe_of(voicebank, f"data={folders}", f"valid={folders}")
    train, valid = open_items(recipe, "enhance", 16_000), open_pairs(recipe, "enhance", 16_000)
    assert {name[:4] for name in train.dataset.pairs.names} & {name[:4] for name in valid.dataset.names} == set()


@pytest.mark.parametrize(
    "override",
    ["data.corpus=nowhere", "valid.corpus=nowhere", "data={noisy: n, clean: c}", "valid={noisy: n, clean: c}"],
)
def test_audio_that_is_not_there_says_what_to_fetch(voicebank, override):
    recipe = recipe_of(voicebank, override)
    with pytest.raises(
        RecipeError, match=r"(training|validation) audio: .*docs/training\.md lists the audio to download"
    ):
        (open_pairs if override.startswith("valid") else open_items)(recipe, "enhance", 16_000)


def test_a_preview_writes_items_to_listen_to(voicebank):
    files = write_preview(recipe_of(voicebank), 2)
    assert sorted(path.name for path in files) == sorted(
        f"000{i}-{kind}.wav" for i in range(2) for kind in ("noisy", "clean")
    )
    assert soundfile.info(files[0]).frames == 8_000


# ------------------------------------------------------------------------------- the default recipe, really run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder as docs/training.md asks for it, in miniature: shards, and two pairs to validate on."""
    folder = make_corpus(tmp_path_factory.mktemp("corpus"))
    for i in range(2):
        clean = voice(110 + 40 * i, 1.5, seed=i)
        write(folder / f"valid/denoise/clean/{i}.wav", clean)
        write(folder / f"valid/denoise/noisy/{i}.wav", clean + hiss(1.5, seed=i))
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTATE_CACHE", str(tmp_path / "cache"))


SMALL = [
    "model.config={fine_channels: 8, channels: 12, bands: 16, blocks: 1, wide: 16}", "data.seconds=0.5", "data.batch=2",
    "data.items=12", "schedule={max_steps: 14, warmup: 0.1}", "log_steps=1", "threads=1", "accelerator=cpu",
    "valid.items=2", "valid.workers=1", "valid.every_minutes=null", "valid.every_steps=7", "valid.pictures=false",
]  # fmt: skip
LIVE = str(Path(__file__).parents[2] / "recipes" / "live.yaml")


@pytest.mark.slow
def test_the_default_recipe_killed_in_mid_epoch_ends_with_the_same_scores(corpus, own_cache, tmp_path):
    """Scores within 1e-4: the same arithmetic, but for the order in which threads of the scan may add up."""
    common = [LIVE, f"audio={corpus}", *SMALL]
    assert main([*common, f"run={tmp_path / 'whole'}"]) == 0

    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "clearstate.train", *common, f"run={folder}", "checkpoint_minutes=0.001"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:  # an epoch has 6 steps
        while len(read_log(folder / "log.jsonl")) < 9:
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main([*common, f"run={folder}"]) == 0

    whole, killed = (read_log(tmp_path / name / "log.jsonl") for name in ("whole", "killed"))
    assert [(line["kind"], line["step"]) for line in whole] == [(line["kind"], line["step"]) for line in killed]
    for a, b in zip(whole, killed, strict=True):
        for name in ("loss", "position", "pesq", "stoi", "si_sdr", "snr", "best"):
            assert a.get(name) == pytest.approx(b.get(name), abs=1e-4, nan_ok=True), (a["step"], name)
    assert json.loads((folder / "best" / "config.json").read_text())["preset"] == "live"


@pytest.mark.filterwarnings("ignore:no validation set")
def test_the_weights_of_a_run_load_as_a_model(corpus, own_cache, tmp_path):
    from clearstate.models import load_model

    assert main([LIVE, f"audio={corpus}", *SMALL, f"run={tmp_path}", "schedule.max_steps=2", "valid={}"]) == 0
    model = load_model(str(tmp_path / "best"))
    assert not model.training and model(torch.randn(1, 4_000)).shape == (1, 4_000)
