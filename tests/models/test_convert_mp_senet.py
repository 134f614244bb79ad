"""Checkpoints of MP-SENet and its hybrids: every tensor has its place, proven by the published arrangement rebuilt.

The networks below are written from the published names and shapes alone, with PyTorch's own attention and GRU built for
sequences first and given batches first, as the published code does.
"""

import pytest
import torch
from published import Shapes, State, filled, mixer, mixer_shapes, saved
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models import build, load_model
from clearstate.models.convert import AS_PUBLISHED, convert, table_for, translate

LAYOUTS = {  # shared blocks, what they are, blocks of a branch, mixers of a Mamba block
    "mp-senet": (4, "transformer", 0, ()),
    "mp-senet-mamba": (6, "transformer", 6, ("mamba_t", "mamba_f")),
    "mp-senet-mamba-small": (2, "mamba", 2, ("mamba",)),
}
SIZES = {"mp-senet": (247, 2_263_372), "mp-senet-mamba": (731, 5_948_492), "mp-senet-mamba-small": (255, 2_037_836)}

# --- checkpoints with the published names and shapes -----------------------------------------------------------------

TRANSFORMER = {
    **{f"norm{i}.{kind}": (64,) for i in (1, 2, 3) for kind in ("weight", "bias")},
    "attention.in_proj_weight": (192, 64), "attention.in_proj_bias": (192,),
    "attention.out_proj.weight": (64, 64), "attention.out_proj.bias": (64,),
    **{f"ffn.gru.weight_ih_l0{way}": (384, 64) for way in ("", "_reverse")},
    **{f"ffn.gru.weight_hh_l0{way}": (384, 128) for way in ("", "_reverse")},
    **{f"ffn.gru.bias_{kind}_l0{way}": (384,) for kind in ("ih", "hh") for way in ("", "_reverse")},
    "ffn.linear.weight": (64, 256), "ffn.linear.bias": (64,),
}  # fmt: skip


def shapes_of(name: str) -> Shapes:
    """The generator of a published file."""
    shared, kind, branch, mixers = LAYOUTS[name]
    shapes: Shapes = {}

    def conv(at, *weight):
        shapes[f"{at}.weight"], shapes[f"{at}.bias"] = weight, weight[:1]

    def norm_prelu(at, k):
        shapes[f"{at}.{k}.weight"] = shapes[f"{at}.{k}.bias"] = shapes[f"{at}.{k + 1}.weight"] = (64,)

    def transformer(at):
        shapes.update({f"{at}.{name}": shape for name, shape in TRANSFORMER.items()})

    def transformers(at, count):
        for n in range(count):
            transformer(f"{at}.{n}.time_transformer")
            transformer(f"{at}.{n}.freq_transformer")

    def mambas(at, count):
        for n in range(count):
            shapes[f"{at}.{n}.norm.weight"] = shapes[f"{at}.{n}.norm.bias"] = (64,)
            for one in mixers:
                shapes.update({f"{at}.{n}.{one}.{name}": shape for name, shape in mixer_shapes(128).items()})

    conv("dense_encoder.dense_conv_1.0", 64, 2, 1, 1)
    conv("dense_encoder.dense_conv_2.0", 64, 64, 1, 3)
    norm_prelu("dense_encoder.dense_conv_1", 1)
    norm_prelu("dense_encoder.dense_conv_2", 1)
    for part in ("dense_encoder", "mask_decoder", "phase_decoder"):
        for i in range(4):
            conv(f"{part}.dense_block.dense_block.{i}.1", 64, 64 * (i + 1), 2, 3)
            norm_prelu(f"{part}.dense_block.dense_block.{i}", 2)
    for part, heads in (("mask", ["mask_conv.3"]), ("phase", ["phase_conv_r", "phase_conv_i"])):
        conv(f"{part}_decoder.{part}_conv.0.conv", 128, 64, 1, 3)
        norm_prelu(f"{part}_decoder.{part}_conv", 1)
        for head in heads:
            conv(f"{part}_decoder.{head}", 1, 64, 1, 2)
    shapes["mask_decoder.lsigmoid.slope"] = (201, 1)
    if not branch:
        transformers("TSTransformer", shared)
        return shapes
    (transformers if kind == "transformer" else mambas)("shared_ts_transformer", shared)
    mambas("mag_ts_transformer", branch)
    transformers("phase_ts_transformer", branch)
    for at in ("mag_proj", "phase_proj"):
        conv(at, 64, 64, 1, 1)
    for at in ("phase_to_mag_attn", "mag_to_phase_attn"):
        transformer(f"cross_attention.{at}")
    return shapes


# --- the published networks at batch 1, channels first, from those names alone ---------------------------------------


def published_transformer(s: State, at: str, x: Tensor, other: Tensor | None, kv_normed: bool) -> Tensor:
    """x (first axis, second axis, 64), of which PyTorch takes the first for the sequence."""

    def norm(i, x):
        return F.layer_norm(x, (64,), s[f"{at}.norm{i}.weight"], s[f"{at}.norm{i}.bias"])

    query = norm(1, x)
    source = other if other is not None else (query if kv_normed else x)
    attended, _ = F.multi_head_attention_forward(
        query, source, source, 64, 4, s[f"{at}.attention.in_proj_weight"], s[f"{at}.attention.in_proj_bias"], None,
        None, False, 0.0, s[f"{at}.attention.out_proj.weight"], s[f"{at}.attention.out_proj.bias"], training=False,
    )  # fmt: skip
    x = x + attended
    gru = nn.GRU(64, 128, bidirectional=True)
    gru.load_state_dict({name: s[f"{at}.ffn.gru.{name}"] for name in gru.state_dict()})
    y, _ = gru(norm(2, x))
    x = x + F.linear(F.leaky_relu(y, 0.01), s[f"{at}.ffn.linear.weight"], s[f"{at}.ffn.linear.bias"])
    return norm(3, x)


def published_pair(s: State, at: str, x: Tensor, kv_normed: bool) -> Tensor:
    """A "two-stage block" on (1, 64, t, k)."""
    _, c, t, k = x.shape
    x = x.permute(0, 3, 2, 1).reshape(k, t, c)
    x = x + published_transformer(s, f"{at}.time_transformer", x, None, kv_normed)
    x = x.permute(1, 0, 2)  # (t, k, c)
    x = x + published_transformer(s, f"{at}.freq_transformer", x, None, kv_normed)
    return x.permute(2, 0, 1)[None]


def published_mamba(s: State, at: str, x: Tensor, mixers: tuple[str, ...]) -> Tensor:
    def norm(x):
        return F.layer_norm(x, (64,), s[f"{at}.norm.weight"], s[f"{at}.norm.bias"])

    x = x[0].permute(2, 1, 0)  # (k, t, c)
    x = x + mixer(s, f"{at}.{mixers[0]}", norm(x))
    x = x.permute(1, 0, 2)
    x = x + mixer(s, f"{at}.{mixers[-1]}", norm(x))
    return x.permute(2, 0, 1)[None]


def published(s: State, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, pseudo-real and pseudo-imaginary part (1, t, f) from magnitude and phase (1, 2, t, f)."""
    shared, kind, branch, mixers = LAYOUTS[name]
    kv_normed = name == "mp-senet"

    def conv(at, x, **options):
        return F.conv2d(x, s[f"{at}.weight"], s[f"{at}.bias"], **options)

    def norm(at, k, x):
        x = F.instance_norm(x, weight=s[f"{at}.{k}.weight"], bias=s[f"{at}.{k}.bias"])
        return F.prelu(x, s[f"{at}.{k + 1}.weight"])

    def dense(at, x):
        for i in range(4):
            layer = f"{at}.dense_block.dense_block.{i}"
            y = norm(layer, 2, conv(f"{layer}.1", F.pad(x, (1, 1, 2**i, 0)), dilation=(2**i, 1)))
            x = torch.cat([y, x], 1)
        return y

    def up(at, x):
        even, odd = conv(f"{at}.0.conv", F.pad(x, (1, 1))).chunk(2, 1)
        return norm(at, 1, torch.stack([even, odd], -1).flatten(3))

    def cross(at, x, other):
        flat, source = (y[0].permute(1, 2, 0).reshape(1, -1, 64) for y in (x, other))  # one element a "sequence"
        y = published_transformer(s, f"cross_attention.{at}", flat, source, kv_normed)
        return x + y.view(*x.shape[2:], 64).permute(2, 0, 1)[None]

    def pairs(at, x, count):
        for n in range(count):
            x = published_pair(s, f"{at}.{n}", x, kv_normed)
        return x

    def mambas(at, x, count):
        for n in range(count):
            x = published_mamba(s, f"{at}.{n}", x, mixers)
        return x

    x = norm("dense_encoder.dense_conv_1", 1, conv("dense_encoder.dense_conv_1.0", x))
    x = conv("dense_encoder.dense_conv_2.0", dense("dense_encoder", x), stride=(1, 2), padding=(0, 1))
    x = norm("dense_encoder.dense_conv_2", 1, x)
    if branch:
        x = (pairs if kind == "transformer" else mambas)("shared_ts_transformer", x, shared)
        m = mambas("mag_ts_transformer", conv("mag_proj", x), branch)
        p = pairs("phase_ts_transformer", conv("phase_proj", x), branch)
        m, p = cross("phase_to_mag_attn", m, p), cross("mag_to_phase_attn", p, m)
    else:
        m = p = pairs("TSTransformer", x, shared)
    m = conv("mask_decoder.mask_conv.3", up("mask_decoder.mask_conv", dense("mask_decoder", m)))[:, 0].mT
    mask = 2 * torch.sigmoid(s["mask_decoder.lsigmoid.slope"] * m)
    p = up("phase_decoder.phase_conv", dense("phase_decoder", p))
    return mask.mT, conv("phase_decoder.phase_conv_r", p)[:, 0], conv("phase_decoder.phase_conv_i", p)[:, 0]


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_file_has_as_many_tensors_and_parameters(name):
    shapes = shapes_of(name)
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == SIZES[name]


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_converted_checkpoint_is_the_same_function(tmp_path, name):
    """From the features on; the published arrangement at batch 1 is ours with the axes in the other order."""
    state = filled(shapes_of(name))
    outcome = convert(saved(tmp_path, state), name, tmp_path / "ours")
    assert (outcome.tensors, outcome.parameters) == SIZES[name]
    model = load_model(str(outcome.folder))
    assert {key: getattr(model.config, key) for key in AS_PUBLISHED[name]} == AS_PUBLISHED[name]
    spec = torch.complex(torch.randn(1, 6, 201), torch.randn(1, 6, 201))
    magnitude = torch.sqrt(spec.real**2 + spec.imag**2 + 1e-9) ** 0.3
    features = torch.stack([magnitude, torch.atan2(spec.imag + 1e-10, spec.real + 1e-5)], 1)
    for ours, theirs in zip(model.estimate(spec), published(state, name, features), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        assert theirs.std() > 0.01, "the comparison is of constants"


@torch.no_grad()
@pytest.mark.parametrize("option", ["order", "kv_norm"])
def test_in_any_other_arrangement_it_is_another_function(option):
    """The comparison above bites, and the two key and value norms are not one: their checkpoints look alike."""
    state = filled(shapes_of("mp-senet"))
    config = AS_PUBLISHED["mp-senet"] | {"order": {"order": "time_first"}, "kv_norm": {"kv_norm": "none"}}[option]
    model = build("mp-senet", **config).eval()
    model.load_state_dict(translate(state, model, table_for(model, "")))
    x = torch.randn(1, 3, 7, 64)
    theirs = published_pair(state, "TSTransformer.0", x.permute(0, 3, 1, 2), kv_normed=True).permute(0, 2, 3, 1)
    assert (model.shared[0](x) - theirs).abs().max() > 0.1
    right = build("mp-senet", **AS_PUBLISHED["mp-senet"]).eval()
    right.load_state_dict(translate(state, right, table_for(right, "")))
    torch.testing.assert_close(right.shared[0](x), theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_in_the_published_arrangement_items_of_a_batch_hear_each_other_and_in_ours_they_do_not():
    """What turning the axes cures: the published cross-attention attends over the batch."""
    state = filled(shapes_of("mp-senet-mamba-small"))
    first, second = torch.randn(2, 30, 64), torch.randn(2, 30, 64)  # (batch, bins, c), sequence first for PyTorch
    at = "cross_attention.phase_to_mag_attn"
    together = published_transformer(state, at, first, second, kv_normed=False)[:1]
    alone = published_transformer(state, at, first[:1], second[:1], kv_normed=False)
    assert (together - alone).abs().max() > 0.01
    model = build("mp-senet-mamba-small", **AS_PUBLISHED["mp-senet-mamba-small"]).eval()
    model.load_state_dict(translate(state, model, table_for(model, "")))
    hears = model.branches.magnitude_hears
    ours = hears(first.reshape(60, 1, 64), second.reshape(60, 1, 64)).view(2, 30, 64)
    torch.testing.assert_close(ours[:1], alone, atol=1e-5, rtol=1e-4)


def test_each_tensor_that_does_not_fit_is_named(tmp_path):
    state = filled(shapes_of("mp-senet"))
    state["TSTransformer.1.time_transformer.attention.in_proj_weight"] = torch.zeros(64, 192)
    del state["mask_decoder.lsigmoid.slope"]
    state["cross_attention.phase_to_mag_attn.norm1.bias"] = torch.zeros(64)
    with pytest.raises(ValueError) as error:
        convert(saved(tmp_path, state), "mp-senet", tmp_path / "ours")
    for words in (
        "3 of its tensors",
        "TSTransformer.1.time_transformer.attention.in_proj_weight is (64, 192), expected (192, 64)",
        "mask_decoder.lsigmoid.slope is missing",
        "cross_attention.phase_to_mag_attn.norm1.bias has no place",
    ):  # fmt: skip
        assert words in str(error.value)
    assert not (tmp_path / "ours").exists()
