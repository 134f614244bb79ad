"""Attention with heads of sixteen channels, as one kernel for inference on the CPU.

PyTorch's own does 7 billion multiplications a second with heads this small, where a core (Zen 1) can do 19; this does
12, powers and all. A head's channels are one vector. A task is one head of one row; four queries at a time go through
its keys, in blocks whose scores stay in the first-level cache:

    scores of 16 keys     s = sum over channels of q[channel] k[channel, 16 keys]
    powers                p = 2^(s - level)
    output, 16 channels   y <- y + sum over keys of p[key] v[key, 16 channels]

and at last y / sum of p. A softmax is the same at any level, as long as no power leaves the range of a float32. Where
queries and keys are too small for that, which they tell before they meet, the level is 0; where they are not, it is the
highest score that a query has met (Milakov & Gimelshein 2018, arXiv:1805.02867). The slow twin is
`torch.nn.functional.scaled_dot_product_attention`.
"""

import math

import numpy as np
from torch import Tensor

from clearstate.kernels.cache import njit
from clearstate.kernels.fast_exp import WITHIN, power
from clearstate.kernels.live.layers import rounded_up
from clearstate.kernels.scan_loops import LOG2E
from clearstate.kernels.simd import (
    FAST,
    LANES,
    apart,
    below,
    highest,
    inner_njit,
    larger,
    load,
    splat,
    spread,
    store,
    total,
)
from clearstate.kernels.threads import in_parts, threads_for

TILE = 4  # queries at a time: their sums fill half of the sixteen registers of AVX2
BLOCK = 128  # keys
PANEL = LANES * LANES  # of sixteen keys, channel by channel
MILD = 64  # a score's bound up to which the level is 0: powers are within 2^-64 .. 2^64
SCALE = np.float32(LOG2E / math.sqrt(LANES))  # of the scores, so that powers of e are powers of two
NEVER = np.float32(-np.inf)
# Of a thread's memory: scores, then their powers, (4, BLOCK) ...
QUERIES = TILE * BLOCK  # ... the four queries, ...
OUTPUTS = QUERIES + TILE * LANES
SUMS = OUTPUTS + TILE * LANES  # of powers, lane by lane, ...
LEVELS = SUMS + TILE * LANES
PANELS = LEVELS + LANES  # ... all keys, and their values


def fits(channels: int, heads: int) -> bool:
    """Whether a head is one vector."""
    return channels == heads * LANES


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention in heads of sixteen channels, without gradients.

    Args:
        q: queries (r, l, c), heads side by side.
        k, v: keys and values (r, s, c); slices of a wider tensor are taken as they lie.
    Returns:
        (r, l, c).
    """
    rows, queries, c = q.shape
    keys = k.shape[1]
    y = q.new_empty(rows, queries, c)
    threads = threads_for(rows * c // LANES, q.numel() * keys)
    memory = q.new_empty(threads, PANELS + 2 * rounded_up(keys) * LANES)
    in_parts(
        _attention_part, threads, *_flat(q), *_flat(k), *_flat(v), y.view(-1).numpy(), memory.numpy(),
        rows, queries, keys, c,
    )  # fmt: skip
    return y


def _flat(x: Tensor) -> tuple:
    """The memory of (r, l, c) from its first number on, and how far it is to the next row and the next step."""
    x = x.detach()
    if x.stride(-1) != 1:
        x = x.contiguous()
    row, step, _ = x.stride()
    size = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return x.as_strided((size,), (1,)).numpy(), row, step


# ------------------------------------------------------------------------------------------------ compiled


@inner_njit
def _size(x):
    return larger(x, splat(np.float32(0)) - x)


@inner_njit
def _take_keys(k, at, step, count, m):
    """Keys as panels; returns the largest size in each channel. What fills the last panel up is never looked at."""
    largest = splat(np.float32(0))
    for key in range(count):
        o = PANELS + key // LANES * PANEL + key % LANES
        for channel in range(LANES):
            m[o + channel * LANES] = k[at + channel]
        largest = larger(largest, _size(load(k, at)))
        at += step
    return largest


@inner_njit
def _four_scores(m, p, present):
    """Of the four queries with sixteen keys, of which the first `present` are there."""
    s0 = s1 = s2 = s3 = splat(np.float32(0))
    for i in range(QUERIES, QUERIES + LANES):
        keys = load(m, p)
        s0 = spread(m, i) * keys + s0
        s1 = spread(m, i + LANES) * keys + s1
        s2 = spread(m, i + 2 * LANES) * keys + s2
        s3 = spread(m, i + 3 * LANES) * keys + s3
        p += LANES
    if present < LANES:
        never = splat(NEVER)
        s0, s1 = below(present, s0, never), below(present, s1, never)
        s2, s3 = below(present, s2, never), below(present, s3, never)
    return s0, s1, s2, s3


@inner_njit
def _scores(m, panels, count):
    """Of the four queries with a block of keys."""
    apart()
    for key in range(0, count, LANES):
        s0, s1, s2, s3 = _four_scores(m, panels + key * LANES, count - key)
        store(m, key, s0)
        store(m, key + BLOCK, s1)
        store(m, key + 2 * BLOCK, s2)
        store(m, key + 3 * BLOCK, s3)


@inner_njit
def _raise_levels(m, count):
    """To the highest scores met by now; what was summed before is brought to them."""
    apart()
    one, least = splat(np.float32(1)), splat(np.float32(-WITHIN))
    for i in range(TILE):
        before = spread(m, LEVELS + i)
        high = before
        for at in range(i * BLOCK, i * BLOCK + count, LANES):
            high = larger(high, load(m, at))
        m[LEVELS + i] = highest(high)
        fall = power(larger(before - spread(m, LEVELS + i), least), one)
        store(m, OUTPUTS + i * LANES, load(m, OUTPUTS + i * LANES) * fall)
        store(m, SUMS + i * LANES, load(m, SUMS + i * LANES) * fall)


@inner_njit
def _powers(m, count, mild):
    """Of the scores, in their place, and their sums."""
    apart()
    one, least = splat(np.float32(1)), splat(np.float32(-WITHIN))
    for i in range(TILE):
        sums = load(m, SUMS + i * LANES)
        whole = count // LANES * LANES if mild else 0
        for at in range(i * BLOCK, i * BLOCK + whole, LANES):
            p = power(load(m, at), one)
            store(m, at, p)
            sums = sums + p
        level = spread(m, LEVELS + i)
        for at in range(i * BLOCK + whole, i * BLOCK + count, LANES):
            p = power(larger(load(m, at) - level, least), one)
            store(m, at, p)
            sums = sums + p
        store(m, SUMS + i * LANES, sums)


@inner_njit
def _outputs(m, values, count):
    """Values times powers, added to the four queries' outputs."""
    apart()
    y0, y1 = load(m, OUTPUTS), load(m, OUTPUTS + LANES)
    y2, y3 = load(m, OUTPUTS + 2 * LANES), load(m, OUTPUTS + 3 * LANES)
    for i in range(count):
        value = load(m, values + i * LANES)
        y0 = spread(m, i) * value + y0
        y1 = spread(m, i + BLOCK) * value + y1
        y2 = spread(m, i + 2 * BLOCK) * value + y2
        y3 = spread(m, i + 3 * BLOCK) * value + y3
    store(m, OUTPUTS, y0)
    store(m, OUTPUTS + LANES, y1)
    store(m, OUTPUTS + 2 * LANES, y2)
    store(m, OUTPUTS + 3 * LANES, y3)


@inner_njit
def _four_queries(m, values, keys, largest):
    """The four queries with all keys: to OUTPUTS, still to be divided by SUMS."""
    zero = splat(np.float32(0))
    sizes = zero
    for at in range(0, TILE * LANES, LANES):
        sizes = larger(sizes, _size(load(m, QUERIES + at)))
        store(m, OUTPUTS + at, zero)
        store(m, SUMS + at, zero)
    mild = total(sizes * largest) <= MILD
    store(m, LEVELS, zero if mild else splat(NEVER))
    for key in range(0, keys, BLOCK):
        count = min(BLOCK, keys - key)
        _scores(m, PANELS + key * LANES, count)
        if not mild:
            _raise_levels(m, count)
        _powers(m, count, mild)
        _outputs(m, values + key * LANES, count)


@njit(fastmath=FAST, nogil=True, cache=True)
def _attention_part(
    part, parts, q, q_row, q_step, k, k_row, k_step, v, v_row, v_step, y, memory, rows, queries, keys, c
):
    heads, m = c // LANES, memory[part]
    values = PANELS + (keys + LANES - 1) // LANES * PANEL
    for task in range(part, rows * heads, parts):
        row, channel = task // heads, task % heads * LANES
        largest = _take_keys(k, row * k_row + channel, k_step, keys, m)
        for i in range(keys):
            store(m, values + i * LANES, load(v, row * v_row + i * v_step + channel))
        for first in range(0, queries, TILE):
            for i in range(TILE):  # the last query again where there are no four
                at = row * q_row + min(first + i, queries - 1) * q_step + channel
                store(m, QUERIES + i * LANES, load(q, at) * SCALE)
            _four_queries(m, values, keys, largest)
            for i in range(min(TILE, queries - first)):
                weight = np.float32(1) / total(load(m, SUMS + i * LANES))
                store(y, (row * queries + first + i) * c + channel, load(m, OUTPUTS + i * LANES) * weight)
