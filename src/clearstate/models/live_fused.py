"""One frame of `live.py`'s network in one compiled function, for streaming: no interpreter between the layers.

`Live.enhance_spectrum` is the readable form, and a test holds the two together. Names follow it. Nothing here is
differentiable; weights are packed once, transposed so that inner loops run over outputs.

k fine bands or coarse bands, c channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clearstate.compiled import njit
from clearstate.ssm.linear_cpu import linear, multiply
from clearstate.ssm.math_cpu import FAST, exp, silu, softplus
from clearstate.ssm.step_cpu import recur

if TYPE_CHECKING:
    from clearstate.models.live import Live


class LinearWeights(NamedTuple):
    weight: np.ndarray  # (in, out)
    bias: np.ndarray  # (out,)


class MambaWeights(NamedTuple):
    norm: LinearWeights  # gain and offset of the layer norm before it
    into: LinearWeights
    taps: np.ndarray  # (taps, d)
    taps_bias: np.ndarray  # (d,)
    to_dt: LinearWeights  # the low-rank part of x_proj and dt_proj
    dt: LinearWeights
    to_b: LinearWeights
    to_c: LinearWeights
    A: np.ndarray  # (d, n)
    D: np.ndarray  # (d,)
    out: LinearWeights


class FineWeights(NamedTuple):
    norm: LinearWeights
    spread: LinearWeights  # inputs: the neighbour below, the band, the neighbour above
    mix: LinearWeights


class AttentionWeights(NamedTuple):
    norm: LinearWeights
    qkv: LinearWeights
    out: LinearWeights


class Weights(NamedTuple):
    """All of `Live`'s parameters; tuples of equal parts where a layer is repeated."""

    numbers: np.ndarray  # exponent, decay of the running level
    heads: int
    bins_to_fine: LinearWeights
    encoder: tuple[FineWeights, ...]
    widen: LinearWeights
    fine_to_bands: np.ndarray  # (bands, fine)
    place: np.ndarray  # (bands, c)
    time: tuple[MambaWeights, ...]
    frequency: tuple[AttentionWeights, ...]
    gather: LinearWeights
    wide_in: LinearWeights
    wide: MambaWeights
    wide_out: LinearWeights
    scatter: LinearWeights
    narrow: LinearWeights
    bands_to_fine: np.ndarray  # (fine, bands)
    joins: tuple[LinearWeights, ...]
    decoder: tuple[FineWeights, ...]
    head_norm: LinearWeights
    head: LinearWeights


def pack(model: Live) -> Weights:
    """Copy a model's parameters into the layout of the compiled step."""
    config = model.config
    decay = math.exp(-config.hop / (config.level_seconds * config.sample_rate))
    return Weights(
        numbers=np.array([config.exponent, decay], np.float32),
        heads=config.heads,
        bins_to_fine=_linear(model.bins_to_fine),
        encoder=tuple(_fine(block) for block in model.encoder),
        widen=_linear(model.widen),
        fine_to_bands=_array(model.fine_to_bands.weight),
        place=_array(model.place),
        time=tuple(_mamba(norm, mixer) for norm, mixer in zip(model.time_norms, model.time, strict=True)),
        frequency=tuple(
            AttentionWeights(_norm(layer.norm), _linear(layer.qkv), _linear(layer.out)) for layer in model.frequency
        ),
        gather=_linear(model.gather),
        wide_in=_linear(model.wide_in),
        wide=_mamba(model.wide_norm, model.wide),
        wide_out=_linear(model.wide_out),
        scatter=_linear(model.scatter),
        narrow=_linear(model.narrow),
        bands_to_fine=_array(model.bands_to_fine.weight),
        joins=tuple(_linear(join) for join in model.joins),
        decoder=tuple(_fine(block) for block in model.decoder),
        head_norm=_norm(model.head_norm),
        head=_linear(model.head),
    )


def _array(x) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().float().numpy())


def _linear(layer: Any) -> LinearWeights:
    bias = np.zeros(layer.out_features, np.float32) if layer.bias is None else _array(layer.bias)
    return LinearWeights(_array(layer.weight.T), bias)


def _norm(layer: Any) -> LinearWeights:
    return LinearWeights(_array(layer.weight)[None], _array(layer.bias))


def _fine(block) -> FineWeights:
    taps = _array(block.spread.weight[:, :, 0].permute(2, 1, 0)).reshape(-1, block.spread.out_channels)
    return FineWeights(_norm(block.norm), LinearWeights(taps, _array(block.spread.bias)), _linear(block.mix))


def _mamba(norm: Any, mixer: Any) -> MambaWeights:
    rank, n = mixer.dt_rank, mixer.d_state
    to_dt, to_b, to_c = (
        LinearWeights(_array(part.T), np.zeros(part.shape[0], np.float32))
        for part in mixer.x_proj.weight.split([rank, n, n])
    )
    return MambaWeights(
        norm=_norm(norm),
        into=_linear(mixer.in_proj),
        taps=_array(mixer.conv1d.weight[:, 0].T),
        taps_bias=_array(mixer.conv1d.bias),
        to_dt=to_dt,
        dt=_linear(mixer.dt_proj),
        to_b=to_b,
        to_c=to_c,
        A=_array(-mixer.A_log.float().exp()),
        D=_array(mixer.D),
        out=_linear(mixer.out_proj),
    )


@njit(fastmath=FAST)
def _apply(layer, x, out):
    """out = x W + b, rows of x."""
    linear(x, layer.weight, layer.bias, out)


@njit(fastmath=FAST)
def _add(x, y):
    for r in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[r, j] += y[r, j]


@njit(fastmath=FAST)
def _normalise(norm, x, out):
    """Layer norm of each row."""
    width = np.float32(x.shape[1])
    gain, offset = norm.weight[0], norm.bias
    for r in range(x.shape[0]):
        source, target = x[r], out[r]
        mean = np.float32(0)
        for j in range(source.shape[0]):
            mean += source[j]
        mean /= width
        variance = np.float32(0)
        for j in range(source.shape[0]):
            variance += (source[j] - mean) * (source[j] - mean)
        scale = np.float32(1) / np.sqrt(variance / width + np.float32(1e-5))
        for j in range(source.shape[0]):
            target[j] = (source[j] - mean) * scale * gain[j] + offset[j]


@njit(fastmath=FAST)
def _fine_block(block, x):
    """FineBlock: x += mix(SiLU(spread(norm(x))))."""
    bands, channels = x.shape
    padded = np.zeros((bands + 2, channels), np.float32)
    normed, y = padded[1:-1], np.empty_like(x)
    _normalise(block.norm, x, normed)
    neighbours = np.empty((bands, 3 * channels), np.float32)
    for k in range(bands):
        for tap in range(3):
            neighbours[k, tap * channels : (tap + 1) * channels] = padded[k + tap]
    _apply(block.spread, neighbours, y)
    for k in range(bands):
        row = y[k]
        for j in range(channels):
            row[j] = silu(row[j])
    _apply(block.mix, y, normed)
    _add(x, normed)


@njit(fastmath=FAST)
def _mamba_step(w, x, conv, ssm, out):
    """One step of Mamba for each row of x, which is a sequence of its own; conv and ssm are written to."""
    rows = x.shape[0]
    taps, inner = w.taps.shape
    states = w.A.shape[1]
    normed = np.empty_like(x)
    _normalise(w.norm, x, normed)
    xz = np.empty((rows, 2 * inner), np.float32)
    _apply(w.into, normed, xz)
    u = np.empty((rows, inner), np.float32)
    for r in range(rows):
        row, newest, past = u[r], xz[r], conv[r]
        for j in range(inner):
            row[j] = w.taps_bias[j] + w.taps[taps - 1, j] * newest[j]
        for tap in range(taps - 1):
            weight, held = w.taps[tap], past[tap]
            for j in range(inner):
                row[j] += weight[j] * held[j]
        for tap in range(taps - 2):
            past[tap] = past[tap + 1]
        past[taps - 2] = newest[:inner]
        for j in range(inner):
            row[j] = silu(row[j])
    low = np.empty((rows, w.to_dt.bias.shape[0]), np.float32)
    dt = np.empty((rows, inner), np.float32)
    b, c = np.empty((rows, states), np.float32), np.empty((rows, states), np.float32)
    y = np.empty(inner, np.float32)
    _apply(w.to_dt, u, low)
    _apply(w.dt, low, dt)
    _apply(w.to_b, u, b)
    _apply(w.to_c, u, c)
    for r in range(rows):
        step, row, b_row, c_row, gate = dt[r], u[r], b[r], c[r], xz[r, inner:]
        for j in range(inner):
            step[j] = softplus(step[j])
        recur(ssm[r], w.A, step, row, b_row, c_row, y)
        for j in range(inner):
            row[j] = (y[j] + w.D[j] * row[j]) * silu(gate[j])
    _apply(w.out, u, out)


@njit(fastmath=FAST)
def _attend(w, heads, x):
    """BandAttention: x += out(softmax(q k / sqrt(width)) v), the bands of one frame."""
    bands, channels = x.shape
    width = channels // heads
    normed = np.empty_like(x)
    _normalise(w.norm, x, normed)
    qkv = np.empty((bands, 3 * channels), np.float32)
    _apply(w.qkv, normed, qkv)
    mixed = normed
    padded = (bands + 15) // 16 * 16  # so that the dense layers below run in whole tiles
    query, key = np.empty((bands, width), np.float32), np.zeros((width, padded), np.float32)
    value, head_out = np.zeros((padded, width), np.float32), np.empty((bands, width), np.float32)
    scores = np.empty((bands, padded), np.float32)
    root = np.float32(1) / np.sqrt(np.float32(width))
    for head in range(heads):
        at = head * width
        for r in range(bands):
            for j in range(width):
                query[r, j] = qkv[r, at + j] * root
                key[j, r] = qkv[r, channels + at + j]
                value[r, j] = qkv[r, 2 * channels + at + j]
        multiply(query, key, scores)
        for r in range(bands):
            row = scores[r]
            highest = row[0]
            for k in range(1, bands):
                highest = max(highest, row[k])
            total = np.float32(0)
            for k in range(bands):
                row[k] = exp(row[k] - highest)
                total += row[k]
            for k in range(bands):
                row[k] /= total
            row[bands:] = np.float32(0)
        multiply(scores, value, head_out)
        for r in range(bands):
            for j in range(width):
                mixed[r, at + j] = head_out[r, j]
    out = np.empty_like(x)
    _apply(w.out, mixed, out)
    _add(x, out)


@njit(fastmath=FAST)
def _whole_band(w, x, conv, ssm):
    bands = x.shape[0]
    narrow = np.empty((bands, w.gather.bias.shape[0]), np.float32)
    _apply(w.gather, x, narrow)
    y = np.empty((1, w.wide_in.bias.shape[0]), np.float32)
    _apply(w.wide_in, narrow.reshape(1, -1), y)
    mixed = np.empty_like(y)
    _mamba_step(w.wide, y, conv, ssm, mixed)
    _add(y, mixed)
    _apply(w.wide_out, y, narrow.reshape(1, -1))
    out = np.empty_like(x)
    _apply(w.scatter, narrow, out)
    _add(x, out)


@njit(fastmath=FAST)
def _level(parts, decay, state):
    """Root of the running mean power; `parts` (f, 2) is the spectrum, `state` (2, 1) is written to."""
    power = np.float32(0)
    for f in range(parts.shape[0]):
        power += parts[f, 0] * parts[f, 0] + parts[f, 1] * parts[f, 1]
    power /= np.float32(parts.shape[0])
    if not power <= np.float32(3e-10):
        state[0, 0] = decay * state[0, 0] + power
        state[1, 0] = decay * state[1, 0] + np.float32(1)
    return np.sqrt(state[0, 0] / max(state[1, 0], np.float32(1e-6)) + np.float32(1e-12))


@njit(fastmath=FAST)
def _power_law(parts, scale, exponent):
    """In place: (scale S) |scale S|**(exponent - 1)."""
    for f in range(parts.shape[0]):
        re, im = parts[f, 0] * scale, parts[f, 1] * scale
        gain = (re * re + im * im + np.float32(1e-12)) ** ((exponent - np.float32(1)) / np.float32(2))
        parts[f, 0], parts[f, 1] = re * gain, im * gain


@njit(fastmath=FAST)
def _frame(w, parts, level_state, conv, ssm, wide_conv, wide_ssm):
    """One frame: `parts` (f, 2), real and imaginary part of its spectrum, is replaced by the enhanced one."""
    level = _level(parts, w.numbers[1], level_state)
    _power_law(parts, np.float32(1) / level, w.numbers[0])
    fine_bands, channels = w.bands_to_fine.shape[0], w.bins_to_fine.bias.shape[0]
    windows = np.zeros((fine_bands, 24), np.float32)
    for k in range(fine_bands):
        for i in range(8):
            f = 4 * k + i - 2
            if 0 <= f < 4 * fine_bands:
                re, im = parts[f, 0], parts[f, 1]
                windows[k, i], windows[k, 8 + i] = re, im
                windows[k, 16 + i] = np.sqrt(re * re + im * im + np.float32(1e-12))
    depth = len(w.encoder)
    skips = np.empty((depth + 1, fine_bands, channels), np.float32)
    _apply(w.bins_to_fine, windows, skips[0])
    for i in range(depth):
        skips[i + 1] = skips[i]
        _fine_block(w.encoder[i], skips[i + 1])
    widened = np.empty((fine_bands, w.widen.bias.shape[0]), np.float32)
    _apply(w.widen, skips[depth], widened)
    x = np.empty_like(w.place)
    multiply(w.fine_to_bands, widened, x)
    _add(x, w.place)
    y = np.empty_like(x)
    for i in range(len(w.time)):
        _mamba_step(w.time[i], x, conv[i], ssm[i], y)
        _add(x, y)
        _attend(w.frequency[i], w.heads, x)
        if i == 0:
            _whole_band(w, x, wide_conv, wide_ssm)
    narrowed = np.empty((x.shape[0], channels), np.float32)
    _apply(w.narrow, x, narrowed)
    fine = np.empty((fine_bands, channels), np.float32)
    multiply(w.bands_to_fine, narrowed, fine)
    joined = np.empty((fine_bands, 2 * channels), np.float32)
    for i in range(depth):
        joined[:, :channels] = fine
        joined[:, channels:] = skips[depth - i]
        _apply(w.joins[i], joined, fine)
        _fine_block(w.decoder[i], fine)
    normed = np.empty_like(fine)
    _normalise(w.head_norm, fine, normed)
    mask = np.empty((fine_bands, 8), np.float32)
    _apply(w.head, normed, mask)
    for f in range(parts.shape[0]):
        bin_ = min(f, 4 * fine_bands - 1)  # the highest bin shares its neighbour's mask
        a, b = mask[bin_ // 4, 2 * (bin_ % 4)], mask[bin_ // 4, 2 * (bin_ % 4) + 1]
        re, im = parts[f, 0], parts[f, 1]
        parts[f, 0], parts[f, 1] = re * a - im * b, re * b + im * a
    _power_law(parts, np.float32(1), np.float32(1) / w.numbers[0])
    for f in range(parts.shape[0]):
        parts[f, 0] *= level
        parts[f, 1] *= level


@njit(fastmath=FAST, nogil=True, cache=True)
def enhance_frames(w, parts, level, conv, ssm, wide_conv, wide_ssm):
    """Frames of several streams, in place.

    Args:
        w: `Weights`.
        parts: spectra (b, t, f, 2), replaced by the enhanced ones.
        level: (b, 2, 1).   conv: (blocks, b, bands, taps - 1, d).   ssm: (blocks, b, bands, d, n).
        wide_conv: (b, 1, taps - 1, d).   wide_ssm: (b, 1, d, n).   All states are replaced by those after the frames.
    """
    for b in range(parts.shape[0]):
        for t in range(parts.shape[1]):
            _frame(w, parts[b, t], level[b], conv[:, b], ssm[:, b], wide_conv[b], wide_ssm[b])
