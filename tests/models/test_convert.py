"""Published checkpoints: every tensor has its place, proven by networks rebuilt from the published names alone."""

import pytest
import torch
from published import Shapes, State, filled, mixer, mixer_shapes, saved
from torch import Tensor
from torch.nn import functional as F

from clearstate.cli import main
from clearstate.models import build, load_model
from clearstate.models.convert import convert, read_checkpoint, table_for, translate

# --- checkpoints with the published names and shapes -----------------------------------------------------------------

MIXER = {"norm.weight": (64,)} | {f"mixer.{name}": shape for name, shape in mixer_shapes(256).items()}


def semamba_shapes() -> Shapes:
    """SEMamba's generator, from its published description."""
    shapes: Shapes = {}

    def conv(name, *weight, bias):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (bias,)

    def norm(name, channels):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    for first, last in (("dense_conv_1", "dense_conv_2"),):
        conv(f"dense_encoder.{first}.0", 64, 2, 1, 1, bias=64)
        conv(f"dense_encoder.{last}.0", 64, 64, 1, 3, bias=64)
        for name in (first, last):
            norm(f"dense_encoder.{name}.1", 64)
            shapes[f"dense_encoder.{name}.2.weight"] = (64,)
    for part in ("dense_encoder", "mask_decoder", "phase_decoder"):
        for i in range(4):
            at = f"{part}.dense_block.dense_block.{i}"
            conv(f"{at}.0", 64, 64 * (i + 1), 3, 3, bias=64)
            norm(f"{at}.1", 64)
            shapes[f"{at}.2.weight"] = (64,)
    for b in range(4):
        for axis in ("time_mamba", "freq_mamba"):
            for blocks in ("forward_blocks", "backward_blocks"):
                shapes.update({f"TSMamba.{b}.{axis}.{blocks}.0.{name}": shape for name, shape in MIXER.items()})
        conv(f"TSMamba.{b}.tlinear", 128, 64, 1, bias=64)
        conv(f"TSMamba.{b}.flinear", 128, 64, 1, bias=64)
    conv("mask_decoder.mask_conv.0", 64, 64, 1, 3, bias=64)
    conv("mask_decoder.mask_conv.1", 1, 64, 1, 1, bias=1)
    norm("mask_decoder.mask_conv.2", 1)
    shapes["mask_decoder.mask_conv.3.weight"] = (1,)
    conv("mask_decoder.mask_conv.4", 1, 1, 1, 1, bias=1)
    shapes["mask_decoder.lsigmoid.slope"] = (201, 1)
    conv("phase_decoder.phase_conv.0", 64, 64, 1, 3, bias=64)
    norm("phase_decoder.phase_conv.1", 64)
    shapes["phase_decoder.phase_conv.2.weight"] = (64,)
    conv("phase_decoder.phase_conv_r", 1, 64, 1, 1, bias=1)
    conv("phase_decoder.phase_conv_i", 1, 64, 1, 1, bias=1)
    return shapes


def rt_semamba_shapes(blocks: int) -> Shapes:
    """RT-SEMamba's generator, from its published description."""
    shapes: Shapes = {}

    def conv(name, *weight, bias):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (bias,)

    def norm_prelu(name, k):
        shapes[f"{name}.{k}.norm.weight"] = shapes[f"{name}.{k}.norm.bias"] = shapes[f"{name}.{k + 1}.weight"] = (64,)

    conv("dense_encoder.dense_conv_1.0", 64, 2, 1, 1, bias=64)
    conv("dense_encoder.dense_conv_2.0", 64, 64, 1, 3, bias=64)
    norm_prelu("dense_encoder.dense_conv_1", 1)
    norm_prelu("dense_encoder.dense_conv_2", 1)
    for part in ("dense_encoder", "mask_decoder", "phase_decoder"):
        for i in range(4):
            conv(f"{part}.dense_block.dense_block.{i}.1", 64, 64 * (i + 1), 2, 3, bias=64)
            norm_prelu(f"{part}.dense_block.dense_block.{i}", 2)
    for b in range(blocks):
        for block in ("time_mamba.forward_blocks", "freq_mamba.forward_blocks", "freq_mamba.backward_blocks"):
            shapes.update({f"TSMamba.{b}.{block}.0.{name}": shape for name, shape in MIXER.items()})
        conv(f"TSMamba.{b}.tlinear", 64, 64, 1, bias=64)
        conv(f"TSMamba.{b}.flinear", 128, 64, 1, bias=64)
        conv(f"mlp_after_mamba.{b}.mlp.0", 256, 64, bias=256)
        conv(f"mlp_after_mamba.{b}.mlp.2", 64, 256, bias=64)
        shapes[f"mlp_after_mamba.{b}.norm.weight"] = shapes[f"mlp_after_mamba.{b}.norm.bias"] = (64,)
    for part, heads in (("mask", ["mask_decoder.mask_conv.3"]), ("phase", ["phase_conv_r", "phase_conv_i"])):
        conv(f"{part}_decoder.{part}_conv.0.conv", 128, 64, 1, 3, bias=128)
        norm_prelu(f"{part}_decoder.{part}_conv", 1)
        for head in heads:
            conv(head if "." in head else f"{part}_decoder.{head}", 1, 64, 1, 2, bias=1)
    shapes["mask_decoder.lsigmoid.slope"] = (201, 1)
    return shapes


# --- the published networks, channels first, from those names alone --------------------------------------------------


def block(s: State, at: str, x: Tensor) -> Tensor:
    n = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * s[f"{at}.norm.weight"]
    return x + mixer(s, f"{at}.mixer", n)


def mamba(s: State, at: str, linear: str, x: Tensor) -> Tensor:
    y = block(s, f"{at}.forward_blocks.0", x)
    if f"{at}.backward_blocks.0.norm.weight" in s:
        y = torch.cat([y, block(s, f"{at}.backward_blocks.0", x.flip(1)).flip(1)], -1)
    return x + F.conv_transpose1d(y.mT, s[f"{linear}.weight"], s[f"{linear}.bias"]).mT


def time_frequency(s: State, b: int, x: Tensor) -> Tensor:
    n, c, t, f = x.shape
    x = mamba(s, f"TSMamba.{b}.time_mamba", f"TSMamba.{b}.tlinear", x.permute(0, 3, 2, 1).reshape(n * f, t, c))
    x = x.view(n, f, t, c).permute(0, 2, 1, 3).reshape(n * t, f, c)
    x = mamba(s, f"TSMamba.{b}.freq_mamba", f"TSMamba.{b}.flinear", x)
    return x.view(n, t, f, c).permute(0, 3, 1, 2)


def semamba(s: State, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, pseudo-real and pseudo-imaginary part (b, t, f) from (b, 2, t, f)."""

    def conv(at, x, **options):
        return F.conv2d(x, s[f"{at}.weight"], s[f"{at}.bias"], **options)

    def norm(at, k, x):
        x = F.instance_norm(x, weight=s[f"{at}.{k}.weight"], bias=s[f"{at}.{k}.bias"])
        return F.prelu(x, s[f"{at}.{k + 1}.weight"])

    def dense(at, x):
        for i in range(4):
            layer = f"{at}.dense_block.dense_block.{i}"
            y = norm(layer, 1, conv(f"{layer}.0", x, dilation=(2**i, 1), padding=(2**i, 1)))
            x = torch.cat([y, x], 1)
        return y

    def up(at, x):
        return F.conv_transpose2d(x, s[f"{at}.weight"], s[f"{at}.bias"], stride=(1, 2))

    x = norm("dense_encoder.dense_conv_1", 1, conv("dense_encoder.dense_conv_1.0", x))
    x = dense("dense_encoder", x)
    x = norm("dense_encoder.dense_conv_2", 1, conv("dense_encoder.dense_conv_2.0", x, stride=(1, 2)))
    for b in range(4):
        x = time_frequency(s, b, x)
    m = conv("mask_decoder.mask_conv.1", up("mask_decoder.mask_conv.0", dense("mask_decoder", x)))
    m = conv("mask_decoder.mask_conv.4", norm("mask_decoder.mask_conv", 2, m))[:, 0].mT
    mask = 2 * torch.sigmoid(s["mask_decoder.lsigmoid.slope"] * m)
    p = norm("phase_decoder.phase_conv", 1, up("phase_decoder.phase_conv.0", dense("phase_decoder", x)))
    return mask.mT, conv("phase_decoder.phase_conv_r", p)[:, 0], conv("phase_decoder.phase_conv_i", p)[:, 0]


def rt_semamba(s: State, x: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    def conv(at, x, **options):
        return F.conv2d(x, s[f"{at}.weight"], s[f"{at}.bias"], **options)

    def norm(at, k, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), (64,), s[f"{at}.{k}.norm.weight"], s[f"{at}.{k}.norm.bias"])
        return F.prelu(x.permute(0, 3, 1, 2), s[f"{at}.{k + 1}.weight"])

    def dense(at, x):
        for i in range(4):
            layer = f"{at}.dense_block.dense_block.{i}"
            y = norm(layer, 2, conv(f"{layer}.1", F.pad(x, (1, 1, 2**i, 0)), dilation=(2**i, 1)))
            x = torch.cat([y, x], 1)
        return y

    def up(at, x):
        y = conv(f"{at}.0.conv", F.pad(x, (1, 1)))
        y = torch.stack(y.chunk(2, 1), -1).flatten(3)  # the halves' bins in turn
        return norm(at, 1, y)

    x = norm("dense_encoder.dense_conv_1", 1, conv("dense_encoder.dense_conv_1.0", x))
    x = conv("dense_encoder.dense_conv_2.0", dense("dense_encoder", x), stride=(1, 2), padding=(0, 1))
    x = norm("dense_encoder.dense_conv_2", 1, x)
    for b in range(blocks):
        x = time_frequency(s, b, x)
        at = f"mlp_after_mamba.{b}"
        y = F.linear(x.permute(0, 2, 3, 1), s[f"{at}.mlp.0.weight"], s[f"{at}.mlp.0.bias"])
        y = F.linear(F.gelu(y), s[f"{at}.mlp.2.weight"], s[f"{at}.mlp.2.bias"])
        x = x + F.layer_norm(y, (64,), s[f"{at}.norm.weight"], s[f"{at}.norm.bias"]).permute(0, 3, 1, 2)
    m = conv("mask_decoder.mask_conv.3", up("mask_decoder.mask_conv", dense("mask_decoder", x)))[:, 0].mT
    mask = 2 * torch.sigmoid(s["mask_decoder.lsigmoid.slope"] * m)
    p = up("phase_decoder.phase_conv", dense("phase_decoder", x))
    return mask.mT, conv("phase_decoder.phase_conv_r", p)[:, 0], conv("phase_decoder.phase_conv_i", p)[:, 0]


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def semamba_state():
    return filled(semamba_shapes())


def test_the_published_file_has_265_tensors_and_as_many_parameters(semamba_state):
    assert len(semamba_state) == 265
    assert sum(x.numel() for x in semamba_state.values()) == 2_258_769


@torch.no_grad()
def test_semamba_is_converted_to_the_same_function(tmp_path, semamba_state):
    outcome = convert(saved(tmp_path, semamba_state), "semamba-advanced", tmp_path / "ours")
    assert (outcome.tensors, outcome.parameters) == (265, 2_258_769)
    model = load_model(str(outcome.folder))
    spec = torch.complex(torch.randn(1, 5, 201), torch.randn(1, 5, 201))
    expected = semamba(semamba_state, torch.stack([spec.abs() ** 0.3, spec.angle()], 1))
    for name, ours, theirs in zip(("mask", "real", "imaginary"), model.estimate(spec), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_rt_semamba_is_converted_to_the_same_function(tmp_path, blocks):
    state = filled(rt_semamba_shapes(blocks))
    outcome = convert(saved(tmp_path, state), f"semamba-causal-{blocks}", tmp_path / "ours")
    model = load_model(str(outcome.folder))
    assert sum(x.numel() for x in state.values()) == outcome.parameters
    spec = torch.complex(torch.randn(1, 12, 201), torch.randn(1, 12, 201))
    start = model.init_state(1)
    features = model.features(spec)  # (b, t, f, 2)
    x, _ = model.encoder(features, start.encoder)
    for block, before in zip(model.blocks, start.time, strict=True):
        x, _ = block(x, before)
    mask = 2 * torch.sigmoid(model.mask_slope * model.mask(x, start.mask)[0][..., 0])
    expected = rt_semamba(state, features.permute(0, 3, 1, 2), blocks)
    for ours, theirs in zip((mask, *model.phase(x, start.phase)[0].unbind(-1)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_every_published_size_has_a_place(blocks):
    model = build(f"semamba-causal-{blocks}")
    shapes = rt_semamba_shapes(blocks)
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert len(translate(state, model, table_for(model, ""))) == len(shapes)


def test_each_tensor_that_does_not_fit_is_named(tmp_path, semamba_state):
    state = dict(semamba_state)
    state["TSMamba.1.tlinear.weight"] = state["TSMamba.1.tlinear.weight"].mT.squeeze()[..., None].transpose(0, 1)[:64]
    del state["mask_decoder.lsigmoid.slope"]
    state["TSMamba.4.tlinear.bias"] = torch.zeros(64)
    state["phase_decoder.phase_conv_r.bias"] = torch.tensor([torch.nan])
    with pytest.raises(ValueError) as error:
        convert(saved(tmp_path, state), "semamba-advanced", tmp_path / "ours")
    message = str(error.value)
    assert "4 of its tensors" in message
    for words in (
        "TSMamba.1.tlinear.weight is (64, ", "expected (128, 64, 1)", "mask_decoder.lsigmoid.slope is missing",
        "TSMamba.4.tlinear.bias has no place", "phase_decoder.phase_conv_r.bias holds numbers that are not finite",
    ):  # fmt: skip
        assert words in message
    assert not (tmp_path / "ours").exists()


def test_two_tensors_exchanged_are_another_function(tmp_path, semamba_state):
    """The comparison above bites: equal shapes alone do not make it pass."""
    state = dict(semamba_state)
    a, b = "phase_decoder.phase_conv_r.weight", "phase_decoder.phase_conv_i.weight"
    state[a], state[b] = state[b], state[a]
    model = build("semamba-advanced").eval()
    model.load_state_dict(translate(state, model, table_for(model, "")))
    spec = torch.complex(torch.randn(1, 2, 201), torch.randn(1, 2, 201))
    with torch.no_grad():
        _, real, _ = semamba(semamba_state, torch.stack([spec.abs() ** 0.3, spec.angle()], 1))
        assert (model.estimate(spec).real - real).abs().max() > 0.1


def test_a_file_that_is_something_else_is_refused(tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"discriminator": {}, "steps": 3}, other)
    with pytest.raises(ValueError, match="discriminator, steps: expected tensors"):
        read_checkpoint(other)
    other.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a PyTorch checkpoint"):
        read_checkpoint(other)


class Payload:
    def __reduce__(self):
        return print, ("code from a file was run",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    file = tmp_path / "bad.pth"
    torch.save({"generator": Payload()}, file)
    with pytest.raises(ValueError, match="not a PyTorch checkpoint of plain tensors"):
        read_checkpoint(file)
    assert "was run" not in capsys.readouterr().out


def test_a_model_without_published_checkpoints_is_refused():
    for name in ("live", "semamba-advanced-uni"):
        with pytest.raises(ValueError, match="semamba-causal-1"):
            table_for(build(name), name)


def test_the_command_line_converts_once_and_refuses_to_overwrite(tmp_path, capsys):
    file = saved(tmp_path, {name: torch.zeros(shape) for name, shape in rt_semamba_shapes(1).items()})
    command = ["convert", str(file), "--to", "semamba-causal-1", "-o", str(tmp_path / "ours")]
    with pytest.raises(SystemExit) as leave:
        main(command)
    assert not leave.value.code
    assert capsys.readouterr().out.strip() == str(tmp_path / "ours")
    assert load_model(str(tmp_path / "ours")).config.blocks == 1
    with pytest.raises(SystemExit) as leave:
        main(command)
    assert leave.value.code == 1 and "holds weights already" in capsys.readouterr().err
