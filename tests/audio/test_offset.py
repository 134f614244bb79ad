"""What is removed before a model: a constant offset, and nothing else."""

import numpy as np
import pytest

from clearstate.audio.offset import Offset

HOP, RATE = 256, 16_000


def noise(samples=2 * RATE, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal((1, samples))).astype(np.float32)


def levelled(x):
    return Offset(len(x), HOP, RATE).push(x, last=True)


def test_a_signal_without_an_offset_is_untouched():
    x = noise()
    np.testing.assert_array_equal(
        levelled(x), x
    )  # the mean of a hop of noise is chance: it counts from 4 % of the power


def test_silence_stays_silence():
    y = levelled(np.zeros((2, 3_000), dtype=np.float32))
    assert y.shape == (2, 3_000) and not y.any()


@pytest.mark.parametrize("offset", [0.05, -0.3, 3.0])
def test_an_offset_is_removed_from_the_first_hop_on(offset):
    x = noise()
    y = levelled(x + np.float32(offset))
    assert abs(float(y[:, :HOP].mean())) < 0.02  # of noise of 0.1
    np.testing.assert_allclose(y[:, RATE // 2 :], x[:, RATE // 2 :], atol=0.02)


def test_an_offset_that_jumps_is_found_again_within_half_a_second():
    x = noise()
    jump = np.where(np.arange(x.shape[1]) < RATE, 0, 0.5).astype(np.float32)
    np.testing.assert_allclose(levelled(x + jump)[:, 3 * RATE // 2 :], x[:, 3 * RATE // 2 :], atol=0.03)


def test_a_constant_is_all_offset():
    assert not levelled(np.full((1, 4 * HOP), 0.5, dtype=np.float32)).any()


def test_channels_have_offsets_of_their_own():
    both = np.concatenate([noise(seed=1), noise(seed=2) + np.float32(0.4)])
    y = levelled(both)
    np.testing.assert_array_equal(y[:1], levelled(both[:1]))
    np.testing.assert_array_equal(y[1:], levelled(both[1:]))


@pytest.mark.parametrize("sizes", [[1, 700, 0, 255], [HOP], [10_000]])
@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_any_chunking_gives_the_same_bits(sizes, offset):
    x = noise(RATE + 100) + np.float32(offset)
    x[:, 3 * HOP : 6 * HOP] = np.float32(offset)  # a pause of equal samples
    remover, parts, start, turn = Offset(1, HOP, RATE), [], 0, 0
    while start < x.shape[1]:
        parts.append(remover.push(x[:, start : start + sizes[turn % len(sizes)]]))
        start, turn = start + sizes[turn % len(sizes)], turn + 1
    parts.append(remover.push(x[:, :0], last=True))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), levelled(x))


def test_the_input_is_not_written_to():
    x = noise() + np.float32(0.3)
    before = x.copy()
    levelled(x)
    np.testing.assert_array_equal(x, before)
