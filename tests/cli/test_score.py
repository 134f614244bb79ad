"""clearstate score, as people type it."""

import csv
import json

import numpy as np
import pytest
import soundfile
from as_typed import in_this_process

RATE = 16_000


def run(*args):
    """Standard output as text: `score` writes no sound there."""
    ran = in_this_process(*args)
    ran.stdout = ran.stdout.decode()
    return ran


def score(*args):
    return run("score", *args)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three pairs, clean/N.wav and out/N.clear.flac, and the noisy input."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("clean", "out", "noisy"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        time = np.arange(RATE) / RATE
        clean = 0.3 * np.sin(2 * np.pi * (150 + 40 * i) * time) * (np.sin(2 * np.pi * 3 * time) > 0)
        clean = clean + 0.001 * rng.standard_normal(RATE)
        noise = 0.03 * rng.standard_normal(RATE)
        soundfile.write(f"clean/{i}.wav", clean, RATE)
        soundfile.write(f"out/{i}.clear.flac", clean + noise / 2**i, RATE)
        soundfile.write(f"noisy/{i}.ogg", clean + 2 * noise, RATE)
    return tmp_path


def test_the_table_the_json_and_the_csv_agree(folders):
    ran = score(
        "--clean", "clean", "--enhanced", "out", "--noisy", "noisy", "--json", "r.json", "--csv", "r.csv", "-j", 2
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads((folders / "r.json").read_text())
    assert set(found["files"]) == {"0", "1", "2"}
    assert {"pesq_wb", "stoi", "si_sdr", "si_sdri", "ssnr", "csig", "cbak", "covl"} <= set(found["mean"])
    for key, mean in found["mean"].items():
        low, high = found["ci95"][key]
        assert low <= mean <= high
    assert found["mean"]["si_sdr"] == pytest.approx(np.mean([f["si_sdr"] for f in found["files"].values()]), abs=1e-5)
    assert f"{found['mean']['pesq_wb']:.3f}" in ran.stdout
    rows = list(csv.DictReader((folders / "r.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == ["0", "1", "2"]
    assert float(rows[1]["snr"]) == pytest.approx(found["files"]["1"]["snr"], abs=1e-4)


def test_what_has_no_partner_is_listed_and_does_not_stop_the_rest(folders):
    (folders / "out" / "2.clear.flac").rename(folders / "out" / "other.flac")
    ran = score("--clean", "clean", "--enhanced", "out", "-s", "snr", "--json", "r.json", "-j", 1)
    assert ran.returncode == 0
    assert "2 files have no partner" in ran.stderr and "other.flac" in ran.stderr
    assert len(json.loads((folders / "r.json").read_text())["unmatched"]) == 2


def test_a_broken_file_makes_the_exit_code_one_and_keeps_the_others(folders):
    (folders / "out" / "1.clear.flac").write_bytes(b"junk")
    ran = score("--clean", "clean", "--enhanced", "out", "-s", "snr", "--json", "r.json", "-j", 1)
    assert ran.returncode == 1
    assert "1 of 3 files could not be scored" in ran.stderr
    found = json.loads((folders / "r.json").read_text())
    assert set(found["files"]) == {"0", "2"} and set(found["failed"]) == {"1"}


def test_groups_and_a_page_with_pictures(folders):
    pytest.importorskip("matplotlib")
    (folders / "meta.json").write_text(json.dumps([{"file": str(i), "snr_db": 5 * (i % 2)} for i in range(3)]))
    options = ("--clean", "clean", "--enhanced", "out", "-s", "snr,si_sdr", "--meta", "meta.json", "-j", 1)
    ran = score(*options, "--report", "r.html", "--name", "mine <3")
    assert ran.returncode == 0, ran.stderr
    assert "snr_db" in ran.stdout
    page = (folders / "r.html").read_text()
    assert page.count("data:image/png") == 3 and page.count("<audio") == 6
    assert "mine &lt;3" in page and "By snr_db" in page
    assert page.index("Best by SI-SDR: 2") < page.index("Worst by SI-SDR: 0")
    ran = score(*options, "--report", "r.md")
    assert ran.returncode == 0, ran.stderr
    assert (folders / "r_files" / "worst.png").read_bytes().startswith(b"\x89PNG")
    assert "![Best by SI-SDR" in (folders / "r.md").read_text()


def test_a_learned_score_without_weights_is_not_a_number(folders):
    ran = score("--clean", "clean", "--enhanced", "out", "-s", "snr,utmos", "-j", 1, "--json", "r.json")
    assert ran.returncode == 0
    assert "n/a" in ran.stdout and "no weights: name them with --weights utmos=FILE" in ran.stdout
    found = json.loads((folders / "r.json").read_text())
    assert "utmos" not in found["mean"] and "no weights" in found["unavailable"]["utmos"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--clean", "nowhere"), "--clean nowhere does not exist"),
        (("-s", "pesk_wb"), "did you mean 'pesq_wb'?"),
        (("-s", "si_sdri"), "give its folder with --noisy"),
        (("--report", "r.pdf"), "expected .html or .md"),
        (("--weights", "mos=x"), "expected NAME=FILE with NAME one of dnsmos"),
        (("--asr", "pocketsphinx"), "--asr needs --transcripts"),
        (("--json", "."), "is a folder"),
        (("--meta", "meta.json"), "--meta meta.json names none of the files: it has 'z', the files are '0', '1', '2'"),
    ],
)
def test_wrong_use_is_told_before_any_work(folders, extra, message):
    (folders / "meta.json").write_text('[{"file": "z", "snr_db": 3}]')
    ran = score("--clean", "clean", "--enhanced", "out", *extra)
    assert ran.returncode == 2
    assert message in " ".join(ran.stderr.split())


def test_no_pair_at_all_is_a_failure_that_shows_the_names(folders):
    for file in (folders / "out").iterdir():
        file.rename(folders / "out" / f"x{file.name}")
    ran = score("--clean", "clean", "--enhanced", "out")
    assert ran.returncode == 1
    assert "no file of out has a partner in clean" in ran.stderr and "x0.clear.flac" in ran.stderr


def test_a_result_goes_onto_the_leaderboard(folders):
    assert score("--clean", "clean", "--enhanced", "out", "-s", "pesq_wb", "-j", 1, "--json", "r.json").returncode == 0
    board = ("leaderboard", "mine=r.json", "--set")
    ran = run(*board, "voicebank-demand", "--markdown", "b.md")
    assert ran.returncode == 0, ran.stderr
    assert "mine" in ran.stdout and "SEMamba" in ran.stdout
    assert (folders / "b.md").read_text().startswith("## VoiceBank+DEMAND")
    ran = run(*board, "elsewhere")
    assert ran.returncode == 0 and "no published results for test set 'elsewhere'" in ran.stderr
    ran = run("leaderboard", "gone.json")
    assert ran.returncode == 2 and "gone.json does not exist" in ran.stderr
