"""Outputs, loss terms and gradients beside numbers that the authors' own code gave for the same weights and signals.

How they were obtained: the network was built from the repository and commit named beside it, at a small width, every
tensor of its state dict was set to `number(name, shape)`, and it was run in PyTorch 2.13 on a CPU on the `signals`
below, at the level that its data loader gives them. Where its code calls CUDA kernels of mamba_ssm, a selective scan
written from the equation (a loop over time) took their place.
"""

import zlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from clearstate.audio.contrast import stretch_contrast
from clearstate.models import build
from clearstate.models.convert import SAME, Form, Source, table_for, translate
from clearstate.models.mambawave_as_published import AsPublishedConfig, MambaWaveAsPublished
from clearstate.models.parts import diffusion
from clearstate.models.parts.stft import analyse
from clearstate.models.s4m import S4M, S4MConfig
from clearstate.train.discriminator import MetricDiscriminator, published_table
from clearstate.train.objective import Objective
from clearstate.train.recipe import LossRecipe

SPECIAL = {
    "log_dt": (-4, 0.8),
    "inv_w_real": (-0.7, 0.1),
    "w_imag": (0, 5),
    "running_mean": (0, 0.1),
    "slope": (1, 0.3),
}


def number(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers for a tensor of an author's network, from its name alone; NumPy's RandomState never changes."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rpartition(".")[2]
    if last in ("A_log", "A_b_log"):
        x = 0.1 * x + np.log(np.arange(1.0, shape[-1] + 1))
    elif last in SPECIAL:
        x = SPECIAL[last][0] + SPECIAL[last][1] * x
    elif len(shape) == 1:
        x = 0.1 * x if last in ("bias", "beta") else 1 + 0.2 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(x.astype(np.float32))


def signals(batch: int, samples: int) -> tuple[Tensor, Tensor]:
    """Clean (brown noise) and noisy (with white noise), (b, n) each."""
    rng = np.random.RandomState(0)
    clean, noise = rng.standard_normal((batch, samples)), rng.standard_normal((batch, samples))
    clean = np.cumsum(clean, 1)
    clean = clean / np.sqrt((clean**2).mean(1, keepdims=True))
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in (0.05 * clean, 0.05 * clean + 0.02 * noise))


def filled(model: torch.nn.Module, table: dict[str, Source]) -> torch.nn.Module:
    """A model of ours with `number` in every tensor of theirs."""
    ours = model.state_dict()
    theirs = {s.name: number(s.name, s.form.shape(tuple(ours[name].shape))) for name, s in table.items()}
    model.load_state_dict(translate(theirs, model, table))
    return model.eval()


# ------------------------------------------------------------------------------------------------- enhancement


class Published(NamedTuple):
    """What an author's code gave."""

    preset: str
    config: dict
    batch: int
    output: list[float]  # every 400th sample of the first signal
    terms: dict[str, float]
    total: float  # 0.9 magnitude, 0.3 phase, 0.1 complex, 0.1 consistency, 0.2 waveform
    gradients: dict[str, float]  # of that total: the norm, by our names
    judged: list[float]  # D(clean, candidate) of a discriminator filled in the same way


# github.com/RoyChao19477/SEMamba, commit 750ff5d; recipes/SEMamba_advanced with hid_feature 16 and num_tfmamba 1.
SEMAMBA = Published(
    "semamba-advanced",
    {"channels": 16, "blocks": 1},
    2,
    [-0.116031, -0.033944, -0.084562, -0.146993, -0.050239, -0.142835, -0.179432, -0.04739],
    {"magnitude": 1.462126, "phase": 4.773441, "complex": 4.559964, "l1": 1.404822, "consistency": 4.365297},
    3.9214361,
    {"encoder.enter.weight": 0.460855, "blocks.0.time.ahead.mixer.A_log": 0.00276083, "mask.slope": 0.152795,
     "phase.real.weight": 0.127012},
    [0.4676563, 0.3760362],
)  # fmt: skip
# github.com/yxlu-0102/MP-SENet, commit 89932cf; MPNet(dense_channel 16, one block).
MP_SENET = Published(
    "mp-senet",
    {"channels": 16, "hidden": 32, "shared_blocks": 1, "order": "frequency_first"},
    1,
    [0.206556, 0.108498, 0.048945, -0.080185, 0.041275, 0.017498, 0.124855, 0.356049],
    {"magnitude": 1.427415, "phase": 4.654224, "complex": 3.719586, "l1": 1.837613, "consistency": 3.604665},
    3.7808888,
    {"encoder.enter.weight": 1.01714, "shared.0.frequency.leave.weight": 0.539717, "mask.slope": 0.151642,
     "phase.heads.0.weight": 1.21819},
    [0.4768799],
)  # fmt: skip
# github.com/StrangeAlex/VK_SE_task, commit 203f338; MP-SENet/models, MPNet(dense_channel 16, 1, 1).
HYBRID = Published(
    "mp-senet-mamba-as-published",
    {"channels": 16, "hidden": 32, "shared_blocks": 1, "branch_blocks": 1},
    1,
    [-0.03723, -0.023303, 0.337654, 0.078067, 0.062907, 0.149165, 0.102373, 0.058711],
    {"magnitude": 1.336227, "phase": 4.645302, "complex": 3.386147, "l1": 1.271932, "consistency": 3.054118},
    3.4946079,
    {"encoder.enter.weight": 0.496262, "branches.magnitude.0.mixers.0.ahead.A_log": 0.00681017, "mask.slope": 0.0805788,
     "phase.heads.0.weight": 0.58261},
    [0.3346216],
)  # fmt: skip
# The same commit; gradio_app/models_small, MPNet(dense_channel 16, 1, 1).
SMALL_HYBRID = Published(
    "mp-senet-mamba-small",
    {"channels": 16, "hidden": 32, "shared_blocks": 1, "branch_blocks": 1, "order": "frequency_first", "fusion": "bin",
     "kv_norm": "none"},
    1,
    [0.075059, 0.065217, 0.269863, 0.076564, 0.014447, 0.095851, 0.045633, 0.079541],
    {"magnitude": 1.355305, "phase": 4.703591, "complex": 3.504131, "l1": 1.471826, "consistency": 3.207207},
    3.5963507,
    {"encoder.enter.weight": 0.339503, "branches.magnitude.0.mixers.0.ahead.A_log": 0.0150736, "mask.slope": 0.100504,
     "phase.heads.0.weight": 0.352495},
    [0.3900292],
)  # fmt: skip
ALL = [SEMAMBA, MP_SENET, HYBRID, SMALL_HYBRID]


def network(published: Published) -> torch.nn.Module:
    """Our network, which hears the first frame with phases from 0 to pi, as theirs did for these numbers.

    That frame mirrors the start of the signal, so its phases are 0 and +-pi with the sign of a rounding error, which
    differs between Intel's and AMD's processors.
    """
    model = build(published.preset, **published.config)
    filled(model, table_for(model, published.preset))
    estimate = model.estimate

    def steady(spec: Tensor, *given) -> Tensor:
        first = torch.complex(spec[:, :1].real, spec[:, :1].imag.abs())
        return estimate(torch.cat([first, spec[:, 1:]], 1), *given)

    model.estimate = steady
    return model


@pytest.mark.parametrize("published", ALL, ids=lambda p: p.preset)
def test_network_loss_and_gradient_are_those_of_the_authors_code(published):
    model = network(published)
    clean, noisy = signals(published.batch, 3_200)
    y, predicted = model(noisy, with_spectrum=True)
    # 1e-5: MP-SENet adds 1e-5 to the real part of every bin before it takes the phase
    assert y[0, ::400].tolist() == pytest.approx(published.output, abs=2e-5)
    loss = LossRecipe(magnitude=0.9, phase=0.3, complex=0.1, consistency=0.1, l1=0.2, phase_edges=published is SEMAMBA)
    judged = Objective(loss, model)(y, clean, noisy, predicted=predicted)
    assert {name: value.item() for name, value in judged.terms.items()} == pytest.approx(published.terms, rel=2e-4)
    assert judged.total.item() == pytest.approx(published.total, rel=1e-4)
    judged.total.backward()
    gradients = dict(model.named_parameters())
    found = {name: gradients[name].grad.norm().item() for name in published.gradients}
    assert found == pytest.approx(published.gradients, rel=5e-3)


def test_the_other_form_of_the_spectral_terms_is_another_objective():
    """Negative control: on the spectrum of the output, the terms and the gradient are not the published ones."""
    model = network(SEMAMBA)
    clean, noisy = signals(SEMAMBA.batch, 3_200)
    y, predicted = model(noisy, with_spectrum=True)
    gradients = []
    for spectra in ("prediction", "output"):
        objective = Objective(LossRecipe(magnitude=0.9, phase=0.3, complex=0.1, spectra=spectra), model)
        judged = objective(y, clean, noisy, predicted=predicted)
        parts = torch.autograd.grad(judged.total, list(model.parameters()), retain_graph=True, allow_unused=True)
        gradients.append(torch.cat([part.flatten() for part in parts if part is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) < 0.9
    assert judged.terms["magnitude"].item() != pytest.approx(SEMAMBA.terms["magnitude"], rel=0.05)


@pytest.mark.parametrize("published", ALL, ids=lambda p: p.preset)
@torch.no_grad()
def test_the_discriminator_judges_as_the_published_one(published):
    """SEMamba's sees the predicted magnitude, the others' that of the output."""
    discriminator = filled(MetricDiscriminator(), published_table())
    model = network(published)
    clean, noisy = signals(published.batch, 3_200)
    gain = 1 / noisy.square().mean(-1, keepdim=True).sqrt()
    y, predicted = model(noisy, with_spectrum=True)
    candidate = predicted * gain[..., None] if published is SEMAMBA else model.spectrum(y * gain)
    theirs, ours = (spec.abs() ** 0.3 for spec in (model.spectrum(clean * gain), candidate))
    assert discriminator(theirs, ours).tolist() == pytest.approx(published.judged, abs=2e-5)


# github.com/RoyChao19477/RT-SEMamba_app, commit 8e16d6d: models/ without what streams, hid_feature 16 and one block, on
# the frames of 1600 samples (a Hann window of 400 plus 1e-3, hop 100, not centred). Every 40th bin from 20, every
# fourth frame from 3.
RT_SEMAMBA_MAGNITUDE = [
    [0.78022, 0.73263, 1.25956], [0.55937, 0.36234, 0.28792], [0.51951, 0.52068, 0.66362], [0.52763, 0.0057, 1.04643],
    [0.36387, 1.03596, 0.77212],
]  # fmt: skip
RT_SEMAMBA_PHASE = [
    [-2.87893, 3.03094, -2.51745], [0.86213, 2.36747, 1.1175], [0.43365, 1.25458, -2.25985],
    [0.73977, -3.04144, 0.13306], [1.0184, 0.60464, -2.33338],
]  # fmt: skip


@torch.no_grad()
def test_rt_semamba_predicts_as_the_authors_code():
    model = build("semamba-causal-1", channels=16)
    filled(model, table_for(model, "semamba-causal-1"))
    _, noisy = signals(1, 1_600)
    spec = analyse(noisy, model.window, 100)  # (1, 13, 201)
    predicted, _ = model.enhance_spectrum(spec, model.init_state(1))
    chosen = predicted[0, 3::4, 20::40].T  # (5, 3)
    torch.testing.assert_close(chosen.abs() ** 0.3, torch.tensor(RT_SEMAMBA_MAGNITUDE), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(chosen.angle(), torch.tensor(RT_SEMAMBA_PHASE), atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------- separation

# github.com/JusperLee/S4M, commit 4d9c1ca: S4M(out_channels=16, in_channels=24, num_blocks=2, upsampling_depth=3,
# enc_kernel_size=2, sample_rate=8000) on 640 samples of unit RMS. Two things were changed there: its fallback Cauchy
# product sums both members of each pair, as its other back-ends do, and the signal is padded as ours is.
S4M_OUTPUT = [
    [0.38487, -0.82022, -1.01006, -0.52463, 0.97661, -0.02399, 1.30408, 1.42785],
    [0.49162, 0.03258, 1.51994, 0.30401, -1.36623, -0.37962, -0.2895, 1.98028],
]  # every 80th sample of both speakers

TAP = Form(lambda s: (*s, 1), lambda x: x[..., 0])  # a convolution with one tap
KERNEL = Form(lambda s: (1, *s), lambda x: x[0])  # one system for each channel, in front of which they have an axis
DEPTHWISE = Form(lambda s: (s[0], 1, s[1]), lambda x: x[:, 0])


def s4m_table(model: S4M) -> dict[str, Source]:
    """Their names and shapes for our parameters."""
    unet = "sm.unet"
    table = {
        "encode": Source("encoder.weight"), "decode": Source("decoder.weight"),
        "norm.weight": Source("ln.gamma"), "norm.bias": Source("ln.beta"),
        "bottleneck.weight": Source("bottleneck.weight", TAP), "bottleneck.bias": Source("bottleneck.bias"),
        "again": Source("sm.concat_block.0.weight", Form(lambda s: (*s, 1, 1), lambda x: x[:, 0, 0])),
        "again_bias": Source("sm.concat_block.0.bias"), "again_slope": Source("sm.concat_block.1.weight"),
        "head_slope": Source("mask_net.0.weight"),
        "head.weight": Source("mask_net.1.weight", TAP), "head.bias": Source("mask_net.1.bias"),
        "block.widen.weight": Source(f"{unet}.proj_1x1.conv.weight", TAP),
        "block.widen.bias": Source(f"{unet}.proj_1x1.conv.bias"),
        "block.slope": Source(f"{unet}.proj_1x1.act.weight"),
        "block.narrow.weight": Source(f"{unet}.res_conv.weight", TAP),
        "block.narrow.bias": Source(f"{unet}.res_conv.bias"),
    }  # fmt: skip

    def norm(ours: str, theirs: str) -> None:
        table[f"{ours}.weight"], table[f"{ours}.bias"] = Source(f"{theirs}.gamma"), Source(f"{theirs}.beta")

    def inject(ours: str, theirs: str) -> None:
        for here, there in (("local", "local_embedding"), ("gate", "global_act"), ("shift", "global_embedding")):
            table[f"{ours}.{here}.weight"] = Source(f"{theirs}.{there}.conv.weight", depthwise)
            norm(f"{ours}.{here}_norm", f"{theirs}.{there}.norm")

    shape = tuple(model.block.down[0].weight.shape)
    depthwise = SAME if len(shape) == 3 else DEPTHWISE
    norm("block.widen_norm", f"{unet}.proj_1x1.norm")
    scales = model.config.scales
    for d in range(scales):
        table[f"block.down.{d}.weight"] = Source(f"{unet}.spp_dw.{d}.conv.weight", depthwise)
        table[f"block.down.{d}.bias"] = Source(f"{unet}.spp_dw.{d}.conv.bias")
        norm(f"block.down_norm.{d}", f"{unet}.spp_dw.{d}.norm")
        inject(f"block.fuse.{d}", f"{unet}.loc_glo_fus.{d}")
        if d < scales - 1:
            inject(f"block.merge.{d}", f"{unet}.last_layer.{d}")
    ours, theirs = "block.remember.0", f"{unet}.s4"
    for name in ("weight", "bias"):
        table[f"{ours}.norm.{name}"] = Source(f"{theirs}.norm.{name}")
        form = TAP if name == "weight" else SAME
        table[f"{ours}.s4.out.{name}"] = Source(f"{theirs}.layer.output_linear.0.{name}", form)
        for here, there in (("widen", "0.0"), ("narrow", "2")):
            table[f"block.feed_forward.{here}.{name}"] = Source(f"{unet}.ff.layer.ff.{there}.{name}", form)
        table[f"block.feed_forward.norm.{name}"] = Source(f"{unet}.ff.norm.{name}")
    kernel = f"{theirs}.layer.kernel.kernel"
    table[f"{ours}.s4.D"] = Source(f"{theirs}.layer.D", KERNEL)
    for here, there, form in (
        ("C", "C", SAME), ("log_step", "log_dt", SAME), ("B", "B", KERNEL), ("P", "P", KERNEL),
        ("log_decay", "inv_w_real", SAME), ("frequency", "w_imag", SAME),
    ):  # fmt: skip
        table[f"{ours}.s4.{here}"] = Source(f"{kernel}.{there}", form)
    return table


@torch.no_grad()
def test_s4m_separates_as_the_authors_code():
    config = S4MConfig(channels=16, hidden=24, passes=2, scales=3, ssm="dplr", compat=True)
    model = S4M(config)
    filled(model, s4m_table(model))
    _, noisy = signals(1, 640)
    y = model(noisy / noisy.square().mean().sqrt())[0]
    for found, expected in zip(y[:, ::80].tolist(), S4M_OUTPUT, strict=True):
        assert found == pytest.approx(expected, abs=2e-4)  # of an RMS of 3.2


# --------------------------------------------------------------------------------------------------- extension

# github.com/simonefacchiano/MambaWave, commit 5e27f2d: DiffWave(residual_channels 8, residual_layers 3) on 400 samples
# at step 17.5. One thing was changed there: the condition is interpolated on the sample, not half a sample late.
MAMBAWAVE_OUTPUT = [0.187121, 0.242807, 0.23776, 0.262933, 0.325676, 0.145792, 0.202255, 0.21865]  # every 50th sample


def mambawave_table(layers: int) -> dict[str, Source]:
    """Their names and shapes for our parameters and running statistics."""
    table: dict[str, Source] = {}

    def linear(ours: str, theirs: str, form: Form = TAP) -> None:
        table[f"{ours}.weight"], table[f"{ours}.bias"] = Source(f"{theirs}.weight", form), Source(f"{theirs}.bias")

    def norm(ours: str, theirs: str) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            table[f"{ours}.{name}"] = Source(f"{theirs}.{name}")

    linear("enter", "input_projection")
    linear("condition", "conditioning_projection")
    norm("condition_norm", "conditioning_norm")
    linear("embed.0", "diffusion_embedding.projection1", SAME)
    linear("embed.2", "diffusion_embedding.projection2", SAME)
    linear("head", "skip_projection")
    linear("leave", "output_projection")
    for i in range(layers):
        ours, theirs = f"layers.{i}", f"residual_layers.{i}"
        linear(f"{ours}.step", f"{theirs}.diffusion_projection", SAME)
        linear(f"{ours}.conv", f"{theirs}.dilated_conv", SAME)
        norm(f"{ours}.norm", f"{theirs}.norm_layer")
        linear(f"{ours}.condition", f"{theirs}.conditioner_projection")
        linear(f"{ours}.out", f"{theirs}.output_projection")
        for name in ("in_proj.weight", "out_proj.weight"):
            table[f"{ours}.mixer.{name}"] = Source(f"{theirs}.mamba.{name}")
        for side, suffix in (("ahead", ""), ("back", "_b")):
            for name in ("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"):
                module, _, kind = name.partition(".")
                table[f"{ours}.mixer.{side}.{name}"] = Source(f"{theirs}.mamba.{module}{suffix}.{kind}")
            table[f"{ours}.mixer.{side}.A_log"] = Source(f"{theirs}.mamba.A{suffix}_log")
            table[f"{ours}.mixer.{side}.D"] = Source(f"{theirs}.mamba.D{suffix}")
    return table


@torch.no_grad()
def test_mambawave_predicts_noise_as_the_authors_code():
    model = MambaWaveAsPublished(AsPublishedConfig(channels=8, layers=3))
    table, ours = mambawave_table(3), model.state_dict()
    counted = {name: value for name, value in ours.items() if name.endswith("num_batches_tracked")}
    assert set(table) | set(counted) == set(ours)
    state = {name: s.form.ours(number(s.name, s.form.shape(tuple(ours[name].shape)))) for name, s in table.items()}
    model.load_state_dict(state | counted)
    model.eval()
    clean, noisy = signals(1, 400)
    # 3e-4: the sine of an angle of up to 1.7e5 in float32; interpolation half a sample late would change 1.3 %
    y = model.noise(20 * noisy, torch.tensor([17.5]), model.conditioned(20 * clean))
    assert y[0, ::50].tolist() == pytest.approx(MAMBAWAVE_OUTPUT, abs=3e-4)


def test_the_linear_schedule_is_that_of_the_authors_sampler():
    """The same commit: create_noise_schedule(1000)[0, 299, 499, 999]."""
    kept = torch.sigmoid(diffusion.linear_log_snr(1000))[[0, 299, 499, 999]]
    assert kept.tolist() == pytest.approx([0.99999899, 0.76354259, 0.47218937, 0.04946342], rel=2e-6)


# ---------------------------------------------------------------------------------------- contrast stretching

# github.com/RoyChao19477/PCS, commit 8641bfc: PCS400/PCS400.py and PCS/PCS.py with librosa 0.11 on 4000 samples.
PCS = {
    400: [0.118056, -0.109805, -0.229807, -0.210333, -0.012472, 0.164715, -0.289286, -0.515869, -0.471848, -0.329156],
    512: [0.118023, -0.112148, -0.228761, -0.210023, -0.011231, 0.168135, -0.290386, -0.512696, -0.470424, -0.328091],
}  # every 400th sample


@pytest.mark.parametrize("n_fft", PCS)
def test_contrast_is_stretched_as_by_the_authors_programs(n_fft):
    _, noisy = signals(1, 4_000)
    y = stretch_contrast(noisy[0].double().numpy(), "peak", n_fft)
    assert y[::400].tolist() == pytest.approx(PCS[n_fft], abs=1e-5)
