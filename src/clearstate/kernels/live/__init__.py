"""The default model as one compiled function, for live sound: `supports` and `open_stream`."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np


def supports(model: Any) -> bool:
    """Whether `open_stream` takes this model: a `Live` in float32 on the CPU whose widths fill whole vectors."""
    from clearstate.kernels.backend import backend

    if type(getattr(model, "config", None)).__name__ != "LiveConfig" or backend() != "numba":
        return False
    from clearstate.kernels.live import network

    return network.suits(model)


def open_stream(model: Any, channels: int) -> Callable[[np.ndarray], np.ndarray]:
    """A stream of `channels` signals through a model that `supports` accepts, with its weights as they are now.

    Takes samples (channels, m * hop) and returns as many, `latency` samples late: what `Live.step` returns, up to
    rounding. The state is in the stream; a copy of it is independent.

    Raises:
        ValueError: from the stream, for another number of channels, or samples that are not a multiple of the hop.
    """
    from clearstate.kernels.live import network
    from clearstate.kernels.threads import inference

    with inference(model):
        return network.Stream(_packed(model), network.silence(model.init_state(channels)), channels)


_known: "WeakKeyDictionary[Any, Any]" = WeakKeyDictionary()  # model to its configuration, its weights, both packed


def _packed(model: Any) -> Any:
    """The parameters of a model, packed; one copy for all streams with the same weights.

    A copy has 0.8 MB. If every stream had its own, the processor would fetch it from its slow cache for every hop.
    """
    import torch

    from clearstate.kernels.live import network

    weights = torch.cat([x.detach().flatten().float() for x in (*model.parameters(), *model.buffers())]).numpy()
    config, known, packed = _known.get(model, (None, None, None))
    if config != model.config or not np.array_equal(weights, known):
        packed = network.pack(model)
        _known[model] = model.config, weights, packed
    return packed
