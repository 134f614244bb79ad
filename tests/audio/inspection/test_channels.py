"""Relation of channels: dead, mono in two, inverted, and offsets."""

import numpy as np
import pytest

from clearstate.audio.inspection.channels import Relation

VOICE = 0.1 * np.random.default_rng(0).standard_normal(48_000)
OTHER = 0.1 * np.random.default_rng(1).standard_normal(48_000)
HISS = np.random.default_rng(2).standard_normal(48_000)


def relation(*rows, size=5_000):
    finder, x = Relation(len(rows)), np.stack(rows)
    for start in range(0, x.shape[1], size):
        finder.push(x[:, start : start + size])
    return finder.result()


@pytest.mark.parametrize("silence", [0 * VOICE, 1e-5 * HISS, 3e-4 * HISS, 0 * VOICE + 0.02, 1e-3 * VOICE])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("level", [1.0, 0.1])
def test_a_dead_channel_is_always_found(silence, side, level):
    rows = [level * VOICE, level * silence][:: 1 if side else -1]
    found = relation(*rows)
    assert found.relation == "dead channel" and found.dead == [side]


@pytest.mark.parametrize(
    "right, name",
    [
        (VOICE, "dual mono"),
        (VOICE + 1e-5 * HISS, "dual mono"),
        (-VOICE, "inverted"),
        (-0.7 * VOICE + 1e-3 * HISS, "inverted"),
        (0.5 * VOICE, "stereo"),
        (OTHER, "stereo"),
        (0.03 * OTHER, "stereo"),  # quiet, but there
        (0.5 * VOICE + 0.5 * OTHER, "stereo"),
    ],
)
def test_two_channels_are_named(right, name):
    assert relation(VOICE, right).relation == name


def test_silence_has_no_dead_channel():
    found = relation(0 * VOICE, 0 * VOICE)
    assert found.relation == "silent" and found.dead == []


def test_several_channels_list_those_without_a_signal():
    found = relation(VOICE, OTHER, VOICE, 0 * VOICE, OTHER, VOICE)
    assert found.relation == "multichannel" and found.dead == [3]


@pytest.mark.parametrize("offset", [0.05, -0.3, 1e-3])
def test_an_offset_is_measured(offset):
    assert relation(VOICE - VOICE.mean() + offset).offsets == [pytest.approx(offset, abs=1e-6)]
