"""The selective scan: fast = slow for every size, dtype, stride, direction and chunking, gradients included."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from scan_inputs import NAMES, leaves, scan_inputs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clearstate.ssm import selective_scan, use_backend
from clearstate.ssm.scan import selective_scan_parallel, selective_scan_reference

# float32 keeps 24 bits; a sum over 64 states of terms of either sign loses a few of them.
CLOSE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}
# Gradients of the parameters are sums over the whole batch and time.
CLOSE_GRADIENTS = {torch.float32: {"rtol": 3e-5, "atol": 3e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}

# batch, time, channels, states: one step, a chunk less one, a chunk, one more; ragged vectors; 4 to 64 states
SIZES = [
    (1, 1, 1, 1),
    (2, 1, 3, 4),
    (3, 15, 16, 5),
    (2, 16, 17, 8),
    (1, 17, 64, 16),
    (2, 37, 70, 16),
    (17, 5, 33, 7),
    (1, 20, 130, 64),
]


def fast(inputs: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
    with use_backend("numba"):
        return selective_scan(**{"delta_softplus": True, **inputs, **options})


def slow(inputs: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
    with use_backend("reference"):
        return selective_scan(**{"delta_softplus": True, **inputs, **options})


def gradients(run, inputs: dict[str, Tensor], **options) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, last state, and the gradient of a random linear function of both with respect to every input."""
    inputs = leaves(inputs)
    y, h = run(inputs, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in (y, h)]
    found = torch.autograd.grad([y, h], list(inputs.values()), weights)
    return y.detach(), h.detach(), dict(zip(inputs, found, strict=True))


def assert_same_everywhere(inputs: dict[str, Tensor], **options) -> None:
    dtype = inputs["u"].dtype
    y, h, grads = gradients(fast, inputs, **options)
    y_slow, h_slow, grads_slow = gradients(slow, inputs, **options)
    torch.testing.assert_close(y, y_slow, **CLOSE[dtype])
    torch.testing.assert_close(h, h_slow, **CLOSE[dtype])
    for name in inputs:
        torch.testing.assert_close(
            grads[name], grads_slow[name], **CLOSE_GRADIENTS[dtype], msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("reverse", [False, True])
def test_every_gradient_is_that_of_finite_differences(reverse):
    inputs = leaves(scan_inputs(2, 19, 3, 2, torch.float64))  # two chunks of steps

    def run(*tensors):
        return fast(dict(zip(NAMES, tensors, strict=True)), reverse=reverse)

    assert torch.autograd.gradcheck(run, tuple(inputs.values()), fast_mode=True)
    short = leaves(scan_inputs(1, 3, 2, 3, torch.float64))
    assert torch.autograd.gradcheck(run, tuple(short.values()))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_output_state_and_gradients_are_those_of_the_reference(size, dtype, reverse):
    assert_same_everywhere(scan_inputs(*size, dtype), reverse=reverse)


@pytest.mark.parametrize("missing", [("D",), ("z",), ("delta_bias",), ("state",), ("D", "z", "delta_bias", "state")])
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_inputs_may_be_left_out(missing, softplus):
    inputs = scan_inputs(2, 21, 19, 6)
    for name in ("delta", "delta_bias"):  # a negative step would grow without bound
        inputs[name] = inputs[name].abs()
    kept = {name: x for name, x in inputs.items() if name not in missing}
    assert_same_everywhere(kept, delta_softplus=softplus)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_parallel_form_is_the_same_function(reverse):
    inputs = scan_inputs(2, 13, 5, 4, torch.float64)
    found = selective_scan_parallel(**inputs, delta_softplus=True, reverse=reverse)
    torch.testing.assert_close(found, selective_scan_reference(**inputs, delta_softplus=True, reverse=reverse))


def test_views_of_any_stride_give_what_their_copies_give():
    b, t, d, n = 3, 18, 20, 5
    wide = torch.randn(b, t, 3 * d + 2 * n + 1)
    inputs = scan_inputs(b, t, d, n)
    inputs["u"] = wide[..., :d]  # a slice of a wider tensor
    inputs["z"] = wide[..., d : 2 * d]
    inputs["B"], inputs["C"] = wide[..., -2 * n :].chunk(2, -1)
    inputs["delta"] = torch.randn(t, b, d).transpose(0, 1)  # time first
    inputs["A"] = -torch.rand(n, d).t()
    inputs["D"] = torch.randn(1).expand(d)
    inputs["state"] = torch.randn(n, d, b).permute(2, 1, 0)
    copies = {name: x.contiguous() for name, x in inputs.items()}
    torch.testing.assert_close(fast(inputs), fast(copies), rtol=0, atol=0)

    inputs["u"] = torch.randn(b, d, t).transpose(1, 2)  # channels are not the last axis in memory
    inputs["delta"] = torch.randn(1, t, 1).expand(b, t, d)
    inputs["z"] = torch.randn(b, 2 * t, d)[:, ::2]
    inputs["B"] = torch.randn(1, 1, n).expand(b, t, n)
    inputs["C"] = torch.randn(t, n).expand(b, t, n)
    assert_same_everywhere(inputs)


def test_the_gradient_may_have_any_stride():
    inputs = leaves(scan_inputs(2, 5, 3, 4))
    y, h = fast(inputs)
    found = torch.autograd.grad(y.sum() + h.sum(), list(inputs.values()))  # an expanded scalar
    y, h = slow(inputs)
    expected = torch.autograd.grad(y.sum() + h.sum(), list(inputs.values()))
    torch.testing.assert_close(found, expected, **CLOSE_GRADIENTS[torch.float32])


@pytest.mark.parametrize("output", [0, 1])
def test_either_output_may_be_left_unused(output):
    inputs = leaves(scan_inputs(2, 5, 3, 4))
    pairs = [
        torch.autograd.grad(run(inputs)[output].square().sum(), list(inputs.values()), allow_unused=True)
        for run in (fast, slow)
    ]
    for name, found, expected in zip(inputs, *pairs, strict=True):
        expected = torch.zeros_like(inputs[name]) if expected is None else expected
        torch.testing.assert_close(found, expected, **CLOSE_GRADIENTS[torch.float32], msg=lambda m, n=name: f"{n}: {m}")


def chunked(inputs: dict[str, Tensor], lengths: list[int], reverse: bool, carry: bool) -> tuple[Tensor, Tensor]:
    """The scan in pieces along time, in the order in which it walks."""
    state, outputs = inputs["state"], []
    pieces = {name: inputs[name].split(lengths, dim=1) for name in ("u", "delta", "B", "C", "z")}
    order = range(len(lengths))
    for k in reversed(order) if reverse else order:
        piece = inputs | {name: parts[k] for name, parts in pieces.items()}
        y, h = fast(piece | {"state": state}, reverse=reverse)
        outputs.append(y)
        state = h if carry else inputs["state"]
    return torch.cat(outputs[::-1] if reverse else outputs, dim=1), state


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [[1] * 40, [16, 16, 8], [17, 1, 22], [39, 1]])
def test_any_chunking_with_the_state_carried_is_one_pass(lengths, reverse):
    inputs = scan_inputs(2, 40, 18, 6)
    y, h = fast(inputs, reverse=reverse)
    y_chunked, h_chunked = chunked(inputs, lengths, reverse, carry=True)
    torch.testing.assert_close(y_chunked, y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(h_chunked, h, rtol=1e-6, atol=1e-6)


def test_a_dropped_state_is_noticed():
    inputs = scan_inputs(2, 40, 18, 6)
    y, _ = fast(inputs)
    y_chunked, _ = chunked(inputs, [17, 1, 22], reverse=False, carry=False)
    torch.testing.assert_close(y_chunked[:, :17], y[:, :17])
    assert (y_chunked[:, 17:] - y[:, 17:]).abs().max() > 0.1


def test_gradients_flow_through_the_state_from_one_chunk_to_the_one_before():
    inputs = leaves(scan_inputs(2, 40, 5, 3, torch.float64))
    whole = torch.autograd.grad(fast(inputs)[0].sum(), list(inputs.values()))
    pieces = torch.autograd.grad(chunked(inputs, [7, 33], False, carry=True)[0].sum(), list(inputs.values()))
    torch.testing.assert_close(pieces, whole)


def test_reverse_is_the_flip_of_a_flip():
    inputs = scan_inputs(2, 23, 5, 4)
    flipped = inputs | {name: inputs[name].flip(1) for name in ("u", "delta", "B", "C", "z")}
    y, h = fast(inputs, reverse=True)
    y_flipped, h_flipped = fast(flipped)
    torch.testing.assert_close(y, y_flipped.flip(1), rtol=0, atol=0)
    torch.testing.assert_close(h, h_flipped, rtol=0, atol=0)


def test_other_sequences_and_channels_never_change_a_result():
    inputs = scan_inputs(3, 20, 37, 4)
    spoiled = {name: x.clone() for name, x in inputs.items()}
    for name in ("u", "delta", "B", "C", "z", "state"):
        spoiled[name][1] = torch.nan
    torch.testing.assert_close(fast(spoiled)[0][::2], fast(inputs)[0][::2], rtol=0, atol=0)
    spoiled = {name: x.clone() for name, x in inputs.items()}
    spoiled["u"][..., 36] = torch.nan
    torch.testing.assert_close(fast(spoiled)[0][..., :36], fast(inputs)[0][..., :36], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(name, value):
    inputs = scan_inputs(1, 20, 17, 4)
    at = {
        "u": (0, 9, 3),
        "delta": (0, 9, 3),
        "z": (0, 9, 3),
        "B": (0, 9, 2),
        "C": (0, 9, 2),
        "state": (0, 3, 2),
        "A": (3, 2),
    }
    inputs[name][at.get(name, (3,))] = value
    y, h = fast(inputs)
    y_slow, h_slow = slow(inputs)
    assert torch.equal(y.isfinite(), y_slow.isfinite()) and torch.equal(h.isfinite(), h_slow.isfinite())
    if name not in ("A",) or value != value:
        assert not y.isfinite().all()
    assert y.isfinite().any(), "the other channels or steps should not be touched"


def test_gradients_of_nan_are_nan():
    inputs = scan_inputs(1, 20, 17, 4)
    inputs["u"][0, 9, 3] = torch.nan
    _, _, grads = gradients(fast, inputs)
    for name in ("delta", "A", "B", "C", "D", "z", "delta_bias"):
        assert grads[name].isnan().any(), name


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_extreme_step_sizes_are_handled_like_the_reference(scale):
    inputs = scan_inputs(1, 12, 16, 4)
    inputs["delta"] = inputs["delta"].abs() * scale
    options = {"delta_softplus": False}
    inputs = {name: x for name, x in inputs.items() if name != "delta_bias"}
    torch.testing.assert_close(fast(inputs, **options)[0], slow(inputs, **options)[0], rtol=1e-5, atol=1e-5)


def test_softplus_and_gate_hold_over_the_whole_range():
    values = torch.linspace(-100, 100, 4001).reshape(1, 1, -1)
    d = values.shape[2]
    one = torch.ones(1, 1, d)
    unit = {"A": -torch.ones(d, 1), "B": torch.ones(1, 1, 1), "C": torch.ones(1, 1, 1)}
    softplus = fast({"u": one, "delta": values, **unit})[0]  # h = dt, y = h
    # x log2(e) is rounded once before the exponential: for |x| = 100 that is 1e-5 of a result of 1e-44.
    close = {"rtol": 1e-5, "atol": 1e-30}
    torch.testing.assert_close(softplus, torch.nn.functional.softplus(values.double()).float(), **close)
    gated = fast({"u": one, "delta": one, "z": values, **unit}, delta_softplus=False)[0]
    torch.testing.assert_close(gated, torch.nn.functional.silu(values.double()).float(), **close)


@pytest.mark.parametrize("backend", ["numba", "reference", "parallel"])
def test_inputs_are_never_written_to(backend):
    inputs = leaves(scan_inputs(2, 18, 5, 4))
    before = {name: x.detach().clone() for name, x in inputs.items()}
    with use_backend(backend):
        y, h = selective_scan(**inputs, delta_softplus=True)
        (y.sum() + h.sum()).backward()
    for name, x in inputs.items():
        assert torch.equal(x, before[name]), name


def test_one_and_two_threads_give_the_same_bits():
    inputs = scan_inputs(19, 33, 70, 8)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y, h, grads = gradients(fast, inputs)
            results.append([y, h, *grads.values()])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_cast_back(dtype):
    inputs = scan_inputs(2, 30, 5, 4)
    halves = {name: x.to(dtype) for name, x in inputs.items()}
    y, h = fast(halves)
    assert y.dtype == dtype and h.dtype == torch.float32
    y_full, h_full = fast({name: x.float() for name, x in halves.items()})
    assert torch.equal(y, y_full.to(dtype)) and torch.equal(h, h_full)


def test_half_precision_inputs_get_half_precision_gradients():
    inputs = leaves({name: x.bfloat16() for name, x in scan_inputs(2, 6, 5, 4).items()})
    fast(inputs)[0].float().sum().backward()
    assert all(
        x.grad is not None and x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in inputs.values()
    )


def test_without_gradients_the_result_is_the_same_and_nothing_is_kept():
    inputs = leaves(scan_inputs(2, 33, 20, 4))
    y, h = fast(inputs)
    with torch.no_grad():
        y_free, h_free = fast(inputs)
    with torch.inference_mode():
        y_inference, _ = fast(inputs)
    assert y.requires_grad and not y_free.requires_grad and not h_free.requires_grad
    assert torch.equal(y, y_free) and torch.equal(h, h_free) and torch.equal(y, y_inference)


class Scan(torch.nn.Module):
    def __init__(self, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterDict({k: torch.nn.Parameter(inputs[k]) for k in ("A", "D", "delta_bias")})

    def forward(self, u, delta, B, C, z, state):
        return selective_scan(u, delta, B=B, C=C, z=z, state=state, delta_softplus=True, **dict(self.weights.items()))


def test_torch_export_keeps_the_operator_and_its_result():
    inputs = scan_inputs(2, 11, 6, 4)
    module = Scan(inputs)
    arguments = tuple(inputs[name] for name in ("u", "delta", "B", "C", "z", "state"))
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(module, arguments, dynamic_shapes=[{0: batch}] * 6)
        assert "clearstate.selective_scan" in str(program.graph)
        doubled = tuple(torch.cat([x, x.flip(0)]) for x in arguments)
        torch.testing.assert_close(program.module()(*doubled), module(*doubled), rtol=0, atol=0)


def test_the_operator_passes_pytorchs_own_checks():
    inputs = leaves(scan_inputs(2, 18, 3, 2))
    tensors = [inputs[name] for name in NAMES]
    torch.library.opcheck(
        torch.ops.clearstate.selective_scan.default,
        (*tensors, True, False, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


class _Scans(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, k):
        torch.manual_seed(k)
        inputs = leaves(scan_inputs(17, 40, 70, 16))  # large enough to ask for threads
        y, _ = fast(inputs)
        y.sum().backward()
        return y.detach(), inputs["A"].grad


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_it_runs_in_a_forked_worker_after_threads_were_used_here():
    here = [_Scans()[k] for k in range(2)]  # starts this process's threads
    loader = DataLoader(_Scans(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    for found, expected in zip(loader, here, strict=True):
        torch.testing.assert_close(found, expected)


def test_it_runs_in_several_python_threads_at_once():
    inputs = scan_inputs(17, 40, 70, 16)
    expected, _ = fast(inputs)
    found: list[Tensor] = []
    workers = [threading.Thread(target=lambda: found.append(fast(inputs)[0])) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4 and all(torch.equal(y, expected) for y in found)


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("u", (2, 5), "expected u"),
        ("u", (2, 0, 3), "t >= 1"),
        ("A", (4, 2), "expected u"),
        ("delta", (2, 5, 4), "delta (2, 5, 4)"),
        ("B", (2, 5, 3), "expected (2, 5, 2)"),
        ("C", (1, 5, 2), "C (1, 5, 2)"),
        ("D", (2,), "D (2,)"),
        ("z", (2, 4, 3), "z (2, 4, 3)"),
        ("delta_bias", (1,), "delta_bias (1,)"),
        ("state", (2, 2, 3), "expected (2, 3, 2)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, shape, words):
    inputs = scan_inputs(2, 5, 3, 2) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match="selective_scan got") as caught:
        selective_scan(**inputs)
    assert words in str(caught.value)


def test_dtypes_that_do_not_fit_are_named():
    inputs = scan_inputs(2, 5, 3, 2)
    with pytest.raises(ValueError, match=r"B in torch.float64.*u is in torch.float32"):
        selective_scan(**inputs | {"B": inputs["B"].double()})
    with pytest.raises(ValueError, match="floating point"):
        selective_scan(**inputs | {"u": torch.ones(2, 5, 3, dtype=torch.int64)})


def test_an_empty_batch_gives_an_empty_result():
    inputs = leaves(scan_inputs(0, 5, 3, 2))
    y, h = fast(inputs)
    assert y.shape == (0, 5, 3) and h.shape == (0, 3, 2)
    (y.sum() + h.sum()).backward()
    assert torch.equal(inputs["A"].grad, torch.zeros(3, 2))


def test_importing_the_package_does_not_import_the_compiler():
    code = "import sys, clearstate.ssm; assert 'numba' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_running_the_kernels_does_not_import_pytorchs_compiler():
    """It would take longer than to enhance a short file."""
    code = """
import sys, torch
from clearstate.ssm import causal_conv1d_silu, selective_scan
one = torch.ones(1, 3, 1, requires_grad=True)
y, _ = selective_scan(causal_conv1d_silu(one, one[0, :1])[0], one, -one[0, :1], one, one)
y.sum().backward()
assert one.grad is not None and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_second_derivatives_are_refused_by_the_kernels_and_given_by_the_reference():
    for run in (fast, slow):
        inputs = leaves(scan_inputs(1, 3, 2, 2, torch.float64))
        (first,) = torch.autograd.grad(run(inputs)[0].square().sum(), inputs["u"], create_graph=True)
        if run is slow:
            first.sum().backward()
            assert inputs["A"].grad is not None
        else:
            with pytest.raises(RuntimeError, match="second derivatives use the backend 'reference'"):
                first.sum().backward()
