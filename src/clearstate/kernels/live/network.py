"""`live.py` for live sound: samples in, samples out, in one compiled function with no interpreter between the layers.

`Live.step` is the readable form, and a test compares the two. Names follow it. Nothing here is differentiable.
All parameters lie on one tape in the order of their use, all intermediate results in one working memory (blocks, see
`layers.py`); the functions below take the position of their parameters and return that of the next layer's.

b streams, f bins, k fine bands or coarse bands, c channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from clearstate.kernels.cache import njit
from clearstate.kernels.live.fft import after_transform, fits, samples, spectrum, transform_tape
from clearstate.kernels.live.layers import (
    Block,
    accumulate,
    accumulate_turned,
    add_dense,
    clear,
    columns,
    dense,
    normalise,
    place,
    tape_of,
)
from clearstate.kernels.live.mamba import MixerSizes, mixer_sizes, mixer_step, mixer_tape
from clearstate.kernels.simd import (
    FAST,
    LANES,
    apart,
    below,
    exp,
    inner_njit,
    larger,
    load,
    power,
    root,
    rounded,
    silu,
    splat,
    store,
    total,
)

FINE = 4  # bins of a fine band, which sees two more on either side


class Sizes(NamedTuple):
    """Numbers that shape the network; see `LiveConfig`."""

    n_fft: int
    hop: int
    fine_bands: int
    fine: int
    fine_blocks: int
    bands: int
    channels: int
    blocks: int
    heads: int
    wide: int
    gathered: int
    mixer: MixerSizes
    wide_mixer: MixerSizes
    working: int  # numbers of working memory


class Packed(NamedTuple):
    """A model as the compiled function takes it."""

    tape: np.ndarray
    numbers: np.ndarray  # exponent, decay of the running level
    sizes: Sizes


class Memories(NamedTuple):
    """`LiveState` as flat arrays, which the compiled function writes to; states of Mamba as (n, d)."""

    past: np.ndarray
    level: np.ndarray
    conv: np.ndarray  # of all blocks
    ssm: np.ndarray
    wide_conv: np.ndarray
    wide_ssm: np.ndarray
    tail: np.ndarray


def suits(model: Any) -> bool:
    """Whether a `Live` is in float32 on the CPU and its widths fill whole vectors, as the compiled function needs."""
    config = model.config
    if not config.blocks:
        return False
    widths = (
        config.fine_channels, config.channels // config.heads, model.time[0].d_inner, config.wide, model.wide.d_inner,
        config.gathered * config.bands,
    )  # fmt: skip
    whole = all(width % LANES == 0 for width in widths) and config.gathered <= LANES and config.fine_bins == FINE
    plain = model.window.device.type == "cpu" and model.place.dtype == torch.float32
    return whole and plain and fits(config.n_fft)


@torch.no_grad()
def pack(model: Any) -> Packed:
    """Copy a `Live`'s parameters to a tape, in the order in which `_frame` reads them."""
    config = model.config
    parts = transform_tape(model.window.numpy())
    parts += [*_linear(model.bins_to_fine)]
    for block in model.encoder:
        parts += _fine(block)
    parts += [*_linear(model.widen), model.fine_to_bands.weight, model.place]
    for i in range(config.blocks):
        parts += mixer_tape(model.time_norms[i], model.time[i])
        layer = model.frequency[i]
        query = (config.channels // config.heads) ** -0.5  # scores are divided by the root of their width
        scale = torch.ones(3 * config.channels).index_fill(0, torch.arange(config.channels), query)
        parts += [layer.norm.weight, layer.norm.bias, scale * layer.qkv.bias, scale * layer.qkv.weight.T]
        parts += _linear(layer.out)
        if i == 0:
            parts += [*_linear(model.gather), *_linear(model.wide_in), *mixer_tape(model.wide_norm, model.wide)]
            parts += [*_linear(model.wide_out), *_linear(model.scatter)]
    parts += [*_linear(model.narrow), model.bands_to_fine.weight]
    for join, block in zip(model.joins, model.decoder, strict=True):
        parts += [*_linear(join), *_fine(block)]
    parts += [model.head_norm.weight, model.head_norm.bias, *_linear(model.head)]
    decay = math.exp(-config.hop / (config.level_seconds * config.sample_rate))
    sizes = Sizes(
        config.n_fft, config.hop, model.fine_bands, config.fine_channels, config.fine_blocks, config.bands,
        config.channels, config.blocks, config.heads, config.wide, config.gathered, mixer_sizes(model.time[0]),
        mixer_sizes(model.wide), _working(model),
    )  # fmt: skip
    return Packed(tape_of(parts), np.array([config.exponent, decay], np.float32), sizes)


def _working(model: Any) -> int:
    """Working memory that is enough (`place` would complain): all blocks of a frame, as if none were used twice."""
    config, time, wide = model.config, model.time[0], model.wide
    a_fine_band = config.fine_channels * (config.fine_blocks + 8) + config.channels + 3 * LANES
    a_band = 12 * config.channels + 5 * (time.d_inner + LANES) + 2 * time.d_state + time.dt_rank + config.bands
    whole_band = 2 * config.wide + 6 * wide.d_inner + 2 * wide.d_state + wide.dt_rank
    return (
        12 * config.n_fft + model.fine_bands * a_fine_band + (config.bands + LANES) * a_band + whole_band + 64 * LANES
    )


def _linear(layer):
    """Bias and weight of a layer, its outputs padded to whole vectors."""
    more = -layer.out_features % LANES
    return [np.pad(layer.bias, (0, more)), np.pad(layer.weight.T, ((0, 0), (0, more)))]


def _fine(block):
    taps = block.spread.weight[:, :, 0].permute(2, 1, 0)  # (taps, in, out): the band below, itself, the one above
    return [block.norm.weight, block.norm.bias, block.spread.bias, taps, *_linear(block.mix)]


def silence(state: Any) -> Memories:
    """Zeros in the number that the tensors of a `LiveState` hold."""

    def zeros(*tensors: torch.Tensor) -> np.ndarray:
        return np.zeros(sum(tensor.numel() for tensor in tensors), np.float32)

    conv, ssm = zip(*state.bands, strict=True)
    return Memories(
        zeros(state.past), zeros(state.level), zeros(*conv), zeros(*ssm), zeros(state.wide.conv), zeros(state.wide.ssm),
        zeros(state.tail),
    )  # fmt: skip


class Stream:
    """Signals through a model, their state where the compiled function writes to it; see `open_stream`."""

    def __init__(self, packed: Packed, memories: Memories, channels: int) -> None:
        self.packed, self.memories, self.channels = packed, memories, channels

    def __call__(self, x: np.ndarray) -> np.ndarray:
        hop = self.packed.sizes.hop
        if x.ndim != 2 or x.shape[0] != self.channels or x.shape[1] % hop:
            raise ValueError(f"samples of shape {x.shape}: expected ({self.channels}, a multiple of hop={hop})")
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        advance(self.packed, self.memories, x, y)
        return y


@inner_njit
def _fine_block(tape, at, memory, free, x):
    """FineBlock: x += mix(SiLU(spread(norm(x))))."""
    apart()
    padded, free = place(memory, free, x.rows + 2, x.width)  # a band of zeros at either end
    clear(memory, Block(padded.at, 1, x.width, x.width))
    clear(memory, Block(padded.at + (x.rows + 1) * x.width, 1, x.width, x.width))
    at = normalise(tape, at, memory, x, Block(padded.at + x.width, x.rows, x.width, x.width))
    y, free = place(memory, free, x.rows, x.width)
    # A band and its neighbours lie one after another: three rows are read as one.
    at = dense(tape, at, memory, Block(padded.at, x.rows, 3 * x.width, x.width), y)
    for j in range(y.at, y.at + y.rows * y.width, LANES):
        store(memory, j, silu(load(memory, j)))
    return add_dense(tape, at, memory, y, x)


@inner_njit
def _attend(tape, at, memory, free, x, heads):
    """BandAttention: x += out(softmax(q k) v), the bands of one frame; q comes divided by the root of its width."""
    apart()
    bands, channels = x.rows, x.width
    width, padded = channels // heads, rounded(bands)
    normed, free = place(memory, free, bands, channels)
    at = normalise(tape, at, memory, x, normed)
    qkv, free = place(memory, free, bands, 3 * channels)
    at = dense(tape, at, memory, normed, qkv)
    queries, free = place(memory, free, width, padded)  # of one head, turned round
    scores, free = place(memory, free, bands, padded)  # a row for each key
    clear(memory, queries)
    clear(memory, normed)  # is used again, for what the heads give
    for head in range(heads):
        query = columns(qkv, head * width, width)
        for r in range(bands):
            for j in range(width):
                memory[queries.at + j * padded + r] = memory[query.at + r * query.step + j]
        clear(memory, scores)
        accumulate(memory, columns(qkv, channels + head * width, width), memory, queries, memory, scores)
        _softmax(memory, scores)
        seen = Block(scores.at, bands, bands, scores.step)
        value = columns(qkv, 2 * channels + head * width, width)
        accumulate_turned(memory, seen, memory, value, memory, columns(normed, head * width, width))
    return add_dense(tape, at, memory, normed, x)


@inner_njit
def _softmax(memory, scores):
    """Of each column, in place: the lanes of a vector are columns, so no sum over lanes is taken."""
    apart()
    for j in range(0, scores.width, LANES):
        first, end = scores.at + j, scores.at + j + scores.rows * scores.step
        top = splat(-3e38)
        for p in range(first, end, scores.step):
            top = larger(top, load(memory, p))
        sums = splat(0.0)
        for p in range(first, end, scores.step):
            value = exp(load(memory, p) - top)
            sums = value + sums
            store(memory, p, value)
        share = splat(1.0) / sums
        for p in range(first, end, scores.step):
            store(memory, p, load(memory, p) * share)


@inner_njit
def _whole_band(tape, at, memory, free, x, sizes, conv, conv_at, ssm, ssm_at):
    """Mamba along time over all bands at once: x += scatter(wide_out(y + Mamba(norm(y))))."""
    apart()
    few = sizes.gathered
    gathered, free = place(memory, free, x.rows, LANES)  # `few` of them count
    at = dense(tape, at, memory, x, gathered)
    flat, free = place(memory, free, 1, few * x.rows)
    for r in range(x.rows):
        for j in range(few):
            memory[flat.at + r * few + j] = memory[gathered.at + r * LANES + j]
    y, free = place(memory, free, 1, sizes.wide)
    at = dense(tape, at, memory, flat, y)
    at = mixer_step(tape, at, memory, free, y, sizes.wide_mixer, conv, conv_at, ssm, ssm_at)
    at = dense(tape, at, memory, y, flat)
    return add_dense(tape, at, memory, Block(flat.at, x.rows, few, few), x)


@inner_njit
def _level(memory, re, im, bins, decay, level, at):
    """Root of the running mean power; the two sums at level[at] are moved on."""
    apart()
    sums = splat(0.0)
    for f in range(0, bins, LANES):
        a, b = load(memory, re + f), load(memory, im + f)
        sums = below(bins - f, a * a + b * b, splat(0.0)) + sums
    mean = total(sums) / np.float32(bins)
    if not mean <= np.float32(3e-10):
        level[at] = decay * level[at] + mean
        level[at + 1] = decay * level[at + 1] + np.float32(1)
    return np.sqrt(level[at] / max(level[at + 1], np.float32(1e-6)) + np.float32(1e-12))


@inner_njit
def _power_law(memory, re, im, bins, before, exponent, after):
    """In place: after (before S) |before S|**(exponent - 1)."""
    apart()
    half = (exponent - np.float32(1)) * np.float32(0.5)
    for f in range(0, bins, LANES):
        a, b = load(memory, re + f) * before, load(memory, im + f) * before
        gain = power(a * a + b * b + np.float32(1e-12), half) * after
        store(memory, re + f, a * gain)
        store(memory, im + f, b * gain)


@inner_njit
def _to_fine_bands(tape, at, memory, free, re, im, fine):
    """Eight bins around each group of four, real, imaginary and magnitude, to one fine band."""
    apart()
    bins = 4 * fine.rows
    planes, free = place(memory, free, 3, rounded(bins + 4))
    clear(memory, planes)
    for f in range(0, bins, LANES):
        a, b = load(memory, re + f), load(memory, im + f)
        store(memory, planes.at + 2 + f, a)
        store(memory, planes.at + planes.step + 2 + f, b)
        store(memory, planes.at + 2 * planes.step + 2 + f, root(a * a + b * b + np.float32(1e-12)))
    for r in range(fine.rows):
        for j in range(0, fine.width, LANES):
            store(memory, fine.at + r * fine.step + j, load(tape, at + j))
    at += fine.width
    for plane in range(3):
        eight = Block(planes.at + plane * planes.step, fine.rows, 2 * FINE, FINE)  # rows that overlap
        accumulate(memory, eight, tape, Block(at, 2 * FINE, fine.width, fine.width), memory, fine)
        at += 2 * FINE * fine.width
    return at


@inner_njit
def _join(tape, at, memory, x, skip, out):
    """out = W [x, skip] + b."""
    middle = dense(tape, at, memory, x, out)
    accumulate(memory, skip, tape, Block(middle, skip.width, out.width, out.width), memory, out)
    return middle + skip.width * out.width


@inner_njit
def _apply_mask(memory, re, im, bins, mask):
    """Complex product with the mask (k, 4 bins of real and imaginary part); the highest bin shares its neighbour's."""
    apart()
    for f in range(bins):
        bin_ = min(f, bins - 2)
        here = mask.at + bin_ // FINE * mask.step + bin_ % FINE * 2
        a, b = memory[re + f], memory[im + f]
        c, d = memory[here], memory[here + 1]
        memory[re + f], memory[im + f] = a * c - b * d, a * d + b * c


@inner_njit
def _frame(packed, memory, free, re, im, stream, streams, state):
    """The network: the spectrum of a stream at `re` and `im` is replaced by the enhanced one."""
    apart()
    tape, numbers, sizes = packed
    bins = sizes.n_fft // 2 + 1
    at = after_transform(sizes.n_fft)
    level = _level(memory, re, im, bins, numbers[1], state.level, 2 * stream)
    _power_law(memory, re, im, bins, np.float32(1) / level, numbers[0], np.float32(1))
    fine_bands, fine = sizes.fine_bands, sizes.fine
    skips, free = place(memory, free, (sizes.fine_blocks + 1) * fine_bands, fine)
    last = Block(skips.at, fine_bands, fine, fine)
    at = _to_fine_bands(tape, at, memory, free, re, im, last)
    for _ in range(sizes.fine_blocks):
        next_ = Block(last.at + fine_bands * fine, fine_bands, fine, fine)
        for j in range(0, fine_bands * fine, LANES):
            store(memory, next_.at + j, load(memory, last.at + j))
        last = next_
        at = _fine_block(tape, at, memory, free, last)
    x, free = place(memory, free, sizes.bands, sizes.channels)
    widened, _ = place(memory, free, fine_bands, sizes.channels)
    at = dense(tape, at, memory, last, widened)
    to_bands = Block(at, sizes.bands, fine_bands, fine_bands)
    at += rounded(sizes.bands * fine_bands)
    for j in range(0, sizes.bands * sizes.channels, LANES):
        store(memory, x.at + j, load(tape, at + j))  # place
    at += sizes.bands * sizes.channels
    accumulate(tape, to_bands, memory, widened, memory, x)
    mixer, wide = sizes.mixer, sizes.wide_mixer
    for i in range(sizes.blocks):
        sequence = (i * streams + stream) * sizes.bands * mixer.inner
        conv_at, ssm_at = sequence * (mixer.taps - 1), sequence * mixer.states
        at = mixer_step(tape, at, memory, free, x, mixer, state.conv, conv_at, state.ssm, ssm_at)
        at = _attend(tape, at, memory, free, x, sizes.heads)
        if i == 0:
            wide_conv_at, wide_ssm_at = stream * wide.inner * (wide.taps - 1), stream * wide.inner * wide.states
            at = _whole_band(
                tape, at, memory, free, x, sizes, state.wide_conv, wide_conv_at, state.wide_ssm, wide_ssm_at
            )
    narrowed, free = place(memory, free, sizes.bands, fine)
    at = dense(tape, at, memory, x, narrowed)
    y, free = place(memory, free, fine_bands, fine)
    clear(memory, y)
    accumulate(tape, Block(at, fine_bands, sizes.bands, sizes.bands), memory, narrowed, memory, y)
    at += rounded(sizes.bands * fine_bands)
    joined, free = place(memory, free, fine_bands, fine)
    for i in range(sizes.fine_blocks):
        at = _join(tape, at, memory, y, Block(last.at - i * fine_bands * fine, fine_bands, fine, fine), joined)
        at = _fine_block(tape, at, memory, free, joined)
        y, joined = joined, y
    at = normalise(tape, at, memory, y, joined)
    mask, free = place(memory, free, fine_bands, LANES)  # two for each bin count
    at = dense(tape, at, memory, joined, mask)
    _apply_mask(memory, re, im, bins, mask)
    _power_law(memory, re, im, bins, np.float32(1), np.float32(1) / numbers[0], level)


@njit(fastmath=FAST, nogil=True, cache=True)
def advance(packed, state, x, y):
    """The next hops of several streams.

    Args:
        packed: `Packed`.   state: `Memories`, moved on.
        x: samples (b, m * hop).   y: enhanced samples, as many, n_fft - hop samples late; written.
    """
    sizes = packed.sizes
    n, hop, bins = sizes.n_fft, sizes.hop, sizes.n_fft // 2 + 1
    kept = n - hop
    memory = np.empty(sizes.working, np.float32)
    start = -memory.ctypes.data % (4 * LANES) // 4  # see linear_cpu.aligned
    frame, free = start, start + rounded(n)
    parts, free = place(memory, free, 2, rounded(bins))
    clear(memory, parts)  # what lies past the last bin is worked on, too
    re, im = parts.at, parts.at + parts.step
    for b in range(x.shape[0]):
        for t in range(0, x.shape[1], hop):
            for i in range(kept):
                memory[frame + i] = state.past[b * kept + i]
            for i in range(hop):
                memory[frame + kept + i] = x[b, t + i]
            for i in range(kept):
                state.past[b * kept + i] = memory[frame + hop + i]
            spectrum(packed.tape, memory, free, frame, n, re, im)
            _frame(packed, memory, free, re, im, b, x.shape[0], state)
            samples(packed.tape, memory, free, re, im, n, frame)
            for i in range(kept):
                memory[frame + i] += state.tail[b * kept + i]
            for i in range(hop):
                y[b, t + i] = memory[frame + i]
            for i in range(kept):
                state.tail[b * kept + i] = memory[frame + hop + i]
