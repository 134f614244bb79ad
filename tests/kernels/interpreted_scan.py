"""The Triton scan against the equation, in Triton's interpreter: run by test_scan_triton.py in a process of its own.

Triton settles on import whether it interprets, and the kernels take the CPU's place here: other tests must see neither.
"""

import pytest
import torch

from clearstate.kernels import scan_triton as scan_cuda
from clearstate.ssm import scan
from clearstate.ssm.scan import selective_scan, selective_scan_reference

scan.scan_op.register_kernel("cpu")(scan_cuda.forward)
scan.scan_backward_op.register_kernel("cpu")(scan_cuda.backward)

# float64: rounding alone. float32: rounding of a few dozen additions of numbers of size 1 to 10.
CLOSE = {torch.float64: {"atol": 1e-12, "rtol": 1e-12}, torch.float32: {"atol": 3e-5, "rtol": 3e-5}}
EVERYTHING = ("D", "z", "bias", "state")


def numbers(b, t, d, n, optional=EVERYTHING, dtype=torch.float64):
    """Random inputs in the order of `selective_scan`; None for what is not in `optional`."""
    made = {
        "u": torch.randn(b, t, d), "delta": torch.randn(b, t, d), "A": -0.1 - torch.rand(d, n),
        "B": torch.randn(b, t, n), "C": torch.randn(b, t, n), "D": torch.randn(d), "z": torch.randn(b, t, d),
        "bias": torch.randn(d), "state": torch.randn(b, d, n),
    }  # fmt: skip
    return {k: x.to(dtype) if k in optional or k not in EVERYTHING else None for k, x in made.items()}


def compare(inputs, softplus=True, reverse=False, drop_state=False):
    """Outputs, last state and all gradients of the two."""
    leaves = [x.requires_grad_() for x in inputs.values() if x is not None]
    u, delta, A, B, C, D, z, bias, state = inputs.values()
    slow = selective_scan_reference(u, delta, A, B, C, D, z, bias, softplus, state, reverse)
    if drop_state:
        state = None
    fast = selective_scan(u, delta, A, B, C, D, z, bias, softplus, state=state, reverse=reverse)
    weights = [torch.randn_like(x) for x in slow]
    slow += torch.autograd.grad([(x * w).sum() for x, w in zip(slow, weights, strict=True)], leaves)
    fast += torch.autograd.grad([(x * w).sum() for x, w in zip(fast, weights, strict=True)], leaves, allow_unused=True)
    for ours, truth in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, truth, **CLOSE[u.dtype])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("size", "optional", "softplus", "dtype"),
    [
        ((1, 1, 5, 4), EVERYTHING, True, torch.float64),
        ((2, 17, 5, 5), EVERYTHING, True, torch.float32),  # one step more than a chunk; states padded to 8
        ((1, 17, 3, 4), (), False, torch.float64),
        ((1, 3, 5, 4), ("state",), True, torch.float64),
        ((1, 3, 5, 4), ("z",), True, torch.float64),
        ((1, 3, 5, 4), ("D", "bias"), False, torch.float64),
    ],
)
def test_the_kernels_give_the_equation_and_its_gradients(size, optional, softplus, dtype, reverse):
    inputs = numbers(*size, optional, dtype)
    if not softplus:  # a negative step would make the recurrence grow
        inputs["delta"] = inputs["delta"].abs()
    compare(inputs, softplus, reverse)


def test_a_lost_state_is_noticed():
    with pytest.raises(AssertionError):
        compare(numbers(1, 3, 2, 4, ("state",)), drop_state=True)


@pytest.mark.parametrize("reverse", [False, True])
def test_slices_of_wider_tensors_are_read_in_place(reverse):
    b, t, d, n = 2, 3, 5, 4
    inputs = numbers(b, t, d, n)
    wide = torch.randn(b, t, 2 * d + 2 * n, dtype=torch.float64)
    inputs["u"], inputs["z"], inputs["B"], inputs["C"] = wide.split([d, d, n, n], dim=-1)
    inputs["delta"] = torch.randn(t, b, d, dtype=torch.float64).transpose(0, 1)
    compare({k: x.detach() for k, x in inputs.items()}, reverse=reverse)


def test_channels_without_unit_stride_are_read_right():
    inputs = numbers(1, 3, 5, 4)
    inputs["u"] = torch.randn(1, 5, 3, dtype=torch.float64).transpose(1, 2)
    inputs["delta"] = torch.randn(1, 3, 1, dtype=torch.float64).expand(1, 3, 5)
    compare(inputs)


@pytest.mark.parametrize("reverse", [False, True])
def test_several_blocks_of_channels_and_several_sequences_a_program_add_up(monkeypatch, reverse):
    monkeypatch.setattr(scan_cuda, "TILE", 8)  # two channels of four states
    monkeypatch.setattr(scan_cuda, "PROGRAMS", 6)  # three blocks: two groups for three sequences
    compare(numbers(3, 2, 5, 4), reverse=reverse)


def test_a_scan_in_two_pieces_is_the_scan_in_one():
    u, delta, A, B, C, D, z, bias, state = numbers(1, 5, 3, 4).values()
    whole, last = selective_scan(u, delta, A, B, C, D, z, bias, True, state=state)
    pieces = []
    for piece in (slice(0, 2), slice(2, 5)):
        u_, delta_, B_, C_, z_ = (x[:, piece] for x in (u, delta, B, C, z))
        y, state = selective_scan(u_, delta_, A, B_, C_, D, z_, bias, True, state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE[torch.float64])
    torch.testing.assert_close(state, last, **CLOSE[torch.float64])


def test_small_and_large_steps_keep_their_digits():
    """softplus over the whole range of float32: a plain log(1 + exp(x)) is wrong by 100 % at x = -20."""
    delta = torch.linspace(-30, 30, 61)[None, None]  # (1, 1, d); y = dt * u with u = B = C = 1 and no decay yet
    one, flat = torch.ones(1, 1, 61), torch.ones(1, 1, 1)
    y, _ = selective_scan(one, delta, -torch.ones(61, 1), flat, flat, delta_softplus=True)
    torch.testing.assert_close(y, torch.nn.functional.softplus(delta.double()).float(), rtol=5e-7, atol=0)


def test_not_a_number_stays_in_its_channel_and_sequence():
    inputs = numbers(2, 3, 5, 4, ("D", "bias"))
    inputs["u"][0, 1, 2] = torch.nan
    u, delta, A, B, C, D, _, bias, _ = inputs.values()
    y, last = selective_scan(u, delta, A, B, C, D, None, bias, True)
    expected = torch.zeros(2, 3, 5, dtype=torch.bool)
    expected[0, 1:, 2] = True
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(last.isnan().any(-1), expected[:, -1])
