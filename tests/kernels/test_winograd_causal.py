"""The causal dense block in tiles of bins against its written form, and that no frame hears a later one."""

import pytest
import torch
from doubles import on_threads, shaken

from clearstate.models import semamba_causal
from clearstate.models.semamba_causal import CausalDenseBlock
from clearstate.ssm import use_backend


@pytest.fixture(autouse=True)
def tiles_for_any_chunk(monkeypatch):
    monkeypatch.setattr(semamba_causal, "TILED", 1)


def block_and_input(channels=16, depth=4, batch=1, frames=19, bins=13):
    block = shaken(CausalDenseBlock(channels, depth), 0.2)
    past = torch.randn(batch, 2 ** (depth - 1), bins, depth * channels)
    return block, torch.randn(batch, frames, bins, channels), past


@torch.no_grad()
@pytest.mark.parametrize("channels, depth", [(16, 4), (12, 2), (6, 4), (40, 3), (64, 1)])
@pytest.mark.parametrize("batch, frames, bins", [(1, 8, 1), (2, 19, 13), (3, 33, 101), (1, 37, 201)])
def test_the_compiled_causal_block_is_the_written_one_on_a_past(channels, depth, batch, frames, bins):
    """Also what it carries on; one frame is what six products round, some 4e-6 of a layer, after four layers."""
    block, x, past = block_and_input(channels, depth, batch, frames, bins)
    before = x.clone(), past.clone()
    fast, fast_past = block(x, past)
    with torch.enable_grad():
        slow, slow_past = block(x, past)
    torch.testing.assert_close(fast, slow, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(fast_past, slow_past, atol=5e-5, rtol=1e-4)
    assert torch.equal(x, before[0]) and torch.equal(past, before[1])
    with use_backend("reference"):
        assert torch.equal(block(x, past)[0], slow)
    assert not torch.allclose(fast, block(x, torch.zeros_like(past))[0], atol=1e-3)


@torch.no_grad()
def test_no_frame_hears_a_later_one_nor_where_the_signal_was_cut():
    """To the last bit: 13 bins are four tiles, so that no row of a product is summed otherwise than another."""
    block, x, past = block_and_input(frames=40)
    whole, end = block(x, past)
    first, middle = block(x[:, :17], past)
    second, cut = block(x[:, 17:], middle)
    assert torch.equal(torch.cat([first, second], 1), whole) and torch.equal(cut, end)
    spoilt = x.clone()
    spoilt[:, 21:] = torch.nan
    y, _ = block(spoilt, past)
    assert torch.equal(y[:, :21], whole[:, :21]) and y[:, 21:].isnan().all()


@torch.no_grad()
def test_signals_of_a_batch_do_not_meet_and_the_result_does_not_depend_on_the_threads():
    block, x, past = block_and_input(batch=2, frames=70, bins=41)
    alone, both = (on_threads(count, lambda: block(x, past)[0]) for count in (1, 2))
    assert torch.equal(alone, both)
    past[1, -1] = torch.nan
    y, _ = block(x, past)
    assert torch.equal(y[0], alone[0]) and y[1].isnan().any()
