"""extend-fast: what it leaves, what it adds, and that nothing but its input decides."""

import math

import pytest
import torch
from contracts import OFFLINE, noise
from torch import Tensor, nn

from clearstate.models import build
from clearstate.models.extend_fast import ExtendFast, ExtendFastConfig
from clearstate.models.parts.stft import measured_bandwidth

RATE = 48_000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = build("extend-fast", width=24, blocks=1, states=4).eval()
    with torch.no_grad():
        model.envelope.weight.mul_(5.0)  # so that something moves
    return model


class At8k(nn.Module):
    """The model told that every signal ends at 8 kHz, so that it has something to do."""

    causal = False

    def __init__(self, model: ExtendFast) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, bandwidth_hz=8_000.0)


def band(x: Tensor, low: float, high: float) -> Tensor:
    spectrum = torch.fft.rfft(x.double() * torch.hann_window(x.shape[-1], dtype=torch.float64))
    f = torch.fft.rfftfreq(x.shape[-1], 1 / RATE)
    return spectrum[..., (f >= low) & (f < high)]


def lowpassed(x: Tensor, hz: float) -> Tensor:
    spectrum = torch.fft.rfft(x)
    spectrum[..., int(hz / RATE * x.shape[-1]) :] = 0
    return torch.fft.irfft(spectrum, x.shape[-1])


@pytest.mark.parametrize("contract", OFFLINE, ids=lambda contract: contract.__name__)
def test_contract(model, contract):
    contract(At8k(model))


def test_it_has_fewer_than_a_million_parameters():
    assert sum(p.numel() for p in build("extend-fast").parameters()) < 1_000_000


@torch.no_grad()
@pytest.mark.parametrize("hz", [3_600.0, 8_000.0, 11_400.0])
def test_what_is_there_stays_and_the_rest_is_filled(model, hz):
    narrow = lowpassed(noise(1, RATE), hz)
    change = model(narrow, bandwidth_hz=hz) - narrow
    below = band(change, 0, hz - 300).abs().square().sum()
    above = band(change, hz + 300, 21_000).abs().square().sum()
    assert above > 0 and 10 * math.log10(below / above) < -35  # the frames' window is a root: its skirts are wide


@torch.no_grad()
def test_the_bandwidth_is_measured_when_it_is_not_told(model):
    narrow = lowpassed(noise(2, RATE), 8_000.0)
    found = measured_bandwidth(narrow, RATE)
    assert ((found > 7_500) & (found < 8_000)).all()
    assert torch.equal(model(narrow), model(narrow, bandwidth_hz=found))


@torch.no_grad()
def test_a_whole_signal_comes_back_as_it_is(model):
    wide = noise(1, RATE)
    torch.testing.assert_close(model(wide), wide, rtol=0, atol=0)


@torch.no_grad()
def test_items_of_a_batch_have_bandwidths_of_their_own(model):
    x = noise(2, 20_000)
    together = model(x, bandwidth_hz=torch.tensor([4_000.0, 12_000.0]))
    torch.testing.assert_close(together[1:], model(x[1:], bandwidth_hz=12_000.0), rtol=1e-4, atol=1e-6)
    assert (together[:1] - model(x[:1], bandwidth_hz=12_000.0)).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("gain", [1e-4, 30.0])
def test_the_output_scales_with_the_input(model, gain):
    x = noise(1, 20_000)
    expected = gain * model(x, bandwidth_hz=8_000.0)
    torch.testing.assert_close(model(gain * x, bandwidth_hz=8_000.0), expected, rtol=1e-3, atol=1e-5 * gain)


@torch.no_grad()
@pytest.mark.parametrize("hop", [256, 512])
@pytest.mark.parametrize("hz, expected", [(7_000.0, 9_000.0), (5_000.0, 11_000.0)])
def test_a_tone_is_mirrored_to_a_steady_tone(hop, hz, expected):
    """With the rotation from frame to frame wrong, the energy would scatter to the multiples of the frame rate."""
    model = ExtendFast(ExtendFastConfig(width=8, blocks=1, hop=hop))
    t = torch.arange(RATE) / RATE
    from clearstate.models.parts.stft import dual_window, istft, stft

    top = model.first_missing(torch.zeros(1, 1), 8_000.0)
    spec = stft(torch.sin(2 * torch.pi * hz * t)[None], model.window, hop)
    texture, _ = model.texture(spec, top)
    edge = (top - 1.5) / 512 * 24_000  # bins k and s are mirrored about it
    texture[:, :, : int(top)] = 0
    texture[:, :, int((expected + 1_000) / 24_000 * 512) :] = 0  # the next copy
    y = istft(texture, dual_window(model.window, hop), hop, RATE)[0]
    power = band(y, 0, 24_000).abs().square()
    peak = int(power.argmax())
    assert peak == pytest.approx(2 * float(edge) - hz, abs=3)
    # White noise fills what lies between copies of a tone; a hop off, the peak itself falls apart.
    assert power[peak - 3 : peak + 4].sum() > 0.5 * power[peak - 100 : peak + 100].sum()


@torch.no_grad()
def test_above_the_ceiling_the_level_is_that_of_the_quiet_parts(model):
    level = torch.full((1, 300, 513), 1.0)
    level[:, 100:140] = 0.01
    filled = model.with_floor(level)
    assert torch.equal(filled[:, :, :469], level[:, :, :469])
    assert filled[:, 120, 480].item() == pytest.approx(0.01) and filled[:, 0, 500].item() == pytest.approx(0.01)
    assert filled[:, 299, 500].item() == pytest.approx(1.0)  # more than 1.5 s away


def test_every_parameter_learns():
    model = ExtendFast(ExtendFastConfig(width=16, blocks=1, dropout=0.0))
    model(noise(2, 24_000), bandwidth_hz=8_000.0).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    still = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert not still, still
