"""SEMamba in all its forms: sizes to the digit, the published arithmetic, streams equal files, fast equals slow."""

import pytest
import torch
from contracts import CAUSAL, OFFLINE, any_chunking_gives_the_offline_output, noise
from doubles import on_threads, shaken
from torch import nn
from torch.nn import functional as F

from clearstate.metrics.cost import cost
from clearstate.models import build
from clearstate.models.parts import dense_codec as codec
from clearstate.models.parts import dual_path as tf_mamba
from clearstate.models.parts.magnitude_phase import direction
from clearstate.models.semamba import SEMamba, SEMambaConfig
from clearstate.models.semamba_basic import SEMambaBasic, SEMambaBasicConfig
from clearstate.models.semamba_causal import SEMambaCausal, SEMambaCausalConfig
from clearstate.ssm import use_backend
from clearstate.ssm.scan import selective_scan_reference


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


QUICK = {"n_fft": 128, "hop": 64}  # half the work: where bins and frames are of no matter
SMALL = {
    "advanced": lambda: SEMamba(SEMambaConfig(channels=12, blocks=1)),
    "advanced-uni": lambda: SEMamba(SEMambaConfig(**QUICK, channels=12, blocks=1, core="unidirectional", expand=2)),
    "conformer": lambda: SEMamba(SEMambaConfig(**QUICK, channels=16, blocks=1, core="conformer")),
    "causal": lambda: SEMambaCausal(SEMambaCausalConfig(n_fft=128, hop=32, channels=12, blocks=2)),
    "basic-causal": lambda: SEMambaBasic(SEMambaBasicConfig(widths=(48, 32, 24, 32))),
    "basic": lambda: SEMambaBasic(SEMambaBasicConfig(widths=(48, 32, 24, 32), causal=False, expand=4)),
    "basic-mask": lambda: SEMambaBasic(SEMambaBasicConfig(widths=(48, 32, 24, 32), mask=True)),
    "basic-transformer": lambda: SEMambaBasic(
        SEMambaBasicConfig(widths=(48, 32, 24, 32), causal=False, core="transformer", layers=2)
    ),
}


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    torch.manual_seed(1)
    return shaken(SMALL[request.param]())


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, total",
    {
        "semamba-basic-causal": 3_604_864,
        "semamba-basic": 6_494_592,
        "semamba-basic-transformer": 9_047_424,
        "semamba-advanced": 2_258_769,
        "semamba-advanced-uni": 1_408_849,
        "semamba-causal-1": 1_045_324,
        "semamba-causal-2": 1_286_988,
        "semamba-causal-4": 1_770_316,
        "semamba-causal-8": 2_736_972,
    }.items(),
)
def test_parameters_are_the_published_ones(name, total):
    assert parameters(build(name)) == total


def test_parameters_of_each_part_of_the_advanced_network():
    model = build("semamba-advanced")
    assert len(model.state_dict()) == 265
    assert parameters(model.encoder) == 382_592
    assert [parameters(block) for block in model.blocks] == [277_888] * 4
    assert parameters(model.mask) == 382_287
    assert parameters(model.phase) == 382_338
    assert [parameters(layer) for layer in model.encoder.dense.layers] == [37_120, 73_984, 110_848, 147_712]
    assert parameters(build("semamba-advanced", core="conformer")) == 2_048_849  # the baseline of table 2


def test_the_conformer_costs_what_the_paper_printed():
    """74.29 G in 2 s, of which 1.03 are activations and norms, as in its figure for SEMamba: of the rest, a count by
    hooks does not see the products of attention and the projections around it, 4 c^2 a place."""
    parts = cost(build("semamba-advanced", core="conformer"), 0.5).parts
    places = 8 * 81 * 100 / 0.5  # blocks, frames, bands
    seen = parts["matrix"] + parts["convolution"] - places * 4 * 64**2
    assert seen * 0.5 / 81 == pytest.approx((74.29e9 - 1.03e9) / 321, rel=0.02)


def test_parameters_of_each_part_of_the_causal_network():
    model = build("semamba-causal-2")
    assert parameters(model.encoder) == 259_712
    assert parameters(model.mask) + model.mask_slope.numel() == 272_010
    assert parameters(model.phase) == 271_938
    assert [parameters(block) for block in model.blocks] == [241_664] * 2


# --- contracts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", OFFLINE + CAUSAL, ids=lambda contract: contract.__name__)
def test_contract(small, contract):
    if contract in CAUSAL and not small.causal:
        pytest.skip("not causal")
    contract(small)


@pytest.mark.parametrize("name", ["semamba-causal-8", "semamba-basic-causal"])
def test_the_real_thing_streams_with_the_offline_output(name):
    model = shaken(build(name), 0.01)
    x = noise(1, 8 * model.hop)
    with torch.no_grad():
        offline, state, out = model(x), model.init_state(1), []
        for piece in x.split([model.hop, 4 * model.hop, 3 * model.hop], dim=-1):
            y, state = model.step(piece, state)
            out.append(y)
    streamed = torch.cat(out, dim=-1)[:, model.latency :]
    torch.testing.assert_close(streamed, offline[:, : streamed.shape[1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name, latency", {"semamba-causal-1": 400, "semamba-basic-causal": 512}.items())
def test_latency_is_one_frame(name, latency):
    model = build(name)
    assert model.latency + model.hop == latency  # samples at 16 kHz: 25 ms, 32 ms


def test_a_stream_whose_state_is_dropped_differs():
    model = shaken(SMALL["causal"]())
    with pytest.raises(AssertionError):
        any_chunking_gives_the_offline_output(model, carry=False)


def test_the_advanced_network_is_not_causal():
    """So that nobody streams it by mistake: its first sample hears the last."""
    model = shaken(SMALL["advanced"]())
    x = noise(1, 4_000)
    changed = x.clone()
    changed[:, -200:] += 0.1
    with torch.no_grad():
        assert (model(x)[:, :200] - model(changed)[:, :200]).abs().max() > 1e-5
    assert not model.causal and not hasattr(model, "step")


def test_the_causal_transformer_looks_back_only_and_does_not_claim_to_stream():
    config = SEMambaBasicConfig(widths=(48, 32, 24, 32), core="transformer", layers=2)
    model = shaken(SEMambaBasic(config))
    x = noise(1, 16 * 256).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0, 2_000], x)
    assert not gradient[0, 2_000 + 512 :].any() and gradient[0, :1_000].any()
    assert not model.causal
    with pytest.raises(ValueError, match="semamba-basic-causal"):
        model.step(torch.zeros(1, 256), None)


# --- the front end ---------------------------------------------------------------------------------------------------


def test_two_seconds_are_321_frames_of_201_bins():
    spec = codec.centred_spectrum(noise(2, 32_000), torch.hann_window(400), 100)
    assert spec.shape == (2, 321, 201)


@pytest.mark.parametrize("samples", [1, 150, 200, 201, 4_000, 4_099])
def test_the_spectrum_gives_back_every_sample(samples):
    x, window = noise(2, samples), torch.hann_window(400)
    y = codec.centred_waveform(codec.centred_spectrum(x, window, 100), window, 100, samples)
    torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-5)


def test_level_gain_is_exact_at_any_level_and_one_for_silence():
    x = torch.stack([noise(1, 4_000, level)[0] for level in (1e-4, 1.0, 1e6)] + [torch.zeros(4_000)])
    gain = codec.level_gain(x)
    torch.testing.assert_close((x[:3] * gain[:3]).square().mean(-1), torch.ones(3))
    assert gain[3] == 1


@torch.no_grad()
@pytest.mark.parametrize("samples", [3_200, 3_250])
def test_the_causal_spectrum_is_that_of_centred_frames(samples):
    """With a mask of one and the noisy phase, the predicted spectrum is the noisy one, frame for frame."""
    model = SEMambaCausal(SEMambaCausalConfig(channels=4, blocks=1))
    model.enhance_spectrum = lambda spec, state: (spec, state)
    x = noise(2, samples)
    y, spec = model(x, with_spectrum=True)
    torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-4)
    inside = slice(2, 1 + samples // 100 - 2)  # the ends of a centred transform are mirrored
    expected = codec.centred_spectrum(x, model.window, 100)
    assert spec.shape == expected.shape
    torch.testing.assert_close(spec[:, inside], expected[:, inside], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_bands_masks_and_phases_have_their_ranges():
    spec = codec.centred_spectrum(noise(1, 3_200), torch.hann_window(400), 100)
    model = build("semamba-advanced").eval()
    features = torch.stack([spec.abs() ** 0.3, spec.angle()], dim=-1)
    assert model.encoder(features).shape == (1, 33, 100, 64)
    estimate = model.estimate(spec)
    assert estimate.mask.shape == estimate.real.shape == spec.shape
    assert estimate.mask.min() > 0 and estimate.mask.max() < 2
    assert abs(estimate.mask.mean() - 1) < 0.3  # a fresh mask is near one
    phase = direction(estimate.real, estimate.imaginary)
    torch.testing.assert_close(phase.angle(), torch.atan2(estimate.imaginary, estimate.real), atol=1e-5, rtol=1e-5)
    causal = build("semamba-causal-1").eval()
    assert causal.encoder(features, causal.init_state(1).encoder)[0].shape == (1, 33, 101, 64)


@torch.no_grad()
def test_magnitude_and_phase_are_put_together_as_published():
    """Y = (M |X|^0.3)^(1/0.3) (cos, sin)(atan2(i, r)), against the form without powers of the noisy magnitude."""
    model = SMALL["advanced"]()
    spec = codec.centred_spectrum(noise(1, 2_000), model.window, 100)
    estimate = model.estimate(spec)
    magnitude = (estimate.mask * spec.abs() ** 0.3) ** (1 / 0.3)
    angle = torch.atan2(estimate.imaginary, estimate.real)
    expected = torch.complex(magnitude * angle.cos(), magnitude * angle.sin())
    torch.testing.assert_close(model.enhanced(spec, estimate), expected, atol=1e-5, rtol=1e-4)


# --- the blocks, against small computations of another kind ----------------------------------------------------------


def mamba_by_hand(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x + mixer(norm(x)) from the equations, forwards in time, with PyTorch's convolution and the reference scan."""
    mixer = block.mixer
    n = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * block.norm.weight
    u, z = (n @ mixer.in_proj.weight.T).chunk(2, -1)
    padded = F.pad(u.transpose(1, 2), (mixer.d_conv - 1, 0))
    u = F.silu(F.conv1d(padded, mixer.conv1d.weight, mixer.conv1d.bias, groups=u.shape[-1])).transpose(1, 2)
    delta, B, C = (u @ mixer.x_proj.weight.T).split([mixer.dt_rank, mixer.d_state, mixer.d_state], -1)
    delta = F.softplus(delta @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    y, _ = selective_scan_reference(u, delta, -mixer.A_log.exp(), B, C)
    return x + (y + mixer.D * u) * F.silu(z) @ mixer.out_proj.weight.T


@torch.no_grad()
def test_a_time_frequency_block_is_the_published_arrangement():
    torch.manual_seed(2)
    block = shaken(tf_block := SEMamba(SEMambaConfig(channels=8, blocks=1)).blocks[0])
    x = torch.randn(2, 7, 5, 8)  # (b, t, k, c)

    def merged(rows: torch.Tensor, mix: nn.Module) -> torch.Tensor:
        back = mamba_by_hand(mix.back, rows.flip(1)).flip(1)
        both = torch.cat([mamba_by_hand(mix.ahead, rows), back], -1)
        return rows + both @ mix.merge.weight.T + mix.merge.bias

    rows = x.permute(0, 2, 1, 3).reshape(2 * 5, 7, 8)
    y = merged(rows, tf_block.time).view(2, 5, 7, 8).permute(0, 2, 1, 3)
    y = merged(y.reshape(2 * 7, 5, 8), tf_block.frequency).view(2, 7, 5, 8)
    torch.testing.assert_close(block(x), y, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_turning_the_axis_is_swapping_the_directions():
    mix = shaken(tf_mamba.BiMix(8))
    turned = tf_mamba.BiMix(8)
    turned.ahead.load_state_dict(mix.back.state_dict())
    turned.back.load_state_dict(mix.ahead.state_dict())
    turned.merge.load_state_dict({"weight": mix.merge.weight.roll(8, 1), "bias": mix.merge.bias})
    x = torch.randn(3, 11, 8)
    torch.testing.assert_close(turned(x.flip(1)).flip(1), mix(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_codec_is_the_published_one_in_channels_first():
    """Encoder and decoders rebuilt from PyTorch's own layers, channels first, with the same weights."""
    torch.manual_seed(4)
    encoder, mask, phase = shaken(codec.Encoder(6)), shaken(codec.MaskDecoder(6, 21)), shaken(codec.PhaseDecoder(6))

    def norm(x, layer):
        return F.prelu(F.instance_norm(x, weight=layer.weight, bias=layer.bias, eps=1e-5), layer.slope)

    def dense(x, block):
        for i, layer in enumerate(block.layers):
            conv = layer.conv
            y = norm(F.conv2d(x, conv.weight, conv.bias, padding=(2**i, 1), dilation=(2**i, 1)), layer.norm)
            x = torch.cat([y, x], 1)  # newest first
        return y

    x = torch.randn(2, 2, 18, 21)
    y = norm(F.conv2d(x, encoder.enter.weight[..., None, None], encoder.enter.bias), encoder.enter_norm)
    y = norm(F.conv2d(dense(y, encoder.dense), encoder.down.weight, encoder.down.bias, (1, 2)), encoder.down_norm)
    torch.testing.assert_close(encoder(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), y, atol=2e-5, rtol=1e-4)
    assert y.shape[3] == 10

    m = F.conv_transpose2d(dense(y, mask.dense), mask.up.weight, mask.up.bias, (1, 2))
    m = norm(F.conv2d(m, mask.leave.weight[..., None, None], mask.leave.bias), mask.norm)
    m = 2 * torch.sigmoid(mask.slope * F.conv2d(m, mask.scale.weight[..., None, None], mask.scale.bias))[:, 0]
    torch.testing.assert_close(mask(y.permute(0, 2, 3, 1)), m, atol=1e-4, rtol=1e-4)

    p = norm(F.conv_transpose2d(dense(y, phase.dense), phase.up.weight, phase.up.bias, (1, 2)), phase.norm)
    for head, numbers in zip((phase.real, phase.imaginary), phase(y.permute(0, 2, 3, 1)), strict=True):
        expected = F.conv2d(p, head.weight[..., None, None], head.bias)[:, 0]
        torch.testing.assert_close(numbers, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_causal_codec_is_the_published_one_in_channels_first():
    torch.manual_seed(4)
    model = shaken(SEMambaCausal(SEMambaCausalConfig(channels=6, blocks=1)))

    def norm(x, layer):
        x = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), layer.weight, layer.bias)
        return F.prelu(x.permute(0, 3, 1, 2), layer.slope)

    def dense(x, block):
        for i, layer in enumerate(block.layers):
            y = F.conv2d(F.pad(x, (1, 1, 2**i, 0)), layer.conv.weight, layer.conv.bias, dilation=(2**i, 1))
            x = torch.cat([norm(y, layer.norm), x], 1)
        return x[:, : y.shape[1]]

    def heads(x, decoder):
        up = F.conv2d(F.pad(dense(x, decoder.dense), (1, 1)), decoder.up.weight, decoder.up.bias)
        b, _, t, k = up.shape
        up = up.view(b, 2, -1, t, k).permute(0, 2, 3, 4, 1).reshape(b, -1, t, 2 * k)
        return torch.cat([F.conv2d(norm(up, decoder.norm), h.weight, h.bias) for h in decoder.heads], 1)

    x, start = torch.randn(1, 2, 12, 201), model.init_state(1)
    encoder = model.encoder
    y = norm(F.conv2d(x, encoder.enter.weight[..., None, None], encoder.enter.bias), encoder.enter_norm)
    y = F.conv2d(dense(y, encoder.dense), encoder.down.weight, encoder.down.bias, (1, 2), padding=(0, 1))
    y = norm(y, encoder.down_norm)
    ours, _ = encoder(x.permute(0, 2, 3, 1), start.encoder)
    torch.testing.assert_close(ours.permute(0, 3, 1, 2), y, atol=2e-5, rtol=1e-4)
    for decoder in (model.mask, model.phase):
        ours, _ = decoder(y.permute(0, 2, 3, 1), start.mask)
        torch.testing.assert_close(ours.permute(0, 3, 1, 2), heads(y, decoder), atol=5e-5, rtol=1e-4)


# --- fast and slow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["semamba-advanced", "semamba-advanced-uni"])
def test_the_fast_form_is_the_slow_form(name):
    """The acceptance bound of the speed target; here on fresh weights of the published size, at a level near one."""
    model = shaken(build(name), 0.01)
    x = noise(2, 1_250, 1.0)
    with torch.no_grad():
        fast = model(x)
        with use_backend("reference"):
            slow = model(x)
    assert (fast - slow).abs().max() <= 1e-4
    with torch.enable_grad():
        torch.testing.assert_close(model(x), slow, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 40, 13, 16), (3, 5, 201, 64)])
def test_compiled_moments_and_norm_equal_pytorch(shape):
    x = torch.randn(shape) * 3 + 5 * torch.randn(shape[-1])
    norm = shaken(codec.NormPReLU(shape[-1]), 0.3)
    mean, variance = codec.own_moments(x)
    expected = x.double().var((1, 2), correction=0), x.double().mean((1, 2))
    torch.testing.assert_close(variance.double(), expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mean.double(), expected[1], atol=1e-6, rtol=1e-6)
    if x[0, ..., 0].numel() > 1:
        y = F.instance_norm(x.double().permute(0, 3, 1, 2), weight=norm.weight.double(), bias=norm.bias.double())
        y = F.prelu(y, norm.slope.double()).permute(0, 2, 3, 1).float()
        torch.testing.assert_close(norm(x), y, atol=2e-5, rtol=1e-5)
    spoilt = x.clone()
    spoilt[0, 0, 0, 0] = torch.nan
    assert norm(spoilt)[0, ..., 0].isnan().all() and not norm(spoilt)[0, ..., 1:].isnan().any()


@torch.no_grad()
def test_compiled_moments_do_not_depend_on_the_threads():
    x = torch.randn(1, 70, 31, 16)
    alone, both = (on_threads(count, lambda: codec.own_moments(x)) for count in (1, 2))
    assert torch.equal(alone.mean, both.mean) and torch.equal(alone.variance, both.variance)


@torch.no_grad()
def test_piecewise_mixing_does_not_depend_on_the_pieces(monkeypatch):
    mix, x = shaken(tf_mamba.UniMix(16)), torch.randn(9, 20, 16)
    whole = mix(x)
    for size in (1, 50, 61):  # steps; a row has 20
        monkeypatch.setattr(tf_mamba, "PIECE", size)
        torch.testing.assert_close(mix(x), whole, atol=1e-5, rtol=1e-4)


# --- blocks of long signals ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pooled_moments_are_those_of_the_pieces_taken_together():
    x = torch.randn(6, 5, 4, 3) + torch.arange(6.0)[:, None, None, None]  # two signals of three pieces
    pooled = codec.PooledMoments(3)
    given = pooled(x)
    for signal in range(2):
        together = x[3 * signal : 3 * signal + 3].reshape(-1, 3)
        torch.testing.assert_close(pooled.seen[0].mean[signal], together.mean(0))
        torch.testing.assert_close(pooled.seen[0].variance[signal], together.var(0, correction=0))
    torch.testing.assert_close(given.mean, pooled.seen[0].mean.repeat_interleave(3, 0))


@torch.no_grad()
def test_a_signal_with_its_own_overview_is_enhanced_as_without():
    model = shaken(SMALL["advanced"]())
    x = noise(2, 5_000)
    overview = model.overview(x[:, None], codec.level_gain(x))
    assert len(overview.moments) == 16
    torch.testing.assert_close(model(x, overview), model(x), atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_without_an_overview_a_block_sounds_different():
    """What the overview is for: a quiet block of a loud signal, normalised by itself, is another signal."""
    model = shaken(SMALL["advanced"]())
    x = noise(1, 24_000) * torch.linspace(0.02, 1, 24_000) ** 2
    overview = model.overview(x[:, None], codec.level_gain(x))
    block, whole = x[:, :12_000], model(x)[:, :8_000]  # a quarter of a second of context is left
    known, alone = (
        ((y[:, :8_000] - whole).square().mean() / whole.square().mean()).sqrt()
        for y in (model(block, overview), model(block))
    )
    assert known < 0.01 < 0.3 < alone, (known, alone)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["advanced", "causal", "basic-causal"])
def test_a_few_steps_lower_the_loss(name):
    torch.manual_seed(5)
    model = SMALL[name]().train()
    time = torch.arange(1_600) / 16_000
    clean = (0.3 * torch.sin(2 * torch.pi * 300 * time) * torch.sin(2 * torch.pi * 4 * time)).expand(2, -1)
    noisy = clean + 0.1 * torch.randn(clean.shape)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    values = []
    for _ in range(12):
        loss = (model(noisy) - clean).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0], values


# --- beginnings ------------------------------------------------------------------------------------------------------


def test_the_layers_that_join_two_directions_begin_as_transposed_convolutions():
    """A spread of 1 / sqrt(3 c), as PyTorch gives a ConvTranspose1d from 2 c to c channels; a linear layer has less."""
    torch.manual_seed(0)
    model = build("semamba-advanced")
    merges = [merge for name, merge in model.named_modules() if name.endswith("merge")]
    published = torch.nn.ConvTranspose1d(128, 64, 1)
    assert len(merges) == 8
    for merge in merges:
        assert merge.weight.std().item() == pytest.approx(0.072, abs=0.002)
        assert merge.weight.abs().max() <= published.weight.abs().max() * 1.02
        assert merge.bias.abs().max() > 0.09  # 1 / sqrt(128) bounds that of a linear layer
    assert torch.nn.Linear(128, 64).weight.std().item() == pytest.approx(0.051, abs=0.002)


def test_the_conformer_has_the_published_heads_and_dropout_unless_told_otherwise():
    block = build("semamba-advanced", core="conformer").blocks[0].time
    assert block.heads == 4 and block.dropout == 0.2
    assert [layer.p for layer in block.first if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.2]
    rows = noise(2, 12 * 64).view(2, 12, 64)
    torch.manual_seed(0)
    assert not torch.equal(block.train()(rows), block(rows))  # drawn anew
    assert torch.equal(block.eval()(rows), block(rows))
    other = build("semamba-advanced", core="conformer", heads=8, dropout=0.0).blocks[0].time
    assert other.heads == 8 and torch.equal(other.attend(rows), other.eval().attend(rows))
