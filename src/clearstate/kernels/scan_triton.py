"""Selective scan on a CUDA device: Triton kernels for forward and backward, twins of those in `scan.py`.

A program owns a block of channels and walks the time axis of its sequences. Its tile is (channels, states): sums over
the states give y, sums over the channels give the gradients of B and C. One warp holds a tile, so no sum crosses warps.
Arithmetic is that of the input's dtype, float32 or float64.

The forward pass can keep the state every `CHUNK` steps. The backward pass takes the chunks from the last to the first:
it recomputes the states of one chunk into a scratch buffer of its own and retreats through them, so memory is
O(length * channels), never O(length * channels * states). Sums over blocks and sequences are partial sums that PyTorch
adds, not atomics: the same input gives the same bits.

Strides are arguments, so that slices of a wider tensor need no copy; the channel axis has stride 1. A reversed scan
begins at the last step and takes negative strides: in the kernels, step 0 is always the first one taken.

Triton settles when it is imported whether it compiles or interprets (TRITON_INTERPRET=1, which runs on the CPU).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 16  # steps between kept states, as on the CPU
TILE = 512  # channels x states of one program: 16 numbers in each thread of its warp
PROGRAMS = 2048  # backward takes several sequences a program beyond this many: it bounds the scratch buffer
LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}

LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x log2(e)); A takes the factor once, outside the loop
LN2 = tl.constexpr(0.6931471805599453)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, state: Tensor | None, delta_softplus: bool, reverse: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y (b, t, d), last state (b, d, n), and (if `keep`) the states that backward starts its chunks from."""
    (b, t, d), n = u.shape, A.shape[1]
    y, last = u.new_empty(b, t, d), u.new_empty(b, d, n)
    kept = u.new_empty(b, -(-t // CHUNK), n, d) if keep else u.new_empty(0, 0, 0, 0)
    width, padded = _tile(d, n)
    walked = [_walk(x, reverse) for x in (u, delta, B, C, z, y)]
    (u_, delta_, B_, C_, z_, y_), strides = zip(*walked, strict=True)
    with torch.cuda.device_of(u):
        _forward_kernel[(b, triton.cdiv(d, width))](
            u_, delta_, B_, C_, z_, y_, *(number for pair in strides for number in pair),
            A.contiguous(), _whole(D), _whole(delta_bias), _whole(state), last, kept if keep else None, t, d,
            STATES=n, SOFTPLUS=delta_softplus, TERMS=_terms(u), EVERY=CHUNK, WIDTH=width, PADDED=padded, **LAUNCH,
        )  # fmt: skip
    return y, last, kept


def backward(
    dy: Tensor, dh_last: Tensor, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool, reverse: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, state (delta_bias gets the sum of delta's)."""
    (b, t, d), n = u.shape, A.shape[1]
    width, padded = _tile(d, n)
    blocks = triton.cdiv(d, width)
    groups = min(b, max(1, PROGRAMS // blocks))
    du, ddelta = u.new_empty(b, t, d), u.new_empty(b, t, d)
    dz = u.new_empty(b, t, d) if z is not None else u.new_empty(0, 0, 0)
    dA, dD, dh0 = u.new_empty(groups, d, n), u.new_empty(groups, d), u.new_empty(b, d, n)
    dB, dC = u.new_empty(blocks, b, t, n), u.new_empty(blocks, b, t, n)
    scratch = u.new_empty(groups * blocks, CHUNK, width, padded)
    walked = [_walk(x, reverse) for x in (u, delta, B, C, z, dy, du, dB[0])]
    (u_, delta_, B_, C_, z_, dy_, du_, dB_), strides = zip(*walked, strict=True)
    ddelta_, dz_, dC_ = (_walk(x, reverse)[0] for x in (ddelta, None if z is None else dz, dC[0]))  # strides of du, dB
    with torch.cuda.device_of(u):
        _backward_kernel[(groups, blocks)](
            u_, delta_, B_, C_, z_, dy_, du_, ddelta_, dz_, dB_, dC_,
            *(number for pair in strides for number in pair), b * t * n,
            A.contiguous(), _whole(D), _whole(delta_bias), _whole(dh_last) if dh_last.numel() else None, kept,
            dA, dD, dh0, scratch, b, t, d,
            STATES=n, SOFTPLUS=delta_softplus, TERMS=_terms(u), EVERY=CHUNK, WIDTH=width, PADDED=padded, **LAUNCH,
        )  # fmt: skip
    return [du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dz, dh0]


def _tile(channels: int, states: int) -> tuple[int, int]:
    """Channels of one program, and its states: powers of two, as Triton wants them."""
    padded = triton.next_power_of_2(states)
    return min(triton.next_power_of_2(channels), max(1, TILE // padded)), padded


def _terms(u: Tensor) -> int:
    """Terms of softplus's series; the first one left out, (1/9)**k / (2 k + 1), is below half a rounding step."""
    return 8 if u.dtype == torch.float32 else 16


def _walk(x: Tensor | None, reverse: bool) -> tuple[Tensor | None, tuple[int, int]]:
    """A (b, t, d) tensor at its first step taken, and its strides from sequence to sequence and from step to step."""
    if x is None:
        return None, (0, 0)
    x = x.detach()
    if x.stride(2) != 1 and x.shape[2] != 1:
        x = x.contiguous()
    return x[:, -1 if reverse else 0], (x.stride(0), -x.stride(1) if reverse else x.stride(1))


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().contiguous()


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x, TERMS: tl.constexpr):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), with log1p(v) = 2 artanh(v / (2 + v)) as an odd series.

    The logarithm of a rounded 1 + v would lose the digits of small steps.
    """
    v = tl.exp(-tl.abs(x))
    s = v / (2.0 + v)  # at most 1/3
    series = tl.zeros_like(x)
    for k in tl.static_range(TERMS):
        series = series * s * s + 1.0 / (2 * (TERMS - k) - 1)
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit(do_not_specialize=["length"])
def _forward_kernel(
    u, delta, B, C, z, y,
    u_b: tl.int64, u_t: tl.int64, delta_b: tl.int64, delta_t: tl.int64, B_b: tl.int64, B_t: tl.int64,
    C_b: tl.int64, C_t: tl.int64, z_b: tl.int64, z_t: tl.int64, y_b: tl.int64, y_t: tl.int64,
    A, D, bias, h0, h_last, kept, length, channels,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, TERMS: tl.constexpr, EVERY: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, PADDED)
    has_d, has_n = d < channels, n < STATES
    has = has_d[:, None] & has_n[None, :]
    by_channel = d[:, None] * STATES + n[None, :]  # places in a (d, n) array
    by_state = n[None, :] * channels + d[:, None]  # places in an (n, d) array
    a = tl.load(A + by_channel, mask=has, other=0.0) * LOG2E
    h = tl.zeros_like(a)
    if h0 is not None:
        h = tl.load(h0 + seq * channels * STATES + by_channel, mask=has, other=0.0)
    if kept is not None:
        kept += seq * tl.cdiv(length, EVERY) * STATES * channels
    for t in range(length):
        if kept is not None:  # noqa: SIM102  (settled when compiling, the other when running)
            if t % EVERY == 0:
                tl.store(kept + (t // EVERY) * STATES * channels + by_state, h, mask=has)
        u_now = tl.load(u + seq * u_b + t * u_t + d, mask=has_d, other=0.0)
        dt = tl.load(delta + seq * delta_b + t * delta_t + d, mask=has_d, other=0.0)
        B_now = tl.load(B + seq * B_b + t * B_t + n, mask=has_n, other=0.0)
        C_now = tl.load(C + seq * C_b + t * C_t + n, mask=has_n, other=0.0)
        if bias is not None:
            dt += tl.load(bias + d, mask=has_d, other=0.0)
        if SOFTPLUS:
            dt = _softplus(dt, TERMS)
        h = tl.exp2(dt[:, None] * a) * h + (dt * u_now)[:, None] * B_now[None, :]
        out = tl.sum(h * C_now[None, :], axis=1)
        if D is not None:
            out += tl.load(D + d, mask=has_d, other=0.0) * u_now
        if z is not None:
            gate = tl.load(z + seq * z_b + t * z_t + d, mask=has_d, other=0.0)
            out *= gate * _sigmoid(gate)
        tl.store(y + seq * y_b + t * y_t + d, out, mask=has_d)
    tl.store(h_last + seq * channels * STATES + by_channel, h, mask=has)


@triton.jit(do_not_specialize=["length", "batch"])
def _backward_kernel(
    u, delta, B, C, z, dy, du, ddelta, dz, dB, dC,
    u_b: tl.int64, u_t: tl.int64, delta_b: tl.int64, delta_t: tl.int64, B_b: tl.int64, B_t: tl.int64,
    C_b: tl.int64, C_t: tl.int64, z_b: tl.int64, z_t: tl.int64, dy_b: tl.int64, dy_t: tl.int64,
    du_b: tl.int64, du_t: tl.int64, dB_b: tl.int64, dB_t: tl.int64, dB_block: tl.int64,
    A, D, bias, dh_last, kept, dA, dD, dh0, scratch, batch, length, channels,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, TERMS: tl.constexpr, EVERY: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    group, groups, block = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.program_id(1)
    d = block * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, PADDED)
    has_d, has_n = d < channels, n < STATES
    has = has_d[:, None] & has_n[None, :]
    by_channel = d[:, None] * STATES + n[None, :]
    by_state = n[None, :] * channels + d[:, None]
    # Each thread writes and later reads its own places; the barriers hold should Triton deal them out otherwise.
    scratch += (group * tl.num_programs(1) + block) * EVERY * WIDTH * PADDED
    scratch += tl.arange(0, WIDTH)[:, None] * PADDED + n[None, :]
    a = tl.load(A + by_channel, mask=has, other=0.0) * LOG2E
    sum_dA = tl.zeros_like(a)
    sum_dD = tl.sum(sum_dA, axis=1)
    chunks = tl.cdiv(length, EVERY)
    for seq in range(group, batch, groups):
        lam = tl.zeros_like(a)  # gradient of the state after the step at hand
        if dh_last is not None:
            lam = tl.load(dh_last + seq * channels * STATES + by_channel, mask=has, other=0.0)
        for back in range(chunks):
            chunk = chunks - 1 - back
            start = chunk * EVERY
            steps = tl.minimum(length - start, EVERY)
            h = tl.load(kept + (seq * chunks + chunk) * STATES * channels + by_state, mask=has, other=0.0)
            tl.debug_barrier()
            for k in range(steps):  # forwards again: the state before each step
                tl.store(scratch + k * WIDTH * PADDED, h)
                t = start + k
                u_now = tl.load(u + seq * u_b + t * u_t + d, mask=has_d, other=0.0)
                dt = tl.load(delta + seq * delta_b + t * delta_t + d, mask=has_d, other=0.0)
                B_now = tl.load(B + seq * B_b + t * B_t + n, mask=has_n, other=0.0)
                if bias is not None:
                    dt += tl.load(bias + d, mask=has_d, other=0.0)
                if SOFTPLUS:
                    dt = _softplus(dt, TERMS)
                h = tl.exp2(dt[:, None] * a) * h + (dt * u_now)[:, None] * B_now[None, :]
            tl.debug_barrier()
            for back_k in range(steps):
                k = steps - 1 - back_k
                t = start + k
                u_now = tl.load(u + seq * u_b + t * u_t + d, mask=has_d, other=0.0)
                raw = tl.load(delta + seq * delta_b + t * delta_t + d, mask=has_d, other=0.0)
                B_now = tl.load(B + seq * B_b + t * B_t + n, mask=has_n, other=0.0)
                C_now = tl.load(C + seq * C_b + t * C_t + n, mask=has_n, other=0.0)
                g = tl.load(dy + seq * dy_b + t * dy_t + d, mask=has_d, other=0.0)
                if bias is not None:
                    raw += tl.load(bias + d, mask=has_d, other=0.0)
                dt = raw
                if SOFTPLUS:
                    dt = _softplus(raw, TERMS)
                x = dt * u_now
                decayed = tl.exp2(dt[:, None] * a) * tl.load(scratch + k * WIDTH * PADDED)
                h = decayed + x[:, None] * B_now[None, :]
                if z is not None:  # y = out SiLU(z), SiLU'(z) = s (1 + z (1 - s))
                    gate = tl.load(z + seq * z_b + t * z_t + d, mask=has_d, other=0.0)
                    s = _sigmoid(gate)
                    out = tl.sum(h * C_now[None, :], axis=1)
                    if D is not None:
                        out += tl.load(D + d, mask=has_d, other=0.0) * u_now
                    tl.store(dz + seq * du_b + t * du_t + d, g * out * s * (1.0 + gate * (1.0 - s)), mask=has_d)
                    g *= gate * s
                lam += g[:, None] * C_now[None, :]
                into_A = lam * decayed  # times dt: gradient of A; times A: of dt
                into_x = tl.sum(lam * B_now[None, :], axis=1)
                into_u = dt * into_x
                if D is not None:
                    into_u += tl.load(D + d, mask=has_d, other=0.0) * g
                into_dt = u_now * into_x + tl.sum(into_A * a, axis=1) * LN2
                if SOFTPLUS:
                    into_dt *= _sigmoid(raw)
                at = block * dB_block + seq * dB_b + t * dB_t + n
                tl.store(dB + at, tl.sum(lam * x[:, None], axis=0), mask=has_n)
                tl.store(dC + at, tl.sum(g[:, None] * h, axis=0), mask=has_n)
                tl.store(du + seq * du_b + t * du_t + d, into_u, mask=has_d)
                tl.store(ddelta + seq * du_b + t * du_t + d, into_dt, mask=has_d)
                sum_dA += into_A * dt[:, None]
                sum_dD += g * u_now
                lam *= tl.exp2(dt[:, None] * a)
        tl.store(dh0 + seq * channels * STATES + by_channel, lam, mask=has)
    tl.store(dA + group * channels * STATES + by_channel, sum_dA, mask=has)
    tl.store(dD + group * channels + d, sum_dD, mask=has_d)
