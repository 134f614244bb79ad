"""Several channels to one, without losing what they hold in opposite phase."""

import numpy as np
import pytest

from clearstate.audio.mono import mix_of, to_mono


def voice(seed, samples=16_000):
    return 0.1 * np.random.default_rng(seed).standard_normal(samples)


a, b, c = voice(0), voice(1), voice(2)


@pytest.mark.parametrize(
    "x",
    [[a, b], [a, a], [a, 0 * a], [0 * a, 0 * a], [a, 0.5 * a, b], [0 * a, 0 * a, a, 0 * a, 0 * a, 0 * a]],
    ids=["unrelated", "equal", "one dead", "silent", "three", "centre of 5.1"],
)
def test_the_mean_is_taken_where_nothing_cancels(x):
    mix = mix_of([np.stack(x)], len(x))
    assert mix.note == ""
    np.testing.assert_array_equal(mix(np.stack(x)), np.mean(x, axis=0))


@pytest.mark.parametrize("ratio", [-1.0, -0.8, -1.2])
def test_a_channel_that_is_turned_over_is_turned_back(ratio):
    x = np.stack([a, ratio * a])
    mix = mix_of([x], 2)
    assert "inverted" in mix.note
    np.testing.assert_allclose(mix(x), (1 - ratio) / 2 * a)


def test_the_first_channel_keeps_its_polarity_whichever_is_louder():
    assert np.vdot(to_mono(np.stack([0.9 * a, -a])), a) > 0
    assert np.vdot(to_mono(np.stack([-a, 1.1 * a])), -a) > 0


def test_one_voice_in_phase_and_another_in_opposite_phase_are_both_kept():
    first, second = np.r_[a, 0 * a], np.r_[0 * b, b]
    x = np.stack([first + second, first - second])
    mix = mix_of([x], 2)
    assert "alone" in mix.note
    np.testing.assert_array_equal(mix(x), x[0])


def test_blocks_and_the_whole_choose_alike():
    x = np.stack([a, -a])
    assert mix_of(np.split(x, 4, axis=1), 2).note == mix_of([x], 2).note


def test_one_channel_is_itself():
    np.testing.assert_array_equal(to_mono(a[None]), a)
