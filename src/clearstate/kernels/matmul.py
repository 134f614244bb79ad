"""Products of many rows for compiled code, on matrices cut into panels of sixteen columns.

    panel 0: row 0 (16 numbers), row 1, ...   panel 1: row 0, row 1, ...

A panel is what one vector of outputs walks along: its numbers follow one another in memory, so that a recurrence over
rows reads them in order, and a product keeps one panel of its weight in the first-level cache while rows go by. Where a
`Panels` lies says how far it is from row to row and from panel to panel; a plain matrix of w columns is (w, 16), and
against the order of its rows (-w, 16).
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from clearstate.kernels.simd import (
    LANES,
    apart,
    inner_njit,
    load,
    rounded_up,
    splat,
    spread,
    spread_four,
    store,
    sum_fours,
    wide_registers,
)


class Panels(NamedTuple):
    """Where a matrix lies in flat memory: its first number, and how far it is to the next row and the next panel."""

    at: int
    row: int
    panel: int


def as_panels(matrix: Tensor) -> Tensor:
    """(rows, columns) as (panels, rows, 16), with columns of zeros to fill the last panel."""
    rows, columns = matrix.shape
    return filled(matrix, rounded_up(columns)).view(rows, -1, LANES).transpose(0, 1).contiguous()


def as_fours(matrix: Tensor) -> Tensor:
    """(rows, columns), rows a multiple of 4, for `multiply_fours`: (groups of four columns, rows / 4, 16)."""
    rows, columns = matrix.shape
    return filled(matrix, -(-columns // 4) * 4).view(rows // 4, 4, -1, 4).permute(2, 0, 3, 1).contiguous()


def filled(values: Tensor, width: int) -> Tensor:
    """(..., c) with zeros up to `width` columns, without gradients."""
    more = width - values.shape[-1]
    return F.pad(values.detach(), (0, more)) if more else values.detach().contiguous()


@inner_njit
def multiply(x, a, inner, weight, at, out, c, panels, rows, add):
    """C = A W, or C += A W if `add`: eight rows by sixteen columns are summed in registers, four without AVX-512.

    Args:
        x: memory of a, (rows, 16 inner).   inner: panels of a.
        weight: memory of W, whose panels of 16 inner rows follow one another from `at` on.
        out: memory of c, (rows, 16 panels).
    """
    apart()
    for panel in range(panels):
        first = at + panel * inner * LANES * LANES
        o = c.at + panel * c.panel
        row = 0
        while wide_registers() and row + 8 <= rows:
            _eight_rows(x, a.at + row * a.row, a.row, a.panel, inner, weight, first, out, o + row * c.row, c.row, add)
            row += 8
        while row + 4 <= rows:
            _four_rows(x, a.at + row * a.row, a.row, a.panel, inner, weight, first, out, o + row * c.row, c.row, add)
            row += 4
        while row < rows:
            _one_row(x, a.at + row * a.row, a.panel, inner, weight, first, out, o + row * c.row, add)
            row += 1


@inner_njit
def _eight_rows(x, p, row, panel, inner, weight, q, out, o, step, add):
    half, u = 4 * row, o + 4 * step
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(0.0)
    if add:
        s0, s1, s2, s3 = load(out, o), load(out, o + step), load(out, o + 2 * step), load(out, o + 3 * step)
        s4, s5, s6, s7 = load(out, u), load(out, u + step), load(out, u + 2 * step), load(out, u + 3 * step)
    for _ in range(inner):
        for k in range(p, p + LANES):
            v = load(weight, q)
            s0 = spread(x, k) * v + s0
            s1 = spread(x, k + row) * v + s1
            s2 = spread(x, k + 2 * row) * v + s2
            s3 = spread(x, k + 3 * row) * v + s3
            s4 = spread(x, k + half) * v + s4
            s5 = spread(x, k + half + row) * v + s5
            s6 = spread(x, k + half + 2 * row) * v + s6
            s7 = spread(x, k + half + 3 * row) * v + s7
            q += LANES
        p += panel
    store(out, o, s0)
    store(out, o + step, s1)
    store(out, o + 2 * step, s2)
    store(out, o + 3 * step, s3)
    store(out, u, s4)
    store(out, u + step, s5)
    store(out, u + 2 * step, s6)
    store(out, u + 3 * step, s7)


@inner_njit
def _four_rows(x, p, row, panel, inner, weight, q, out, o, step, add):
    s0 = s1 = s2 = s3 = splat(0.0)
    if add:
        s0, s1, s2, s3 = load(out, o), load(out, o + step), load(out, o + 2 * step), load(out, o + 3 * step)
    for _ in range(inner):
        for k in range(p, p + LANES):
            v = load(weight, q)
            s0 = spread(x, k) * v + s0
            s1 = spread(x, k + row) * v + s1
            s2 = spread(x, k + 2 * row) * v + s2
            s3 = spread(x, k + 3 * row) * v + s3
            q += LANES
        p += panel
    store(out, o, s0)
    store(out, o + step, s1)
    store(out, o + 2 * step, s2)
    store(out, o + 3 * step, s3)


@inner_njit
def _one_row(x, p, panel, inner, weight, q, out, o, add):
    """The same for one row, in two sums, as each addition has to wait for the one before it."""
    zero = splat(0.0)
    s0, s1 = load(out, o) if add else zero, zero
    for _ in range(inner):
        for k in range(0, LANES, 2):
            s0 = spread(x, p + k) * load(weight, q) + s0
            s1 = spread(x, p + k + 1) * load(weight, q + LANES) + s1
            q += 2 * LANES
        p += panel
    store(out, o, s0 + s1)


@inner_njit
def multiply_fours(x, a, inner, weight, out, c, groups, rows):
    """C = A W for few columns, which `multiply` would have to fill up to sixteen.

    Four numbers of a row meet four columns in one vector. Column 4 g + j of C is lane 4 j of panel g.

    Args:
        x: memory of a, (rows, 16 inner).   inner: panels of a.
        weight: W from `as_fours`, groups of four columns.
        out: memory of c, (rows, 16 groups).
    """
    apart()
    for group in range(groups):
        first, o = group * inner * 4 * LANES, c.at + group * c.panel
        row = 0
        while row + 4 <= rows:
            q, p = first, a.at + row * a.row
            s0 = s1 = s2 = s3 = splat(0.0)
            for _ in range(inner):
                for k in range(p, p + LANES, 4):
                    v = load(weight, q)
                    s0 = spread_four(x, k) * v + s0
                    s1 = spread_four(x, k + a.row) * v + s1
                    s2 = spread_four(x, k + 2 * a.row) * v + s2
                    s3 = spread_four(x, k + 3 * a.row) * v + s3
                    q += LANES
                p += a.panel
            store(out, o + row * c.row, sum_fours(s0))
            store(out, o + (row + 1) * c.row, sum_fours(s1))
            store(out, o + (row + 2) * c.row, sum_fours(s2))
            store(out, o + (row + 3) * c.row, sum_fours(s3))
            row += 4
        while row < rows:
            q, p, s0 = first, a.at + row * a.row, splat(0.0)
            for _ in range(inner):
                for k in range(p, p + LANES, 4):
                    s0 = spread_four(x, k) * load(weight, q) + s0
                    q += LANES
                p += a.panel
            store(out, o + row * c.row, sum_fours(s0))
            row += 1
