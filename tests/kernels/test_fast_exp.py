"""Powers of two for inner loops, in both of their forms, against double precision."""

import numpy as np
import pytest
from numba.extending import intrinsic

from clearstate.kernels.cache import njit
from clearstate.kernels.fast_exp import by_polynomial, by_table, decay, power, quick_silu, quick_softplus
from clearstate.kernels.simd import FAST, LANES, inner_njit, lanes, load, store


def as_function(form, cut):
    @intrinsic
    def function(typingctx, size, rate):
        return lanes(lanes, lanes), lambda context, builder, sig, args: form(builder, *args, cut)

    @inner_njit
    def call(size, rate):
        return function(size, rate)

    return call


def has_avx512():
    from llvmlite.binding import get_host_cpu_features

    return get_host_cpu_features().get("avx512f", False)


TABLE = pytest.param(by_table, marks=pytest.mark.skipif(not has_avx512(), reason="its instruction is AVX-512's"))


def run(function, size, rate):
    @njit(fastmath=FAST)
    def apply(size, rate, y):
        for j in range(0, y.size, LANES):
            store(y, j, function(load(size, j), load(rate, j)))

    size, rate = (np.float32(np.broadcast_to(v, np.shape(size))) for v in (size, rate))
    y = np.empty_like(size)
    apply(size, rate, y)
    return y


def expected(size, rate):
    return 2.0 ** (np.float32(size).astype(np.float64) * np.float32(rate).astype(np.float64))


@pytest.mark.parametrize("form", [TABLE, by_polynomial])
@pytest.mark.parametrize("cut", [True, False])
def test_a_decay_is_that_of_double_precision(form, cut):
    function = as_function(form, cut)
    size, rate = np.linspace(0, 100, 1 << 14), -1.1
    # An exponent of 110 is rounded by 4e-6, which is 3e-6 of the result.
    np.testing.assert_allclose(run(function, size, rate), expected(size, rate), rtol=6e-6)
    size = np.logspace(-5, -1, 1 << 12)  # what hardly decays is wrong by a share of 1 - decay, and rounded four times
    wrong = np.abs(run(function, size, rate) - expected(size, rate))
    assert (wrong <= 8e-5 * (1 - expected(size, rate)) + 2.5e-7).all()
    assert (run(function, np.zeros(16), rate) == 1).all()


@pytest.mark.parametrize("form", [TABLE, by_polynomial])
def test_what_decays_to_nothing_is_nothing_and_nan_stays_nan(form):
    function = as_function(form, True)
    size = np.repeat([125.0, 1e3, 2.6e5, 5e5], 16)
    y = run(function, size, -1.0)
    assert (y >= 0).all() and (y < 1e-35).all()
    size[[3, 20]] = np.nan
    assert np.array_equal(np.isnan(run(function, size, -1.0)), np.isnan(size))
    assert np.isnan(run(as_function(form, False), size, -1.0)[[3, 20]]).all()


@pytest.mark.parametrize("form", [TABLE, by_polynomial])
def test_a_power_may_grow_where_nothing_is_cut(form):
    size = np.linspace(-100, 100, 1 << 12)
    np.testing.assert_allclose(run(as_function(form, False), size, 1.2), expected(size, 1.2), rtol=6e-6)


def test_this_machine_uses_one_of_the_two_forms():
    size = np.linspace(0, 50, 1 << 10)
    forms = [by_polynomial, by_table] if has_avx512() else [by_polynomial]
    for function, cut in ((decay, True), (power, False)):
        chosen = inner_njit(lambda size, rate, function=function: function(size, rate))
        y = run(chosen, size, -1.0)
        assert any(np.array_equal(y, run(as_function(form, cut), size, -1.0)) for form in forms)


@pytest.mark.parametrize(
    ("function", "exact"),
    [(quick_silu, lambda x: x / (1 + np.exp(-x))), (quick_softplus, lambda x: np.logaddexp(0, x))],
)
def test_silu_and_softplus_are_those_of_double_precision(function, exact):
    @inner_njit
    def of_one(x, _):
        return function(x)

    x = np.float32(np.linspace(-30, 30, 1 << 14))
    np.testing.assert_allclose(run(of_one, x, 0.0), exact(x.astype(np.float64)), rtol=5e-6)
    ends = run(of_one, np.repeat([-1e9, 1e9], 16), 0.0)
    assert (np.abs(ends[:16]) < 1e-25).all() and (ends[16:] == 1e9).all()
    assert np.isnan(run(of_one, np.full(16, np.nan), 0.0)).all()
