"""studio: every contract of a model for recordings, and what it has in common with live."""

import pytest
import torch
from contracts import OFFLINE, noise
from doubles import shaken

from clearstate.models import build
from clearstate.models.live import Live, LiveConfig
from clearstate.models.studio import Studio, StudioConfig, start_from_live

SMALL = {"channels": 16, "fine_channels": 16, "heads": 1, "blocks": 3, "wide": 16, "gathered": 2}


@pytest.fixture(scope="module")
def model() -> Studio:
    torch.manual_seed(3)
    model = Studio(StudioConfig(**SMALL))
    shaken(model)
    return model.eval()


@pytest.mark.parametrize("contract", OFFLINE, ids=lambda contract: contract.__name__)
def test_contract(model, contract):
    contract(model)


def test_its_size_is_what_a_model_for_recordings_may_have():
    assert sum(p.numel() for p in build("studio").parameters()) < 1_500_000


@torch.no_grad()
@pytest.mark.parametrize("gain_db", [-40.0, 20.0])
def test_the_output_scales_with_the_input(model, gain_db):
    x, gain = noise(1, 8_000), 10 ** (gain_db / 20)
    torch.testing.assert_close(model(gain * x), gain * model(x), atol=1e-4 * gain, rtol=0)


@torch.no_grad()
def test_it_hears_what_comes_before_and_after(model):
    x = noise(1, 3_000)
    changed = x.clone()
    changed[:, 1_500:1_600] *= -0.5
    difference = (model(changed) - model(x)).abs()
    assert difference[:, :400].max() > 1e-6 and difference[:, -400:].max() > 1e-6  # frames are 512 samples long


@torch.no_grad()
def test_it_begins_as_the_live_model_whose_weights_it_has():
    torch.manual_seed(4)
    live = Live(LiveConfig(**SMALL))
    shaken(live)
    studio = start_from_live(live).eval()
    studio.level = lambda spec: live.running_level(spec, spec.real.new_zeros(spec.shape[0], 2, 1))[
        0
    ]  # its other change
    x = noise(2, 8_000)
    torch.testing.assert_close(studio.hear(x), live(x), atol=1e-5, rtol=0)
    studio.time[0].back.out_proj.weight.add_(0.1)
    assert (studio(x) - live(x)).abs().max() > 1e-3


@torch.no_grad()
def test_other_speeds_are_for_a_trained_network(model):
    x = noise(1, 8_000)
    torch.testing.assert_close(model.train()(x), model.hear(x))
    assert (model.eval()(x) - model.hear(x)).abs().max() > 1e-4
