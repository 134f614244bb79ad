"""The compiled attention against PyTorch's."""

import pytest
import torch
from doubles import on_threads
from torch.nn import functional as F

from clearstate.kernels import attention as attention_cpu
from clearstate.models.mp_senet import MPSENetConfig, TransformerBlock
from clearstate.ssm import use_backend

SIZES = {  # rows, queries, keys, heads
    "bands": (7, 101, 101, 4),
    "frames of more than two blocks": (2, 291, 291, 2),
    "whole blocks": (2, 128, 256, 1),
    "one key": (3, 5, 1, 2),
    "one query": (3, 1, 37, 2),
    "one of each": (1, 1, 1, 1),
    "more keys than queries": (2, 18, 145, 4),
    "fewer": (2, 66, 7, 4),
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # powers are right to 3e-6 of their value, and values are a few at most


def some(rows, queries, keys, heads, scale=1.0):
    """Queries, keys and values; at a scale of 1 scores are about 1; from 4 on they need a level."""
    torch.manual_seed(5)
    q, k, v = (torch.randn(rows, steps, 16 * heads) for steps in (queries, keys, keys))
    return scale * q, scale * k, v


def written(q, k, v):
    """PyTorch's, in float64."""
    heads = q.shape[-1] // 16
    q, k, v = (x.double().unflatten(-1, (heads, 16)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).float()


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 4.0], ids=["mild", "sharp"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_compiled_attention_is_the_written_one(size, scale):
    q, k, v = some(*size, scale)
    # A score of 100 is rounded by 1e-5, which is what its power then is off by.
    close = CLOSE if scale == 1 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(attention_cpu.attend(q, k, v), written(q, k, v), **close)


@torch.no_grad()
def test_slices_of_wider_tensors_and_turned_ones_are_taken_as_they_lie():
    q, k, v = some(3, 21, 21, 2)
    plain = attention_cpu.attend(q, k, v)
    both = torch.cat([k, v], dim=-1).chunk(2, dim=-1)
    turned = torch.stack([q, q], dim=1).transpose(0, 2).contiguous().transpose(0, 2)[:, 1]
    assert not turned.is_contiguous() and not both[1].is_contiguous()
    assert torch.equal(attention_cpu.attend(turned, *both), plain)
    across = q.mT.contiguous().mT  # channels are not next to each other
    assert torch.equal(attention_cpu.attend(across, k, v), plain)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e2, 1e9])
def test_scores_far_beyond_what_a_power_holds_pick_the_best_key(scale):
    q, k, v = some(2, 50, 150, 2, scale)
    y = attention_cpu.attend(q, k, v)
    assert y.isfinite().all()
    # In float64 one key takes all of nearly every query; where two come close, float32 may weigh them otherwise.
    apart = (y - written(q, k, v)).abs().amax(-1)
    assert (apart < 1e-3).float().mean() > 0.9


@torch.no_grad()
def test_scores_far_below_zero_are_told_apart():
    """All at about -3000 in the exponent: at a level of 0 every power would be nothing."""
    q, k, v = some(2, 9, 40, 1)
    q, k = q.abs() + 20, -(k.abs() / 16 + 36)
    close = {"atol": 1e-3, "rtol": 1e-3}  # scores in the thousands are rounded by 2e-4
    torch.testing.assert_close(attention_cpu.attend(q, k, v), written(q, k, v), **close)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 10.0], ids=["mild", "sharp"])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_what_is_not_a_number_shows_where_it_does_and_in_no_other_row(name, scale):
    given = dict(zip("qkv", some(4, 23, 23, 2, scale), strict=True))
    clean = attention_cpu.attend(**given)
    given[name][1, 6, 3] = torch.nan
    y = attention_cpu.attend(**given)
    assert torch.equal(y.isnan(), written(**given).isnan()) and y[1].isnan().any()
    assert torch.equal(y[[0, 2, 3]], clean[[0, 2, 3]])


@torch.no_grad()
def test_it_does_not_depend_on_the_threads_or_the_other_rows():
    q, k, v = some(9, 61, 61, 2)
    alone, both = (on_threads(count, lambda: attention_cpu.attend(q, k, v)) for count in (1, 2))
    assert torch.equal(alone, both)
    assert torch.equal(attention_cpu.attend(q[3:5], k[3:5], v[3:5]), alone[3:5])


@pytest.mark.parametrize(("heads", "fit"), [(2, True), (4, False)])
def test_a_block_takes_it_where_it_fits(heads, fit, monkeypatch):
    calls = []
    compiled = attention_cpu.attend
    monkeypatch.setattr(attention_cpu, "attend", lambda *given: calls.append(1) or compiled(*given))
    torch.manual_seed(4)
    block = TransformerBlock(MPSENetConfig(channels=32, heads=heads, hidden=16)).eval()
    x, other = torch.randn(2, 3, 11, 32)
    with torch.no_grad():
        fast = block(x, other)
        assert bool(calls) == fit
        with use_backend("reference"):
            slow = block(x, other)
    assert len(calls) == fit
    torch.testing.assert_close(fast, slow, **CLOSE)
    block(x, other).sum().backward()  # with gradients it is PyTorch's
    assert len(calls) == fit
