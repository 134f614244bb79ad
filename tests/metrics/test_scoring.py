"""Many pairs: one process or two give the same, the traps have a value and a count, means come with intervals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.metrics.files import Pair, match
from clearstate.metrics.results import Results, read_records, to_json_text, write
from clearstate.metrics.scoring import FileScores, Options, available, score_pair, score_pairs
from clearstate.metrics.summary import summarise
from clearstate.metrics.table import SCORES, choose

RATE = 16_000
KEYS = tuple(choose(["default"], noisy=False))


@pytest.fixture
def write_pair(tmp_path, make_pair):
    """Write clean and enhanced (or what is given) and return the pair."""

    def write_it(name="a", *, seconds=1.5, rate=RATE, enhanced=None, clean=None, seed=0) -> Pair:
        made_clean, noisy = make_pair(seconds=seconds, seed=seed)
        signals = {"clean": made_clean if clean is None else clean, "enhanced": noisy if enhanced is None else enhanced}
        for folder, x in signals.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            soundfile.write(tmp_path / folder / f"{name}.wav", x, rate, subtype="FLOAT")
        return Pair(name, tmp_path / "clean" / f"{name}.wav", tmp_path / "enhanced" / f"{name}.wav")

    return write_it


def test_two_processes_give_what_one_gives(write_pair):
    pairs = [write_pair(str(i), seconds=1.5, seed=i) for i in range(4)]
    options = Options(("pesq_wb", "stoi", "si_sdr", "wss"))
    alone = {file.name: file for file in score_pairs(pairs, options, jobs=1)}
    together = {file.name: file for file in score_pairs(pairs, options, jobs=2)}
    assert len(alone) == 4
    for name, file in alone.items():  # sums may round otherwise where memory is aligned otherwise
        assert together[name].scores == pytest.approx(file.scores, rel=1e-9)
        assert together[name].error is file.error is None


def test_every_default_score_comes_out(write_pair):
    file = score_pair(write_pair(seconds=2), Options(KEYS))
    assert set(file.scores) == set(KEYS)
    assert all(math.isfinite(value) for value in file.scores.values())


def test_improvements_are_differences(write_pair, make_pair, tmp_path):
    pair = write_pair()
    clean, noisy = make_pair(seconds=1.5)
    soundfile.write(tmp_path / "half.wav", clean + 0.5 * (noisy - clean), RATE, subtype="FLOAT")
    better = Pair("a", pair.clean, tmp_path / "half.wav", pair.enhanced)
    scores = score_pair(better, Options(("si_sdr", "si_sdri", "sdri"))).scores
    assert scores["si_sdri"] == pytest.approx(20 * math.log10(2), abs=0.1)
    assert scores["sdri"] == pytest.approx(20 * math.log10(2), abs=0.3)


def test_the_traps_have_a_value_and_a_count(write_pair, make_pair):
    clean, noisy = make_pair(seconds=1.5)
    pairs = [
        write_pair("good"),
        write_pair("silent_reference", clean=np.zeros_like(clean)),
        write_pair("silent_output", enhanced=np.zeros_like(clean)),
        write_pair("short", clean=clean[8000:11_000], enhanced=noisy[8000:11_000]),
        write_pair("tiny", clean=clean[8000:8001], enhanced=noisy[8000:8001]),
    ]
    results = Results([*score_pairs(pairs, Options(KEYS))])
    assert not results.failed
    assert results.undefined("pesq_wb") == 3
    assert results.summary("pesq_wb").files == 2  # the good one, and the silent output at the bottom of the scale
    assert [file.name for file in results.scored if file.silent] == ["silent_output"]
    written = json.loads(to_json_text(results))
    assert written["files"]["silent_output"]["pesq_wb"] == 1
    assert written["files"]["silent_reference"]["pesq_wb"] is None
    assert written["undefined"]["pesq_wb"] == 3
    assert written["silent_outputs"] == ["silent_output"]
    assert "NaN" not in to_json_text(results)


def test_a_late_output_is_warned_about_with_what_it_costs(write_pair, make_pair):
    _, noisy = make_pair(seconds=1.5, snr_db=25)
    file = score_pair(write_pair(enhanced=np.r_[0, noisy[:-1]]), Options(("si_sdr",)))
    assert len(file.notes) == 1 and file.notes[0].startswith("enhanced is 1 sample late: SI-SDR")
    assert score_pair(write_pair(enhanced=noisy), Options(("si_sdr",))).notes == ()


def test_another_rate_is_resampled_for_pesq_with_a_note(write_pair, make_pair):
    clean, noisy = (np.repeat(x, 2) for x in make_pair(seconds=1.5))
    file = score_pair(write_pair(clean=clean, enhanced=noisy, rate=2 * RATE), Options(("pesq_wb", "lsd_high")))
    assert file.notes == ("PESQ and the composites on both resampled from 32000 to 16000 Hz",)
    assert 1 < file.scores["pesq_wb"] < 4.7


def test_an_unreadable_file_fails_alone(write_pair):
    pairs = [write_pair("a"), write_pair("b")]
    pairs[0].enhanced.write_bytes(b"")
    results = Results([*score_pairs(pairs, Options(("snr",)))])
    assert [file.name for file in results.failed] == ["a"]
    assert results.summary("snr").files == 1


def test_the_bootstrap_interval_is_that_of_the_mean():
    """Of many normal values it must come near mean +- 1.96 s / sqrt(n); 2000 resamples know its ends to about 3 %."""
    values = np.random.default_rng(0).normal(3, 2, 400)
    s = summarise(values)
    half = 1.96 * values.std() / 20
    assert s.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert s.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert summarise(values) == s  # seeded
    skewed = summarise(np.r_[np.zeros(30), 10.0])  # one outlier: the interval knows which side it lies on
    assert skewed.high - skewed.mean > 1.5 * (skewed.mean - skewed.low)


def test_undefined_values_are_left_out_and_weights_count():
    assert summarise([1.0, math.nan, 3.0]) == pytest.approx((2, 1, 3, 2))
    assert summarise([50.0, 0.0], weights=[1, 9]).mean == 5
    assert summarise([math.nan]).files == 0
    assert summarise([2.5]) == (2.5, 2.5, 2.5, 1)


def test_groups_follow_the_metadata_and_add_up(tmp_path):
    records = [{"task": "denoise", "file": f"{i:03d}", "snr_db": [-5, 5, 10][i % 3]} for i in range(6)]
    records += [{"task": "separate", "file": "000", "snr_db": 99}]
    meta = tmp_path / "valid.json"
    meta.write_text(json.dumps(records))
    found = read_records(meta, tmp_path / "denoise" / "clean")
    assert len(found) == 6
    files = [FileScores(f"{i:03d}", {"snr": float(i)}) for i in range(6)]
    results = Results(files, records=found, by=("snr_db", "speaker"))
    assert list(results.groups()) == ["snr_db"]
    assert list(results.groups()["snr_db"]) == ["-5", "5", "10"]  # as numbers, not as words
    written = results.as_json()["groups"]["snr_db"]
    assert written["-5"]["mean"]["snr"] == 1.5
    assert sum(group["count"]["snr"] for group in written.values()) == 6


def test_metadata_of_another_form_is_refused(tmp_path):
    (tmp_path / "m.json").write_text('[{"snr": 3}]')
    with pytest.raises(ValueError, match="neither 'file' nor 'name'"):
        read_records(tmp_path / "m.json", tmp_path)
    (tmp_path / "m.json").write_text('[{"file": "a"}, {"file": "a"}]')
    with pytest.raises(ValueError, match="two objects are called 'a'"):
        read_records(tmp_path / "m.json", tmp_path)


def test_an_unknown_score_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'si_sdr'"):
        choose(["sisdr"], noisy=False)
    with pytest.raises(ValueError, match="--noisy"):
        choose(["si_sdri"], noisy=False)
    assert choose(["stoi", "pesq_wb"], noisy=False) == ["pesq_wb", "stoi"]
    assert "si_sdri" in choose(["default"], noisy=True)


def test_what_cannot_be_had_is_said_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.delenv("CLEARSTATE_METRIC_WEIGHTS", raising=False)
    have, weights, missing = available(["snr", "nisqa", "utmos", "scoreq"], {"utmos": tmp_path / "gone.onnx"})
    assert have == ["snr"] and weights == {}
    assert missing["nisqa"].startswith("no weights: name them with --weights nisqa=FILE")
    assert "gone.onnx is neither a file nor a folder" in missing["utmos"]
    assert "adapt_nr_telephone.onnx" in missing["scoreq"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "out.json"
    target.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_every_score_has_a_place_in_the_table(shared_data):
    """On real pairs too: matched by name, all defined."""
    folder = shared_data / "valid" / "denoise"
    pairs = match(folder / "clean", folder / "noisy").pairs
    assert len(pairs) == 100
    file = score_pair(pairs[0], Options(KEYS))
    assert set(file.scores) == set(KEYS) <= set(SCORES)
    assert isinstance(Path(file.name), Path) and not any(map(math.isnan, file.scores.values()))
