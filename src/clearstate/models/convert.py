"""Published checkpoints to weights of ours: one table of names for each network, applied strictly.

A table says for every tensor of ours where it comes from and in what form it lies there. A checkpoint with a tensor
missing, too many, of another shape, or with numbers that are not finite is refused, and all such tensors are named.

    SEMamba, `{"generator": ...}` (github.com/RoyChao19477/SEMamba, MIT)     to  semamba-advanced
    RT-SEMamba, the same form (github.com/RoyChao19477/RT-SEMamba_app, MIT)  to  semamba-causal-1 ... -8
    MP-SENet of 2024, the same form (github.com/yxlu-0102/MP-SENet, MIT)     to  mp-senet
    MP-SENet + Mamba, the same form (github.com/StrangeAlex/VK_SE_task)      to  mp-senet-mamba, mp-senet-mamba-small
"""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
# What `torch.load` raises for a file that is something else.
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)


class Form(NamedTuple):
    """How a tensor lies in a checkpoint."""

    shape: Callable[[Shape], Shape]  # its shape there, from ours
    ours: Callable[[Tensor], Tensor]


SAME = Form(lambda s: s, lambda x: x)
POINTWISE = Form(lambda s: (*s, 1, 1), lambda x: x[:, :, 0, 0])  # a 1 x 1 convolution that is a linear layer here
TRANSPOSED = Form(lambda s: (s[1], s[0], 1), lambda x: x[:, :, 0].T)  # a transposed 1-d convolution with one tap
COLUMN = Form(lambda s: (*s, 1), lambda x: x[:, 0])  # (f, 1) for (f,)


class Source(NamedTuple):
    """The tensor of a checkpoint that one of our parameters comes from."""

    name: str  # in the checkpoint
    form: Form = SAME


Table = dict[str, Source]  # by our names
SLOPE = Source("mask_decoder.lsigmoid.slope", COLUMN)


class Outcome(NamedTuple):
    """What was converted."""

    tensors: int
    parameters: int
    folder: Path


# ---------------------------------------------------------------------------------------------------- the tables


def layer(ours: str, theirs: str, form: Form = SAME) -> Iterator[tuple[str, Source]]:
    """A layer with weight and bias; `form` is the weight's."""
    yield f"{ours}.weight", Source(f"{theirs}.weight", form)
    yield f"{ours}.bias", Source(f"{theirs}.bias")


def norm_prelu(ours: str, norm: str, prelu: str) -> Iterator[tuple[str, Source]]:
    """A norm and the PReLU after it, which are one layer here."""
    yield from layer(ours, norm)
    yield f"{ours}.slope", Source(f"{prelu}.weight")


def mixer(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    """A Mamba mixer; its names are those of Mamba's own code on both sides."""
    for name in (
        "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log",
        "D", "out_proj.weight",
    ):  # fmt: skip
        yield f"{ours}.{name}", Source(f"{theirs}.{name}")


def mamba(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    """A Mamba block: a norm without bias, and a mixer."""
    yield f"{ours}.norm.weight", Source(f"{theirs}.norm.weight")
    yield from mixer(f"{ours}.mixer", f"{theirs}.mixer")


def both_ways(ours: str, theirs: str, merge: str) -> Iterator[tuple[str, Source]]:
    """Mamba along an axis and against it, and the layer that joins them."""
    for side, blocks in (("ahead", "forward_blocks"), ("back", "backward_blocks")):
        yield from mamba(f"{ours}.{side}", f"{theirs}.{blocks}.0")
    yield from layer(f"{ours}.merge", merge, TRANSPOSED)


def dense(ours: str, theirs: str, layers: int, at: int, norm: str = "") -> Iterator[tuple[str, Source]]:
    """A dense block: convolution `at` of each layer (1 behind a padding), its norm (whose tensors are in `norm`)."""
    for i in range(layers):
        here, there = f"{ours}.dense.layers.{i}", f"{theirs}.dense_block.dense_block.{i}"
        yield from layer(f"{here}.conv", f"{there}.{at}")
        yield from norm_prelu(f"{here}.norm", f"{there}.{at + 1}{norm}", f"{there}.{at + 2}")


def encoder(layers: int, at: int, norm: str = "") -> Iterator[tuple[str, Source]]:
    """The encoder of MP-SENet, which SEMamba kept; arguments as for `dense`."""
    first, last = "dense_encoder.dense_conv_1", "dense_encoder.dense_conv_2"
    yield from layer("encoder.enter", f"{first}.0", POINTWISE)
    yield from norm_prelu("encoder.enter_norm", f"{first}.1{norm}", f"{first}.2")
    yield from dense("encoder", "dense_encoder", layers, at, norm)
    yield from layer("encoder.down", f"{last}.0")
    yield from norm_prelu("encoder.down_norm", f"{last}.1{norm}", f"{last}.2")


def past_codec(layers: int, norm: str = "") -> Iterator[tuple[str, Source]]:
    """The encoder and decoders whose convolutions see the past only: MP-SENet of 2024 and RT-SEMamba."""
    yield from encoder(layers, 1, norm)
    for ours, theirs, heads in (
        ("mask", "mask_decoder.mask_conv", ("mask_decoder.mask_conv.3",)),
        ("phase", "phase_decoder.phase_conv", ("phase_decoder.phase_conv_r", "phase_decoder.phase_conv_i")),
    ):
        yield from dense(ours, theirs.partition(".")[0], layers, 1, norm)
        yield from layer(f"{ours}.up", f"{theirs}.0.conv")
        yield from norm_prelu(f"{ours}.norm", f"{theirs}.1{norm}", f"{theirs}.2")
        for i, head in enumerate(heads):
            yield from layer(f"{ours}.heads.{i}", head)


def semamba_table(config: Any) -> Table:
    """SEMamba, advanced, both directions (265 tensors)."""
    table = dict(encoder(4, 0))
    for i in range(config.blocks):
        table.update(both_ways(f"blocks.{i}.time", f"TSMamba.{i}.time_mamba", f"TSMamba.{i}.tlinear"))
        table.update(both_ways(f"blocks.{i}.frequency", f"TSMamba.{i}.freq_mamba", f"TSMamba.{i}.flinear"))
    table.update(dense("mask", "mask_decoder", 4, 0))
    table.update(layer("mask.up", "mask_decoder.mask_conv.0"))
    table.update(layer("mask.leave", "mask_decoder.mask_conv.1", POINTWISE))
    table.update(norm_prelu("mask.norm", "mask_decoder.mask_conv.2", "mask_decoder.mask_conv.3"))
    table.update(layer("mask.scale", "mask_decoder.mask_conv.4", POINTWISE))
    table["mask.slope"] = SLOPE
    table.update(dense("phase", "phase_decoder", 4, 0))
    table.update(layer("phase.up", "phase_decoder.phase_conv.0"))
    table.update(norm_prelu("phase.norm", "phase_decoder.phase_conv.1", "phase_decoder.phase_conv.2"))
    table.update(layer("phase.real", "phase_decoder.phase_conv_r", POINTWISE))
    table.update(layer("phase.imaginary", "phase_decoder.phase_conv_i", POINTWISE))
    return table


def semamba_causal_table(config: Any) -> Table:
    """RT-SEMamba with any number of blocks."""
    table = dict(past_codec(config.depth, norm=".norm"))
    for i in range(config.blocks):
        here, there = f"blocks.{i}", f"TSMamba.{i}"
        table.update(mamba(f"{here}.time", f"{there}.time_mamba.forward_blocks.0"))
        table.update(layer(f"{here}.time_merge", f"{there}.tlinear", TRANSPOSED))
        table.update(both_ways(f"{here}.frequency", f"{there}.freq_mamba", f"{there}.flinear"))
        for k in (0, 2):
            table.update(layer(f"{here}.mlp.{k}", f"mlp_after_mamba.{i}.mlp.{k}"))
        table.update(layer(f"{here}.mlp_norm", f"mlp_after_mamba.{i}.norm"))
    table["mask_slope"] = SLOPE
    return table


def mp_senet_table(config: Any) -> Table:
    """MP-SENet of 2024 (247 tensors) and its hybrids with Mamba (731 in the large one).

    What is called time there runs over frequency, and the other way round; but for Mamba, whose axes are right. See
    `AS_PUBLISHED`. Its `mag_ts_transformer` holds Mamba blocks.
    """
    table = dict(past_codec(4))
    table["mask.slope"] = SLOPE

    def transformer(ours: str, theirs: str) -> None:
        for i in (1, 2, 3):
            table.update(layer(f"{ours}.norm{i}", f"{theirs}.norm{i}"))
        for kind in ("weight", "bias"):
            table[f"{ours}.qkv.{kind}"] = Source(f"{theirs}.attention.in_proj_{kind}")
            for matrix in ("ih_l0", "hh_l0", "ih_l0_reverse", "hh_l0_reverse"):
                table[f"{ours}.gru.{kind}_{matrix}"] = Source(f"{theirs}.ffn.gru.{kind}_{matrix}")
        table.update(layer(f"{ours}.out", f"{theirs}.attention.out_proj"))
        table.update(layer(f"{ours}.leave", f"{theirs}.ffn.linear"))

    def transformers(ours: str, theirs: str, blocks: int) -> None:
        for i in range(blocks):
            transformer(f"{ours}.{i}.frequency", f"{theirs}.{i}.time_transformer")
            transformer(f"{ours}.{i}.time", f"{theirs}.{i}.freq_transformer")

    def mambas(ours: str, theirs: str, blocks: int) -> None:
        mixers = ("mamba",) if config.one_mixer else ("mamba_t", "mamba_f")
        for i in range(blocks):
            table.update(layer(f"{ours}.{i}.norm", f"{theirs}.{i}.norm"))
            for k, name in enumerate(mixers):
                table.update(mixer(f"{ours}.{i}.mixers.{k}.ahead", f"{theirs}.{i}.{name}"))

    if not config.branch_blocks:
        transformers("shared", "TSTransformer", config.shared_blocks)
        return table
    shared = transformers if config.shared == "transformer" else mambas
    shared("shared", "shared_ts_transformer", config.shared_blocks)
    table.update(layer("branches.to_magnitude", "mag_proj", POINTWISE))
    table.update(layer("branches.to_phase", "phase_proj", POINTWISE))
    mambas("branches.magnitude", "mag_ts_transformer", config.branch_blocks)
    transformers("branches.phase", "phase_ts_transformer", config.branch_blocks)
    transformer("branches.magnitude_hears", "cross_attention.phase_to_mag_attn")
    transformer("branches.phase_hears", "cross_attention.mag_to_phase_attn")
    return table


TABLES: dict[str, Callable[[Any], Table]] = {
    "SEMamba": semamba_table,
    "SEMambaCausal": semamba_causal_table,
    "MPSENet": mp_senet_table,
}

# Values of our configs under which a network computes what the published one does. MP-SENet and the hybrid give
# batches first to layers that were built for sequences first: at batch 1 that turns the order of the axes, and leaves
# the hybrid's cross-attention a single element to attend to.
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "mp-senet": {"order": "frequency_first"},
    "mp-senet-mamba": {"order": "frequency_first", "fusion": "bin", "kv_norm": "none"},
    "mp-senet-mamba-small": {"order": "frequency_first", "fusion": "bin", "kv_norm": "none"},
}


def table_for(model: nn.Module, name: str) -> Table:
    """The table of a model's network.

    Raises:
        ValueError: if nobody has published a checkpoint of it.
    """
    kind, config = type(model).__name__, model.config
    if kind not in TABLES or getattr(config, "core", "bidirectional") != "bidirectional":
        raise ValueError(f"no published checkpoints of {name!r} are known; there are of semamba-advanced, "
                         "semamba-causal-1, -2, -4 and -8, mp-senet, mp-senet-mamba and -small")  # fmt: skip
    return TABLES[kind](config)


# ---------------------------------------------------------------------------------------------------- converting


def convert(checkpoint: str | os.PathLike[str], preset: str, folder: str | os.PathLike[str]) -> Outcome:
    """Write a published checkpoint as a folder that `clearstate.load` reads.

    Args:
        checkpoint: the published file.
        preset: the model it is of, such as "semamba-advanced".
        folder: written anew; must not hold weights.
    Raises:
        ValueError: for a preset without a table, or a checkpoint that does not fit in every tensor.
        FileExistsError: if the folder holds weights already.
        OSError: if the file cannot be read.
    """
    from clearstate.models import build, save_model

    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        raise FileExistsError(f"{folder} holds weights already: give another folder, or remove them")
    model = build(preset, **AS_PUBLISHED.get(preset, {}))
    state = translate(read_checkpoint(checkpoint), model, table_for(model, preset))
    model.load_state_dict(state, strict=True)
    save_model(model.eval(), preset, folder)
    return Outcome(len(state), sum(p.numel() for p in model.parameters()), folder)


def read_checkpoint(path: str | os.PathLike[str], part: str = "generator") -> dict[str, Tensor]:
    """The tensors in a checkpoint, `{part: tensors}` or the tensors alone; no code of it is run.

    Raises:
        ValueError: if it is something else.
        OSError: if it cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a PyTorch checkpoint of plain tensors: {why}") from error
    if isinstance(content, dict) and isinstance(content.get(part), dict):
        content = content[part]
    if not isinstance(content, dict) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {found or 'nothing'}: expected tensors by name, or those under '{part}'")
    return content


def translate(theirs: dict[str, Tensor], model: nn.Module, table: Table) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes, float32.

    Raises:
        ValueError: naming every tensor that is missing, not known, of the wrong shape or not finite.
    """
    ours = model.state_dict()
    assert set(table) == set(ours), sorted(set(table) ^ set(ours))
    wrong: list[str] = []
    state: dict[str, Tensor] = {}
    for name, source in table.items():
        expected = source.form.shape(tuple(ours[name].shape))
        found = theirs.get(source.name)
        if found is None:
            wrong.append(f"{source.name} is missing")
        elif tuple(found.shape) != expected:
            wrong.append(f"{source.name} is {tuple(found.shape)}, expected {expected}")
        elif not found.isfinite().all():
            wrong.append(f"{source.name} holds numbers that are not finite")
        else:
            state[name] = source.form.ours(found.float()).contiguous()
    known = {source.name for source in table.values()}
    wrong += [f"{name} has no place" for name in theirs if name not in known]
    if wrong:
        raise ValueError(f"the checkpoint does not fit, in {len(wrong)} of its tensors: {'; '.join(wrong)}")
    return state
