"""Networks that hear a signal at several speeds: what the mean is of, and that nothing moves."""

import pytest
import torch
from contracts import noise

from clearstate.models.parts.speed import at_speeds, resample
from clearstate.models.separate_fast import in_the_order_of

RATE = 16_000


def tone(hz: float, n: int, rate: float = RATE) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hz / rate * torch.arange(n))[None]


@pytest.mark.parametrize("n", [1, 9, 10, 4_001])
@pytest.mark.parametrize("speeds", [(10, 9), (25, 24), (25, 24, 23)])
def test_a_network_that_changes_nothing_changes_nothing(n, speeds):
    x = noise(2, n)
    torch.testing.assert_close(at_speeds(lambda x: x, x, *speeds), x, atol=1e-6, rtol=0)


def test_the_second_signal_is_the_same_at_another_speed():
    heard = []
    at_speeds(lambda x: heard.append(x) or x, tone(1_000, 8_000), 10, 9)
    plain, quick = heard[0]
    assert torch.equal(plain, tone(1_000, 8_000)[0])
    inside = slice(100, 7_100)
    torch.testing.assert_close(quick[inside], tone(1_000 * 10 / 9, 7_200)[0, inside], atol=2e-3, rtol=0)
    assert not quick[7_200:].any()


def test_what_is_heard_at_one_speed_alone_counts_its_share():
    """A network that mutes what is faster: below the filters' edge half or a third is left, above it all."""

    def mutes(x):
        return torch.cat([x[:1], 0 * x[1:]])

    inside = slice(200, -200)
    for speeds, left in (((10, 9), 1 / 2), ((25, 24, 23), 1 / 3)):
        for hz, share in ((1_000, left), (7_700, 1.0)):
            x = tone(hz, 8_000)
            torch.testing.assert_close(at_speeds(mutes, x, *speeds)[:, inside], share * x[:, inside], atol=5e-3, rtol=0)


@pytest.mark.parametrize("matched", [True, False])
def test_voices_are_averaged_with_themselves(matched):
    """A network that gives the second item's voices in the other order; unmatched, each would be half of either."""
    n = 8_000

    def splits(x):
        low = resample(resample(x, 1, 4), 4, 1)[:, : x.shape[1]]  # below 2 kHz
        voices = torch.stack([low, x - low], dim=1)
        return torch.stack([voices[0], voices[1].flip(0)])

    x = tone(500, n) + tone(3_500, n)
    given = at_speeds(splits, x, 10, 9, **({"matched": in_the_order_of} if matched else {}))[0, :, 200:-200]
    low, high = tone(500, n)[0, 200:-200], tone(3_500, n)[0, 200:-200]
    close = (given[0] - low).abs().max() < 0.02 and (given[1] - high).abs().max() < 0.02
    assert close == matched


def test_the_order_is_found_in_every_item():
    first = noise(3 * 3, 500).view(3, 3, 500)
    orders = torch.tensor([[2, 0, 1], [0, 1, 2], [1, 0, 2]])
    moved = torch.stack([item[order] for item, order in zip(first, orders, strict=True)])
    torch.testing.assert_close(in_the_order_of(first, moved), first)
