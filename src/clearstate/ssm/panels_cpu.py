"""Products of many rows for compiled code, on matrices cut into panels of sixteen columns.

    panel 0: row 0 (16 numbers), row 1, ...   panel 1: row 0, row 1, ...

A panel is what one vector of outputs walks along: its numbers follow one another in memory, so that a recurrence over
rows reads them in order, and a product keeps one panel of its weight in the first-level cache while rows go by. Where a
`Panels` lies says how far it is from row to row and from panel to panel; a plain matrix of w columns is (w, 16), and
against the order of its rows (-w, 16).
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from .lanes_cpu import LANES, apart, inner_njit, load, splat, spread, store
from .linear_cpu import rounded_up


class Panels(NamedTuple):
    """Where a matrix lies in flat memory: its first number, and how far it is to the next row and the next panel."""

    at: int
    row: int
    panel: int


def as_panels(matrix: Tensor) -> Tensor:
    """(rows, columns) as (panels, rows, 16), with columns of zeros to fill the last panel."""
    rows, columns = matrix.shape
    return filled(matrix, rounded_up(columns)).view(rows, -1, LANES).transpose(0, 1).contiguous()


def filled(values: Tensor, width: int) -> Tensor:
    """(..., c) with zeros up to `width` columns, without gradients."""
    more = width - values.shape[-1]
    return F.pad(values.detach(), (0, more)) if more else values.detach().contiguous()


@inner_njit
def multiply(x, a, inner, weight, at, out, c, panels, rows, add):
    """C = A W, or C += A W if `add`: four rows by sixteen columns are summed in registers.

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
        while row + 4 <= rows:
            _four_rows(x, a.at + row * a.row, a.row, a.panel, inner, weight, first, out, o + row * c.row, c.row, add)
            row += 4
        while row < rows:
            _one_row(x, a.at + row * a.row, a.panel, inner, weight, first, out, o + row * c.row, add)
            row += 1


@inner_njit
def _four_rows(x, p, row, panel, inner, weight, q, out, o, step, add):
    if add:
        s0, s1, s2, s3 = load(out, o), load(out, o + step), load(out, o + 2 * step), load(out, o + 3 * step)
    else:
        s0 = s1 = s2 = s3 = splat(np.float32(0))
    for _ in range(inner):
        for k in range(LANES):
            v = load(weight, q)
            s0 = spread(x, p + k) * v + s0
            s1 = spread(x, p + row + k) * v + s1
            s2 = spread(x, p + 2 * row + k) * v + s2
            s3 = spread(x, p + 3 * row + k) * v + s3
            q += LANES
        p += panel
    store(out, o, s0)
    store(out, o + step, s1)
    store(out, o + 2 * step, s2)
    store(out, o + 3 * step, s3)


@inner_njit
def _one_row(x, p, panel, inner, weight, q, out, o, add):
    """The same for one row, in two sums, as each addition has to wait for the one before it."""
    zero = splat(np.float32(0))
    s0, s1 = load(out, o) if add else zero, zero
    for _ in range(inner):
        for k in range(0, LANES, 2):
            s0 = spread(x, p + k) * load(weight, q) + s0
            s1 = spread(x, p + k + 1) * load(weight, q + LANES) + s1
            q += 2 * LANES
        p += panel
    store(out, o, s0 + s1)
