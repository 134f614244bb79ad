"""Whose output is whose: every order is tried, mixture by mixture."""

import numpy as np
import pytest
import soundfile

from clearstate.metrics.scoring import Options, score_pairs
from clearstate.metrics.separation import best_order, is_separated, match_separated

RATE = 16_000


@pytest.fixture
def voices(make_pair):
    return [make_pair(seconds=0.6, seed=seed)[0] for seed in range(3)]


def test_the_order_is_found_whatever_the_levels_and_signs(voices):
    rng = np.random.default_rng(0)
    a, b, c = (0.01 * rng.standard_normal(len(v)) + g * v for v, g in zip(voices, (0.3, 2.0, -1.0), strict=True))
    assert best_order(voices, [a, b, c]) == (0, 1, 2)
    assert best_order(voices, [c, a, b]) == (1, 2, 0)


def test_the_best_whole_order_beats_the_best_single_match(voices):
    """Output 0 is nearest to both references, but only one of them can have it."""
    a, b, _ = voices
    leaky = a + 0.9 * b
    assert best_order([a, b], [leaky, a]) == (1, 0)


def test_a_silent_reference_takes_what_is_left(voices):
    a, b, _ = voices
    assert best_order([np.zeros_like(a), b], [b, a]) == (1, 0)


def test_numbers_that_differ_are_refused(voices):
    with pytest.raises(ValueError, match="2 references and 3 estimates"):
        best_order(voices[:2], voices)


@pytest.mark.parametrize("layout", ["{speaker}/{name}.wav", "{name}.{speaker}.flac", "{name}_{speaker}.wav"])
def test_swapped_outputs_score_like_unswapped_ones(tmp_path, voices, layout):
    for i, name in enumerate(("000", "001")):
        for k, speaker in enumerate(("s1", "s2")):
            (tmp_path / "clean" / speaker).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "clean" / speaker / f"{name}.wav", voices[k], RATE)
            target = tmp_path / "out" / layout.format(name=name, speaker=("s1", "s2")[(k + i) % 2])
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, voices[k] + 0.1 * voices[1 - k], RATE)
        (tmp_path / "mix").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "mix" / f"{name}.wav", voices[0] + voices[1], RATE)
    assert is_separated(tmp_path / "clean") and not is_separated(tmp_path / "mix")
    matches = match_separated(tmp_path / "clean", tmp_path / "out", tmp_path / "mix")
    assert [pair.name for pair in matches.pairs] == ["000/s1", "000/s2", "001/s1", "001/s2"]
    assert not matches.unmatched
    for file in score_pairs(matches.pairs, Options(("si_sdr", "si_sdri"))):
        assert file.scores["si_sdri"] == pytest.approx(20, abs=1)


def test_a_mixture_with_an_output_missing_is_listed(tmp_path, voices):
    for folder in ("clean/s1", "clean/s2", "out/s1", "out/s2"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("a", "b"):
            soundfile.write(tmp_path / folder / f"{name}.wav", voices[int(folder[-1]) - 1], RATE)
    (tmp_path / "out/s2/b.wav").unlink()
    matches = match_separated(tmp_path / "clean", tmp_path / "out")
    assert [pair.name for pair in matches.pairs] == ["a/s1", "a/s2"]
    assert matches.unmatched == [f"b: 1 of 2 outputs in {tmp_path / 'out'}"]
