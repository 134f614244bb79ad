"""The compiled GRU against PyTorch's."""

import pytest
import torch
from doubles import on_threads
from torch import nn

from clearstate.kernels import gru as gru_cpu
from clearstate.models.mp_senet import MPSENetConfig, TransformerBlock
from clearstate.ssm import use_backend

SIZES = {  # rows, steps, inputs, hidden
    "published": (101, 30, 64, 128),
    "one group and one row": (33, 9, 16, 16),
    "one row": (1, 12, 32, 16),
    "one step": (5, 1, 16, 48),
}


def a_gru(inputs, hidden):
    torch.manual_seed(3)
    return nn.GRU(inputs, hidden, bidirectional=True, batch_first=True)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_compiled_gru_is_the_written_one(size):
    rows, steps, inputs, hidden = size
    gru, x = a_gru(inputs, hidden), 3 * torch.randn(rows, steps, inputs)
    torch.testing.assert_close(gru_cpu.gru_both_ways(x, gru), gru(x)[0], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_gates_far_beyond_what_they_close_at():
    gru, x = a_gru(16, 16), 1e4 * torch.randn(3, 5, 16)
    torch.testing.assert_close(gru_cpu.gru_both_ways(x, gru), gru(x)[0], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_what_is_not_a_number_shows_where_it_does_and_in_no_other_row():
    gru, x = a_gru(16, 16), torch.randn(5, 20, 16)
    clean = gru_cpu.gru_both_ways(x, gru)
    x[1, 7, 3] = torch.nan
    y = gru_cpu.gru_both_ways(x, gru)
    assert torch.equal(y.isnan(), gru(x)[0].isnan()) and y[1].isnan().any()
    assert torch.equal(y[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])


@torch.no_grad()
def test_it_does_not_depend_on_the_threads_or_the_other_rows():
    gru, x = a_gru(16, 32), torch.randn(70, 20, 16)
    alone, both = (on_threads(count, lambda: gru_cpu.gru_both_ways(x, gru)) for count in (1, 2))
    assert torch.equal(alone, both)
    torch.testing.assert_close(gru_cpu.gru_both_ways(x[3:5], gru), alone[3:5], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("channels", "hidden", "fit"), [(16, 32, True), (16, 24, False)])
def test_a_block_takes_it_where_it_fits(channels, hidden, fit, monkeypatch):
    calls = []
    compiled = gru_cpu.gru_both_ways
    monkeypatch.setattr(gru_cpu, "gru_both_ways", lambda *given: calls.append(1) or compiled(*given))
    torch.manual_seed(4)
    block = TransformerBlock(MPSENetConfig(channels=channels, hidden=hidden)).eval()
    x = torch.randn(3, 11, channels)
    with torch.no_grad():
        fast = block(x)
        assert bool(calls) == fit
        with use_backend("reference"):
            slow = block(x)
    assert len(calls) == fit
    torch.testing.assert_close(fast, slow, atol=5e-6, rtol=1e-5)
    block(x).sum().backward()  # with gradients it is PyTorch's
    assert len(calls) == fit
