"""One time step of Mamba for several sequences, for compiled code that handles a frame at a time.

`scan.py` runs many steps of one sequence; here the step is one and the layers around the recurrence are part of
it. The lanes of a vector are channels, so a state is kept as (n, d): no sum over lanes is ever taken.
`ssm.mamba.Mamba` is the slow twin.
"""

from typing import NamedTuple

import numpy as np

from clearstate.kernels.fast_exp import decay, quick_silu, quick_softplus
from clearstate.kernels.live.layers import Block, accumulate, add_dense, clear, dense, normalise, place
from clearstate.kernels.simd import LANES, LOG2E, apart, inner_njit, load, rounded, spread, store


class MixerSizes(NamedTuple):
    inner: int  # d, a multiple of LANES
    states: int  # n
    rank: int  # of the step-size projection
    taps: int  # of the convolution


def mixer_sizes(mixer):
    return MixerSizes(mixer.d_inner, mixer.d_state, mixer.dt_rank, mixer.d_conv)


def mixer_tape(norm, mixer):
    """Parameters of a norm and the `Mamba` after it, in the order in which `mixer_step` reads them."""
    zero = np.zeros
    projections = mixer.x_proj.weight.T  # (d, rank + 2 n)
    padded = np.zeros((mixer.d_inner, -(-projections.shape[1] // LANES) * LANES), np.float32)
    padded[:, : projections.shape[1]] = projections
    return [
        norm.weight, norm.bias,
        zero(2 * mixer.d_inner), mixer.in_proj.weight.T,
        mixer.conv1d.bias, mixer.conv1d.weight[:, 0].T,
        padded,
        mixer.dt_proj.bias, mixer.dt_proj.weight.T,
        -mixer.A_log.float().exp().T * LOG2E, mixer.D,
        zero(mixer.out_proj.out_features), mixer.out_proj.weight.T,
    ]  # fmt: skip


@inner_njit
def mixer_step(tape, at, memory, free, x, sizes, conv, conv_at, ssm, ssm_at):
    """x += Mamba(norm(x)), each row a sequence of its own.

    Args:
        tape, at: parameters, and the position of those of this layer.
        memory, free: where `x` lies, and where working memory begins.
        conv, conv_at: the last inputs of the convolution (rows, taps - 1, d) from conv_at on, oldest first; moved on.
        ssm, ssm_at: the states (rows, n, d); moved on.
    Returns:
        The position on the tape after the layer.
    """
    apart()
    inner, states, rank, taps = sizes
    normed, free = place(memory, free, x.rows, x.width)
    at = normalise(tape, at, memory, x, normed)
    xz, free = place(memory, free, x.rows, 2 * inner)
    at = dense(tape, at, memory, normed, xz)
    u, free = place(memory, free, x.rows, inner)
    at = _convolve(tape, at, memory, xz, u, taps, conv, conv_at)
    low, free = place(memory, free, x.rows, rounded(rank + 2 * states))  # step size, B and C of each row
    clear(memory, low)
    accumulate(memory, u, tape, Block(at, inner, low.width, low.width), memory, low)
    at += inner * low.width
    dt, free = place(memory, free, x.rows, inner)
    at = dense(tape, at, memory, Block(low.at, x.rows, rank, low.step), dt)
    _recur(tape, at, memory, xz, u, low, dt, sizes, ssm, ssm_at)
    at += (states + 1) * inner
    return add_dense(tape, at, memory, u, x)


@inner_njit
def _convolve(tape, at, memory, xz, u, taps, conv, conv_at):
    """u = SiLU of the causal convolution of the left half of xz; the past moves on by one input."""
    apart()
    inner = u.width
    for r in range(u.rows):
        past = conv_at + r * (taps - 1) * inner
        for j in range(0, inner, LANES):
            newest = load(memory, xz.at + r * xz.step + j)
            weights = at + inner + j
            value = newest * load(tape, weights + (taps - 1) * inner) + load(tape, at + j)
            for tap in range(taps - 1):
                held = load(conv, past + tap * inner + j)
                value = held * load(tape, weights + tap * inner) + value
                if tap > 0:
                    store(conv, past + (tap - 1) * inner + j, held)
            if taps > 1:
                store(conv, past + (taps - 2) * inner + j, newest)
            store(memory, u.at + r * u.step + j, quick_silu(value))
    return at + (taps + 1) * inner


@inner_njit
def _recur(tape, at, memory, xz, u, low, dt, sizes, ssm, ssm_at):
    """h = exp(dt A) h + dt u B, u = (C h + D u) SiLU(z); A times log2(e) and then D lie on the tape."""
    apart()
    inner, states = sizes.inner, sizes.states
    for r in range(u.rows):
        b = low.at + r * low.step + sizes.rank
        c = b + states
        for j in range(0, inner, LANES):
            o = u.at + r * u.step + j
            size, value = quick_softplus(load(memory, dt.at + r * dt.step + j)), load(memory, o)
            enters = size * value
            y = value * load(tape, at + states * inner + j)
            state = ssm_at + r * states * inner + j
            for n in range(states):
                h = decay(size, load(tape, at + n * inner + j)) * load(ssm, state) + enters * spread(memory, b + n)
                store(ssm, state, h)
                y = h * spread(memory, c + n) + y
                state += inner
            store(memory, o, y * quick_silu(load(memory, xz.at + r * xz.step + inner + j)))
