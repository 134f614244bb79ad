"""SAF: sizes to the digit, each part against its definition, look-ahead to the frame, streams equal to files."""

from pathlib import Path

import pytest
import torch
from contracts import CAUSAL, OFFLINE, any_chunking_gives_the_offline_output, noise
from doubles import shaken
from torch.nn import functional as F

from clearstate.models import build
from clearstate.models.saf import (
    SAF,
    BandAttention,
    Context,
    Conv,
    ConvolutionalAttention,
    SAFConfig,
    SelfAttention,
    TCNBlock,
    rms,
    shifted,
)
from clearstate.train.losses import negative_si_sdr
from clearstate.train.objective import Objective
from clearstate.train.recipe import load_recipe

QUICK = {"n_fft": 128, "hop": 64}  # a quarter of the bands: where they are of no matter
SMALL = {"channels": 8, "layers": 2, "heads": 2, "kernel": 5, "hidden": 12, "dilations": (1, 2, 4)}


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"n_fft": 400, "hop": 100}, {"causal": True}])
def test_parameters_of_each_part(values):
    model = build("saf", **values)
    assert parameters(model) == 583_987  # the paper: 0.58 M
    assert parameters(model.polar) == parameters(model.cartesian) == 16_768
    assert parameters(model.join) + parameters(model.join_norm) == 8_384
    assert [parameters(layer) for layer in model.layers] == [125_836] * 4
    layer = model.layers[0]
    assert [parameters(part) for part in (layer.convolutional, layer.local, layer.tcn)] == [20_416, 16_780, 88_640]
    assert (parameters(model.mask), parameters(model.bias)) == (19_073, 19_650)


@pytest.mark.parametrize(
    "values, more",
    [({"phase": "cossin"}, 576), ({"phase": "none"}, -2 * 576), ({"kernel": 7}, -4 * 64 * (121 - 49)),
     ({"bands": 5}, 32), ({"attention": "self"}, 4 * (64 * 64 + 64 - 64 * 122)), ({"bias": False}, -19_650),
     ({"norm": "group"}, 0)],
)  # fmt: skip
def test_parameters_of_the_ablations(values, more):
    assert parameters(build("saf", **values)) == 583_987 + more


# --- contracts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["offline", "causal", "causal-400-100"])
def small(request):
    torch.manual_seed(1)
    transform = {"n_fft": 400, "hop": 100} if request.param.endswith("100") else QUICK
    return shaken(SAF(SAFConfig(**SMALL, **transform, causal=request.param != "offline")))


@pytest.mark.parametrize("contract", OFFLINE + CAUSAL, ids=lambda contract: contract.__name__)
def test_contract(small, contract):
    if contract in CAUSAL and not small.causal:
        pytest.skip("not causal")
    contract(small)


def test_a_stream_whose_state_is_dropped_differs():
    model = shaken(SAF(SAFConfig(**SMALL, causal=True)))
    with pytest.raises(AssertionError):
        any_chunking_gives_the_offline_output(model, carry=False)


def test_the_real_thing_streams_with_the_offline_output():
    model = shaken(build("saf-causal"), 0.01)
    assert model.latency + model.hop == 512  # samples at 16 kHz: 32 ms
    x = noise(1, 6 * model.hop)
    with torch.no_grad():
        offline, state, out = model(x), model.init_state(1), []
        for piece in x.split([model.hop, 3 * model.hop, 2 * model.hop], dim=-1):
            y, state = model.step(piece, state)
            out.append(y)
    streamed = torch.cat(out, dim=-1)[:, model.latency :]
    torch.testing.assert_close(streamed, offline[:, : streamed.shape[1]], atol=1e-5, rtol=1e-4)


def test_the_model_that_looks_ahead_says_so_when_it_is_asked_to_stream():
    model = SAF(SAFConfig(**SMALL))
    with pytest.raises(ValueError, match="saf-causal"):
        model.step(torch.zeros(1, model.hop), model.init_state(1))


# --- the whole -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["saf", "saf-causal"])
@pytest.mark.parametrize("transform", [{}, {"n_fft": 400, "hop": 100}], ids=["512-256", "400-100"])
def test_a_fresh_model_is_near_transparent(name, transform):
    """257 bins -> 129 bands -> 258 -> 257, and 201 -> 101 -> 202 -> 201: neither loses or shifts a bin."""
    x = noise(2, 2_321)
    y = build(name, **transform).eval()(x)
    assert y.shape == x.shape
    change = 20 * torch.log10(rms(y) / rms(x))
    assert (change.abs() < 2).all(), f"the level changes by {change.flatten().tolist()} dB"
    assert (negative_si_sdr(y, x) < -15).all()


@torch.no_grad()
@pytest.mark.parametrize("causal, gain_db", [(False, -60.0), (False, 30.0), (True, -30.0), (True, 30.0)])
def test_the_output_scales_with_the_input(causal, gain_db):
    model = shaken(SAF(SAFConfig(**SMALL, causal=causal)))
    x, gain = noise(1, 8_000, 0.1), 10 ** (gain_db / 20)
    scaled = model(gain * x) / gain
    torch.testing.assert_close(scaled, model(x), atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_a_block_with_the_level_of_its_signal_is_that_part_of_the_whole():
    """But for the frames within reach of its ends; with its own level it is another signal."""
    model = shaken(SAF(SAFConfig(**{**SMALL, "layers": 1})))
    x = noise(1, 60 * 256)
    block = x[:, 5 * 256 : 55 * 256]  # 20 frames of context are needed
    known = model.overview(x[:, None], 1 / rms(x))
    whole, part = model(x)[:, 28 * 256 : 32 * 256], slice(23 * 256, 27 * 256)
    torch.testing.assert_close(model(block, known)[:, part], whole, atol=1e-6, rtol=1e-4)
    assert (model(block)[:, part] - whole).abs().max() > 1e-5


@torch.no_grad()
def test_digital_silence_before_the_signal_does_not_change_its_level():
    model = shaken(SAF(SAFConfig(**SMALL, causal=True)))
    x = noise(1, 8_000)
    late = model(torch.cat([torch.zeros(1, 40 * model.hop), x], dim=-1))
    assert not late[:, : 38 * model.hop].any()
    assert 0.5 < late[:, 40 * model.hop :].norm() / model(x).norm() < 2


@torch.no_grad()
def test_mask_and_bias_make_the_spectrum_as_drawn():
    """With the decoders held at constants, Y_c = M X_c + B; and a bias turns the phase, which no mask can."""
    model = SAF(SAFConfig(**SMALL)).eval()
    for decoder, value in ((model.mask, [0.7]), (model.bias, [0.2, -0.4])):
        decoder.leave.weight.zero_()
        decoder.leave.bias.copy_(torch.tensor(value))
    spec = torch.complex(torch.randn(1, 4, 257), torch.randn(1, 4, 257))
    compressed = spec.abs() ** 0.3 * torch.exp(1j * spec.angle())
    expected = torch.sigmoid(torch.tensor(0.7)) * compressed + (0.2 - 0.4j)
    expected = expected.abs() ** (1 / 0.3) * torch.exp(1j * expected.angle())
    y = model.enhance_spectrum(spec, Context())
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    assert (y.angle() - spec.angle()).abs().max() > 0.1


def test_the_published_size_looks_155_frames_to_each_side_or_none_ahead():
    for causal in (False, True):
        model = SAF(SAFConfig(causal=causal))
        path = [model.polar, *model.layers, model.mask]
        reach = sum(conv.reach for part in path for conv in part.modules() if isinstance(conv, Conv))
        assert reach == 2 * 155


@pytest.mark.parametrize("causal", [False, True])
def test_an_output_hears_exactly_the_frames_within_reach(causal):
    model = SAF(SAFConfig(**{**SMALL, "layers": 1, "dilations": (1, 2)}, causal=causal)).double()
    shaken(model, 0.1)
    path = [model.polar, model.layers[0], model.mask]
    reach = sum(conv.reach for part in path for conv in part.modules() if isinstance(conv, Conv))
    back, ahead = (reach, 0) if causal else (reach // 2, reach // 2)
    frames, at = 2 * reach + 9, reach + 4
    spec = torch.randn(1, frames, 257, dtype=torch.complex128, requires_grad=True)
    context = Context(tuple(s.double() for s in model.init_state(1).frames) if causal else None)
    (gradient,) = torch.autograd.grad(model.enhance_spectrum(spec, context)[0, at].abs().sum(), spec)
    heard = gradient[0].abs().sum(-1) > 0
    assert heard.nonzero()[0] == at - back
    assert heard.nonzero()[-1] == at + ahead


def test_every_parameter_learns():
    for values in ({}, {"causal": True, "phase": "cossin", "norm": "rms"}):
        model = shaken(SAF(SAFConfig(**SMALL, **QUICK, **values)))
        model(noise(2, 1_000)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_small_one_can_learn_four_signals_by_heart():
    torch.manual_seed(0)
    time = torch.arange(800) / 16_000
    clean = torch.stack([torch.sin(2 * torch.pi * f * time * (1 + 0.2 * time)) for f in (220.0, 370.0, 510.0, 930.0)])
    noisy = clean + 0.7 * torch.randn(clean.shape)
    model = SAF(SAFConfig(**{**SMALL, **QUICK, "channels": 12, "hidden": 16, "kernel": 3, "layers": 1}))
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    before = negative_si_sdr(model(noisy), clean).mean()
    for step in range(70):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 80)
        loss = (model(noisy) - clean).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    after = negative_si_sdr(model(noisy), clean).mean()
    assert before > -4 and after < -18, f"SI-SDR from {-before:.1f} to {-after:.1f} dB"


def test_the_recipe_has_the_published_optimiser_and_a_loss_that_reaches_the_model():
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "saf.yaml")
    assert (recipe.model.name, recipe.optimiser.lr, recipe.optimiser.betas) == ("saf", 5e-4, (0.95, 0.999))
    model, clean = SAF(SAFConfig(**SMALL)), noise(2, 4_000, seed=4)
    noisy = clean + noise(2, 4_000, seed=5)
    judged = Objective(recipe.loss)(model(noisy), clean, noisy)
    judged.total.backward()
    assert set(judged.terms) == {"magnitude", "complex", "l1"}
    assert model.mask.leave.weight.grad.any() and model.bias.leave.weight.grad.any()


# --- the parts -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("bands, k", [(3, 9), (5, 9), (3, 1), (7, 2)])
def test_band_attention_is_attention_under_a_banded_mask(bands, k):
    """Against the whole k x k matrix of scores, with everything beyond the neighbours at minus infinity."""
    attention = shaken(BandAttention(SAFConfig(channels=8, heads=2, bands=bands)), 0.5)
    x = torch.randn(2, 3, k, 8)
    q, key, value = attention.qkv(attention.norm(x)).view(2, 3, k, 3, 2, 4).permute(3, 0, 1, 4, 2, 5)
    distance = torch.arange(k) - torch.arange(k)[:, None]  # (query, key)
    near = distance.abs() <= bands // 2
    offset = attention.offset[:, (distance + bands // 2).clamp(0, bands - 1)]  # (heads, query, key)
    scores = (q @ key.mT / 2 + offset).masked_fill(~near, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(2, 3).reshape(2, 3, k, 8)
    torch.testing.assert_close(attention(x), x + attention.out(expected), atol=1e-5, rtol=1e-4)


def test_shifted_bands_leave_zeros_behind():
    x = torch.arange(1.0, 5)[None, None, :, None]
    assert shifted(x, 1).flatten().tolist() == [2, 3, 4, 0]
    assert shifted(x, -2).flatten().tolist() == [0, 0, 1, 2]
    assert not shifted(x, 4).any()


@torch.no_grad()
def test_each_head_of_the_convolutional_attention_weighs_by_itself():
    """Weights are divided by their RMS in a head: one head ten times louder changes nothing, one channel does."""
    attention = shaken(ConvolutionalAttention(SAFConfig(channels=8, heads=2, kernel=3), bands=6), 0.3)
    x = torch.randn(1, 5, 6, 8)
    before = attention(x, Context())
    for scaled, same in ((slice(0, 4), True), (slice(0, 1), False)):
        attention.spread.weight[scaled] *= 10
        attention.spread.bias[scaled] *= 10
        assert torch.allclose(attention(x, Context()), before, atol=1e-4) is same


@torch.no_grad()
def test_convolutional_attention_is_its_formula():
    attention = shaken(ConvolutionalAttention(SAFConfig(channels=4, heads=2, kernel=3), bands=6), 0.3)
    x = torch.randn(1, 5, 6, 4)
    normed = F.layer_norm(x, (4,), attention.norm.weight, attention.norm.bias)
    a = F.gelu(attention.enter(normed)).permute(0, 3, 1, 2)
    a = F.conv2d(a, attention.spread.weight, attention.spread.bias, padding=1, groups=4).permute(0, 2, 3, 1)
    for head in (slice(0, 2), slice(2, 4)):
        a[..., head] /= a[..., head].square().mean(-1, keepdim=True).sqrt()
    expected = x + attention.out(a * attention.value(normed))
    torch.testing.assert_close(attention(x, Context()), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_a_tcn_block_hears_three_frames_of_its_own_band(causal):
    block = shaken(TCNBlock(SAFConfig(channels=4, hidden=6), dilation=4, bands=5), 0.3)
    x = torch.randn(1, 20, 5, 4)
    changed = x.clone()
    changed[0, 10, 2] += torch.randn(4)

    def run(x):
        return block(x, Context((torch.zeros(1, 8, 5, 6),) if causal else None))

    where = (run(changed) - run(x))[0].abs().sum(-1).nonzero().tolist()
    assert where == [[t, 2] for t in ((10, 14, 18) if causal else (6, 10, 14))]


# --- options ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "values",
    [{"kernel": 3}, {"kernel": 15}, {"bands": 1}, {"bands": 7}, {"norm": "rms"}, {"norm": "batch"}, {"norm": "group"},
     {"phase": "none"}, {"phase": "cossin"}, {"heads": 1}, {"attention": "self"}, {"bias": False}],
    ids=str,
)  # fmt: skip
def test_each_ablation_runs_and_differs(values, causal):
    torch.manual_seed(2)
    plain = shaken(SAF(SAFConfig(**SMALL, **QUICK, causal=causal)))
    torch.manual_seed(2)
    other = shaken(SAF(SAFConfig(**{**SMALL, **QUICK, **values}, causal=causal)))
    x = noise(1, 1_000)
    y = other(x)
    assert y.shape == x.shape and y.isfinite().all()
    assert (y - plain(x)).abs().max() > 1e-5
    if causal:
        any_chunking_gives_the_offline_output(other)


@torch.no_grad()
def test_the_phase_enters_as_it_is_configured():
    spec = torch.polar(torch.full((1, 1, 257), 2.0), torch.full((1, 1, 257), torch.pi / 3))
    for phase, beside in (("angle", [1 / 3]), ("cossin", [0.5, 3**0.5 / 2]), ("none", [])):
        found = SAF(SAFConfig(**SMALL, phase=phase)).polar_input(spec)[0, 0, 0]
        torch.testing.assert_close(found, torch.tensor([2**0.3, *beside]))


@torch.no_grad()
def test_without_phase_neither_stream_knows_the_phase():
    magnitude = torch.rand(1, 6, 65) + 0.1
    turned = [torch.polar(magnitude, torch.rand(1, 6, 65) * angle) for angle in (0.0, 6.0)]
    masks = {}
    for phase in ("none", "angle"):
        torch.manual_seed(3)
        model = shaken(SAF(SAFConfig(**SMALL, **QUICK, phase=phase, bias=False)))
        masks[phase] = [model.enhance_spectrum(spec, Context()).abs() for spec in turned]
    torch.testing.assert_close(*masks["none"], atol=1e-5, rtol=1e-4)
    assert (masks["angle"][0] - masks["angle"][1]).abs().max() > 1e-3


@torch.no_grad()
def test_self_attention_is_that_of_the_bands_of_a_frame():
    torch.manual_seed(4)
    attention = shaken(SelfAttention(SAFConfig(**SMALL)))
    x = noise(2 * 3 * 7, 8).view(2, 3, 7, 8)
    y = attention(x, Context())
    q, key, value = attention.qkv(attention.norm(x)).view(2, 3, 7, 3, 2, 4).permute(3, 0, 1, 4, 2, 5)
    weights = (q @ key.mT / 2).softmax(-1)  # the root of four channels a head
    expected = x + attention.out((weights @ value).transpose(2, 3).flatten(-2))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_group_norm_sees_the_channels_of_one_bin():
    torch.manual_seed(5)
    model = shaken(SAF(SAFConfig(**SMALL, norm="group")))
    x = noise(2 * 3 * 7, 8).view(2, 3, 7, 8)
    y = model.join_norm(x).view(2, 3, 7, 2, 4)
    parts = x.view(2, 3, 7, 2, 4)
    normed = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    weight, bias = (p.view(2, 4) for p in (model.join_norm.weight, model.join_norm.bias))
    torch.testing.assert_close(y, normed * weight + bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "values, words",
    [({"kernel": 4}, "kernel=4: expected an odd"), ({"bands": 2}, "bands=2"), ({"heads": 3}, "heads=3"),
     ({"hop": 100}, "n_fft=512 is not a multiple of hop=100")],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        build("saf", **values)
