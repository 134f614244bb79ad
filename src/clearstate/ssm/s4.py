"""S4 and S4D: linear recurrences that do not depend on their input, so that a whole signal is one convolution.

    x' = A x + B u,   y = C x + D u          one system per channel, in time steps of its own
    x[t] = Ā x[t-1] + B̄ u[t]                 discretised with the step Δ
    y[t] = 2 Re(C x[t]) + D u[t]             of each conjugate pair of states only one is kept, hence 2 Re

    b batch, t time (length), d channels, n conjugate pairs kept (N = 2n states), f frequencies,
    c directions: 0 from the past, 1 from the future

A is diagonal (S4D: Gu et al. 2022, arXiv:2206.11893) or diagonal minus rank one, Λ - P P* (S4, "DPLR": Gu et al. 2022,
arXiv:2111.00396). The same parameters run as a convolution (`S4.forward`) or as a recurrence (`S4.step`). The kernel is
computed for the length at hand from C itself; nothing on the module remembers a length, and both members of each
conjugate pair are summed everywhere.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.kernels.autograd import operator
from clearstate.kernels.backend import backend
from clearstate.kernels.threads import in_parts, threads_for

KINDS = ("legs", "dplr")
METHODS = ("bilinear", "zoh")


class Dynamics(NamedTuple):
    """A continuous system and its step, before discretisation."""

    A: Tensor  # (d, n) complex: Λ, real part negative
    B: Tensor  # (d, n) complex
    C: Tensor  # (c, d, n) complex
    step: Tensor  # (d,) Δ, positive
    P: Tensor | None = None  # (d, n) complex: the rank-one part; None for S4D


class Kernel(NamedTuple):
    """What a layer needs to filter signals of one length: a function of its weights, to be computed once a forward."""

    length: int
    n_fft: int
    spectrum: Tensor  # (f, d) complex, the skip D included


class S4State(NamedTuple):
    """The recurrence between two chunks."""

    x: Tensor  # (b, d, n, 2) float32: real and imaginary part


# ---------------------------------------------------------------------------------------------- initialisation


def hippo_legs(states: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Λ, B, P (each (states / 2,) complex128) of the scaled Legendre measure, in the basis that makes it DPLR.

    A[n, k] = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it; B[n] = sqrt(2n+1); P[n] = sqrt(n + 1/2). Then
    A + P Pᵀ = -I/2 + S with S skew-symmetric, whose eigenvectors make it diagonal (arXiv:2111.00396, appendix C).
    """
    n = np.arange(states)
    root = np.sqrt(2 * n + 1.0)
    A = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    P = np.sqrt(n + 0.5)
    skew = A + np.outer(P, P) + 0.5 * np.eye(states)
    frequency, V = np.linalg.eigh(-1j * skew)  # -i S is Hermitian: exact unitary eigenvectors
    half = frequency > 0
    V = V[:, half].conj().T
    return -0.5 + 1j * frequency[half], V @ root, V @ P


# ---------------------------------------------------------------------------------------------- discrete systems


def discretise(A: Tensor, B: Tensor, step: Tensor, method: str = "bilinear") -> tuple[Tensor, Tensor]:
    """Ā and B̄ (d, n) of a diagonal system: bilinear, or with the input held between samples ("zoh").

    bilinear: Ā = (1 + ΔA/2) / (1 - ΔA/2), B̄ = ΔB / (1 - ΔA/2);   zoh: Ā = exp(ΔA), B̄ = (exp(ΔA) - 1) / A · B.
    """
    scaled = step[:, None] * A
    if method == "zoh":
        return torch.exp(scaled), torch.expm1(scaled) / A * B
    return (1 + scaled / 2) / (1 - scaled / 2), step[:, None] * B / (1 - scaled / 2)


def recurrence(
    u: Tensor, dynamics: Dynamics, method: str = "bilinear", state: S4State | None = None
) -> tuple[Tensor, S4State]:
    """The equation as a loop over time: the reference for everything else here, and how DPLR streams.

    Args:
        u: (b, t, d).   dynamics: its direction C[0] is run; D is left to the caller.
    Returns:
        y (b, t, d) and the state to pass with the next chunk.
    """
    A, B, C, step, P = dynamics
    if state is None:
        state = S4State(torch.view_as_real(A.new_zeros(len(u), *A.shape)))
    if P is not None:
        return walk(u, lambda x, u_t: dplr_step(x, u_t, dynamics), C[0], state)
    A_bar, B_bar = discretise(A, B, step, method)
    return walk(u, lambda x, u_t: A_bar * x + B_bar * u_t[..., None], C[0], state)


def walk(u: Tensor, advance: Callable[[Tensor, Tensor], Tensor], C: Tensor, state: S4State) -> tuple[Tensor, S4State]:
    """y[t] = 2 Re(C x[t]) with x[t] = advance(x[t-1], u[t]), step by step."""
    x, out = torch.view_as_complex(state.x), []  # (b, d, n)
    for u_t in u.unbind(1):  # (b, d)
        x = advance(x, u_t)
        out.append(2 * (C * x).sum(-1).real)
    return torch.stack(out, 1), S4State(torch.view_as_real(x))


def dplr_step(x: Tensor, u: Tensor, dynamics: Dynamics) -> Tensor:
    """One bilinear step (I - ΔA/2) x' = (I + ΔA/2) x + ΔB u with A = Λ - P P*; x (..., d, n), u (..., d).

    The inverse is a diagonal one plus the rank-one correction of Sherman and Morrison, so a step costs O(n). P* x
    over both members of each pair is real: 2 Re(P̄ · x).
    """
    A, B, _, step, P = dynamics
    assert P is not None

    def along_p(v: Tensor) -> Tensor:  # P* v, (..., d, 1)
        return 2 * (P.conj() * v).sum(-1, keepdim=True).real

    half = step[:, None] / 2
    diagonal = 1 - half * A
    right = x + half * (A * x - P * along_p(x)) + 2 * half * B * u[..., None]
    y, p = right / diagonal, P / diagonal
    return y - half * p * along_p(y) / (1 + half * along_p(p))


# ------------------------------------------------------------------------------------------------------ kernels


def diagonal_kernel(A_bar: Tensor, weights: Tensor, length: int) -> Tensor:
    """k[l] = 2 Re sum_n weights[n] Ā[n]^l, (c, d, length), from Ā (d, n) and weights = C B̄ (c, d, n).

    With l = q m + r the powers factor, so only about 2 sqrt(length) of them are taken, and the sum over n becomes a
    product of real matrices: nothing of size d n length is ever held.
    """
    inner = max(1, math.isqrt(length))
    outer = -(-length // inner)
    log_A = torch.log(A_bar)[..., None]  # (d, n, 1)
    r = torch.arange(inner, device=A_bar.device)
    q = torch.arange(outer, device=A_bar.device) * inner
    right = torch.view_as_real(torch.exp(log_A * r)).movedim(-1, 1).flatten(1, 2)  # (d, 2n, r)
    left = weights[..., None] * torch.exp(log_A * q)  # (c, d, n, q)
    left = torch.view_as_real(left.conj().resolve_conj()).movedim(-1, 2).flatten(2, 3)  # (c, d, 2n, q): Re, -Im
    blocks = torch.einsum("cdnq,dnr->cdqr", left, right)
    return 2 * blocks.flatten(2)[..., :length]


def dplr_kernel(dynamics: Dynamics, length: int) -> Tensor:
    """The bilinear kernel (c, d, length) of a DPLR system, by its generating function at the roots of unity.

        K(ω) = 2 (Q00 - b Q01 Q10 / (1 + b Q11)),   a = 2 (1 - ω),  b = 1 + ω,  λ = ΔΛ
        Q(v) = Δ sum over pairs of v / (a - λ b) + conj(v) / (a - conj(λ) b)
        Q00 = Q(C̃ B),  Q01 = Q(C̃ P),  Q10 = Q(P̄ B),  Q11 = Q(P̄ P),  C̃ = C (I - Ā^length)

    It is that of arXiv:2111.00396, theorem 5, multiplied through by b = 1 + ω, so that ω = -1 is a point like any
    other. C̃ is made from C anew for every length.
    """
    A, B, C, step, P = dynamics
    assert P is not None
    directions = len(C)
    C = truncated_output(dynamics, length)
    angle = torch.arange(length // 2 + 1, device=A.device, dtype=torch.float64) * (-2 * math.pi / length)
    omega = torch.polar(torch.ones_like(angle), angle)
    a, b = (2 * (1 - omega)).to(A.dtype), (1 + omega).to(A.dtype)  # (f,)
    scaled = (step[:, None] * A)[..., None]  # λ (d, n, 1)
    basis = 1 / ((a - scaled * b) * (a - scaled.conj() * b))  # (d, n, f)
    rows = torch.cat([C * B, C * P, torch.stack([P.conj() * B, P.conj() * P])])  # (2c + 2, d, n)
    # v / (a - λb) + its conjugate partner = (2 Re(v) a - 2 Re(v conj(λ)) b) / ((a - λb)(a - conj(λ)b))
    top = torch.cat([2 * rows.real, -2 * (rows * scaled[..., 0].conj()).real])  # (4c + 4, d, n)
    sums = torch.einsum("rdn,dnf->rdf", top.to(A.dtype), basis)
    on_a, on_b = sums.chunk(2)
    Q = step[:, None] * (a * on_a + b * on_b)  # (2c + 2, d, f)
    Q00, Q01, (Q10, Q11) = Q[:directions], Q[directions : 2 * directions], Q[2 * directions :]
    return torch.fft.irfft(2 * (Q00 - b * Q01 * Q10 / (1 + b * Q11)), n=length)


def truncated_output(dynamics: Dynamics, length: int) -> Tensor:
    """C̃ = C (I - Ā^length) (c, d, n): what makes the generating function that of the first `length` samples.

    Ā acts on the real vectors [Re x, Im x], where it is one dense matrix a channel; its power takes log2(length)
    products.
    """
    channels, pairs = dynamics.A.shape
    unit = torch.eye(pairs, dtype=dynamics.A.dtype, device=dynamics.A.device)
    basis = torch.cat([unit, 1j * unit])[:, None].expand(-1, channels, -1)  # (2n, d, n)
    columns = dplr_step(basis, basis.real.new_zeros(2 * pairs, channels), dynamics)
    dense = torch.cat([columns.real, columns.imag], -1).permute(1, 2, 0)  # (d, 2n, 2n)
    row = torch.cat([dynamics.C.real, -dynamics.C.imag], -1)[:, :, None]  # (c, d, 1, 2n): C x = row [Re x, Im x]
    row = (row - row @ torch.linalg.matrix_power(dense, length))[:, :, 0]
    return torch.complex(row[..., :pairs], -row[..., pairs:])


def fft_size(least: int) -> int:
    """The smallest 2^k, 3·2^k or 5·2^k that is at least `least`: sizes at which every FFT library is fast.

    >>> [fft_size(n) for n in (1, 7, 1000, 1100)]
    [1, 8, 1024, 1280]
    """
    return min(odd << max(0, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5))


def convolve(u: Tensor, kernel: Kernel) -> Tensor:
    """Filter u (b, t, d), t at most the kernel's length, along time."""
    if u.shape[1] > kernel.length:
        raise ValueError(
            f"convolve got {u.shape[1]} steps and a kernel for {kernel.length}: compute kernel({u.shape[1]}) for it"
        )
    wide = u.to(torch.promote_types(u.dtype, torch.float32))  # the FFT has no half precision
    spectrum = torch.fft.rfft(wide, n=kernel.n_fft, dim=1) * kernel.spectrum  # (b, f, d)
    return torch.fft.irfft(spectrum, n=kernel.n_fft, dim=1)[:, : u.shape[1]].to(u.dtype)


# -------------------------------------------------------------------------------------------------------- layer


class S4(nn.Module):
    """A state-space system per channel, GELU, and a gated mix of the channels: Linear to 2d, GLU back to d.

    Two-sided (the default), every step hears all the others:

        y[t] = sum_j k0[j] u[t-j] + sum_j k1[j] u[t+1+j] + D u[t]        the future starts at lead 1: lag 0 counts once

    One-sided, it hears the past alone and also runs chunk by chunk (`step`).

    Args:
        d_model: channels d.
        d_state: states N of each channel, even; N / 2 conjugate pairs are stored.
        kind: "legs" (diagonal, S4D-LegS: arXiv:2206.11893, section 4) or "dplr" (S4; LegS with its rank-one part).
        method: "bilinear" or "zoh"; DPLR is bilinear.
        step_range: initial Δ, log-uniform: the time constants are about 2 / Δ steps.
    Raises:
        ValueError: for another kind or method, an odd d_state, or DPLR with "zoh".
    """

    def __init__(
        self, d_model: int, d_state: int = 16, kind: str = "legs", method: str = "bilinear",
        bidirectional: bool = True, step_range: tuple[float, float] = (1e-3, 1e-1),
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in KINDS or method not in METHODS:
            raise ValueError(f"S4 got kind={kind!r}, method={method!r}: expected one of {KINDS} and one of {METHODS}")
        if kind == "dplr" and method != "bilinear":
            raise ValueError("S4 with kind='dplr' is discretised bilinearly: leave method='bilinear', or take 'legs'")
        if d_state < 2 or d_state % 2:
            raise ValueError(f"S4 got d_state={d_state}: states come in conjugate pairs, give an even number")
        self.d_model, self.d_state, self.kind, self.method, self.bidirectional = (
            d_model, d_state, kind, method, bidirectional,
        )  # fmt: skip
        A, B, P = hippo_legs(d_state)
        low, high = map(math.log, step_range)
        pairs = len(A)
        self.log_step = nn.Parameter(torch.rand(d_model) * (high - low) + low)  # log Δ
        self.log_decay = nn.Parameter(repeated(np.log(-A.real), d_model))  # log(-Re Λ): Λ stays in the left half
        self.frequency = nn.Parameter(repeated(A.imag, d_model))  # Im Λ
        self.B = nn.Parameter(repeated(B, d_model))  # complex ones as (..., 2)
        self.C = nn.Parameter(torch.randn(1 + bidirectional, d_model, pairs, 2) * 0.5**0.5)
        if kind == "dplr":
            self.P = nn.Parameter(repeated(P, d_model))
        self.D = nn.Parameter(torch.randn(d_model))
        for parameter in self.parameters():  # decay would pull every time constant towards one value
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # read by the optimiser's grouping
        self.out = nn.Linear(d_model, 2 * d_model)

    def dynamics(self) -> Dynamics:
        """The continuous systems, in float32 at least."""
        A = torch.complex(-torch.exp(self.log_decay), self.frequency)
        P = torch.view_as_complex(self.P) if self.kind == "dplr" else None
        return Dynamics(A, torch.view_as_complex(self.B), torch.view_as_complex(self.C), self.log_step.exp(), P)

    def impulse_response(self, length: int) -> Tensor:
        """k[0], ..., k[length - 1] of each direction, (c, d, length), without D."""
        dynamics = self.dynamics()
        if dynamics.P is not None:
            return dplr_kernel(dynamics, length)
        A_bar, B_bar = discretise(dynamics.A, dynamics.B, dynamics.step, self.method)
        return diagonal_kernel(A_bar, dynamics.C * B_bar, length)

    def kernel(self, length: int) -> Kernel:
        """The layer as a filter for signals of `length` steps; share it between uses of the same weights."""
        with torch.autocast(self.D.device.type, enabled=False):
            response = self.impulse_response(length)  # (c, d, l)
            n_fft = fft_size(2 * length - 1)
            past = response[0] + F.pad(self.D[:, None], (0, length - 1))
            both = F.pad(past, (0, n_fft - length))
            if self.bidirectional:  # lead 1 + j lies at index -1 - j; lead `length` reaches nothing
                both = both + F.pad(response[1, :, : length - 1].flip(-1), (n_fft - length + 1, 0))
            return Kernel(length, n_fft, torch.fft.rfft(both).T)

    def forward(self, u: Tensor, kernel: Kernel | None = None) -> Tensor:
        """A whole signal u (b, t, d) -> (b, t, d); `kernel` is self.kernel(t), if it is at hand."""
        return self.mix(convolve(u, self.kernel(u.shape[1]) if kernel is None else kernel))

    def step(self, u: Tensor, state: S4State) -> tuple[Tensor, S4State]:
        """The next chunk u (b, t, d), any t >= 1, of a one-sided layer; returns its output and the next state.

        Raises:
            ValueError: for a two-sided layer, which needs the future.
        """
        if self.bidirectional:
            raise ValueError("step() on a two-sided S4, which needs the future: build it with bidirectional=False")
        with torch.autocast(u.device.type, enabled=False):
            dynamics = self.dynamics()
            if dynamics.P is not None:
                y, state = recurrence(u.float(), dynamics, self.method, state)
                return self.mix((y + self.D * u).to(u.dtype)), state
            A_bar, B_bar = discretise(dynamics.A, dynamics.B, dynamics.step, self.method)
            y, state = diagonal_scan(u.float(), A_bar, B_bar, dynamics.C[0], state)
            return self.mix((y + self.D * u).to(u.dtype)), state

    def init_state(self, batch: int) -> S4State:
        """The state before the first step."""
        return S4State(self.D.new_zeros(batch, self.d_model, self.d_state // 2, 2, dtype=torch.float32))

    def mix(self, y: Tensor) -> Tensor:
        """Mix the channels, through a gated linear unit."""
        return F.glu(self.out(F.gelu(y)), -1)


def diagonal_scan(u: Tensor, A_bar: Tensor, B_bar: Tensor, C: Tensor, state: S4State) -> tuple[Tensor, S4State]:
    """The recurrence of a diagonal system over a chunk u (b, t, d): y (b, t, d) and the state after it.

    On the CPU a compiled loop: an output depends on no later input, not even by rounding. Elsewhere the chunk's own
    part is a convolution through the FFT, to which the state's part is added (`scan_by_convolution`).
    """
    chosen = backend(u.device.type)
    if chosen == "numba" and u.dtype in (torch.float32, torch.float64):
        a, b, c = (torch.view_as_real(x.resolve_conj()) for x in (A_bar, B_bar, C))
        y, last = scan_op(u, a, b, c, state.x)
        return y, S4State(last)
    if chosen == "reference" and u.device.type == "cpu":
        return walk(u, lambda x, u_t: A_bar * x + B_bar * u_t[..., None], C, state)
    return scan_by_convolution(u, A_bar, B_bar, C, state)


def scan_by_convolution(u: Tensor, A_bar: Tensor, B_bar: Tensor, C: Tensor, state: S4State) -> tuple[Tensor, S4State]:
    """`diagonal_scan` in whole-array operations, with rounding that spreads over the chunk.

    y[t] = sum_j k[j] u[t-j] + 2 Re(C Ā^(t+1) x),   next x = Ā^T x + sum_t Ā^(T-1-t) B̄ u[t]
    """
    x, steps = torch.view_as_complex(state.x), u.shape[1]  # (b, d, n)
    n_fft = fft_size(2 * steps - 1)
    own = torch.fft.rfft(diagonal_kernel(A_bar, (C * B_bar)[None], steps)[0], n=n_fft).T
    powers = torch.exp(torch.log(A_bar)[..., None] * torch.arange(steps + 1, device=u.device))  # (d, n, T + 1)
    late = 2 * torch.einsum("bdn,dnt->btd", C * x, powers[..., 1:]).real
    fresh = torch.einsum("btd,dnt->bdn", u.to(powers.dtype), powers[..., :-1].flip(-1))
    x = powers[..., -1] * x + B_bar * fresh
    return convolve(u, Kernel(steps, n_fft, own)) + late, S4State(torch.view_as_real(x))


@operator("diagonal_scan")
def scan_op(u: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Everything complex as (..., 2); see `kernels.s4`."""
    from clearstate.kernels import s4 as kernels

    tasks = len(u) * -(-u.shape[2] // kernels.WIDTH)
    y, last = u.new_empty(u.shape), u.new_empty(state.shape)
    in_parts(
        kernels.forward,
        threads_for(tasks, u.numel() * a.shape[1]),
        tasks,
        *arrays(u, a, b, c, state),
        y.numpy(),
        last.numpy(),
    )
    return y, last


@scan_op.register_fake
def _(u, a, b, c, state):
    return u.new_empty(u.shape), u.new_empty(state.shape)


@operator("diagonal_scan_backward")
def scan_backward_op(
    dy: Tensor, dlast: Tensor, u: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> list[Tensor]:
    """Gradients of u, a, b, c and the state."""
    from clearstate.kernels import s4 as kernels

    tasks = len(u) * -(-u.shape[2] // kernels.WIDTH)
    du, dstate = u.new_empty(u.shape), u.new_empty(state.shape)
    da, db, dc = (u.new_zeros(len(u), *a.shape) for _ in range(3))
    in_parts(
        kernels.backward,
        threads_for(tasks, u.numel() * a.shape[1]),
        tasks,
        *arrays(u, a, b, c, state, dy, dlast, du, da, db, dc, dstate),
    )
    return [du, da.sum(0), db.sum(0), dc.sum(0), dstate]


@scan_backward_op.register_fake
def _(dy, dlast, u, a, b, c, state):
    return [x.new_empty(x.shape) for x in (u, a, b, c, state)]


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy, dlast):
    u, *others = ctx.saved_tensors
    dy = torch.zeros_like(u) if dy is None else dy
    dlast = torch.zeros_like(others[-1]) if dlast is None else dlast
    return tuple(scan_backward_op(dy, dlast, u, *others))


scan_op.register_autograd(_backward, setup_context=_save_for_backward)
scan_backward_op.has_no_gradient()


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors as contiguous arrays of the first one's dtype; those that are so already, without a copy."""
    return [tensor.detach().to(tensors[0].dtype).contiguous().numpy() for tensor in tensors]


def repeated(row: np.ndarray, channels: int) -> Tensor:
    """One row of initial values (n,) for every channel: (channels, n), complex ones as (channels, n, 2)."""
    values = torch.from_numpy(np.ascontiguousarray(row))
    values = torch.view_as_real(values) if values.is_complex() else values
    return values.float().expand(channels, *values.shape).clone()
