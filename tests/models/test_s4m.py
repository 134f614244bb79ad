"""S4M: the published ledgers, every length, every contract, compat's slip, and that it learns to separate."""

import pytest
import torch
from contracts import CAUSAL, OFFLINE, noise
from doubles import First

from clearstate.metrics.cost import cost
from clearstate.models import build
from clearstate.models.s4m import S4M, S4MConfig
from clearstate.train import losses

SMALL = {"sample_rate": 16_000, "window_ms": 4.0, "channels": 16, "hidden": 32, "passes": 3}


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def small(**config) -> S4M:
    torch.manual_seed(5)
    model = S4M(S4MConfig(**(SMALL | config))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("every_scale", [False, True])
@pytest.mark.parametrize("contract", OFFLINE, ids=lambda contract: contract.__name__)
def test_contract(contract, every_scale):
    contract(First(small(every_scale=every_scale)))


@pytest.mark.parametrize("every_scale", [False, True])
@pytest.mark.parametrize("contract", OFFLINE + CAUSAL, ids=lambda contract: contract.__name__)
def test_contract_of_the_causal_form(contract, every_scale):
    contract(First(small(causal=True, every_scale=every_scale)))


@pytest.mark.parametrize(
    "config, published",
    [
        ({}, 1_843_319),
        ({"sample_rate": 16_000}, 1_848_423),
        ({"every_scale": True, "expansion": 1}, 3_591_799),
        ({"every_scale": True, "expansion": 1, "sample_rate": 16_000}, 3_596_903),
    ],
)
def test_the_published_ledgers(config, published):
    """Parameters of S4M-tiny and S4M; S4D has 8,192 fewer in each S4 layer, the rank-one part."""
    layers = 5 if config.get("every_scale") else 1
    assert parameters(S4M(S4MConfig(ssm="dplr", **config))) == published
    assert parameters(S4M(S4MConfig(**config))) == published - 8_192 * layers


def test_the_ledger_by_part():
    """Section by section: what the totals above are made of."""
    model = S4M(S4MConfig(ssm="dplr"))
    block = model.block
    counts = {
        "encoder": model.encode.numel(),
        "bottleneck": parameters(model.norm) + parameters(model.bottleneck),
        "again": model.again.numel() + model.again_bias.numel() + model.again_slope.numel(),
        "head": parameters(model.head) + model.head_slope.numel(),
        "decoder": model.decode.numel(),
        "widen": parameters(block.widen) + parameters(block.widen_norm) + block.slope.numel(),
        "down": parameters(block.down) + parameters(block.down_norm),
        "s4": parameters(block.remember),
        "feed_forward": parameters(block.feed_forward),
        "fuse": parameters(block.fuse),
        "merge": parameters(block.merge),
        "narrow": parameters(block.narrow),
    }
    assert counts == {
        "encoder": 144, "bottleneck": 1_298, "again": 257, "head": 2_323, "decoder": 576, "widen": 67_073,
        "down": 5 * 4_096, "s4": 568_320, "feed_forward": 1_051_136, "fuse": 5 * 4_608, "merge": 4 * 10_752,
        "narrow": 65_664,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, count, rate",
    [
        ("s4m", 3_591_799, 8_000),
        ("s4m-tiny", 1_843_319, 8_000),
        ("s4m-tiny-4ms", 1_854_279, 16_000),
        ("s4m-causal", 1_846_087, 16_000),
    ],
)
def test_presets(name, count, rate):
    model = build(name)
    assert (parameters(model), model.sample_rate, model.causal) == (count, rate, name == "s4m-causal")


@pytest.mark.parametrize("full, published", [(False, 7.86e9), (True, 38.27e9)])
def test_the_published_work(full, published):
    """Multiply-accumulates a second of the 16 passes at 8 kHz, convolutions alone, as the published tables count."""
    macs = []
    for passes in (1, 2):  # what is done once a forward (kernels, filter bank) falls out of the difference
        model = S4M(S4MConfig(passes=passes, every_scale=full, expansion=1 if full else 2))
        parts = cost(model, seconds=0.5).parts
        macs.append(parts["matrix"] + parts["convolution"])
    assert 16 * (macs[1] - macs[0]) == pytest.approx(published, rel=0.02)  # whole frames of the coarsest scale


@torch.no_grad()
def test_length_in_is_length_out_for_every_length():
    model = small(passes=1)
    for samples in (*range(1, 300), *range(300, 5_001, 47)):
        assert model(torch.randn(1, samples)).shape == (1, 2, samples)


@pytest.mark.parametrize("speakers", [1, 2, 3])
def test_as_many_outputs_as_speakers(speakers):
    assert small(speakers=speakers)(torch.randn(2, 999)).shape == (2, speakers, 999)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_the_outputs_scale_with_the_input(causal):
    model, x = small(causal=causal), noise(1, 8_000)
    for gain in (0.01, 30.0):
        torch.testing.assert_close(model(gain * x) / gain, model(x), atol=1e-5, rtol=1e-3)


def test_every_parameter_gets_a_gradient():
    model = small(every_scale=True)
    model(torch.randn(1, 2_000)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_compat_never_hears_the_coarsest_fusion():
    """The published slip: the top-down path starts from a finer neighbour, and one layer learns nothing."""
    model = small(compat=True)
    model(torch.randn(1, 2_000)).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == {name for name, _ in model.named_parameters() if name.startswith("block.fuse.4.")}
    fixed = small()
    fixed.load_state_dict(model.state_dict())
    x = noise(1, 4_000)
    assert (fixed(x) - model(x)).abs().max() > 1e-3


def test_recomputing_changes_the_memory_not_the_gradient():
    x, gradients = torch.randn(2, 3_000), []
    for recompute in (False, True):
        model = small(recompute=recompute).train()
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_kernels_are_made_once_a_forward(monkeypatch):
    model, made = small(passes=5, every_scale=True), []
    for i in range(5):
        s4 = model.block.memory(i).s4
        monkeypatch.setattr(s4, "kernel", lambda length, kernel=s4.kernel: made.append(length) or kernel(length))
    model(torch.randn(1, 4_000))
    assert len(made) == 5


@torch.no_grad()
def test_the_overlap_add_inverts_the_frames():
    """With a filter bank that copies and a decoder that copies a quarter back, masks of one give the input."""
    model = small()
    k, hop = model.config.window, model.frame_hop
    x = torch.randn(1, 50 * hop + k)
    pieces = x.unfold(-1, k, hop)[:, :, None] / 4  # (b, l, 1, k): each sample lies in four frames
    y, tail = model.overlap_add(pieces)
    inner = slice(k, 50 * hop)
    torch.testing.assert_close(y[0, 0, inner], x[0, inner])
    assert tail.shape[-1] == k - hop


@pytest.mark.parametrize(
    "wrong, remedy",
    [
        ({"window_ms": 0.3}, "window"),
        ({"ssm": "s5"}, "expected one of"),
        ({"passes": 0}, "at least"),
        ({"compat": True, "causal": True}, "compat"),
    ],
)
def test_impossible_configurations_are_refused(wrong, remedy):
    with pytest.raises(ValueError, match=remedy):
        S4MConfig(**wrong)


def test_a_model_that_hears_the_future_refuses_to_stream():
    model = small()
    with pytest.raises(ValueError, match="s4m-causal"):
        model.step(torch.zeros(1, model.hop), model.init_state(1))


def synthetic_speakers(batch: int, samples: int, generator) -> torch.Tensor:
    """Two voices (b, 2, n) at 8 kHz: harmonics of a low and of a high gliding pitch, in syllables, a formant each."""
    t = torch.arange(samples) / 8_000
    voices = []
    for low, high, formant in ((90, 130, 500), (220, 300, 2_200)):
        pitch = low + (high - low) * torch.rand(batch, 1, generator=generator)
        glide = 1 + 0.1 * torch.sin(2 * torch.pi * (1 + 2 * torch.rand(batch, 1, generator=generator)) * t)
        phase = 2 * torch.pi * torch.cumsum(pitch * glide, -1) / 8_000
        harmonics = torch.arange(1, 12)
        gains = torch.exp(-(((harmonics * (low + high) / 2 - formant) / 700) ** 2)) + 0.05
        voice = (gains[:, None, None] * torch.sin(harmonics[:, None, None] * phase)).sum(0)
        offset = 6 * torch.rand(batch, 1, generator=generator)
        voice = voice * (torch.sin(2 * torch.pi * 3 * t + offset) + 0.3).clamp(min=0)
        voices.append(voice / voice.std(-1, keepdim=True))
    return torch.stack(voices, 1)


def test_it_learns_to_separate_two_synthetic_speakers():
    """Disjoint pitches and formants; a few seconds of training must bring well over the 0 dB of the mixture."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = S4MConfig(window_ms=4.0, channels=32, hidden=48, scales=4, passes=2)
    model = S4M(config)
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(60):
        sources = synthetic_speakers(4, 4_000, generator)
        estimate = model(sources.sum(1))
        loss = losses.permutation_invariant(losses.negative_snr, estimate, sources).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    sources = synthetic_speakers(8, 8_000, generator)
    with torch.no_grad():
        mixture = sources.sum(1)
        after = losses.permutation_invariant(losses.negative_si_sdr, model(mixture), sources).loss
        before = losses.negative_si_sdr(mixture[:, None], sources).mean(1)
    assert float((before - after).mean()) > 6.0  # dB
