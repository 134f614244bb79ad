"""Multiply-accumulates against counts made by hand, and against the layers that hooks do not see."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from clearstate.metrics.cost import cost, mixer_macs
from clearstate.models import build
from clearstate.ssm import Mamba

FRAMES, WIDTH = 400, 40  # of one second


class Around(nn.Module):
    """16 kHz audio as 400 frames of 40 numbers a second, through one layer."""

    sample_rate = 16_000

    def __init__(self, layer: nn.Module, call=lambda layer, x: layer(x)) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.layer, x.view(x.shape[0], -1, WIDTH))
        return y[0] if isinstance(y, tuple) else y


def weights(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if "weight" in name)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(WIDTH, 70),
        nn.LSTM(WIDTH, 30, 2, batch_first=True),
        nn.GRU(WIDTH, 30, batch_first=True),
        nn.LSTM(WIDTH, 20, bidirectional=True, batch_first=True),
    ],
    ids=["linear", "lstm", "gru", "bidirectional"],
)
@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_a_layer_uses_each_weight_once_a_frame(layer, seconds):
    counted = cost(Around(layer), seconds)
    assert counted.macs == FRAMES * weights(layer)
    assert counted.parameters == sum(p.numel() for p in layer.parameters())


def test_a_convolution_counts_taps_channels_and_places():
    layer = nn.Conv1d(WIDTH, 12, 5, padding=2)
    counted = cost(Around(layer, lambda conv, x: conv(x.transpose(1, 2))), 1.0)
    assert counted.parts == {"convolution": FRAMES * WIDTH * 12 * 5}


def test_attention_grows_with_the_square_of_the_length():
    def attend(_, x):
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])

    one, two = (cost(Around(nn.Linear(1, 1), attend), seconds) for seconds in (1.0, 2.0))
    assert one.parts == {"attention": 2 * FRAMES**2 * WIDTH}
    assert two.macs == 2 * one.macs  # a second; four times as many in all


def test_an_fft_is_five_halves_n_log_n_flops():
    def there_and_back(_, x):
        return torch.fft.irfft(torch.fft.rfft(F.pad(x, (0, 24))))

    counted = cost(Around(nn.Linear(1, 1), there_and_back), 1.0)
    assert counted.parts["fft"] == pytest.approx(2 * FRAMES * 1.25 * 64 * math.log2(64), rel=0.04)  # 33 bins for 32


@pytest.mark.parametrize("reverse", [False, True])
def test_a_mamba_mixer_is_counted_whole(reverse):
    """The projections as PyTorch's counter sees them, and the convolution and the scan, which it does not."""
    mixer = Mamba(WIDTH, d_state=16, expand=2, reverse=reverse)
    counted = cost(Around(mixer), 1.0)
    d, n, k = 80, 16, 4
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        mixer.in_proj(torch.randn(1, FRAMES, WIDTH))
        mixer.x_proj(torch.randn(1, FRAMES, d))
        F.linear(torch.randn(1, FRAMES, 3), mixer.dt_proj.weight)
        mixer.out_proj(torch.randn(1, FRAMES, d))
    assert counted.parts["matrix"] == seen.get_total_flops() / 2
    assert counted.parts["convolution"] == FRAMES * d * k
    assert counted.parts["scan"] == FRAMES * (4 * d * n + 3 * d)
    assert counted.macs == FRAMES * sum(mixer_macs(mixer).values())


def test_counting_leaves_the_model_as_it_was():
    model = build("live").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = cost(model, 0.5), cost(model, 0.5)
    assert first == second
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_default_model_costs_at_least_its_weights_a_frame():
    model = build("live")
    counted = cost(model, 1.0)
    assert {"scan", "fft", "matrix", "convolution"} <= set(counted.parts)
    assert counted.macs > weights(model) * model.sample_rate / model.hop


def test_semamba_costs_what_a_whole_count_by_hand_gives():
    """88.1 GMAC for 2 s (321 frames), with three products a channel and state in the scan instead of four, no FFTs.

    The paper's count by hooks on layers has 65.46 G.
    """
    counted = cost(build("semamba-advanced"), 0.5)  # 81 frames
    by_hand = counted.macs - counted.parts["scan"] / 4 - counted.parts["fft"]
    assert by_hand * 0.5 / 81 == pytest.approx(88.1e9 / 321, rel=0.01)


@pytest.mark.parametrize(("name", "printed"), [("s4m-tiny", 8.0e9), ("s4m", 38.4e9)])
def test_s4m_costs_what_its_paper_prints(name, printed):
    """Products and convolutions; the paper's count leaves out the FFTs of the S4 layers, ours shows them apart."""
    parts = cost(build(name), 0.5).parts
    assert parts["matrix"] + parts["convolution"] == pytest.approx(printed, rel=0.02)


def test_the_list_of_models_shows_the_count():
    from clearstate.cli.models import describe

    row = describe("live", cost=True)
    assert row["macs_per_second"] == pytest.approx(sum(row["macs_by_kind"].values()))
    assert "macs_per_second" not in describe("live")
