"""What the buttons of the app do, without a page: results as the command line writes them, players, limits, errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.app import work
from clearstate.app.catalogue import cards, choices, examples, models, table
from clearstate.app.players import MOST_CHANGE_DB, PEAK, equally_loud
from clearstate.app.work import Limits
from clearstate.audio.inspection.loudness import Loudness
from clearstate.cli import main
from clearstate.models import PRESETS

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
NOISY = CLIPS / "fire_10db.noisy.flac"


class Shares(list):
    """A progress callback that keeps what it is told."""

    def __call__(self, share: float, text: str) -> None:
        self.append(share)


def command(*words) -> int:
    with pytest.raises(SystemExit) as leave:
        main([str(word) for word in words])
    return leave.value.code or 0


def recording(path: Path, seconds: float = 1.5, rate: int = 44_100, channels: int = 2, **form) -> Path:
    noise = 0.1 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))
    soundfile.write(path, noise, rate, **form)
    return path


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, always_2d=True)[0]


def lufs(path: Path) -> float:
    x, rate = soundfile.read(path, always_2d=True)
    loudness = Loudness(rate, x.shape[1])
    loudness.push(x.T)
    return loudness.integrated()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("talk.wav", {}, []),
        ("talk.mp3", {"strength": 12.0}, ["--strength", "12"]),
        ("talk.flac", {"pcs": True, "highs": False}, ["--pcs", "--no-highs"]),
    ],
)
def test_an_enhanced_file_is_the_command_line_s(tmp_path, name, options, words):
    source, folder, shares = recording(tmp_path / name), tmp_path / "app", Shares()
    folder.mkdir()
    settings = {"model": "studio", "strength": None, "pcs": False, "highs": True} | options
    result = work.enhance(source, folder, Limits(), shares, **settings)
    own, theirs = tmp_path / f"cli{source.suffix}", result.files[0]
    assert command("enhance", source, "-o", own, "--backend", "onnx", *words) == 0
    assert theirs.name == f"talk.clear{source.suffix}"
    np.testing.assert_array_equal(samples(theirs), samples(own))
    assert np.abs(samples(theirs) - samples(source)).max() > 0.01
    assert shares == sorted(shares)
    assert shares[-1] <= 1


def test_what_was_removed_is_the_difference(tmp_path):
    source = recording(tmp_path / "talk.wav", subtype="FLOAT")
    result = work.enhance(source, tmp_path, Limits(), Shares(), model="live", strength=None, pcs=False, highs=True)
    x, y, removed = (samples(path) for path in (source, result.files[0], tmp_path / "removed.wav"))
    np.testing.assert_allclose(x - y, removed, atol=1e-6)
    before, played = samples(result.players[0]), samples(result.players[2])
    np.testing.assert_allclose(played * x.std() / before.std(), removed, atol=1e-3)  # at the gain of the player before


def test_separated_files_are_the_command_line_s_and_name_no_folder(tmp_path):
    source = next(iter(examples(tmp_path)["separate"])).file
    folder = tmp_path / "app"
    folder.mkdir()
    result = work.separate(source, folder, Limits(), Shares(), model="separate-fast", denoise=None)
    assert command("separate", source, "-o", tmp_path / "cli", "--backend", "onnx") == 0
    names = ["two_voices.speaker1.flac", "two_voices.speaker2.flac", "two_voices.timeline.json"]
    assert [file.name for file in result.files] == names
    for name in names[:2]:
        np.testing.assert_array_equal(samples(folder / name), samples(tmp_path / "cli" / name))
    own, theirs = (json.loads((place / names[2]).read_text()) for place in (tmp_path / "cli", folder))
    assert theirs == own | {"input": "two_voices.flac"}
    assert result.picture.read_bytes().startswith(b"\x89PNG")


def test_an_extended_file_is_the_command_line_s(tmp_path):
    source = examples(tmp_path)["extend"][0].file
    result = work.extend(source, tmp_path, Limits(), Shares(), model="extend-fast", to=44_100)
    own = tmp_path / "cli.flac"
    assert command("extend", source, "-o", own, "--to", "44100", "--backend", "onnx") == 0
    np.testing.assert_array_equal(samples(result.files[0]), samples(own))
    assert "kHz; the model added those above" in result.note


def test_a_comparison_has_a_row_a_player_and_a_file_for_every_model(tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(PRESETS["live"].weights, mine)
    result = work.compare(NOISY, tmp_path, Limits(), Shares(), models=["live", str(mine)])
    assert [row[0] for row in result.table] == ["", "before", "live", "mine"]
    assert len(result.players) == 3
    assert [file.name for file in result.files] == ["fire_10db.noisy.live.flac", "fire_10db.noisy.mine.flac"]
    if "DNSMOS BAK" in result.table[0]:  # a model that removes noise has a better background
        column = result.table[0].index("DNSMOS BAK")
        assert float(result.table[2][column]) > float(result.table[1][column]) + 0.3
    else:
        assert "Not installed: DNSMOS" in result.note


def test_scores_that_are_not_installed_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(work.scoring, "available", lambda keys, named: ([], {}, dict.fromkeys(keys, "why")))
    result = work.compare(NOISY, tmp_path, Limits(), Shares(), models=["live"])
    assert result.table[0] == ["", "speed"]
    assert "Not installed: DNSMOS SIG" in result.note


@pytest.mark.parametrize(
    ("form", "limits", "message"),
    [
        ({"seconds": 2.0}, Limits(minutes=1 / 60), "longer than 0.0166667 minutes"),
        ({"seconds": 2.0}, Limits(megabytes=0.1), "this app accepts 0.1 MB"),
    ],
)
def test_a_recording_beyond_the_limits_is_refused_before_the_work(tmp_path, form, limits, message):
    source, shares = recording(tmp_path / "talk.wav", **form), Shares()
    with pytest.raises(ValueError, match=message):
        work.extend(source, tmp_path, limits, shares, model="extend-fast", to=48_000)
    assert shares == []


def test_the_length_of_a_recording_whose_header_does_not_tell_is_counted(tmp_path, monkeypatch):
    source = recording(tmp_path / "talk.wav", seconds=3.0)
    opened = work.open_reader

    def without_length(path):
        reader = opened(path)
        object.__setattr__(reader.info, "seconds", None)
        return reader

    monkeypatch.setattr(work, "open_reader", without_length)
    assert work.checked(source, Limits()) == pytest.approx(3.0, abs=0.01)
    with pytest.raises(ValueError, match="longer than"):
        work.checked(source, Limits(minutes=2 / 60))


def test_a_truncated_file_is_done_as_far_as_it_can_be_read(tmp_path):
    source = tmp_path / "talk.wav"
    recording(source, seconds=3.0)
    source.write_bytes(source.read_bytes()[:-200_000])
    result = work.enhance(source, tmp_path, Limits(), Shares(), model="live", strength=None, pcs=False, highs=True)
    assert result.note.startswith("talk.wav is damaged: it could be read up to")
    assert 0.5 < soundfile.info(result.files[0]).duration < 3.0


@pytest.mark.parametrize("level", [1e-2, 0.5])
def test_players_are_equally_loud_and_do_not_clip(tmp_path, level):
    rng = np.random.default_rng(0)
    files = []
    for name, gain in (("one", level), ("two", level / 3)):
        files.append(tmp_path / f"{name}.wav")
        soundfile.write(files[-1], gain * rng.uniform(-1, 1, 32_000), 16_000, subtype="FLOAT")
    seconds = []
    copies = equally_loud(files, tmp_path, seconds.append)
    assert lufs(copies[0]) == pytest.approx(lufs(copies[1]), abs=0.1)
    assert max(np.abs(samples(copy)).max() for copy in copies) <= PEAK + 1e-3
    assert seconds[-1] == pytest.approx(8.0)  # two recordings of 2 s, twice


def test_near_silence_stays_quiet_and_silence_is_played(tmp_path):
    x = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000)
    for name, gain in (("one", 1.0), ("two", 0.02), ("three", 0.0)):
        soundfile.write(tmp_path / f"{name}.wav", gain * x, 16_000, subtype="FLOAT")
    files = [tmp_path / f"{name}.wav" for name in ("one", "two", "three")]
    one, two, three = equally_loud(files, tmp_path, lambda seconds: None)
    assert lufs(one) - lufs(two) == pytest.approx(34 - MOST_CHANGE_DB, abs=0.5)
    assert not samples(three).any()


@pytest.mark.parametrize(("rate", "channels", "form"), [(96_000, 1, (48_000, 1)), (16_000, 6, (16_000, 2))])
def test_players_get_what_browsers_play(tmp_path, rate, channels, form):
    source = recording(tmp_path / "many.wav", 0.5, rate, channels)
    info = soundfile.info(equally_loud([source], tmp_path, lambda seconds: None)[0])
    assert (info.samplerate, info.channels) == form
    assert info.duration == pytest.approx(0.5)


def test_the_lists_offer_what_can_run_and_name_licences(monkeypatch):
    assert models("enhance")[0] == "live"
    assert models("enhance", "semamba-basic-causal")[:2] == ["semamba-basic-causal", "live"]
    assert "extend-fast" in models("extend")
    assert ("mambawave (CC BY-NC-SA 4.0)", "mambawave") in choices(models("extend"))
    assert choices(["live", "studio", "saf"])[:2] == [("live (fast)", "live"), ("studio (best quality)", "studio")]
    monkeypatch.setattr("clearstate.app.catalogue.has_torch", lambda: False)
    assert models("separate") == ["separate-fast"]
    assert all(f"| {name} |" in table() for name in PRESETS)
    assert "](../" not in "".join(cards().values())
