"""Our rows beside the published ones, and nothing compared that cannot be."""

import functools
import json

import pytest

from clearstate.metrics import leaderboard
from clearstate.metrics.leaderboard import COLUMNS, as_markdown, boards, engineering, lines, published
from clearstate.metrics.table import SCORES
from clearstate.models import build


@pytest.fixture
def result(tmp_path):
    def write(name="mine", test_set="voicebank-demand", **mean):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"name": name, "test_set": test_set, "mean": mean, "files": {"a": {}, "b": {}}}))
        return str(path)

    return write


def test_every_published_row_has_a_source_and_plausible_numbers():
    for board in published().values():
        assert board.sort in SCORES
        names = [row.name for row in board.rows]
        assert len(names) == len(set(names))
        for row in board.rows:
            assert row.source and board.sort in row.scores, row.name
            assert 1 <= row.scores.get("pesq_wb", 1) <= 4.65
            assert 0 < row.scores.get("stoi", 0.5) <= 1
            assert all(1 <= row.scores.get(key, 1) <= 5 for key in ("csig", "cbak", "covl"))
            assert row.parameters is None or 1e4 < row.parameters < 1e8
            assert row.macs is None or 1e6 < row.macs < 1e12


def test_our_row_stands_where_its_score_puts_it(result):
    board = boards([result(pesq_wb=3.0, stoi=0.95, csig=4.0)])[0]
    names = [row.name for row in board.rows]
    assert names.index("SEMamba") < names.index("mine") < names.index("SEGAN")
    assert [row.name for row in board.rows if row.ours] == ["mine"]
    rows, notes = lines(board)
    header, ours = rows[0], next(row for row in rows if "mine" in row[0])
    assert ours[header.index("PESQ-WB")] == "3.000" and ours[header.index("source")].startswith("2 files")
    semamba = next(row for row in rows if row[0] == "SEMamba")
    assert semamba[header.index("CSIG")] == "4.77†" and semamba[header.index("PESQ-WB")] == "3.55"
    assert notes[0].startswith("†")


def test_less_is_better_where_it_is(result):
    board = boards([result(test_set="vctk-24k-to-48k", lsd=0.70)])[0]
    assert [row.name for row in board.rows][:3] == ["AP-BWE", "UDM+", "mine"]


def test_test_sets_are_never_mixed(result):
    found = boards([result("a", "voicebank-demand", pesq_wb=3.0), result("b", "home", pesq_wb=4.0)])
    assert [board.test_set for board in found] == ["voicebank-demand", "home"]
    assert [row.name for row in found[1].rows] == ["b"]
    assert len(boards([result("a", pesq_wb=3.0)], with_published=False)[0].rows) == 1


def test_a_row_without_the_score_comes_last(result):
    board = boards([result("silent", stoi=0.9), f"named={result(pesq_wb=9.0)}"])[0]
    assert board.rows[0].name == "named" and board.rows[-1].name == "silent"


def test_a_model_of_ours_brings_its_size_work_and_speed(result, monkeypatch):
    quick = functools.partial(leaderboard.real_time_factor, seconds=0.5, runs=1)
    monkeypatch.setattr(leaderboard, "real_time_factor", quick)
    row = next(row for row in boards([f"live={result(pesq_wb=2.0)}"])[0].rows if row.ours)
    model = build("live")
    assert row.parameters == sum(p.numel() for p in model.parameters())
    assert row.macs and row.macs > row.parameters
    assert row.causal is True
    assert row.latency_ms == 1000 * (model.latency + model.hop) / model.sample_rate
    assert row.rtf and 0 < row.rtf < 10


def test_what_is_no_result_is_refused(tmp_path, result):
    (tmp_path / "other.json").write_text('{"loss": 3}')
    with pytest.raises(ValueError, match="not a result of `clearstate score --json`"):
        boards([str(tmp_path / "other.json")])
    with pytest.raises(ValueError, match="does not exist"):
        boards([str(tmp_path / "gone.json")])


def test_markdown_has_one_table_a_set_of_equal_rows(result):
    page = as_markdown(boards([result(pesq_wb=3.0, csig=4.1)]))
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "**mine**" in page and "† computed" in page


def test_columns_are_scores():
    assert set(COLUMNS) <= set(SCORES)
    assert engineering(999) == "999" and engineering(1e6) == "1 M"
