"""The diagonal selective recurrence of Mamba (Gu & Dao 2023, arXiv:2312.00752), its slow twins, and the dispatch.

    dt[t] = softplus(delta[t] + delta_bias)
    h[t]  = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t]
    y[t]  = (C[t] . h[t] + D u[t]) * SiLU(z[t])

b batch, t time, d channels, n states; channel-last throughout. A is diagonal (one row of n numbers a channel).
The state goes in and comes out; nothing is hidden.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clearstate.kernels.autograd import operator
from clearstate.kernels.backend import backend
from clearstate.kernels.threads import in_parts, threads_for


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    state: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the diagonal selective recurrence along time.

        h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t],   y[t] = (C[t] . h[t] + D u[t]) * SiLU(z[t])

    Gu & Dao 2023 (arXiv:2312.00752), eqs. 2 and 4; B is taken to first order, as their code does.

    Args:
        u: input (b, t, d), float32 or float64; other dtypes are computed in float32 and cast back.
        delta: step size (b, t, d); dt = delta + delta_bias, through softplus if `delta_softplus`.
        A: (d, n), negative.
        B, C: input and output maps (b, t, n).
        D: skip weight (d,).   z: gate (b, t, d).   delta_bias: (d,).
        state: h before the first step (b, d, n); zeros if None.
        reverse: walk from the last step to the first; `state` is then what comes after the last step.
    Returns:
        y (b, t, d), and the state after the last step taken (b, d, n), to pass with the next chunk.
    Raises:
        ValueError: if shapes or dtypes do not fit each other.

    >>> one = torch.ones(1, 3, 1)
    >>> y, h = selective_scan(one, one, -one[0, :1], one, one)
    >>> y.flatten()
    tensor([1.0000, 1.3679, 1.5032])
    """
    _check(u, delta, A, B, C, D, z, delta_bias, state)
    dtype = u.dtype
    if dtype not in (torch.float32, torch.float64):
        u, delta, A, B, C = (x.float() for x in (u, delta, A, B, C))
        D, z, delta_bias, state = (None if x is None else x.float() for x in (D, z, delta_bias, state))
    name = backend(u.device.type)
    if name == "reference":
        y, h = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, reverse)
    elif name == "parallel":
        y, h = selective_scan_parallel(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, reverse)
    else:
        needs_gradient = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (u, delta, A, B, C, D, z, delta_bias, state)
        )
        y, h, _ = scan_op(u, delta, A, B, C, D, z, delta_bias, state, delta_softplus, reverse, needs_gradient)
    return y.to(dtype), h


def selective_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, state: Tensor | None = None, reverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_scan` as a loop over time that a reader can check against the equation."""
    dt = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        dt = F.softplus(dt)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if state is None else state  # (b, d, n)
    outputs = []
    steps = range(u.shape[1])
    for t in reversed(steps) if reverse else steps:
        decay = torch.exp(dt[:, t, :, None] * A)  # (b, d, n)
        h = decay * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1))  # (b, d)
    y = torch.stack(outputs[::-1] if reverse else outputs, dim=1)  # (b, t, d)
    return _skip_and_gate(y, u, D, z), h


def selective_scan_parallel(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, state: Tensor | None = None, reverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_scan` as a log-depth scan in plain PyTorch (Hillis & Steele 1986).

    Traceable and without a loop over time, at the price of (b, t, d, n) tensors.
    """
    if reverse:
        u, delta, B, C = (x.flip(1) for x in (u, delta, B, C))
    dt = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        dt = F.softplus(dt)
    decay = torch.exp(dt[..., None] * A)  # (b, t, d, n)
    h = (dt * u)[..., None] * B[:, :, None]  # (b, t, d, n)
    if state is not None:
        h = torch.cat([h[:, :1] + decay[:, :1] * state[:, None], h[:, 1:]], dim=1)
    step = 1
    while step < u.shape[1]:  # combine each position with the one `step` before it
        h = torch.cat([h[:, :step], h[:, step:] + decay[:, step:] * h[:, :-step]], dim=1)
        decay = torch.cat([decay[:, :step], decay[:, step:] * decay[:, :-step]], dim=1)
        step *= 2
    y = (h * C[:, :, None]).sum(-1)
    y = _skip_and_gate(y, u, D, None)
    if reverse:
        y = y.flip(1)
    return _skip_and_gate(y, u, None, z), h[:, -1]


def _skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D * u
    return y if z is None else y * F.silu(z)


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, state: Tensor | None,
) -> None:  # fmt: skip
    if u.dim() != 3 or A.dim() != 2 or u.shape[2] != A.shape[0] or u.shape[1] == 0:
        raise ValueError(
            f"selective_scan got u {tuple(u.shape)} and A {tuple(A.shape)}: "
            "expected u (b, t, d) with t >= 1 and A (d, n)"
        )
    (b, t, d), n = u.shape, A.shape[1]
    expected = {
        "u": (u, (b, t, d)), "A": (A, (d, n)), "delta": (delta, (b, t, d)), "B": (B, (b, t, n)), "C": (C, (b, t, n)),
        "D": (D, (d,)), "z": (z, (b, t, d)), "delta_bias": (delta_bias, (d,)), "state": (state, (b, d, n)),
    }  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"selective_scan got {name} {tuple(tensor.shape)}: "
                f"with u {tuple(u.shape)} and {n} states expected {shape}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"selective_scan got {name} in {tensor.dtype}: expected a floating point dtype")
        if (tensor.dtype == torch.float64) != (u.dtype == torch.float64):
            raise ValueError(
                f"selective_scan got {name} in {tensor.dtype} while u is in {u.dtype}: "
                "convert one of them (.float() or .double())"
            )


# -- the compiled kernel as a PyTorch operator, so that autograd, torch.export and torch.compile see one node --------


@operator("selective_scan")
def scan_op(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, state: Tensor | None, delta_softplus: bool, reverse: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, last state, and (if `keep`) the states that backward starts its chunks from."""
    from clearstate.kernels import scan as kernels

    (b, t, d), n = u.shape, A.shape[1]
    arrays, strides = flat_arrays(u, delta, B, C, z)
    y, last = torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(b, d, n)
    kept = u.new_empty(b, -(-t // kernels.CHUNK), n, d) if keep else u.new_empty(0, 0, 0, 0)
    u_, delta_, B_, C_, z_ = arrays
    tasks = kernels.tasks_forward(b, d)
    in_parts(
        kernels.forward, threads_for(tasks, b * t * d * n), tasks, (b, t, d, n), strides,
        u_, delta_, optional_array(A, 2, u), B_, C_,
        optional_array(D, 1, u), z_, optional_array(delta_bias, 1, u),
        delta_softplus, optional_array(state, 3, u), reverse, y.numpy(), last.numpy(), kept.numpy(),
    )  # fmt: skip
    return y, last, kept


@scan_op.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, state, delta_softplus, reverse, keep):
    (b, t, d), n = u.shape, A.shape[1]
    kept = u.new_empty(b, (t + 15) // 16, n, d) if keep else u.new_empty(0, 0, 0, 0)
    return torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(b, d, n), kept


@operator("selective_scan_backward")
def scan_backward_op(
    dy: Tensor, dh_last: Tensor, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool, reverse: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, state (delta_bias gets the sum of delta's)."""
    from clearstate.kernels import scan as kernels

    (b, t, d), n = u.shape, A.shape[1]
    (u_, delta_, B_, C_, z_), strides = flat_arrays(u, delta, B, C, z)
    groups, blocks = min(b, kernels.GROUPS), -(-d // kernels.BLOCK)
    du, ddelta = u.new_empty(b, t, d), u.new_empty(b, t, d)
    dz = u.new_empty(b, t, d) if z is not None else u.new_empty(0, 0, 0)
    da, dd, dh0 = u.new_empty(groups, d, n), u.new_empty(groups, d), u.new_empty(b, d, n)
    db, dc = u.new_empty(blocks, b, t, n), u.new_empty(blocks, b, t, n)
    tasks = kernels.tasks_backward(b, d)
    in_parts(
        kernels.backward, threads_for(tasks, b * t * d * n), tasks, (b, t, d, n), strides,
        u_, delta_, optional_array(A, 2, u), B_, C_,
        optional_array(D, 1, u), z_, optional_array(delta_bias, 1, u),
        delta_softplus, reverse, kept.numpy(), optional_array(dy, 3, u), optional_array(dh_last, 3, u),
        du.numpy(), ddelta.numpy(), da.numpy(), db.view(-1).numpy(), dc.view(-1).numpy(), dd.numpy(), dz.numpy(),
        dh0.numpy(),
    )  # fmt: skip
    # A block's sum is the whole sum when there is one block; the copy keeps an output from being a view of another.
    db, dc = (x[0] if blocks == 1 else x.sum(0) for x in (db, dc))
    return [du, ddelta, da.sum(0), db, dc, dd.sum(0), dz, dh0]


@scan_backward_op.register_fake
def _(dy, dh_last, kept, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    (b, t, d), n = u.shape, A.shape[1]
    dz = u.new_empty(b, t, d) if z is not None else u.new_empty(0, 0, 0)
    db, dc = u.new_empty(b, t, n), u.new_empty(b, t, n)
    du, ddelta = u.new_empty(b, t, d), u.new_empty(b, t, d)
    return [du, ddelta, u.new_empty(d, n), db, dc, u.new_empty(d), dz, u.new_empty(b, d, n)]


def _save_for_backward(ctx, inputs, output):
    u, delta, A, B, C, D, z, delta_bias, state, delta_softplus, reverse, _ = inputs
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, output[2])
    ctx.had_state = state is not None
    ctx.flags = delta_softplus, reverse


def _backward(ctx, dy, dh_last, _):
    u, delta, A, B, C, D, z, delta_bias, kept = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(u)
    if dh_last is None:
        dh_last = u.new_zeros(0, 0, 0)
    du, ddelta, dA, dB, dC, dD, dz, dh0 = scan_backward_op(
        dy, dh_last, kept, u, delta, A, B, C, D, z, delta_bias, *ctx.flags
    )
    return (
        du, ddelta, dA, dB, dC, None if D is None else dD, None if z is None else dz,
        None if delta_bias is None else ddelta.sum((0, 1)), dh0 if ctx.had_state else None, None, None, None,
    )  # fmt: skip


scan_op.register_autograd(_backward, setup_context=_save_for_backward)
scan_backward_op.has_no_gradient()


def flat_arrays(*tensors: Tensor | None) -> tuple[list[np.ndarray], np.ndarray]:
    """Each (b, t, d) tensor as a flat array over its storage, and the (batch, time) strides; channels have stride 1."""
    arrays: list[np.ndarray] = []
    strides = np.zeros((len(tensors), 2), np.int64)
    for k, x in enumerate(tensors):
        if x is None:
            arrays.append(np.empty(0, arrays[0].dtype))
            continue
        x = x.detach()
        if x.stride(2) != 1 and x.shape[2] != 1:
            x = x.contiguous()
        b, t, d = x.shape
        strides[k] = x.stride(0), x.stride(1)
        span = (b - 1) * x.stride(0) + (t - 1) * x.stride(1) + d
        arrays.append(x.as_strided((span,), (1,)).numpy())
    return arrays, strides


def optional_array(x: Tensor | None, dims: int, like: Tensor) -> np.ndarray:
    """A contiguous array of an optional tensor; an empty one for None."""
    if x is None:
        return np.empty((0,) * dims, _NUMPY[like.dtype])
    return x.detach().contiguous().numpy()


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


# On a CUDA device the same two operators run Triton kernels; imported on first use, since Triton is slow to import.


@scan_op.register_kernel("cuda")
def _(*inputs):
    from clearstate.kernels.scan_triton import forward

    return forward(*inputs)


@scan_backward_op.register_kernel("cuda")
def _(*inputs):
    from clearstate.kernels.scan_triton import backward

    return backward(*inputs)
