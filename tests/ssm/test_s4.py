"""S4 and S4D against the plain recurrence, dense matrices and each other."""

import numpy as np
import pytest
import torch

from clearstate.ssm import use_backend
from clearstate.ssm.s4 import (
    KINDS,
    S4,
    S4State,
    convolve,
    diagonal_kernel,
    diagonal_scan,
    discretise,
    fft_size,
    hippo_legs,
    recurrence,
)

CASES = [
    ("legs", "bilinear"),
    ("legs", "zoh"),
    ("dplr", "bilinear"),
]


def layer(kind="legs", method="bilinear", d=6, n=16, **options) -> S4:
    torch.manual_seed(1)
    made = S4(d, n, kind, method, **options)
    with torch.no_grad():  # away from the initial values, where all channels share Λ and B
        for parameter in (made.B, made.log_decay, made.frequency):
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def relative(ours, theirs) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def two_sided_by_recurrence(s4: S4, u):
    """The past by the recurrence, the future by the recurrence of the reversed signal, one step late; and D."""
    dynamics = s4.dynamics()
    past, _ = recurrence(u, dynamics, s4.method)
    future, _ = recurrence(u.flip(1), dynamics._replace(C=dynamics.C[1:]), s4.method)
    future = torch.nn.functional.pad(future.flip(1)[:, 1:], (0, 0, 0, 1))
    return past + future + s4.D * u


@pytest.mark.parametrize("kind, method", CASES)
@pytest.mark.parametrize("length", [1, 2, 7, 100, 513])
def test_convolution_equals_recurrence(kind, method, length):
    s4 = layer(kind, method)
    u = torch.randn(2, length, 6)
    assert relative(convolve(u, s4.kernel(length)), two_sided_by_recurrence(s4, u)) < 1e-4


@pytest.mark.parametrize("kind, method", CASES)
def test_gradients_of_convolution_and_recurrence_agree(kind, method):
    s4 = layer(kind, method, d=3).double()
    u = torch.randn(2, 40, 3, dtype=torch.float64)
    target = torch.randn_like(u)
    gradients = []
    for y in (convolve(u, s4.kernel(40)), two_sided_by_recurrence(s4, u)):
        s4.zero_grad()
        ((y - target) ** 2).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in s4.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == {name for name, _ in s4.named_parameters() if not name.startswith("out")}
    for name, gradient in gradients[0].items():
        assert relative(gradient, gradients[1][name]) < 1e-8, name


@pytest.mark.parametrize("length", [16, 63, 64])
def test_the_dplr_kernel_is_that_of_the_dense_matrices(length):
    """HiPPO-LegS itself, N x N and real, discretised with a matrix inverse: no pairs, no generating function."""
    n, step = 16, 0.07
    k = np.arange(n)
    A = -np.tril(np.sqrt(np.outer(2 * k + 1, 2 * k + 1)), -1) - np.diag(k + 1.0)
    inverse = np.linalg.inv(np.eye(n) - step / 2 * A)
    A_bar, B_bar = inverse @ (np.eye(n) + step / 2 * A), inverse @ (step * np.sqrt(2 * k + 1))
    C = np.random.default_rng(0).normal(size=n)
    dense = np.array([C @ np.linalg.matrix_power(A_bar, i) @ B_bar for i in range(length)])

    s4 = S4(1, n, "dplr").double()
    _, V = eigenvectors(n)
    with torch.no_grad():
        exact = hippo_legs(n)
        s4.log_step.fill_(np.log(step))
        s4.frequency.copy_(torch.from_numpy(exact[0].imag))
        s4.B.copy_(torch.view_as_real(torch.from_numpy(exact[1])))
        s4.P.copy_(torch.view_as_real(torch.from_numpy(exact[2])))
        s4.C[0, 0] = torch.view_as_real(torch.from_numpy(C @ V))
    ours = s4.impulse_response(length)[0, 0].detach().numpy()
    np.testing.assert_allclose(ours, dense, atol=1e-11)


def eigenvectors(n):
    k = np.arange(n)
    root, P = np.sqrt(2 * k + 1.0), np.sqrt(k + 0.5)
    A = -np.tril(np.outer(root, root), -1) - np.diag(k + 1.0)
    frequency, V = np.linalg.eigh(-1j * (A + np.outer(P, P) + 0.5 * np.eye(n)))
    return frequency, V[:, frequency > 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 30, 2], [38]])
def test_chunks_with_state_give_the_whole(kind, cuts):
    s4 = layer(kind, bidirectional=False)
    u = torch.randn(2, sum(cuts), 6)
    state, out = s4.init_state(2), []
    for chunk in u.split(cuts, dim=1):
        y, state = s4.step(chunk, state)
        out.append(y)
    assert relative(torch.cat(out, 1), s4(u)) < 1e-4


@pytest.mark.parametrize("backend", ["auto", "parallel"])
@pytest.mark.parametrize("steps", [1, 2, 37])
def test_every_form_of_the_chunk_equals_the_loop_in_value_state_and_gradient(backend, steps):
    torch.manual_seed(2)
    A, B, C = (torch.randn(21, 8, dtype=torch.complex128) for _ in range(3))
    A = torch.polar(torch.rand(21, 8, dtype=torch.float64).sqrt(), A.angle())
    inputs = [torch.randn(3, steps, 21).double(), A, B, C, torch.randn(3, 21, 8, 2).double()]
    weights = torch.randn(3, steps, 21).double(), torch.randn(3, 21, 8, 2).double()
    results = []
    for chosen in ("reference", backend):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with use_backend(chosen):
            y, state = diagonal_scan(*leaves[:4], S4State(leaves[4]))
        gradients = torch.autograd.grad((y * weights[0]).sum() + (state.x * weights[1]).sum(), leaves)
        results.append([y, state.x, *gradients])
    for theirs, ours in zip(*results, strict=True):
        assert relative(ours, theirs) < 1e-9


def test_dropping_the_state_is_noticed():
    s4 = layer(bidirectional=False)
    u = torch.randn(1, 40, 6)
    forgetful = torch.cat([s4.step(chunk, s4.init_state(1))[0] for chunk in u.split(10, dim=1)], 1)
    assert relative(forgetful, s4(u)) > 1e-2


def test_the_state_is_float32_and_the_input_is_not_written_to():
    s4 = layer(bidirectional=False)
    u, state = torch.randn(1, 5, 6), s4.init_state(1)
    before = u.clone()
    _, after = s4.step(u, state)
    assert after.x.dtype == torch.float32 and not state.x.any()
    assert torch.equal(u, before)


@pytest.mark.parametrize("form", ["convolution", "recurrence"])
def test_a_one_sided_layer_hears_no_future(form):
    s4 = layer(bidirectional=False)
    u = torch.randn(1, 50, 6, requires_grad=True)
    y = s4(u) if form == "convolution" else s4.step(u, s4.init_state(1))[0]
    y[0, 20].sum().backward()
    assert u.grad[0, :21].abs().amax(-1).min() > 0
    rounding = 1e-6 * u.grad.abs().max() if form == "convolution" else 0  # of the FFT; the loop has none
    assert u.grad[0, 21:].abs().max() <= rounding


def test_a_two_sided_layer_refuses_to_stream():
    s4 = layer()
    with pytest.raises(ValueError, match="bidirectional=False"):
        s4.step(torch.zeros(1, 4, 6), s4.init_state(1))


def test_the_impulse_response_has_lag_0_once():
    """k0 alone at lag 0 and later, k1 at leads 1, 2, ...; D only at lag 0."""
    s4, length, at = layer(), 33, 16
    u = torch.zeros(1, length, 6)
    u[:, at] = 1
    y = convolve(u, s4.kernel(length))[0]
    k0, k1 = s4.impulse_response(length)
    torch.testing.assert_close(y[at], k0[:, 0] + s4.D, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y[at + 1 :], k0[:, 1 : length - at].T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y[:at], k1[:, :at].T.flip(0), atol=1e-5, rtol=1e-4)


def test_the_kernel_has_no_memory_of_lengths():
    s4 = layer("dplr")
    before = {name: p.detach().clone() for name, p in s4.named_parameters()}
    short = s4.impulse_response(50)
    s4.impulse_response(400)
    torch.testing.assert_close(s4.impulse_response(50), short, rtol=0, atol=0)
    torch.testing.assert_close(s4.impulse_response(400)[..., :50], short, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in s4.named_parameters())


def test_a_kernel_for_another_length_is_refused():
    s4 = layer()
    with pytest.raises(ValueError, match=r"kernel\(9\)"):
        convolve(torch.zeros(1, 9, 6), s4.kernel(8))


@pytest.mark.parametrize("length", [1, 2, 3, 10, 1000])
def test_the_blocked_kernel_is_the_sum_of_powers(length):
    A, B = (torch.from_numpy(x).expand(4, -1) for x in hippo_legs(16)[:2])
    A_bar, B_bar = discretise(A, B, torch.logspace(-3, -1, 4).double())
    weights = torch.randn(2, 4, 8, dtype=torch.complex128) * B_bar
    powers = A_bar[..., None] ** torch.arange(length)
    direct = 2 * torch.einsum("cdn,dnl->cdl", weights, powers).real
    torch.testing.assert_close(diagonal_kernel(A_bar, weights, length), direct, rtol=1e-9, atol=1e-9)


def test_published_initial_values():
    legs = hippo_legs(16)[0]
    np.testing.assert_allclose(legs.real, -0.5)
    assert (legs.imag > 0).all() and len(legs) == 8


@pytest.mark.parametrize("method", ["bilinear", "zoh"])
def test_discretisation_approaches_the_continuous_system(method):
    """x' = A x + 1 from 0 is (exp(A t) - 1) / A: exact for zoh, second order for bilinear."""
    A, one = torch.tensor([[-0.5 + 2j]], dtype=torch.complex128), torch.ones(1, 1, dtype=torch.complex128)
    exact = (torch.exp(A * 4) - 1) / A
    errors = []
    for steps in (100, 200):
        A_bar, B_bar = discretise(A, one, torch.tensor([4 / steps], dtype=torch.float64), method)
        x = torch.zeros_like(A)
        for _ in range(steps):
            x = A_bar * x + B_bar
        errors.append(float((x - exact).abs()))
    if method == "zoh":
        assert errors[0] < 1e-12
    else:
        assert 3.5 < errors[0] / errors[1] < 4.5


def test_the_two_methods_agree_for_small_steps():
    kernels = []
    for method in ("bilinear", "zoh"):
        s4 = layer(method=method, step_range=(1e-3, 1.001e-3))
        kernels.append(s4.impulse_response(500))
    assert relative(*kernels) < 0.02


def test_the_ledger_of_a_layer():
    """Section 5 of the S4M code's hyper-parameters: 512 channels, 16 states, two directions."""
    counts = {kind: sum(p.numel() for p in S4(512, 16, kind).parameters()) for kind in KINDS}
    assert counts["dplr"] == 568_320 - 1_024  # without its layer norm
    assert counts["legs"] == counts["dplr"] - 8_192


@pytest.mark.parametrize(
    "wrong", [{"kind": "s5"}, {"method": "euler"}, {"d_state": 7}, {"kind": "dplr", "method": "zoh"}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        S4(4, **wrong)


def test_autocast_leaves_the_recurrence_in_float32():
    s4 = layer()
    u = torch.randn(1, 30, 6)
    with torch.autocast("cpu", torch.bfloat16):
        kernel = s4.kernel(30)
        y = convolve(u, kernel)
    assert kernel.spectrum.dtype == torch.complex64
    torch.testing.assert_close(y, convolve(u, s4.kernel(30)))


def test_fft_sizes_are_enough_and_near():
    for n in range(1, 3000):
        assert n <= fft_size(n) <= 1.34 * n + 2
