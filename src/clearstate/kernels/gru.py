"""A GRU both ways over many rows, as one kernel for inference on the CPU.

PyTorch's own goes through a row's steps with a dozen small operations each, whose results pass through memory. Here a
task takes `ROWS` rows in one direction, so that a weight that was fetched serves them all, and carries their states
along in the first-level cache; nothing but the states is written out. `torch.nn.GRU` says what is computed, and is the
slow twin:

    r = sigmoid(W_ir x + W_hr h + b_r)
    z = sigmoid(W_iz x + W_hz h + b_z)
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))
    h <- n + z (h - n)

Cho et al. 2014 (arXiv:1406.1078), with the reset gate behind the product, as in cuDNN.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clearstate.kernels.cache import njit
from clearstate.kernels.matmul import Panels, as_panels, multiply
from clearstate.kernels.simd import FAST, LANES, apart, exp, inner_njit, load, splat, store
from clearstate.kernels.threads import in_parts, threads_for

ROWS = 32  # of a task


class Way(NamedTuple):
    """The weights of one direction as flat arrays; matrices as panels, with the columns of r, z and n in this order."""

    enter: Any  # (inputs, 3 hidden)
    carry: Any  # (hidden, 3 hidden)
    bias: Any  # of r, of z, of n beside the reset gate and behind it: (4 hidden,)


def fits(gru: nn.GRU) -> bool:
    """Whether the sizes are whole vectors."""
    return gru.input_size % LANES == 0 and gru.hidden_size % LANES == 0


def gru_both_ways(x: Tensor, gru: nn.GRU) -> Tensor:
    """``gru(x)[0]`` of rows (r, l, inputs): (r, l, 2 hidden), without gradients.

    `gru` has one layer, biases, both directions, the batch first, and sizes that `fits` says are right.
    """
    rows, steps, inputs = x.shape
    hidden = gru.hidden_size
    y = x.new_empty(rows, steps, 2 * hidden)
    threads = threads_for(2 * -(-rows // ROWS), x.numel() * hidden)
    memory = x.new_empty(threads, ROWS * 5 * hidden)
    in_parts(
        _gru_part, threads, x.detach().contiguous().view(-1).numpy(), y.view(-1).numpy(), memory.numpy(),
        way(gru, ""), way(gru, "_reverse"), rows, steps, inputs, hidden,
    )  # fmt: skip
    return y


def way(gru: nn.GRU, suffix: str) -> Way:
    """The weights of the direction whose parameters end in `suffix`."""
    enter, carry, bias, carry_bias = (
        getattr(gru, f"{name}_l0{suffix}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    split = 2 * gru.hidden_size
    biases = torch.cat([bias[:split] + carry_bias[:split], bias[split:], carry_bias[split:]])
    return Way(as_panels(enter.T).view(-1).numpy(), as_panels(carry.T).view(-1).numpy(), biases.numpy())


# ------------------------------------------------------------------------------------------------ compiled


@inner_njit
def _update(m, gates, carried, h, panel, bias, hidden, unit, rows, y, at, from_row):
    """The next states of sixteen units, to h and to y."""
    apart()
    one, two = splat(np.float32(1)), splat(np.float32(2))
    reset_bias, keep_bias = load(bias, unit), load(bias, hidden + unit)
    new_bias, carried_bias = load(bias, 2 * hidden + unit), load(bias, 3 * hidden + unit)
    first = unit // LANES * panel
    keep_at, new_at = gates + hidden // LANES * panel + first, gates + 2 * hidden // LANES * panel + first
    for row in range(rows):
        i = row * LANES
        reset = one / (one + exp(splat(np.float32(0)) - (load(m, gates + first + i) + reset_bias)))
        keep = one / (one + exp(splat(np.float32(0)) - (load(m, keep_at + i) + keep_bias)))
        new = load(m, new_at + i) + new_bias + reset * (load(m, carried + first + i) + carried_bias)
        new = two / (one + exp(splat(np.float32(0)) - two * new)) - one  # tanh
        state = new + keep * (load(m, h + first + i) - new)
        store(m, h + first + i, state)
        store(y, at + row * from_row + unit, state)


@inner_njit
def _gru_rows(x, y, first, rows, steps, inputs, hidden, m, weights, reverse):
    """Rows `first` .. of x and y in one direction, with flat memory m."""
    apart()
    panel, panels = ROWS * LANES, hidden // LANES
    gates = 0
    carried = gates + 3 * panels * panel
    h = carried + panels * panel
    for i in range(panels):
        for row in range(rows):
            store(m, h + i * panel + row * LANES, splat(np.float32(0)))
    to_gates, state = Panels(gates, LANES, panel), Panels(h, LANES, panel)
    for s in range(steps):
        step = steps - 1 - s if reverse else s
        frame = Panels((first * steps + step) * inputs, steps * inputs, LANES)
        multiply(x, frame, inputs // LANES, weights.enter, 0, m, to_gates, 3 * panels, rows, False)
        multiply(m, state, panels, weights.carry, 0, m, to_gates, 2 * panels, rows, True)
        behind = 2 * panels * panels * LANES * LANES  # where the columns of n begin
        multiply(m, state, panels, weights.carry, behind, m, Panels(carried, LANES, panel), panels, rows, False)
        at = (first * steps + step) * 2 * hidden + (hidden if reverse else 0)
        for unit in range(0, hidden, LANES):
            _update(m, gates, carried, h, panel, weights.bias, hidden, unit, rows, y, at, steps * 2 * hidden)


@njit(fastmath=FAST, nogil=True, cache=True)
def _gru_part(part, parts, x, y, memory, ahead, back, rows, steps, inputs, hidden):
    groups = (rows + ROWS - 1) // ROWS
    for task in range(part, 2 * groups, parts):
        first = task // 2 * ROWS
        count = min(ROWS, rows - first)
        if task % 2:
            _gru_rows(x, y, first, count, steps, inputs, hidden, memory[part], back, True)
        else:
            _gru_rows(x, y, first, count, steps, inputs, hidden, memory[part], ahead, False)
