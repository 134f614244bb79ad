"""Which file goes with which: tools rename, corpora have habits, and nothing is guessed."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.metrics.files import Pair, bare, for_pairs, load, match

RATE = 16_000


def write(path: Path, seconds: float = 0.1, rate: int = RATE, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return path


def names(matches) -> dict[str, str]:
    return {pair.name: pair.enhanced.name for pair in matches.pairs}


@pytest.mark.parametrize(
    ("clean", "enhanced"),
    [
        ("p232_001.wav", "p232_001.flac"),
        ("p232_001.wav", "p232_001.clear.wav"),
        ("p232_001.wav", "p232_001_enhanced.wav"),
        ("P232_001.WAV", "enhanced_p232_001-est.wav"),
        ("talk_clean.wav", "talk_noisy.clear.wav"),
        ("clean_fileid_7.wav", "book_00042_snr5_fileid_7.wav"),
    ],
)
def test_names_agree_but_for_extension_and_what_tools_add(tmp_path, clean, enhanced):
    write(tmp_path / "c" / clean)
    write(tmp_path / "e" / enhanced)
    matches = match(tmp_path / "c", tmp_path / "e")
    assert names(matches) == {Path(clean).stem: enhanced}
    assert not matches.unmatched


def test_different_names_are_not_matched_and_both_are_listed(tmp_path):
    write(tmp_path / "c" / "a.wav")
    write(tmp_path / "c" / "b.wav")
    write(tmp_path / "e" / "b.wav")
    write(tmp_path / "e" / "c.wav")
    matches = match(tmp_path / "c", tmp_path / "e")
    assert names(matches) == {"b": "b.wav"}
    assert [line.partition(":")[0] for line in matches.unmatched] == [
        str(tmp_path / "c/a.wav"),
        str(tmp_path / "e/c.wav"),
    ]


def test_the_exact_name_wins_over_a_suffixed_one(tmp_path):
    write(tmp_path / "c" / "a.wav")
    write(tmp_path / "e" / "a.wav")
    write(tmp_path / "e" / "a_enhanced.wav")
    matches = match(tmp_path / "c", tmp_path / "e")
    assert names(matches) == {"a": "a.wav"}
    assert "a_enhanced.wav" in matches.unmatched[0]


def test_two_candidates_are_left_alone_with_the_reason(tmp_path):
    write(tmp_path / "c" / "a.wav")
    write(tmp_path / "e" / "a_est.wav")
    write(tmp_path / "e" / "a.clear.wav")
    matches = match(tmp_path / "c", tmp_path / "e")
    assert not matches.pairs
    assert any("could go with 2 files" in line for line in matches.unmatched)


def test_folders_inside_keep_files_of_one_name_apart(tmp_path):
    for folder in ("day1", "day2"):
        write(tmp_path / "c" / folder / "a.wav")
        write(tmp_path / "e" / folder / "a_enhanced.flac")
    matches = match(tmp_path / "c", tmp_path / "e")
    assert [(pair.name, pair.enhanced.parent.name) for pair in matches.pairs] == [
        ("day1/a", "day1"),
        ("day2/a", "day2"),
    ]


def test_the_noisy_input_joins_by_the_same_rules(tmp_path):
    write(tmp_path / "c" / "a.wav")
    write(tmp_path / "e" / "a.clear.wav")
    noisy = write(tmp_path / "n" / "noisy_a.ogg")
    assert match(tmp_path / "c", tmp_path / "e", tmp_path / "n").pairs[0].noisy == noisy


def test_two_files_are_a_pair_whatever_their_names(tmp_path):
    clean, enhanced = write(tmp_path / "x.wav"), write(tmp_path / "y.wav")
    assert match(clean, enhanced).pairs == [Pair("x", clean, enhanced, None)]


def test_a_folder_without_audio_is_an_error_that_says_what_was_looked_for(tmp_path):
    write(tmp_path / "c" / "a.wav")
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match=r"contains no audio: looked for .*\.flac"):
        match(tmp_path / "c", tmp_path / "e")
    with pytest.raises(ValueError, match="does not exist"):
        match(tmp_path / "c", tmp_path / "missing")


def test_a_stem_made_of_tool_words_keeps_one(tmp_path):
    assert bare("clean") == "clean"
    assert bare("noisy_clean") in {"clean", "noisy"}


def test_rates_and_lengths_and_channels_that_differ_are_put_right_with_a_note(tmp_path):
    clean = write(tmp_path / "c.wav", seconds=0.5)
    enhanced = write(tmp_path / "e.wav", seconds=0.4, rate=48_000, channels=2)
    loaded = load(Pair("c", clean, enhanced))
    assert loaded.rate == RATE
    assert len(loaded.clean) == len(loaded.enhanced) == 6400
    assert loaded.notes == (
        "enhanced has 2 channels, mixed down",
        "enhanced resampled from 48000 to 16000 Hz",
        "enhanced is 1600 samples shorter",
    )


def test_a_broken_file_is_named(tmp_path):
    clean = write(tmp_path / "c.wav")
    (tmp_path / "e.wav").write_bytes(b"not audio")
    with pytest.raises(ValueError, match=r"e\.wav: begins with .*expected an audio file"):
        load(Pair("c", clean, tmp_path / "e.wav"))


def test_lists_about_files_are_matched_like_files():
    entries = {"p1.wav": "one", "p2_noisy": "two", "exact.clean": "three", "p1": "four"}
    assert for_pairs(entries, ["p1", "p2.clean", "exact.clean", "other"]) == {
        "p1": "four",
        "p2.clean": "two",
        "exact.clean": "three",
    }
    assert for_pairs({"day/p3.flac": "x"}, ["day/p3"]) == {"day/p3": "x"}
    assert for_pairs({"000": "mixture"}, ["000/s1", "000/s2"]) == {"000/s1": "mixture", "000/s2": "mixture"}


def test_two_codings_of_one_accent_are_one_name(tmp_path):
    for folder, name in (("c", "caf\u00e9"), ("e", "cafe\u0301.clear"), ("c", "u\u0308"), ("e", "\u00fc")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.wav").touch()
    matches = match(tmp_path / "c", tmp_path / "e")
    assert len(matches.pairs) == 2 and not matches.unmatched
