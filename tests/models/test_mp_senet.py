"""MP-SENet and its hybrid with Mamba: sizes to the digit, axes that are what they are called, memory linear in length.

That their published arrangement is one of ours is shown in `tests/models/test_convert_mp_senet.py`.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts import OFFLINE, noise
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clearstate.models import build, mp_senet
from clearstate.models.mp_senet import (
    MambaPair,
    MPSENet,
    MPSENetConfig,
    PastDenseBlock,
    TransformerBlock,
    TransformerPair,
    along,
)
from clearstate.models.parts import dense_codec as codec
from clearstate.ssm import use_backend
from clearstate.train.objective import Objective
from clearstate.train.plan import check_model
from clearstate.train.recipe import load_recipe

TINY = {"channels": 8, "hidden": 6, "heads": 2, "states": 4, "shared_blocks": 1}
QUICK = {**TINY, "n_fft": 128, "hop": 64}  # half the work: where bins and frames are of no matter
FORMS = {
    "mp-senet": {"n_fft": 400, "hop": 100},
    "hybrid": {"branch_blocks": 1},
    "hybrid-bin": {"branch_blocks": 1, "fusion": "bin", "order": "frequency_first", "kv_norm": "none"},
    "hybrid-time": {"branch_blocks": 1, "fusion": "time"},
    "small": {"branch_blocks": 1, "shared": "mamba", "one_mixer": True},
    "bidirectional": {"branch_blocks": 1, "shared": "mamba", "bidirectional": True},
}


def shaken(module, amount=0.1):
    """In eval mode, with no weight at a value that hides an error (zeros, gains of one)."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return module.eval()


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, total, tensors",
    [("mp-senet", 2_263_372, 247), ("mp-senet-mamba", 5_948_492, 731), ("mp-senet-mamba-small", 2_037_836, 255)],
)
def test_parameters_are_the_published_ones(name, total, tensors):
    with torch.device("meta"):
        model = build(name)
    assert parameters(model) == total
    assert len(model.state_dict()) == tensors


def test_parameters_of_each_part_of_the_hybrid():
    with torch.device("meta"):
        model = build("mp-senet-mamba")
    branches = model.branches
    assert parameters(model.encoder) == 259_712
    assert parameters(model.encoder.dense) == 246_784
    assert parameters(model.shared) == parameters(branches.phase) == 2_189_568
    assert parameters(model.shared[0]) == 364_928
    assert parameters(model.shared[0].time) == 182_464
    assert parameters(branches.magnitude) == 392_448
    assert parameters(branches.magnitude[0]) == 65_408
    assert parameters(branches.to_magnitude) + parameters(branches.to_phase) == 8_320
    assert parameters(branches.magnitude_hears) + parameters(branches.phase_hears) == 364_928
    assert (parameters(model.mask), parameters(model.phase)) == (272_010, 271_938)


@torch.no_grad()
def test_two_seconds_are_321_frames_of_201_bins_and_101_bands():
    model = MPSENet(MPSENetConfig(**TINY))
    spec = codec.centred_spectrum(noise(1, 32_000), model.window, 100)
    assert spec.shape == (1, 321, 201)
    assert model.encoder(model.features(spec)).shape == (1, 321, 101, 8)
    assert all(x.shape == (1, 321, 201) for x in model.estimate(spec))


# --- contracts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FORMS)
def small(request):
    torch.manual_seed(1)
    return shaken(MPSENet(MPSENetConfig(**{**QUICK, **FORMS[request.param]})), 0.05)


@pytest.mark.parametrize("contract", OFFLINE, ids=lambda contract: contract.__name__)
def test_contract(small, contract):
    contract(small)


@torch.no_grad()
def test_the_compiled_and_sliced_forms_are_the_plain_ones(small, monkeypatch):
    """Few frames and rows at a time, in place and compiled; against everything at once in plain PyTorch."""
    x = noise(2, 1_050)
    with use_backend("reference"):
        plain = small(x)
    monkeypatch.setattr(mp_senet, "FRAMES", 5)
    monkeypatch.setattr(along, "__kwdefaults__", {"steps": 300})
    for backend, tiled in (("auto", mp_senet.TILED), ("auto", 0), ("reference", 0)):
        monkeypatch.setattr(mp_senet, "TILED", tiled)
        with use_backend(backend):
            torch.testing.assert_close(small(x), plain, atol=2e-5, rtol=1e-3)


def test_every_parameter_that_can_learn_does(small):
    small.zero_grad()
    small(noise(2, 1_000)).square().sum().backward()
    c = small.config.channels
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if small.config.fusion == "bin" and "_hears." in name:
            continue  # most of a fusion of single bins has no influence: test_a_fusion_of_bins_attends_to_nothing
        if name.endswith("qkv.bias"):
            assert parameter.grad[:c].any() and parameter.grad[2 * c :].any(), name  # one for all keys shifts no weight
        else:
            assert parameter.grad.any(), name


@torch.no_grad()
def test_a_block_with_the_overview_of_its_signal_is_treated_as_part_of_it(small):
    """The overview of one piece that is the whole signal changes nothing; that of another signal does."""
    x = noise(2, 1_500)
    gain, y = codec.level_gain(x), small(x)
    own = small.overview(x[:, None], gain)
    torch.testing.assert_close(small(x, own), y, atol=1e-5, rtol=1e-3)
    other = small.overview(noise(2, 1_500, seed=9)[:, None].cumsum(-1), gain)
    assert (small(x, other) - y).abs().max() > 1e-4


@torch.no_grad()
def test_the_predicted_spectrum_is_that_of_the_output_before_synthesis(small):
    x = noise(1, 2_000)
    y, spec = small(x, with_spectrum=True)
    torch.testing.assert_close(y, small(x))
    again = codec.centred_waveform(spec, small.window, small.config.hop, 2_000)
    torch.testing.assert_close(again, y, atol=1e-6, rtol=1e-4)


# --- axes ------------------------------------------------------------------------------------------------------------


def changed_at(function, shape, t, k):
    """Where (frames, bands) the output of a function of (1, t, k, c) changes when bin (t, k) of its input does."""
    x = torch.randn(shape)
    changed = x.clone()
    changed[0, t, k] += torch.randn(shape[-1])  # not a constant: a layer norm would take it away
    with torch.no_grad():
        difference = (function(changed) - function(x)).abs()[0].amax(-1)
    return {tuple(place) for place in (difference > 1e-6).nonzero().tolist()}


def test_each_block_mixes_the_axis_it_is_named_after():
    block = shaken(TransformerBlock(MPSENetConfig(**TINY)))
    everywhere = {(t, k) for t in range(6) for k in range(5)}
    shape = (1, 6, 5, 8)
    assert changed_at(lambda x: along("time", block, x), shape, 3, 2) == {(t, k) for t, k in everywhere if k == 2}
    assert changed_at(lambda x: along("frequency", block, x), shape, 3, 2) == {(t, k) for t, k in everywhere if t == 3}
    assert changed_at(lambda x: along("bin", block, x), shape, 3, 2) == {(3, 2)}


@torch.no_grad()
def test_the_order_of_the_axes_is_the_configured_one():
    x = torch.randn(1, 6, 5, 8)
    for order, axes in (("time_first", ("time", "frequency")), ("frequency_first", ("frequency", "time"))):
        pair = shaken(TransformerPair(MPSENetConfig(**TINY, order=order)))
        expected = x
        for axis in axes:
            expected = expected + along(axis, getattr(pair, axis), expected)
        torch.testing.assert_close(pair(x), expected)


@pytest.mark.parametrize("one_mixer", [False, True])
def test_mamba_looks_back_in_time_and_down_in_frequency_unless_told_otherwise(one_mixer):
    everywhere = {(t, k) for t in range(7) for k in range(6)}
    pair = shaken(MambaPair(MPSENetConfig(**TINY, one_mixer=one_mixer)))
    assert changed_at(pair, (1, 7, 6, 8), 3, 2) == {(t, k) for t, k in everywhere if t >= 3 and k >= 2}
    both = shaken(MambaPair(MPSENetConfig(**TINY, one_mixer=one_mixer, bidirectional=True)))
    assert changed_at(both, (1, 7, 6, 8), 3, 2) == everywhere


@pytest.mark.parametrize(
    "fusion, heard",
    {
        "frequency": lambda t, k: t == 3,
        "time": lambda t, k: k == 2,
        "bin": lambda t, k: (t, k) == (3, 2),
    }.items(),
)
def test_fusion_hears_the_other_branch_over_its_axis(fusion, heard):
    """The other branch reaches this one over the axis: so its attention is no matter of single bins by default."""
    block, own = shaken(TransformerBlock(MPSENetConfig(**TINY))), torch.randn(1, 6, 5, 8)
    places = changed_at(lambda other: along(fusion, block, own, other), (1, 6, 5, 8), 3, 2)
    assert places == {(t, k) for t in range(6) for k in range(5) if heard(t, k)}


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["frequency", "bin"])
def test_a_fusion_of_bins_attends_to_nothing(fusion):
    """Over bands the query decides; over single bins, as published, query and key weights have no influence at all."""
    block = shaken(TransformerBlock(MPSENetConfig(**TINY, kv_norm="none")), 0.5)
    x, other = torch.randn(2, 1, 4, 5, 8)
    before = along(fusion, block, x, other)
    block.qkv.weight[:16] = torch.randn(16, 8)  # of query and key
    after = along(fusion, block, x, other)
    assert torch.allclose(before, after, atol=1e-6) is (fusion == "bin")


@torch.no_grad()
@pytest.mark.parametrize("kv_norm", ["shared", "none"])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_is_its_formula_and_its_norm_an_option(kv_norm, cross):
    block = shaken(TransformerBlock(MPSENetConfig(**TINY, kv_norm=kv_norm)), 0.3)
    x, other = torch.randn(2, 3, 5, 8)
    source = other if cross else x
    source = block.norm1(source) if kv_norm == "shared" else source
    matrices = zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), (block.norm1(x), source, source), strict=True)
    q, k, v = (F.linear(s, w, b).view(3, 5, 2, 4).transpose(1, 2) for w, b, s in matrices)
    attended = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(3, 5, 8)
    x1 = x + block.out(attended)
    expected = block.norm3(x1 + block.leave(F.leaky_relu(block.gru(block.norm2(x1))[0], 0.01)))
    torch.testing.assert_close(block(x, other if cross else None), expected, atol=1e-5, rtol=1e-4)


# --- the codec -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_dense_block_looks_15_frames_back_and_none_ahead():
    """As it is written: compiled, what lies ahead is heard as rounding, of products that several frames share."""
    block = shaken(PastDenseBlock(4))
    fixed = codec.Moments(torch.zeros(1, 4), torch.ones(1, 4))  # instance norms hear everything; held still here
    with use_backend("reference"):
        frames = sorted({t for t, _ in changed_at(lambda x: block(x, lambda _: fixed), (1, 40, 5, 4), 10, 2)})
    assert frames == list(range(10, 26))


@torch.no_grad()
def test_the_two_halves_of_the_decoder_s_channels_are_neighbouring_bins():
    model = MPSENet(MPSENetConfig(**TINY))
    x = torch.randn(1, 4, 101, 8)
    y = F.conv2d(F.pad(x.permute(0, 3, 1, 2), (1, 1)), model.mask.up.weight, model.mask.up.bias)
    model.mask.dense.forward = lambda x, _: x  # the decoder without its dense block
    z = torch.stack(y.chunk(2, 1), -1).flatten(3)  # (1, 8, 4, 202)
    z = F.prelu(F.instance_norm(z), torch.full((8,), 0.25))
    expected = 2 * torch.sigmoid(F.conv2d(z, model.mask.heads[0].weight, model.mask.heads[0].bias)[:, 0])
    torch.testing.assert_close(model.mask(x), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_mask_is_a_gain_and_a_silent_bin_has_phase_zero():
    model = shaken(MPSENet(MPSENetConfig(**TINY)))
    estimate = model.estimate(codec.centred_spectrum(noise(1, 8_000), model.window, 100))
    assert estimate.mask.min() > 0 and estimate.mask.max() < 2
    features = model.features(torch.zeros(1, 1, 201, dtype=torch.complex64))
    torch.testing.assert_close(features[0, 0, 0], torch.tensor([1e-9**0.15, 0.0]), atol=2e-5, rtol=0)


# --- memory ----------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """The most numbers that any operator returned in one tensor."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out


def largest(function, *args) -> int:
    with LargestTensor() as mode:
        function(*args)
    return mode.largest


@pytest.mark.parametrize("gradients", [False, True])
def test_memory_grows_with_the_length_and_not_with_its_square(gradients):
    model = shaken(MPSENet(MPSENetConfig(**{**QUICK, "channels": 4, "hidden": 2}, branch_blocks=1, fusion="time")))
    short, long = noise(1, 60 * 64), noise(1, 240 * 64)  # 61 and 241 frames
    with torch.set_grad_enabled(gradients):
        grown = largest(model, long) / largest(model, short)
    assert grown < 4.2, f"four times the length took {grown:.1f} times the memory"


def test_the_check_of_memory_sees_attention_that_holds_its_weights():
    def materialised(frames):
        q = torch.randn(10, frames, 4)
        return (q @ q.mT).softmax(-1) @ q

    assert largest(materialised, 320) / largest(materialised, 80) > 15


@torch.no_grad()
def test_in_pieces_a_longer_signal_takes_no_more_than_its_maps(monkeypatch):
    """Without gradients what lies beside the maps of a signal (b, t, f, c) is bounded: the GRU's, the convolutions'."""
    monkeypatch.setattr(mp_senet, "FRAMES", 16)
    monkeypatch.setattr(mp_senet, "TILED", 120)  # one frame less than there are
    monkeypatch.setattr(along, "__kwdefaults__", {"steps": 2_000})
    model = shaken(MPSENet(MPSENetConfig(**TINY)))
    assert largest(model, noise(1, 12_000)) == 121 * 202 * 8  # what the sub-pixel convolution returns


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mp-senet", "mp-senet-mamba"])
def test_under_the_loss_of_its_recipe_a_small_one_improves(name):
    """All terms but the discriminator's, whose tests are its own."""
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    assert recipe.model.name == name and recipe.loss.metric == 0.05
    torch.manual_seed(3)
    model = build(name, **{**QUICK, "branch_blocks": min(1, build_config(name).branch_blocks)})
    check_model(recipe, model)
    objective = Objective(replace(recipe.loss, metric=0.0), model)
    clean = noise(2, 1_600, seed=4).cumsum(-1)
    noisy = clean + noise(2, 1_600, 0.3, seed=5)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=recipe.optimiser.betas)
    found = []
    for _ in range(6):
        estimate, spectrum = model(noisy, with_spectrum=True)
        judged = objective(estimate, clean, noisy, predicted=spectrum)
        optimiser.zero_grad()
        judged.total.backward()
        optimiser.step()
        found.append(judged)
    assert set(found[0].terms) == {"magnitude", "phase", "complex", "consistency", "l1"}
    assert found[-1].total < 0.95 * found[0].total


def build_config(name):
    with torch.device("meta"):
        return build(name).config
