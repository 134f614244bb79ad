"""clearstate doctor and clearstate models: what is said is what is there."""

import json
import sys

import pytest

from clearstate import ssm
from clearstate.cli import doctor, main, models
from clearstate.models import PRESETS, build, load_model


def told(capsys, *args):
    """Exit code and stdout of the command line."""
    with pytest.raises(SystemExit) as leave:
        main(list(args))
    out, err = capsys.readouterr()
    print(err, file=sys.stderr)  # for the report of a test that fails
    return leave.value.code or 0, out


def test_models_as_json_say_what_the_models_themselves_say(capsys):
    code, out = told(capsys, "models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert list(rows) == list(PRESETS)
    live, row = build("live"), rows["live"]
    assert row["parameters"] == sum(p.numel() for p in live.parameters())
    assert row["causal"] is True
    assert row["latency_ms"] == 1000 * (live.latency + live.hop) / live.sample_rate
    for name, preset in PRESETS.items():  # what is shipped may be smaller than the preset
        if preset.weights:
            assert rows[name]["parameters"] == sum(p.numel() for p in load_model(name).parameters())
    assert row["weights"] is (PRESETS["live"].weights is not None)
    assert {row["task"] for row in rows.values()} <= {"enhance", "separate", "extend"}
    assert all(row["group"] == models.group_of(row["name"]) for row in rows.values())
    assert all(row["licence"] and row["summary"] for row in rows.values())


def test_the_table_names_every_model_in_a_line_even_in_a_pipe(capsys):
    code, out = told(capsys, "models", "--all")
    assert code == 0
    for name in PRESETS:
        [line] = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert f"{PRESETS[name].task}" in line


def test_the_table_begins_with_the_recommended_models_and_ends_with_those_without_weights(capsys):
    _, out = told(capsys, "models", "--all")
    starts = [line.strip() for line in out.splitlines() if line.strip() in models.GROUPS]
    assert starts == list(models.GROUPS)
    names = [line.split()[0] for line in out.splitlines() if line.split()[:1] and line.split()[0] in PRESETS]
    groups = [models.GROUPS.index(models.group_of(name)) for name in names]
    assert groups == sorted(groups)
    assert set(names[:4]) == {"live", "studio", "separate-fast", "extend-fast"}


def test_models_without_weights_are_hidden_and_counted_unless_all_are_asked_for(capsys):
    untrained = [name for name in PRESETS if models.group_of(name) == models.UNTRAINED]
    _, out = told(capsys, "models")
    listed = {line.split()[0] for line in out.splitlines() if line.split()}
    assert untrained and not listed & set(untrained)
    assert set(PRESETS) - set(untrained) <= listed
    assert f"{len(untrained)} models without weights are hidden" in out
    _, out = told(capsys, "models", "--all")
    assert "hidden" not in out


@pytest.fixture
def quick(monkeypatch):
    """Without the measurement, which has a test of its own."""
    monkeypatch.setattr(doctor, "_speed", lambda: iter(()))


def test_doctor_names_the_libraries_the_scan_and_the_codecs(quick, capsys):
    _, out = told(capsys, "doctor")
    lines = {line.split()[1]: line for line in out.splitlines() if not line.startswith(" ")}
    assert lines["python"].split()[2] == ".".join(map(str, sys.version_info[:3]))
    assert f" {ssm.backend()}" in lines["scan"]
    assert all(codec in lines["codecs"] for codec in ("WAV", "FLAC", "OGG", "Opus", "MP3"))
    assert ("ok" if PRESETS["live"].weights else "wrong") == lines["models"].split()[0]


def test_the_slow_scan_is_wrong_with_a_remedy_and_an_exit_code(quick, capsys):
    with ssm.use_backend("reference"):
        code, out = told(capsys, "doctor")
    assert code == 1
    assert "wrong   scan         reference: the slow form" in out
    assert "remedy: unset CLEARSTATE_SCAN" in out


def test_a_missing_extra_is_absent_not_wrong_and_named_with_its_command(quick, capsys, monkeypatch):
    real = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("pesq", "av") else real(name))
    _, out = told(capsys, "doctor")
    assert "absent  metrics" in out and "no pesq" in out
    assert "remedy: pip install 'clearstate[metrics]'" in out
    assert "remedy: pip install 'clearstate[av]'" in out


def test_a_library_that_breaks_on_import_does_not_end_the_examination(quick, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    code, out = told(capsys, "doctor")
    assert code == 1
    assert "wrong   codecs" in out
    assert "models" in out[out.index("codecs") :]


def test_the_speed_is_measured(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    findings = list(doctor._speed())
    assert len(findings) == 2  # both backends
    for finding in findings:
        assert finding.what == "speed"
        assert "x real time" in finding.detail
        assert (finding.state == "ok") is (float(finding.detail.split()[4]) < 1)
