"""Two mixers as one kernel against the two as they are written."""

import pytest
import torch
from doubles import on_threads, shaken

from clearstate.models.parts import dual_path as tf_mamba
from clearstate.ssm import use_backend

MIXERS = {  # channels, states, taps, expand, and rows: whole panels, parts of them, several steps of the kernel
    "published": (64, 16, 4, 4, (2, 100, 64)),
    "odd": (12, 5, 3, 3, (3, 67, 12)),
    "one step": (16, 8, 2, 2, (5, 1, 16)),
    "many states": (20, 24, 4, 1, (1, 130, 20)),
}


@pytest.mark.parametrize("size", MIXERS.values(), ids=MIXERS)
def test_the_compiled_mixer_is_the_written_one(size):
    *numbers, rows = size
    mix, x = shaken(tf_mamba.BiMix(*numbers)), torch.randn(rows)
    slow = mix(x)
    with torch.no_grad():
        fast = mix(x)
    torch.testing.assert_close(fast, slow, atol=3e-5, rtol=1e-4)


@torch.no_grad()
def test_the_compiled_mixer_shows_what_is_not_a_number_and_where():
    """Both ways a row of its own; and the exponents that nothing is left of give no such thing."""
    mix, x = shaken(tf_mamba.BiMix(16)), torch.randn(3, 80, 16)
    clean = mix(x)
    x[1, 70] = torch.nan
    y = mix(x)
    assert y[1].isnan().all() and torch.equal(y[::2], clean[::2])
    mix.ahead.mixer.A_log += 20.0
    mix.back.mixer.dt_proj.bias += 1e5
    x = torch.randn(3, 80, 16)
    with use_backend("reference"):
        slow = mix(x)
    torch.testing.assert_close(mix(x), slow, atol=1e-4 * slow.abs().max().item(), rtol=1e-4)


@torch.no_grad()
def test_the_compiled_mixer_does_not_depend_on_the_threads_or_the_other_rows():
    mix, x = shaken(tf_mamba.BiMix(16)), torch.randn(7, 70, 16)
    alone, both = (on_threads(count, lambda: mix(x)) for count in (1, 2))
    assert torch.equal(alone, both)
    assert torch.equal(mix(x[3:5]), alone[3:5])


@torch.no_grad()
@pytest.mark.parametrize("channels", [16, 12])
def test_rows_may_lie_in_any_order_in_memory(channels):
    """The frames of each band, which come as steps that are far apart; and rows that have gaps between them."""
    mix, x = shaken(tf_mamba.BiMix(channels)), torch.randn(70, 5, channels)
    expected = mix(x.transpose(0, 1).contiguous())
    assert torch.equal(mix(x.transpose(0, 1)), expected)
    wide = torch.randn(5, 70, 2 * channels)
    wide[..., :channels] = x.transpose(0, 1)
    assert torch.equal(mix(wide[..., :channels]), expected)
    assert torch.equal(mix(expected[:, ::2]), mix(expected[:, ::2].contiguous()))
