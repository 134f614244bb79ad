"""separate-fast: every contract, voices that add up, and that it learns to separate."""

import pytest
import torch
from contracts import OFFLINE, noise
from doubles import First, shaken

from clearstate.models import build
from clearstate.models.separate_fast import SeparateFast, SeparateFastConfig
from clearstate.train import losses
from clearstate.train.optim import Muon, parameter_groups

SMALL = {"channels": 16, "heads": 1, "blocks": 1, "whole": 16, "gathered": 2}


def small(**config) -> SeparateFast:
    torch.manual_seed(3)
    model = SeparateFast(SeparateFastConfig(**(SMALL | config)))
    shaken(model)
    return model


@pytest.mark.parametrize("contract", OFFLINE, ids=lambda contract: contract.__name__)
def test_contract(contract):
    contract(First(small()))


def test_it_has_fewer_than_a_million_and_a_half_parameters():
    assert sum(p.numel() for p in build("separate-fast").parameters()) < 1_500_000


@torch.no_grad()
@pytest.mark.parametrize("speakers", [2, 3])
def test_the_voices_add_up_to_the_mixture(speakers):
    x = noise(2, 9_001)
    voices = small(speakers=speakers)(x)
    assert voices.shape == (2, speakers, 9_001)
    assert (voices[:, 0] - voices[:, 1]).abs().max() > 1e-3  # not that each of them is a share of it
    torch.testing.assert_close(voices.sum(1), x, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_output_scales_with_the_input():
    model, x = small(), noise(1, 8_000)
    torch.testing.assert_close(model(1e-3 * x), 1e-3 * model(x), atol=1e-8, rtol=1e-3)


@torch.no_grad()
def test_every_output_hears_all_of_the_signal():
    model, x = small(), noise(1, 16_000)
    changed = x.clone()
    changed[:, 15_000] += 1.0
    moved = (model(changed) - model(x)).abs()[0, 0]
    assert moved[:1_000].max() > 1e-6


@torch.no_grad()
def test_the_masks_of_both_windows_meet_the_same_instant():
    """Constant masks of the longer window move a constant share of the signal from one voice to the other."""
    model, x = small(), noise(1, 8_000)
    for name, parameter in model.named_parameters():
        if name.startswith("head"):
            parameter.zero_()
    for head in model.head_long:
        shares = head.bias.view(2, -1, 2)  # (s, bins, real and imaginary)
        shares[0, :, 0], shares[1, :, 0] = 0.25, -0.25
    first, second = model(x)[0]
    inside = slice(1_024, -1_024)  # the first and last frames of the longer window have no mask
    torch.testing.assert_close(first[inside], 0.75 * x[0, inside])
    torch.testing.assert_close(second[inside], 0.25 * x[0, inside])


@torch.no_grad()
def test_the_longer_window_is_heard():
    model, x = small(), noise(1, 8_000)
    before = model(x)
    for encoder in model.encode_long:
        encoder.weight.zero_()
    assert (model(x) - before).abs().max() > 1e-3


def test_sections_must_cover_the_spectrum():
    with pytest.raises(ValueError, match=r"cover 192 bins: expected n_fft / 2 = 256"):
        SeparateFastConfig(sections=((2, 32), (8, 16)))


def test_the_windows_must_share_their_centres():
    with pytest.raises(ValueError, match="long=2: expected windows whose centres"):
        SeparateFastConfig(hop=512)


def test_it_learns_to_separate():
    """A low and a high tone, in a random order in each item."""
    torch.manual_seed(0)
    model = small().train()
    optimiser = Muon(parameter_groups(model, weight_decay=0.0), 2e-2, (0.9, 0.99))
    seconds = torch.arange(2_000) / 16_000
    reached = []
    for _ in range(60):
        pitch = torch.tensor([300.0, 1_500.0]) * (1 + 0.3 * torch.rand(4, 2))  # (b, s)
        voices = torch.sin(2 * torch.pi * pitch[..., None] * seconds)
        voices = torch.stack([voice[torch.randperm(2)] for voice in voices])
        loss = losses.permutation_invariant(losses.negative_snr, model(voices.sum(1)), voices).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        reached.append(-loss.item())
    assert sum(reached[:5]) / 5 < 4.5  # dB: half of the mixture each is 3
    assert sum(reached[-5:]) / 5 > 12
