"""Models by name: built, saved, loaded, and refused with a word that helps."""

import pytest
import torch

from clearstate.models import PRESETS, build, find, load_model, save_model


def small():
    return build("live", blocks=1, bands=8, channels=16, heads=1, wide=16)


def test_a_saved_model_comes_back_as_it_was(tmp_path):
    model = small().eval()
    save_model(model, "live", tmp_path / "mine")
    again = load_model(str(tmp_path / "mine"))
    assert not again.training
    assert again.config == model.config
    with torch.no_grad():
        x = torch.randn(1, 3000)
        assert torch.equal(again(x), model(x))


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="no model is called 'live_': did you mean 'live'"):
        find("live_")
    with pytest.raises(ValueError, match="did you mean 'live'"):
        load_model("lvie")


def test_a_folder_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_model(str(tmp_path))


def test_weights_of_another_shape_are_refused(tmp_path):
    save_model(small(), "live", tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"channels": 16', '"channels": 32'))
    with pytest.raises(ValueError, match="do not fit"):
        load_model(str(tmp_path))


def test_a_preset_without_shipped_weights_says_how_to_get_some():
    bare = [name for name, preset in PRESETS.items() if preset.weights is None]
    if not bare:
        pytest.skip("every preset has weights")
    with pytest.raises(ValueError, match=r"no weights of .* are shipped: train it"):
        load_model(bare[0])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_says_what_it_is_for(name):
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.task in ("enhance", "separate", "extend")
    assert preset.summary and preset.licence
