"""Count the parameters of a model and its multiply-accumulates per second of audio while it runs.

Published counts use hooks on layers. These miss every function: in a Mamba layer the scan and, in fused code, the
projections, which are more than half of its work. Here PyTorch's operator counter counts every matrix product,
convolution, attention and FFT, and a formula counts Mamba mixers. As usual, sums, activations, norms and other
operations with one operation per element are not counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]


class Cost(NamedTuple):
    """The cost of one second of audio at the model's rate."""

    parameters: int
    macs: float  # multiply-accumulates per second of audio, all parts
    parts: dict[str, float]  # by kind: matrix, convolution, attention, recurrent, scan, fft


def cost(model: nn.Module, seconds: float = 2.0) -> Cost:
    """Run `model` on `seconds` of quiet noise and count. Attention over time costs more the longer the input.

    Args:
        model: with `sample_rate`, mapping (b, samples) to audio, as every model of the package.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from clearstate.ssm import Mamba, use_backend

    parts: dict[str, float] = defaultdict(float)

    def count_only(mixer: Any, x: Tensor, state: Any = None) -> Any:
        """In a mixer's place: the formula, and zeros to go on with, since no count depends on a value."""
        known = isinstance(mixer, Mamba)
        for kind, macs in (mixer_macs(mixer) if known else mixer.macs()).items():
            parts[kind] += math.prod(x.shape[:-1]) * macs
        zeros = torch.zeros_like(x)
        return (zeros, mixer.init_state(x.shape[0]) if state is None else state) if known else zeros

    # Mixers of a model's own have macs(), of one step of one sequence, and map x (b, t, m) to the same.
    mixers: list[Any] = [module for module in model.modules() if isinstance(module, Mamba) or hasattr(module, "macs")]
    parameter = next(model.parameters())
    samples = round(seconds * model.sample_rate)  # type: ignore[operator, arg-type]  # an int on every model
    noise = 0.05 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0)).to(parameter)
    flops = FlopCounterMode(display=False, custom_mapping=_extra_operators())
    training = model.training
    try:
        for mixer in mixers:
            mixer.forward = partial(count_only, mixer)  # of this instance, for one pass
        with torch.no_grad(), use_backend("reference"), flops:  # fused kernels would hide their work
            model.eval()(noise)
    finally:
        model.train(training)
        for mixer in mixers:
            del mixer.forward
    for operator, count in flops.get_flop_counts().get("Global", {}).items():
        parts[_kind(str(operator))] += count / 2
    a_second = {kind: macs / seconds for kind, macs in sorted(parts.items()) if macs}
    return Cost(sum(p.numel() for p in model.parameters()), sum(a_second.values()), a_second)


def mixer_macs(mixer: Any) -> dict[str, int]:
    """Multiply-accumulates of a Mamba mixer for one step of one sequence, by kind.

    With m the width, d inner channels, r the rank of the step size, k taps and n states: projections 2 m d into the
    branches, d (r + 2 n) to delta, B and C, r d to the channels' step sizes, d m out; d k of the short convolution;
    and the scan's delta A, (delta u) B, exp(delta A) h and C h, 4 d n, with delta u, D u and the gate, 3 d.
    """
    m, d = mixer.in_proj.in_features, mixer.d_inner
    n, r, k = mixer.d_state, mixer.dt_rank, mixer.d_conv
    return {
        "matrix": 2 * m * d + d * (r + 2 * n) + r * d + d * m,
        "convolution": d * k,
        "scan": 4 * d * n + 3 * d,
    }


def _kind(operator: str) -> str:
    for word, kind in (("fft", "fft"), ("conv", "convolution"), ("attention", "attention"), ("rnn", "recurrent")):
        if word in operator:
            return kind
    return "recurrent" if operator.rpartition(".")[2] in ("gru", "lstm") else "matrix"


def _extra_operators() -> dict[object, Callable[..., int]]:
    """Formulas for operators that PyTorch's counter leaves out, in flops (two a multiply-accumulate)."""
    import torch

    aten = torch.ops.aten

    def real_fft(x: Shape, dim: Shape, *_: object, out_shape: Shape = (), **__: object) -> int:
        """5/2 N log2 N for each real transform; the longer side is the signal's."""
        return sum(_fft_flops(x if math.prod(x) >= math.prod(out_shape) else out_shape, axis) for axis in dim) // 2

    def complex_fft(x: Shape, dim: Shape, *_: object, **__: object) -> int:
        return sum(_fft_flops(x, axis) for axis in dim)

    def rnn_layer(x: Shape, w_in: Shape, w_state: Shape, *_: object, **__: object) -> int:
        """Both matrices of a recurrent layer at every step of every sequence."""
        return 2 * math.prod(x[:-1]) * (math.prod(w_in) + math.prod(w_state))

    def attention(q: Shape, k: Shape, v: Shape, *_: object, **__: object) -> int:
        """Both products: every query with every key, every weight with every value."""
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._fft_r2c: real_fft,
        aten._fft_c2r: real_fft,
        aten._fft_c2c: complex_fft,
        aten.mkldnn_rnn_layer: rnn_layer,
    }


def _fft_flops(shape: Shape, axis: int) -> int:
    n = shape[axis]
    return round(5 * math.prod(shape) * math.log2(n)) if n > 1 else 0
