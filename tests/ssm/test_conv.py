"""The causal convolution with SiLU: fast = slow for every size, stride and chunking, both directions, all gradients."""

import pytest
import torch
from torch import Tensor

from clearstate.ssm import causal_conv1d_silu, use_backend

# A sum of at most seven products and one exponential: a few units in the last of float32's 24 bits.
CLOSE = {torch.float32: {"rtol": 2e-5, "atol": 5e-6}, torch.float64: {"rtol": 1e-11, "atol": 1e-11}}
# Gradients of weight and bias are sums over batch and time.
CLOSE_GRADIENTS = {torch.float32: {"rtol": 3e-5, "atol": 2e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}

# batch, time, channels, taps: one step, fewer steps than taps, around a chunk of 16, ragged vectors, several blocks
SIZES = [(1, 1, 1, 1), (2, 1, 3, 4), (1, 2, 5, 4), (3, 15, 16, 3), (2, 17, 70, 4), (17, 5, 33, 2), (1, 40, 130, 7)]


def conv_inputs(b: int, t: int, d: int, k: int, dtype=torch.float32) -> dict[str, Tensor]:
    shapes = {"x": (b, t, d), "weight": (d, k), "bias": (d,), "state": (b, k - 1, d)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def fast(inputs, **options):
    with use_backend("numba"):
        return causal_conv1d_silu(**inputs, **options)


def slow(inputs, **options):
    with use_backend("reference"):
        return causal_conv1d_silu(**inputs, **options)


def by_hand(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The equation, number by number."""
    taps = weight.shape[1]
    signal = torch.cat([state, x], dim=1)
    y = torch.empty_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for d in range(x.shape[2]):
                total = bias[d] + sum(weight[d, j] * signal[b, t + j, d] for j in range(taps))
                y[b, t, d] = total / (1 + torch.exp(-total))
    return y, signal[:, signal.shape[1] - taps + 1 :]


def gradients(run, inputs, **options):
    """Output, state, and gradients of a random linear function of both."""
    inputs = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    outputs = run(inputs, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in outputs]
    found = torch.autograd.grad(outputs, list(inputs.values()), weights)
    return [x.detach() for x in outputs], dict(zip(inputs, found, strict=True))


@pytest.mark.parametrize("run", [fast, slow])
def test_both_forms_are_the_equation(run):
    inputs = conv_inputs(2, 5, 3, 4, torch.float64)
    torch.testing.assert_close(run(inputs), by_hand(**inputs))


@pytest.mark.parametrize("reverse", [False, True])
def test_every_gradient_is_that_of_finite_differences(reverse):
    inputs = conv_inputs(2, 19, 3, 4, torch.float64)  # two chunks of steps

    def run(*tensors):
        return fast(dict(zip(inputs, tensors, strict=True)), reverse=reverse)

    assert torch.autograd.gradcheck(run, tuple(x.requires_grad_() for x in inputs.values()))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_output_state_and_gradients_are_those_of_the_reference(size, dtype, reverse):
    inputs = conv_inputs(*size, dtype)
    outputs, grads = gradients(fast, inputs, reverse=reverse)
    outputs_slow, grads_slow = gradients(slow, inputs, reverse=reverse)
    torch.testing.assert_close(outputs, outputs_slow, **CLOSE[dtype])
    for name in inputs:
        torch.testing.assert_close(
            grads[name], grads_slow[name], **CLOSE_GRADIENTS[dtype], msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("missing", [("bias",), ("state",), ("bias", "state")])
def test_bias_and_state_may_be_left_out(missing):
    inputs = conv_inputs(2, 21, 19, 4)
    kept = {name: x for name, x in inputs.items() if name not in missing}
    zeros = inputs | {name: torch.zeros_like(inputs[name]) for name in missing}
    outputs, grads = gradients(fast, kept)
    expected, grads_expected = gradients(slow, zeros)
    torch.testing.assert_close(outputs, expected, **CLOSE[torch.float32])
    for name in kept:
        torch.testing.assert_close(grads[name], grads_expected[name], **CLOSE_GRADIENTS[torch.float32])


def test_views_of_any_stride_give_what_their_copies_give():
    b, t, d, k = 3, 18, 20, 4
    wide = torch.randn(b, t, 2 * d + 1)
    views = {
        "a slice of a wider tensor": wide[..., :d],
        "time first": torch.randn(t, b, d).transpose(0, 1),
        "channels first": torch.randn(b, d, t).transpose(1, 2),
        "every other step": torch.randn(b, 2 * t, d)[:, ::2],
        "one step, repeated": torch.randn(1, 1, d).expand(b, t, d),
    }
    rest = conv_inputs(b, t, d, k)
    rest["weight"] = torch.randn(d, 1, k)[:, 0]  # as in a depthwise Conv1d
    rest["bias"] = torch.randn(1).expand(d)
    rest["state"] = torch.randn(d, k - 1, b).permute(2, 1, 0)
    for name, x in views.items():
        inputs = rest | {"x": x}
        copies = {key: value.contiguous() for key, value in inputs.items()}
        torch.testing.assert_close(fast(inputs), fast(copies), rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(fast(inputs), slow(inputs), **CLOSE[torch.float32])


def chunked(inputs, lengths, reverse, carry):
    """The convolution in pieces along time, in the order in which it walks."""
    state, outputs = inputs["state"], []
    pieces = inputs["x"].split(lengths, dim=1)
    for piece in reversed(pieces) if reverse else pieces:
        y, after = fast(inputs | {"x": piece, "state": state}, reverse=reverse)
        outputs.append(y)
        state = after if carry else inputs["state"]
    return torch.cat(outputs[::-1] if reverse else outputs, dim=1), state


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [[1] * 40, [16, 16, 8], [2, 1, 37], [39, 1]])
def test_any_chunking_with_the_state_carried_is_one_pass(lengths, reverse):
    inputs = conv_inputs(2, 40, 18, 4)
    torch.testing.assert_close(
        chunked(inputs, lengths, reverse, carry=True), fast(inputs, reverse=reverse), rtol=0, atol=0
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_a_dropped_state_is_noticed(reverse):
    inputs = conv_inputs(2, 40, 18, 4)
    y, _ = fast(inputs, reverse=reverse)
    broken, _ = chunked(inputs, [20, 20], reverse, carry=False)
    first, second = (slice(20, 40), slice(0, 20)) if reverse else (slice(0, 20), slice(20, 40))
    torch.testing.assert_close(broken[:, first], y[:, first])
    assert (broken[:, second] - y[:, second]).abs().max() > 0.1


def test_gradients_flow_through_the_state_from_one_chunk_to_the_one_before():
    inputs = {name: x.requires_grad_() for name, x in conv_inputs(2, 20, 5, 4, torch.float64).items()}
    whole = torch.autograd.grad(fast(inputs)[0].sum(), list(inputs.values()))
    pieces = torch.autograd.grad(chunked(inputs, [7, 13], False, carry=True)[0].sum(), list(inputs.values()))
    torch.testing.assert_close(pieces, whole)


def test_reverse_is_the_flip_of_a_flip():
    inputs = conv_inputs(2, 23, 5, 4)
    y, state = fast(inputs, reverse=True)
    y_flipped, state_flipped = fast(inputs | {"x": inputs["x"].flip(1)})
    torch.testing.assert_close((y, state), (y_flipped.flip(1), state_flipped), rtol=0, atol=0)


def test_the_convolution_looks_only_back():
    inputs = conv_inputs(1, 20, 3, 4)
    later = inputs["x"].clone()
    later[:, 10:] += 1
    before, after = fast(inputs)[0], fast(inputs | {"x": later})[0]
    assert torch.equal(before[:, :10], after[:, :10]) and not torch.equal(before[:, 10:], after[:, 10:])


def test_inputs_are_never_written_to_and_the_state_is_memory_of_its_own():
    inputs = {name: x.requires_grad_() for name, x in conv_inputs(2, 18, 5, 4).items()}
    before = {name: x.detach().clone() for name, x in inputs.items()}
    y, state = fast(inputs)
    (y.sum() + state.sum()).backward()
    state.detach().fill_(7)
    for name, x in inputs.items():
        assert torch.equal(x, before[name]), name


def test_nan_stays_visible_where_it_is_heard_and_nowhere_else():
    inputs = conv_inputs(2, 40, 20, 4)
    inputs["x"][0, 9, 3] = torch.nan
    y, state = fast(inputs)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[0, 9:13, 3] = True  # by the four taps that see it
    assert torch.equal(y.isnan(), touched) and state.isfinite().all()


def test_one_and_two_threads_give_the_same_bits():
    inputs, threads, results = conv_inputs(19, 33, 70, 4), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs, grads = gradients(fast, inputs)
            results.append([*outputs, *grads.values()])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_half_precision_keeps_a_state_in_float32():
    inputs = conv_inputs(2, 30, 5, 4)
    halves = {name: x.bfloat16() for name, x in inputs.items()} | {"state": inputs["state"]}
    y, state = fast(halves)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    full, _ = fast({name: x.float() for name, x in halves.items()})
    assert torch.equal(y, full.bfloat16())


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("x", (5, 3), "expected x (b, t, d)"),
        ("x", (2, 0, 3), "t >= 1"),
        ("weight", (4, 4), "weight (4, 4)"),
        ("state", (2, 4, 3), "state (2, 4, 3): expected (2, 3, 3)"),
        ("bias", (4,), "bias (4,): expected (3,)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, shape, words):
    with pytest.raises(ValueError, match="causal_conv1d_silu got") as caught:
        causal_conv1d_silu(**conv_inputs(2, 5, 3, 4) | {name: torch.zeros(shape)})
    assert words in str(caught.value)
