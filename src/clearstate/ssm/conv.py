"""Causal depthwise convolution followed by SiLU, the short-range mixer in front of Mamba's scan.

    y[t] = SiLU(bias + sum_j weight[:, j] x[t - k + 1 + j]),   j = 0 ... k-1

b batch, t time, d channels, k taps. The state is the last k - 1 inputs, (b, k-1, d), oldest first.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clearstate.kernels.autograd import operator
from clearstate.kernels.backend import backend
from clearstate.kernels.threads import in_parts, threads_for

from .scan import flat_arrays, optional_array


def causal_conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, state: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own taps along time, then SiLU.

    Args:
        x: input (b, t, d), t >= 1, float32 or float64; other dtypes are computed in float32 and cast back.
        weight: (d, k).   bias: (d,).
        state: the k - 1 inputs before the first step (b, k-1, d), oldest first; zeros if None.
        reverse: walk from the last step to the first; the taps then look forward in time, and `state` holds the
            inputs after the last step, the nearest one last.
    Returns:
        y (b, t, d), and the state to pass with the next chunk (b, k-1, d), float32 or float64.
    Raises:
        ValueError: if shapes do not fit each other.

    >>> x = torch.ones(1, 4, 1)
    >>> causal_conv1d_silu(x, torch.ones(1, 3))[0].flatten()
    tensor([0.7311, 1.7616, 2.8577, 2.8577])
    """
    if x.dim() != 3 or weight.dim() != 2 or x.shape[2] != weight.shape[0] or x.shape[1] == 0:
        raise ValueError(
            f"causal_conv1d_silu got x {tuple(x.shape)} and weight {tuple(weight.shape)}: "
            "expected x (b, t, d) with t >= 1 and weight (d, k)"
        )
    expected = (x.shape[0], weight.shape[1] - 1, x.shape[2])
    if state is not None and tuple(state.shape) != expected:
        raise ValueError(f"causal_conv1d_silu got state {tuple(state.shape)}: expected {expected}")
    if bias is not None and tuple(bias.shape) != weight.shape[:1]:
        raise ValueError(f"causal_conv1d_silu got bias {tuple(bias.shape)}: expected {tuple(weight.shape[:1])}")
    dtype, wide = x.dtype, torch.float64 if x.dtype == torch.float64 else torch.float32
    x, weight = x.to(wide), weight.to(wide)
    bias, state = (None if given is None else given.to(wide) for given in (bias, state))
    run = conv_op if backend(x.device.type) == "numba" else causal_conv1d_silu_reference
    y, state = run(x, weight, bias, state, reverse)
    return y.to(dtype), state


def causal_conv1d_silu_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, state: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """`causal_conv1d_silu` with PyTorch's convolution."""
    if reverse:
        x = x.flip(1)
    past = weight.shape[1] - 1
    if state is None:
        state = x.new_zeros(x.shape[0], past, x.shape[2])
    padded = torch.cat([state, x], dim=1)  # (b, k-1+t, d)
    y = F.silu(F.conv1d(padded.transpose(1, 2), weight[:, None], bias, groups=x.shape[2])).transpose(1, 2)
    return y.flip(1) if reverse else y, padded[:, padded.shape[1] - past :]


@operator("causal_conv1d_silu")
def conv_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The compiled kernel of `causal_conv1d_silu`."""
    from clearstate.kernels import causal_conv as kernels
    from clearstate.kernels.scan import tasks_forward

    (b, t, d), k = x.shape, weight.shape[1]
    (x_,), strides = flat_arrays(x)
    y, last = x.new_empty(b, t, d), x.new_empty(b, k - 1, d)
    tasks = tasks_forward(b, d)
    bias_ = optional_array(x.new_zeros(d) if bias is None else bias, 1, x)
    in_parts(
        kernels.forward, threads_for(tasks, b * t * d), tasks, (b, t, d, k), strides,
        x_, optional_array(weight, 2, x), bias_, optional_array(state, 3, x), reverse,
        y.numpy(), last.numpy(),
    )  # fmt: skip
    return y, last


@conv_op.register_fake
def _(x, weight, bias, state, reverse):
    b, t, d = x.shape
    return x.new_empty(b, t, d), x.new_empty(b, weight.shape[1] - 1, d)


@operator("causal_conv1d_silu_backward")
def conv_backward_op(
    dy: Tensor, dlast: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, reverse: bool
) -> list[Tensor]:
    """Gradients of x, weight, bias and state."""
    from clearstate.kernels import causal_conv as kernels
    from clearstate.kernels.scan import GROUPS, tasks_backward

    (b, t, d), k = x.shape, weight.shape[1]
    (x_,), strides = flat_arrays(x)
    dx, dpast, dweight = x.new_empty(b, t, d), x.new_empty(b, k - 1, d), x.new_empty(min(b, GROUPS), d, k + 1)
    tasks = tasks_backward(b, d)
    bias_ = optional_array(x.new_zeros(d) if bias is None else bias, 1, x)
    in_parts(
        kernels.backward, threads_for(tasks, b * t * d), tasks, (b, t, d, k), strides,
        x_, optional_array(weight, 2, x), bias_, optional_array(state, 3, x), reverse,
        optional_array(dy, 3, x), optional_array(dlast, 3, x), dx.numpy(), dweight.numpy(), dpast.numpy(),
    )  # fmt: skip
    dweight = dweight.sum(0)
    return [dx, dweight[:, :k].clone(), dweight[:, k].clone(), dpast]  # outputs may not share memory


@conv_backward_op.register_fake
def _(dy, dlast, x, weight, bias, state, reverse):
    (b, t, d), k = x.shape, weight.shape[1]
    return [x.new_empty(b, t, d), x.new_empty(d, k), x.new_empty(d), x.new_empty(b, k - 1, d)]


def _save_for_backward(ctx, inputs, output):
    x, weight, bias, state, ctx.reverse = inputs
    ctx.save_for_backward(x, weight, bias, state)


def _backward(ctx, dy, dlast):
    x, weight, bias, state = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dlast = x.new_zeros(0, 0, 0) if dlast is None else dlast
    dx, dweight, dbias, dstate = conv_backward_op(dy, dlast, x, weight, bias, state, ctx.reverse)
    return dx, dweight, None if bias is None else dbias, None if state is None else dstate, None


conv_op.register_autograd(_backward, setup_context=_save_for_backward)
conv_backward_op.has_no_gradient()
