"""SAF's compiled norms, convolutions and TCN middle against the same functions in PyTorch, values and gradients."""

import pytest
import torch
from torch import nn

from clearstate.kernels.backend import use_backend
from clearstate.models.parts import saf_ops
from clearstate.models.parts.saf_ops import attend, compiled, depthwise, linear, norm_prelu, tcn_middle


@pytest.fixture(autouse=True)
def _small_tensors_are_taken(monkeypatch):
    monkeypatch.setattr(saf_ops, "LEAST", 1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def both_forms(function, *inputs):
    """Outputs and gradients of the compiled form in float32, and of the plain one in float64."""
    found = []
    for backend, dtype in (("auto", torch.float32), ("reference", torch.float64)):
        with use_backend(backend):
            given = [x if x is None else x.detach().to(dtype, copy=True).requires_grad_() for x in inputs]
            assert compiled(given[0]) == (backend == "auto")
            y = function(*given)
            wanted = random(*y.shape, seed=9).to(dtype)
            y.backward(wanted)
            found.append([y.detach(), *(x.grad for x in given if x is not None)])
    return zip(*found, strict=True)


def assert_same(function, *inputs):
    """To the last digits of float32: sums over a few thousand rows lose no more than one."""
    for got, expected in both_forms(function, *inputs):
        scale = expected.abs().max().item()
        torch.testing.assert_close(got.double(), expected, atol=2e-6 * scale + 1e-9, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 130, 300])
@pytest.mark.parametrize("activate", [False, True])
def test_norm_and_prelu(rows, activate):
    slope = random(32, seed=4) if activate else None
    assert_same(
        lambda x, gain, shift, slope: norm_prelu(x, gain, shift, slope, 1e-5),
        3 * random(2, rows, 3, 32) + 1, random(32, seed=2), random(32, seed=3), slope,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 7, 64, 150])
@pytest.mark.parametrize("inputs, outputs", [(32, 16), (64, 96)])
@pytest.mark.parametrize("residual", [False, True])
def test_products(rows, inputs, outputs, residual):
    def product(x, weight, bias, more):
        layer = nn.Linear(inputs, outputs, dtype=x.dtype)
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias  # as they are, so that they get the gradients
        return linear(x, layer, more)

    more = random(2, rows, outputs, seed=3) if residual else None
    assert_same(product, random(2, rows, inputs), random(outputs, inputs), random(outputs), more)


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("heads, around", [(1, 3), (2, 3), (2, 1), (2, 7)])
def test_attention_to_neighbouring_bands(k, heads, around):
    assert_same(attend, random(2, 5, k, 96), random(heads, around))


def middle_inputs(frames: int, c: int = 32) -> tuple[torch.Tensor, ...]:
    vectors = [random(c, seed=i) for i in range(5)]
    return random(2, frames, 5, c), vectors[0], random(c, 1, 3, 1), *vectors[1:]


@pytest.mark.parametrize("frames, dilation", [(1, 1), (3, 4), (40, 1), (40, 16)])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_middle_of_a_tcn_block(frames, dilation, streaming):
    before = random(2, 2 * dilation, 5, 32, seed=5) if streaming else None

    def middle(h, first, weight, bias, *rest):
        past = None if before is None else before.to(h.dtype)
        return tcn_middle(h, first, weight, bias, dilation, past, *rest, 1e-5)

    assert_same(middle, *middle_inputs(frames))


@pytest.mark.parametrize("k", [1, 7, 8, 20, 33])
@pytest.mark.parametrize(
    "kernel, dilation, stride",
    [((3, 3), 1, 1), ((3, 3), 4, 1), ((3, 5), 1, 2), ((3, 1), 2, 1), ((11, 11), 1, 1), ((1, 15), 1, 3)],
)
@pytest.mark.parametrize("frames", [1, 40])
def test_depthwise_convolutions(kernel, dilation, stride, k, frames):
    for around in ((kernel[0] - 1) * dilation // 2, 0):
        extended = frames if around else frames + (kernel[0] - 1) * dilation
        assert_same(
            lambda x, weight, bias, around=around: depthwise(x, weight, bias, dilation, stride, around),
            random(2, extended, k, 32), random(32, 1, *kernel), random(32, seed=1),
        )  # fmt: skip


def test_frames_before_that_need_a_gradient_get_one():
    before = random(2, 4, 5, 32, seed=5).requires_grad_()
    h, first, weight, *rest = middle_inputs(6)
    tcn_middle(h, first, weight, rest[0], 2, before, *rest[1:], 1e-5).sum().backward()
    assert before.grad is not None and before.grad.any()


def test_the_slope_at_zero_is_that_of_pytorch():
    x = torch.zeros(1, 1, 1, 16)
    assert_same(lambda x, *rest: norm_prelu(x, *rest, 1e-5), x, *(torch.full((16,), v) for v in (1.0, 0.0, 0.25)))


def test_nan_stays_where_it_is():
    h, *rest = middle_inputs(12)
    h[1, 6, 2, 3] = torch.nan
    y = tcn_middle(h, *rest[:3], 2, None, *rest[3:], 1e-5)
    where = y.isnan().all(-1).nonzero().tolist()
    assert where == [[1, t, 2] for t in (4, 6, 8)] and y.isnan().any(-1).sum() == 3


@pytest.mark.parametrize("threads", [2, 3])
def test_results_do_not_depend_on_the_threads(threads, monkeypatch):
    def function(h, first, weight, bias, *rest):
        return tcn_middle(h, first, weight, bias, 2, None, *rest, 1e-5)

    one = [pair[0] for pair in both_forms(function, *middle_inputs(13))]
    monkeypatch.setattr(saf_ops, "threads_for", lambda tasks, work: min(threads, tasks))
    many = [pair[0] for pair in both_forms(function, *middle_inputs(13))]
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_other_tensors_take_the_plain_form():
    assert not compiled(torch.zeros(1, 24)) and not compiled(torch.zeros(1, 16, dtype=torch.float64))
    assert not compiled(torch.zeros(0, 16)) and compiled(torch.zeros(1, 16))
