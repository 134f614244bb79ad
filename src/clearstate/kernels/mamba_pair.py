"""Two Mamba mixers over the same rows, one along each row and one against it, as one kernel for inference on the CPU.

PyTorch passes intermediate results, eight times as wide as the rows, through memory. Here they stay in the second-level
cache: a task takes one row and sends `STEPS` steps at a time through all layers of a mixer, carrying the state of the
recurrence and the last inputs of the convolution along. The mixer against the row is the same code on reversed rows.

    rows (l, c) -- RMS norm -- enter -- u: convolution, SiLU -- thin: step sizes, B, C -- scan -- gate with z -- leave

`dual_path.BiMix` is the slow twin. Linear parts are multiplied in advance: the gains of the norms into the next
projections, the residuals and the joining layer into the output projections. Matrices are stored in panels (see
`matmul.py`), so the recurrence of sixteen channels reads memory in order and keeps eight states in registers.

r rows, l steps of a row, c channels, d inner channels of a mixer, n states.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clearstate.kernels.cache import njit
from clearstate.kernels.fast_exp import LARGEST, WITHIN, decay, power, quick_silu, quick_softplus
from clearstate.kernels.matmul import Panels, as_fours, as_panels, filled, multiply, multiply_fours
from clearstate.kernels.simd import (
    FAST,
    LANES,
    LOG2E,
    apart,
    highest,
    inner_njit,
    larger,
    load,
    rounded,
    rounded_up,
    smaller,
    splat,
    spread,
    store,
    total,
)
from clearstate.kernels.threads import in_parts, threads_for

STEPS = 64  # steps of a row per pass through a mixer
GROUP = 8  # states in registers at a time


class Side(NamedTuple):
    """The weights of one mixer as flat arrays; matrices as panels, the rest sixteen channels after sixteen."""

    enter: Any  # (c, 2 d): to u and to z, with the gain of the norm
    taps: Any  # of the convolution, oldest first, then its bias: (d / 16, taps + 1, 16)
    rank: Any  # (d, rank), in fours: to what step sizes are made of
    states: Any  # (d, 2 n): to B and to C
    step: Any  # the bias of the step sizes, then from that rank, filled to fours, to them: (d / 16, 1 + rank, 16)
    rates: Any  # A log2(e): (d / 16, n, 16)
    skip: Any  # D: (d,)
    leave: Any  # (d, c): the output projection, then this mixer's half of the joining layer
    near: Any  # the step size up to which no state of a channel decays by more than `power` takes: (d,)
    limit: Any  # (1,): the step size from which on every state decays to nothing


class Rows(NamedTuple):
    """The layout of rows in flat memory, counted in numbers; channels are contiguous."""

    number: int
    length: int  # steps of each
    row: int  # distance between rows
    step: int  # distance between steps


class Shape(NamedTuple):
    """The sizes of a mixer."""

    channels: int  # channels of the norm
    width: int  # channels, padded to whole panels
    inner: int  # channels of a mixer, padded to whole panels
    states: int  # padded to whole groups
    rank: int  # of the step sizes, at most 16
    taps: int
    reverse: bool


def mix(x: Tensor, ahead: Any, back: Any, merge: torch.nn.Linear) -> Tensor:
    """x + merge(ahead(x), back(x)) of rows (r, l, c), without gradients; each an `ssm.MambaBlock`, back in reverse."""
    r, _, c = x.shape
    fill = -c % LANES
    to_ahead, to_back = (part.detach() for part in merge.weight.chunk(2, dim=1))  # (c, c) each
    keep = (torch.eye(c) + to_ahead + to_back).T  # the outer residual, and the inner ones through the merge
    sides = [side(ahead, to_ahead), side(back, to_back)]
    shapes = [shape(ahead.mixer), shape(back.mixer)]
    filled = F.pad(x, (0, fill)) if fill else x
    if not filled.transpose(0, 1).is_contiguous():  # True for the frames of each band as rows
        filled = filled.contiguous()
    y = torch.empty_like(filled)  # has the same layout
    rows = Rows(*filled.shape[:2], *filled.stride()[:2])
    threads = threads_for(r, x.numel() * shapes[0].states)
    memory = torch.empty(threads, scratch_size(shapes[0]))
    in_parts(
        _mix_part, threads, _in_memory(filled), _in_memory(y), rows, memory.numpy(),
        _flat(F.pad(keep, (0, 0, 0, fill))), _filled(merge.bias), *sides, *shapes, ahead.norm.eps,
    )  # fmt: skip
    return y[..., :c] if fill else y


def _in_memory(x: Tensor) -> Any:
    """The numbers of a dense tensor, in memory order."""
    return torch.as_strided(x, (x.numel(),), (1,)).numpy()


def shape(mixer: Any) -> Shape:
    c, states = mixer.in_proj.in_features, -(-mixer.d_state // GROUP) * GROUP
    assert mixer.dt_rank <= LANES
    return Shape(
        c, rounded_up(c), rounded_up(mixer.d_inner), states, mixer.dt_rank, mixer.conv1d.kernel_size[0], mixer.reverse
    )


def side(block: Any, join: Tensor) -> Side:
    """The weights of a mixer in the order of their use; `join` (c, c) is its half of the joining layer."""
    mixer, size = block.mixer, shape(block.mixer)
    inner, rank, n = mixer.d_inner, mixer.dt_rank, mixer.d_state
    fill, more = size.inner - inner, size.states - n
    enter = (mixer.in_proj.weight * block.norm.weight).T.detach()  # (c, 2 d)
    enter = torch.cat([F.pad(part, (0, fill, 0, size.width - size.channels)) for part in enter.chunk(2, dim=1)], 1)
    to_rank, to_b, to_c = mixer.x_proj.weight.T.detach().split([rank, n, n], dim=1)  # (d, ...)
    states = torch.cat([F.pad(to_b, (0, more)), F.pad(to_c, (0, more))], 1)
    rates = -torch.exp(mixer.A_log.detach()) * LOG2E  # (d, n)
    fastest = rates.abs().amax(1)  # (d,)
    limit = torch.clamp(LARGEST / fastest.amax(), max=3e38).view(1)
    return Side(
        _flat(enter),
        _channels(torch.cat([mixer.conv1d.weight[:, 0], mixer.conv1d.bias[:, None]], 1)),
        as_fours(F.pad(to_rank, (0, 0, 0, fill))).view(-1).numpy(),
        _flat(F.pad(states, (0, 0, 0, fill))),
        _channels(F.pad(torch.cat([mixer.dt_proj.bias[:, None], mixer.dt_proj.weight], 1), (0, -rank % 4))),
        _channels(F.pad(rates, (0, more))),
        _filled(mixer.D),
        _flat(F.pad((join @ mixer.out_proj.weight.detach()).T, (0, 0, 0, fill))),
        F.pad(torch.clamp(WITHIN / fastest, max=3e38), (0, fill), value=3e38).numpy(),
        limit.numpy(),
    )


def _flat(matrix: Tensor) -> Any:
    return as_panels(matrix).view(-1).numpy()


def _channels(table: Tensor) -> Any:
    """(d, k) as (d / 16, k, 16)."""
    return _flat(table.detach().T)


def _filled(values: Tensor) -> Any:
    return filled(values, rounded_up(len(values))).numpy()


def scratch_size(size: Shape) -> int:
    thin = -(-size.rank // 4) * LANES + rounded_up(2 * size.states)
    wide = STEPS * (size.width + thin + 4 * size.inner) + (STEPS + size.taps - 1) * size.inner
    return wide + size.inner * size.states + 8 * LANES


# ------------------------------------------------------------------------------------------------ compiled


@inner_njit
def _normalise(x, first, step, count, out, at, size, eps):
    """RMS norm, without a gain, of `count` rows from `first` on; to a plain matrix at `at`."""
    share = np.float32(1) / np.float32(size.channels)
    for s in range(count):
        p, o = first + s * step, at + s * size.width
        squares = splat(0.0)
        for j in range(0, size.width, LANES):
            squares = load(x, p + j) * load(x, p + j) + squares
        scale = np.float32(1) / np.sqrt(total(squares) * share + np.float32(eps))
        for j in range(0, size.width, LANES):
            store(out, o + j, load(x, p + j) * scale)


@inner_njit
def _convolve(m, raw, out, taps_at, taps, count, weight):
    """SiLU of the convolution of sixteen channels; the last inputs move to the front, where the next steps see them."""
    for s in range(count):
        pre = load(weight, taps_at + taps * LANES)
        for j in range(taps):
            pre = load(m, raw + (s + j) * LANES) * load(weight, taps_at + j * LANES) + pre
        store(m, out + s * LANES, quick_silu(pre))
    for j in range(taps - 1):
        store(m, raw + j * LANES, load(m, raw + (count + j) * LANES))


@inner_njit
def _enter_scan(m, u, dt, ranks, count, weight, step_at, fours, skip, near, limit):
    """Step sizes of sixteen channels to dt, what drives the recurrence to dt + 16 rows of STEPS, D u in place of u.

    Returns whether all step sizes are near enough for `power`.
    """
    drive, beyond = dt + STEPS * LANES, splat(0.0)
    for s in range(count):
        raw, p, q = load(weight, step_at), ranks + s * LANES, step_at + LANES
        for _ in range(fours):
            first = load(weight, q) * spread(m, p) + load(weight, q + LANES) * spread(m, p + 4)
            second = load(weight, q + 2 * LANES) * spread(m, p + 8) + load(weight, q + 3 * LANES) * spread(m, p + 12)
            raw, p, q = raw + (first + second), p + STEPS * LANES, q + 4 * LANES
        size, value = quick_softplus(raw), load(m, u + s * LANES)
        beyond = larger(beyond, size - near)
        store(m, dt + s * LANES, smaller(size, limit))
        store(m, drive + s * LANES, size * value)
        store(m, u + s * LANES, skip * value)
    return highest(beyond) <= np.float32(0)


def _scan_by(to_the):
    """The recurrence by one of the powers of `fast_exp.py`."""

    @inner_njit
    def scan(m, dt, y, b, c, h, rates, at, count):
        """Y += C h with h = 2^(dt A) h + drive B, for eight states of sixteen channels."""
        apart()
        drive = dt + STEPS * LANES
        a0, a1, a2, a3 = load(rates, at), load(rates, at + 16), load(rates, at + 32), load(rates, at + 48)
        a4, a5, a6, a7 = load(rates, at + 64), load(rates, at + 80), load(rates, at + 96), load(rates, at + 112)
        h0, h1, h2, h3 = load(m, h), load(m, h + 16), load(m, h + 32), load(m, h + 48)
        h4, h5, h6, h7 = load(m, h + 64), load(m, h + 80), load(m, h + 96), load(m, h + 112)
        for _ in range(count):
            size, x, sum0, sum1 = load(m, dt), load(m, drive), load(m, y), splat(0.0)
            h0 = to_the(size, a0) * h0 + x * spread(m, b)
            h1 = to_the(size, a1) * h1 + x * spread(m, b + 1)
            h2 = to_the(size, a2) * h2 + x * spread(m, b + 2)
            h3 = to_the(size, a3) * h3 + x * spread(m, b + 3)
            h4 = to_the(size, a4) * h4 + x * spread(m, b + 4)
            h5 = to_the(size, a5) * h5 + x * spread(m, b + 5)
            h6 = to_the(size, a6) * h6 + x * spread(m, b + 6)
            h7 = to_the(size, a7) * h7 + x * spread(m, b + 7)
            sum0 = h0 * spread(m, c) + sum0
            sum1 = h1 * spread(m, c + 1) + sum1
            sum0 = h2 * spread(m, c + 2) + sum0
            sum1 = h3 * spread(m, c + 3) + sum1
            sum0 = h4 * spread(m, c + 4) + sum0
            sum1 = h5 * spread(m, c + 5) + sum1
            sum0 = h6 * spread(m, c + 6) + sum0
            sum1 = h7 * spread(m, c + 7) + sum1
            store(m, y, sum0 + sum1)
            dt, drive, y, b, c = dt + LANES, drive + LANES, y + LANES, b + LANES, c + LANES
        store(m, h, h0)
        store(m, h + 16, h1)
        store(m, h + 32, h2)
        store(m, h + 48, h3)
        store(m, h + 64, h4)
        store(m, h + 80, h5)
        store(m, h + 96, h6)
        store(m, h + 112, h7)

    return scan


_scan, _scan_far = _scan_by(power), _scan_by(decay)


@inner_njit
def _column(column, panel):
    """Where a column of a matrix of panels begins."""
    return column // LANES * panel + column % LANES


@inner_njit
def _mix_side(x, y, row, step, length, m, weights, size, eps):
    """Add what one mixer makes of a row to y; x and y are flat, and the row begins at `row`."""
    apart()
    panel, states, taps, rank = STEPS * LANES, size.states, size.taps, size.rank
    raw_panel = (STEPS + taps - 1) * LANES
    columns, panels = size.width // LANES, size.inner // LANES
    fours, state_panels = (rank + 3) // 4, rounded(2 * states) // LANES
    normed = 0
    raw = normed + STEPS * size.width
    z = raw + panels * raw_panel
    u = z + panels * panel
    dt = u + panels * panel
    ranks = dt + 2 * panel
    thin = ranks + fours * panel
    h = thin + state_panels * panel
    for i in range(panels * states):
        store(m, h + i * LANES, splat(0.0))
    for p in range(panels):
        for j in range(taps - 1):
            store(m, raw + p * raw_panel + j * LANES, splat(0.0))
    ahead = -step if size.reverse else step
    for start in range(0, length, STEPS):
        count = min(STEPS, length - start)
        first = row + (length - 1 - start if size.reverse else start) * step
        _normalise(x, first, ahead, count, m, normed, size, eps)
        entered, half = Panels(normed, size.width, LANES), panels * size.width * LANES
        fresh = raw + (taps - 1) * LANES
        multiply(m, entered, columns, weights.enter, 0, m, Panels(fresh, LANES, raw_panel), panels, count, False)
        multiply(m, entered, columns, weights.enter, half, m, Panels(z, LANES, panel), panels, count, False)
        for p in range(panels):
            _convolve(m, raw + p * raw_panel, u + p * panel, p * (taps + 1) * LANES, taps, count, weights.taps)
        convolved = Panels(u, LANES, panel)
        multiply_fours(m, convolved, panels, weights.rank, m, Panels(ranks, LANES, panel), fours, count)
        multiply(m, convolved, panels, weights.states, 0, m, Panels(thin, LANES, panel), state_panels, count, False)
        for p in range(panels):
            at, skip = p * (4 * fours + 1) * LANES, load(weights.skip, p * LANES)
            near, limit = load(weights.near, p * LANES), weights.limit[0]
            is_near = _enter_scan(m, u + p * panel, dt, ranks, count, weights.step, at, fours, skip, near, limit)
            for n in range(0, states, GROUP):
                b_at, c_at = thin + _column(n, panel), thin + _column(states + n, panel)
                state = (p * states + n) * LANES
                if is_near:
                    _scan(m, dt, u + p * panel, b_at, c_at, h + state, weights.rates, state, count)
                else:
                    _scan_far(m, dt, u + p * panel, b_at, c_at, h + state, weights.rates, state, count)
            for s in range(0, count * LANES, LANES):
                q = u + p * panel + s
                store(m, q, load(m, q) * quick_silu(load(m, z + p * panel + s)))
        multiply(m, convolved, panels, weights.leave, 0, y, Panels(first, ahead, LANES), columns, count, True)


@inner_njit
def _mix_row(task, x, y, rows, m, keep, bias, one, other, of_one, of_other, eps):
    row, length, width = task * rows.row, rows.length, of_one.width
    for s in range(length):
        for j in range(0, width, LANES):
            store(y, row + s * rows.step + j, load(bias, j))
    whole = Panels(row, rows.step, LANES)
    multiply(x, whole, width // LANES, keep, 0, y, whole, width // LANES, length, True)
    _mix_side(x, y, row, rows.step, length, m, one, of_one, eps)
    _mix_side(x, y, row, rows.step, length, m, other, of_other, eps)


@njit(fastmath=FAST, nogil=True, cache=True)
def _mix_part(part, parts, x, y, rows, memory, keep, bias, one, other, of_one, of_other, eps):
    for task in range(part, rows.number, parts):
        _mix_row(task, x, y, rows, memory[part], keep, bias, one, other, of_one, of_other, eps)
