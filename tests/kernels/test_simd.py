"""Vectors as values of compiled code: functions against float64, matrix products and layers against PyTorch."""

import numpy as np
import pytest
import torch

from clearstate.kernels.cache import njit
from clearstate.kernels.live.layers import (
    Block,
    accumulate,
    add_dense,
    aligned,
    columns,
    dense,
    normalise,
    place,
    tape_of,
)
from clearstate.kernels.matmul import Panels, as_fours, as_panels, multiply, multiply_fours
from clearstate.kernels.simd import (
    FAST,
    LANES,
    below,
    exp,
    exp2,
    highest,
    larger,
    load,
    power,
    root,
    silu,
    softplus,
    spread,
    store,
    total,
)

NAMES = ("exp", "exp2", "silu", "softplus", "root", "power", "larger", "below")


@njit(fastmath=FAST, cache=True)
def apply(which, x, other, y):
    for j in range(0, x.size, LANES):
        v, w = load(x, j), load(other, j)
        if which == 0:
            v = exp(v)
        elif which == 1:
            v = exp2(v)
        elif which == 2:
            v = silu(v)
        elif which == 3:
            v = softplus(v)
        elif which == 4:
            v = root(v)
        elif which == 5:
            v = power(v, other[j])
        elif which == 6:
            v = larger(v, w)
        else:
            v = below(j // LANES, v, w)
        store(y, j, v)


@njit(fastmath=FAST, cache=True)
def reduce(x, sums, tops):
    for j in range(0, x.size, LANES):
        sums[j // LANES], tops[j // LANES] = total(load(x, j)), highest(load(x, j))


@njit(fastmath=FAST, cache=True)
def arithmetic(x, y):
    for j in range(0, x.size, LANES):
        a, half = load(x, j), np.float32(0.5)
        store(y, j, (a * half + half / (a - half)) - (half - a) / (a + spread(x, 0)))


def run(name, x, other=0.0):
    x = np.asarray(x, np.float32)
    y = np.empty_like(x)
    apply(NAMES.index(name), x, np.broadcast_to(np.float32(other), x.shape).copy(), y)
    return y


RANGE = np.linspace(-30, 30, 4096)  # to the end of what silu and softplus can tell from 0
FUNCTIONS = {
    "exp": np.exp,
    "exp2": np.exp2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(0, x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_that_of_double_precision(name):
    x = np.float32(RANGE).astype(np.float64)
    # x log2(e) is rounded before the exponential is taken: half a unit of 43 is 2e-6 of the result.
    np.testing.assert_allclose(run(name, x), FUNCTIONS[name](x), rtol=3e-6)


@pytest.mark.parametrize("exponent", [-0.35, 0.3, 7 / 6, 1.0, 2.0])
def test_a_power_is_exact_to_a_few_units_over_the_whole_range_of_normal_numbers(exponent):
    reach = 37 if abs(exponent) <= 1 else 16  # decades, so that the result is a normal number, too
    x = np.float32(np.logspace(-reach, reach, 4096)).astype(np.float64)
    np.testing.assert_allclose(run("power", x, exponent), x ** float(np.float32(exponent)), rtol=2e-6)


@pytest.mark.parametrize("name", NAMES[:6])
def test_nan_stays_nan(name):
    x = np.ones(32)
    x[5] = np.nan
    assert np.array_equal(np.isnan(run(name, x, 0.5)), np.isnan(x))


@pytest.mark.parametrize("name", ["exp", "silu", "softplus"])
def test_beyond_the_range_of_floats_results_end_and_do_not_wrap(name):
    low, high = run(name, np.full(16, -1e4))[0], run(name, np.full(16, 1e4))[0]
    assert abs(low) < 1e-30 and high >= (1e4 if name != "exp" else 1e38)


def test_lanes_are_chosen_compared_and_summed():
    x = np.float32(np.random.default_rng(0).standard_normal(16 * 18))
    kept = run("below", x, 7.0).reshape(18, 16)
    for count, row in enumerate(kept):
        assert np.array_equal(row[:count], x.reshape(18, 16)[count][:count]) and (row[count:] == 7).all()
    assert np.array_equal(run("larger", x, 0.1), np.maximum(x, np.float32(0.1)))
    sums, tops = np.empty(18, np.float32), np.empty(18, np.float32)
    reduce(x, sums, tops)
    np.testing.assert_allclose(sums, x.reshape(18, 16).sum(1, dtype=np.float64), atol=1e-5)
    assert np.array_equal(tops, x.reshape(18, 16).max(1))


def test_vectors_and_numbers_mix_in_arithmetic():
    x = np.float32(np.linspace(1, 2, 64))
    y = np.empty_like(x)
    arithmetic(x, y)
    np.testing.assert_allclose(y, (x * 0.5 + 0.5 / (x - 0.5)) - (0.5 - x) / (x + x[0]), rtol=1e-6)


@njit(fastmath=FAST, cache=True)
def product(x, a, weight, w, out, c):
    accumulate(x, a, weight, w, out, c)


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 24])
@pytest.mark.parametrize("inner", [1, 6, 48])
@pytest.mark.parametrize("width", [16, 48])
def test_a_product_adds_up_whatever_the_sizes_and_touches_nothing_else(rows, inner, width):
    rng = np.random.default_rng(0)
    x, w = np.float32(rng.standard_normal((rows, inner + 3))), np.float32(rng.standard_normal((inner, width + 16)))
    out = np.float32(rng.standard_normal((rows, width + 32)))
    expected = out.astype(np.float64)
    expected[:, 16:-16] += x[:, 1:-2].astype(np.float64) @ w[:, :width]
    blocks = Block(1, rows, inner, inner + 3), Block(0, inner, width, width + 16), Block(16, rows, width, width + 32)
    product(x.reshape(-1), blocks[0], w.reshape(-1), blocks[1], out.reshape(-1), blocks[2])
    np.testing.assert_allclose(out, expected, atol=2e-5)
    assert np.array_equal(out[:, :16], np.float32(expected[:, :16])) and np.array_equal(
        out[:, -16:], np.float32(expected[:, -16:])
    )


@njit(fastmath=FAST, cache=True)
def layers(tape, memory):
    """A layer norm, a dense layer, and one more whose left half of outputs is added to the input."""
    x = Block(0, 6, 32, 32)
    normed, free = place(memory, x.rows * x.width, x.rows, x.width)
    y, free = place(memory, free, x.rows, 48)
    at = normalise(tape, 0, memory, x, normed)
    at = dense(tape, at, memory, normed, y)
    return add_dense(tape, at, memory, columns(y, 16, 32), columns(x, 16, 16))


def test_layers_read_their_parameters_one_after_another():
    x, first, second = torch.randn(6, 32), torch.nn.Linear(32, 48), torch.nn.Linear(32, 16)
    norm = torch.nn.LayerNorm(32)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.1 * torch.randn(32))
        expected = x.clone()
        expected[:, 16:] += second(first(norm(x))[:, 16:])
        parts = [norm.weight, norm.bias, first.bias, first.weight.T, second.bias, second.weight.T]
        tape = tape_of(parts)
    memory = np.zeros(6 * 32 * 2 + 6 * 48, np.float32)
    memory[: 6 * 32] = x.numpy().reshape(-1)
    assert layers(tape, memory) == len(tape)
    np.testing.assert_allclose(memory[: 6 * 32].reshape(6, 32), expected.numpy(), atol=2e-6)
    with pytest.raises(MemoryError, match="working memory"):
        layers(tape, memory[:-1])


def test_a_tape_starts_every_part_where_a_vector_may():
    tape = tape_of([np.ones(3), np.full((2, 9), 2.0), np.full(16, 3.0)])
    assert tape.ctypes.data % 64 == 0 and tape.dtype == np.float32
    assert np.array_equal(tape, np.repeat([1, 0, 2, 0, 3], [3, 13, 18, 14, 16]).astype(np.float32))
    assert np.array_equal(aligned(tape[1:]), tape[1:])


@njit(fastmath=FAST, cache=True)
def panel_products(x, rows, inner, weight, wide, fours, narrow):
    a = Panels(0, LANES, rows * LANES)
    multiply(x, a, inner, weight, 0, wide, Panels(0, LANES, rows * LANES), 2, rows, False)
    multiply(x, a, inner, weight, 0, wide, Panels(0, LANES, rows * LANES), 2, rows, True)
    multiply_fours(x, a, inner, fours, narrow, Panels(0, LANES, rows * LANES), 2, rows)


@pytest.mark.parametrize("rows", [1, 3, 4, 8, 23])
@pytest.mark.parametrize("inner", [1, 3])
def test_products_of_panels_are_products(rows, inner):
    """Twice a product of 32 columns, added up; and one of seven columns in groups of four."""
    x, w = torch.randn(rows, 16 * inner), torch.randn(16 * inner, 32)
    wide, narrow = np.empty((2, rows, 16), np.float32), np.empty((2, rows, 4, 4), np.float32)
    flat = [part.contiguous().view(-1).numpy() for part in (as_panels(x), as_panels(w), as_fours(w[:, :7]))]
    panel_products(flat[0], rows, inner, flat[1], wide.reshape(-1), flat[2], narrow.reshape(-1))
    exact = (x.double() @ w.double()).numpy()
    np.testing.assert_allclose(np.concatenate(wide, 1), 2 * exact, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(narrow[..., 0], 1)[:, :7], exact[:, :7], atol=5e-5)
