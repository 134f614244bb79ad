"""What every model must keep, for the tests of each model to call. `model` is in eval mode; b is the batch.

    from contracts import CAUSAL, OFFLINE

    @pytest.mark.parametrize("contract", OFFLINE + CAUSAL, ids=lambda contract: contract.__name__)
    def test_contract(model, contract):
        contract(model)

Each contract raises an AssertionError where it does not hold; `tests/tasks/test_task_stream.py` shows with broken
models that each of them bites.
"""

from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

TOLERANCE = 2e-5  # of outputs with a level near 0.1: float32 sums in another order


def noise(batch: int, samples: int, level: float = 0.1, seed: int = 0) -> Tensor:
    """Repeatable noise that comes and goes, (b, samples): something to remember, and silences to forget it in."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, samples, generator=generator)
    swell = torch.sin(torch.arange(samples) / 1500.0).clamp(min=0) + 0.01
    return level * x * swell


@torch.no_grad()
def streamed(model: Any, x: Tensor, hops: list[int], carry: bool = True) -> Tensor:
    """Step through x (b, k hop) in pieces of so many hops, in turn; `carry` False forgets the state between them."""
    out, state, at, sizes = [], model.init_state(len(x)), 0, cycle(hops)
    while at < x.shape[-1]:
        piece = x[:, at : at + next(sizes) * model.hop]
        y, state = model.step(piece, state if carry else model.init_state(len(x)))
        assert y.shape == piece.shape, f"step() gave {tuple(y.shape)} for {tuple(piece.shape)}"
        out.append(y)
        at += piece.shape[-1]
    return torch.cat(out, dim=-1)


# --- every model -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def length_in_is_length_out(model: Any) -> None:
    for samples in (1, 2, 99, 257, 4_000, 4_001):
        y = model(noise(1, samples))
        assert y.shape == (1, samples), f"{samples} samples in gave {tuple(y.shape)}"
        assert y.dtype == torch.float32


@torch.no_grad()
def batch_items_do_not_meet(model: Any) -> None:
    x = torch.cat([noise(1, 8_000, level, seed) for seed, level in enumerate((0.1, 0.5, 0.001))])
    together = model(x)
    for item, y in zip(x, together, strict=True):
        torch.testing.assert_close(model(item[None])[0], y, atol=TOLERANCE, rtol=1e-3)


@torch.no_grad()
def silence_stays_silent(model: Any) -> None:
    for samples in (1, 5_000):
        y = model(torch.zeros(2, samples))
        assert torch.isfinite(y).all() and not y.any(), f"silence became {y.abs().max():.3g}"


@torch.no_grad()
def extreme_levels_stay_finite(model: Any) -> None:
    for level in (1e-30, 1e-8, 1.0, 1e4):
        y = model(noise(1, 5_000, level))
        assert torch.isfinite(y).all(), f"level {level} gave NaN or infinity"
        assert y.abs().max() <= 100 * level, f"level {level} came out as {y.abs().max():.3g}"


@torch.no_grad()
def the_input_is_left_as_it_was(model: Any) -> None:
    x = noise(2, 3_000)
    before = x.clone()
    model(x)
    assert torch.equal(x, before)


@torch.no_grad()
def what_lies_beyond_the_signal_never_leaks(model: Any) -> None:
    """The signal is a view into memory full of NaN: a model that reads past its ends shows it."""
    memory = torch.full((2, 6_000), torch.nan)
    signal = memory[:, 1_000:4_001]
    signal.copy_(noise(2, 3_001))
    torch.testing.assert_close(model(signal), model(noise(2, 3_001)), atol=TOLERANCE, rtol=1e-3)


# --- causal models ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def any_chunking_gives_the_offline_output(model: Any, carry: bool = True) -> None:
    x = noise(2, 24 * model.hop)
    offline = model(x)[:, : x.shape[-1] - model.latency]
    for hops in ([1], [3], [24], [1, 5, 2]):
        y = streamed(model, x, hops, carry)[:, model.latency :]
        torch.testing.assert_close(y, offline, atol=TOLERANCE, rtol=1e-3)


@torch.no_grad()
def the_state_is_in_the_state(model: Any) -> None:
    """Two streams through one model, in turns, and a state used twice: nothing is hidden, nothing written to."""
    a, b = noise(1, 8 * model.hop, seed=1), noise(1, 8 * model.hop, 0.5, seed=2)
    alone = streamed(model, a, [1]), streamed(model, b, [1])
    out: tuple[list[Tensor], list[Tensor]] = ([], [])
    states = [model.init_state(1), model.init_state(1)]
    for pieces in zip(a.split(model.hop, -1), b.split(model.hop, -1), strict=True):
        for i, piece in enumerate(pieces):
            again, _ = model.step(piece, states[i])
            y, states[i] = model.step(piece, states[i])
            assert torch.equal(y, again), "step() wrote into the state it was given"
            out[i].append(y)
    for y, expected in zip(out, alone, strict=True):
        torch.testing.assert_close(torch.cat(y, -1), expected, atol=TOLERANCE, rtol=1e-3)


@torch.no_grad()
def streams_in_a_batch_do_not_meet(model: Any) -> None:
    x = torch.cat([noise(1, 6 * model.hop, level, seed) for seed, level in enumerate((0.1, 0.5, 0.001))])
    together = streamed(model, x, [1])
    for item, y in zip(x, together, strict=True):
        torch.testing.assert_close(streamed(model, item[None], [1])[0], y, atol=TOLERANCE, rtol=1e-3)
    spoilt = x.clone()
    spoilt[1] = torch.nan
    y = streamed(model, spoilt, [1])
    torch.testing.assert_close(y[[0, 2]], together[[0, 2]], atol=TOLERANCE, rtol=1e-3)


@torch.no_grad()
def an_output_hears_nothing_beyond_the_latency(model: Any) -> None:
    """A change at t may change the output from t - (latency + hop - 1) on, not earlier; and it does change it.

    NaN from t on is the sharpest change: it also shows what is multiplied by zero.
    """
    x = noise(1, 20 * model.hop)
    y = model(x)
    for t in (10 * model.hop, 10 * model.hop + model.hop // 3, 11 * model.hop - 1):
        changed = x.clone()
        changed[:, t:] += noise(1, x.shape[-1] - t, 1.0, seed=3)
        difference = (model(changed) - y).abs()[0]
        first = t - (model.latency + model.hop - 1)
        early = difference[:first].max()
        assert early <= 1e-6, f"a change at {t} is heard before {first}: {early:.2g}"
        assert difference[first:].max() > 1e-4, "a change is not heard at all"
        changed[:, t:] = torch.nan
        torch.testing.assert_close(model(changed)[:, :first], y[:, :first], atol=1e-6, rtol=0)


def gradients_reach_no_further_than_the_latency(model: Any) -> None:
    """The same by the gradient of one output sample: exactly zero beyond its reach, not zero within."""
    x = noise(1, 16 * model.hop).requires_grad_()
    t = 8 * model.hop + 5
    (gradient,) = torch.autograd.grad(model(x)[0, t], x)
    last = t + model.latency + model.hop - 1
    assert not gradient[0, last + 1 :].any(), "the output depends on its future"
    assert gradient[0, : last + 1].any(), "the output depends on nothing"
    assert torch.isfinite(gradient).all()


@torch.no_grad()
def a_wrong_length_of_step_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match="1"):  # the message says how many samples are too many
        model.step(torch.zeros(1, model.hop + 1), model.init_state(1))


OFFLINE = [
    length_in_is_length_out,
    batch_items_do_not_meet,
    silence_stays_silent,
    extreme_levels_stay_finite,
    the_input_is_left_as_it_was,
    what_lies_beyond_the_signal_never_leaks,
]
CAUSAL = [
    any_chunking_gives_the_offline_output,
    the_state_is_in_the_state,
    streams_in_a_batch_do_not_meet,
    an_output_hears_nothing_beyond_the_latency,
    gradients_reach_no_further_than_the_latency,
    a_wrong_length_of_step_is_an_error,
]
