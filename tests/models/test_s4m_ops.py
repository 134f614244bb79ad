"""The compiled norms and convolutions of S4M against the same functions in PyTorch, values and gradients."""

import pytest
import torch

from clearstate.kernels.backend import fast
from clearstate.models.parts.s4m_ops import depthwise, global_modulate, global_norm
from clearstate.models.s4m import S4M, S4MConfig
from clearstate.ssm import use_backend

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}  # sums of thousands of float32 in another order


def compared(function, *inputs):
    """The function's value and gradients in both forms; None inputs stay None."""
    torch.manual_seed(1)
    results, weight = [], None
    for backend in ("auto", "reference"):
        leaves = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]
        with use_backend(backend):
            assert fast(inputs[0], gradient=True) == (backend == "auto")
            y = function(*leaves)
            weight = torch.randn_like(y) if weight is None else weight
            given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            results.append([y, *torch.autograd.grad((y * weight).sum(), given)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("frames", [1, 2, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("stride, around", [(1, 2), (2, 2), (1, 0), (2, 0)])
@pytest.mark.parametrize("biased", [True, False])
def test_depthwise(frames, stride, around, biased):
    if frames + 2 * around < 5:
        pytest.skip("shorter than the filter")
    x, weight = torch.randn(2, frames, 33), torch.randn(33, 5)
    bias = torch.randn(33) if biased else None
    compared(lambda x, w, b: depthwise(x, w, b, stride, around), x, weight, bias)


def test_depthwise_is_the_sum_it_says_it_is():
    x, weight = torch.randn(1, 9, 3), torch.randn(3, 5)
    y = depthwise(x, weight, None, 2, 2)
    direct = sum(weight[:, i] * x[0, 2 * 2 + i - 2] for i in range(5))  # output 2
    torch.testing.assert_close(y[0, 2], direct)


@pytest.mark.parametrize("frames", [1, 128, 301])
@pytest.mark.parametrize("slope", [None, 0.25, -0.1])
def test_global_norm(frames, slope):
    x = 3 + 2 * torch.randn(3, frames, 33)
    gain, bias = torch.randn(33), torch.randn(33)
    slope = None if slope is None else torch.tensor([slope])
    compared(lambda x, g, b, s: global_norm(x, g, b, s, 1e-8), x, gain, bias, slope)


@pytest.mark.parametrize("repeat, coarse", [(1, 40), (4, 9), (16, 130)])
@pytest.mark.parametrize("scaled", [True, False])
def test_global_modulate(repeat, coarse, scaled):
    x = 1 + torch.randn(2, repeat * coarse, 33)
    gate, shift = torch.rand(2, coarse, 33), torch.randn(2, coarse, 33)
    scale = torch.randn(33) if scaled else None
    inputs = x, torch.randn(33), torch.randn(33), gate, shift, scale
    compared(lambda *given: global_modulate(*given, 1e-8), *inputs)


def test_a_global_norm_has_zero_mean_and_unit_variance():
    y = global_norm(5 + 3 * torch.randn(2, 200, 16), torch.ones(16), torch.zeros(16), None, 1e-8)
    torch.testing.assert_close(y.mean((1, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean((1, 2)), torch.ones(2), atol=1e-4, rtol=0)


def test_digital_silence_and_nan_are_what_they_are():
    y = global_norm(torch.zeros(1, 10, 4), torch.ones(4), torch.full((4,), 0.5), None, 1e-8)
    assert (y == 0.5).all()
    x = torch.zeros(2, 10, 4)
    x[1, 3, 2] = torch.nan
    y = global_norm(x, torch.ones(4), torch.zeros(4), None, 1e-8)
    assert torch.isfinite(y[0]).all() and not torch.isfinite(y[1]).any()


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_the_threads(threads):
    x, before = torch.randn(3, 700, 40), torch.get_num_threads()
    try:
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            y = global_norm(leaf, torch.ones(40), torch.zeros(40), torch.tensor([0.25]), 1e-8)
            y = depthwise(y, torch.ones(40, 5), None, 2, 2)
            (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
            results.append((y, gradient))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("every_scale", [False, True])
def test_the_whole_model_is_the_same_in_both_forms(every_scale):
    torch.manual_seed(0)
    model = S4M(S4MConfig(window_ms=4.0, channels=16, hidden=32, passes=2, every_scale=every_scale))
    x, results = torch.randn(2, 3_000), []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            model.zero_grad()
            y = model(x)
            y.square().sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 2e-3 * theirs.norm() + 1e-6


def test_half_precision_takes_the_plain_form():
    assert not fast(torch.zeros(1, dtype=torch.bfloat16), gradient=True)
