"""Inspect files: the report of a real file, the models' estimates, and what is told about damage."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.tasks.findings import find
from clearstate.tasks.inspect import Inspector, inspect, simultaneous, speech_in, took_voice

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
RATE = 16_000


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


@pytest.fixture(scope="module")
def clean():
    return soundfile.read(CLIPS / "chainsaw_5db.clean.flac")[0]


@pytest.mark.parametrize("name, snr", [("helicopter_0db", 0), ("chainsaw_5db", 5), ("fire_10db", 10)])
def test_the_noise_of_the_examples_is_measured_within_3_db(inspector, name, snr):
    found = inspector.inspect_file(CLIPS / f"{name}.noisy.flac")
    assert found.snr_db == pytest.approx(snr, abs=3)
    assert found.findings[0].kind == "noise"


@pytest.mark.parametrize("name", ["helicopter_0db", "chainsaw_5db", "fire_10db"])
def test_clean_speech_has_nothing_wrong_that_restore_would_touch(inspector, name):
    found = inspector.inspect_file(CLIPS / f"{name}.clean.flac")
    assert found.snr_db > 30 and {one.kind for one in found.findings} <= {"speakers"}


def test_the_report_says_what_the_file_is(inspector, clean, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([clean, 0.5 * clean], 1), RATE, "PCM_24")
    found = inspector.inspect_file(tmp_path / "a.wav")
    assert (found.container, found.codec, found.sample_rate, found.channels) == ("WAV", "PCM_24", RATE, 2)
    assert found.seconds == pytest.approx(len(clean) / RATE) and found.stereo == "stereo"
    assert found.peak_dbfs == pytest.approx(20 * np.log10(np.abs(clean).max()), abs=0.01)
    assert found.true_peak_dbfs >= found.peak_dbfs


def test_the_codec_of_a_file_that_pyav_reads_is_named(tmp_path, clean):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.m4a"), "w") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(clean[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        file.mux([*stream.encode(frame), *stream.encode()])
    found = inspect(tmp_path / "a.m4a", models=False)
    assert (found.container, found.codec) == ("M4A", "aac")


def test_the_json_report_holds_only_json(inspector, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    entry = json.loads(json.dumps(inspector.inspect_file(tmp_path / "a.wav").as_json(), allow_nan=False))
    assert entry["loudness_lufs"] is None and entry["speakers"] == 0 and entry["verdict"] == "digital silence"


def test_without_models_the_ratio_is_that_to_the_steady_noise(tmp_path, clean):
    x = clean + np.random.default_rng(0).standard_normal(len(clean)) * clean.std() * 10**-0.5
    soundfile.write(tmp_path / "a.wav", x, RATE)
    found = inspect(tmp_path / "a.wav", models=False)
    assert found.snr_db == found.steady_snr_db == pytest.approx(10, abs=1)
    assert found.speakers is None


def test_two_voices_at_once_are_counted(inspector, shared_data, tmp_path):
    right = 0
    for number in range(8):
        x, y = (soundfile.read(shared_data / f"valid/separate/{s}/{number:03d}.flac")[0] for s in ("s1", "s2"))
        for voices, speakers in ((x, 1), (x + y, 2)):
            soundfile.write(tmp_path / "a.wav", voices, RATE)
            right += inspector.inspect_file(tmp_path / "a.wav").speakers == speakers
    assert right >= 12  # of 16; 14 when this was written


def test_noise_without_speech_has_no_speaker(inspector, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(5 * RATE), RATE)
    found = inspector.inspect_file(tmp_path / "a.wav")
    assert found.speakers == 0 and "noise" not in {one.kind for one in found.findings}


def test_a_file_that_is_cut_off_is_reported(tmp_path, clean):
    path = tmp_path / "a.wav"
    soundfile.write(path, clean, RATE)
    path.write_bytes(path.read_bytes()[:-40_000])
    found = inspect(path, models=False)
    assert "broken after" in found.broken and found.findings[0].kind == "broken"


def test_progress_ends_at_the_length(tmp_path, clean):
    soundfile.write(tmp_path / "a.wav", clean, RATE)
    seen = []
    Inspector(models=False).inspect_file(tmp_path / "a.wav", progress=lambda *done: seen.append(done))
    assert seen[-1] == pytest.approx((len(clean) / RATE,) * 2)


def test_memory_does_not_grow_with_the_length(tmp_path):
    """All that is kept for each second is the power of ten steps of the loudness."""
    kept = []
    for seconds in (300, 1_200):
        soundfile.write(tmp_path / "a.flac", 0.01 * np.random.default_rng(0).standard_normal(seconds * 4_000), 4_000)
        measured = inspect(tmp_path / "a.flac", models=False).measurement
        kept.append(sum(part.size for part in measured.excerpts))
        assert measured.spectrogram.shape[1] <= 960 and len(measured.loudness) <= 10 * seconds
    assert max(kept) <= 64 * 4_000


# ----------------------------------------------------------------------------------------------------------- findings


@pytest.fixture(scope="module")
def fine(clean, tmp_path_factory):
    path = tmp_path_factory.mktemp("fine") / "my talk.wav"
    soundfile.write(path, clean, RATE)
    return replace(inspect(path, models=False), speakers=1, snr_db=40.0)


@pytest.mark.parametrize(
    "changed, kind, verb",
    [
        ({"dc_offset": [0.02]}, "offset", "restore"),
        ({"clipped_share": 0.01, "clipping_dbfs": -0.1}, "clipping", "restore"),
        ({"hum_hz": 50, "hum_dbfs": -40.0}, "hum", "restore"),
        ({"snr_db": 8.0}, "noise", "enhance"),
        ({"bandwidth_hz": 3_400.0}, "band", "extend"),
        ({"stereo": "dead channel", "dead_channels": [2], "channels": 2}, "channel", "restore"),
        ({"speakers": 2}, "speakers", "separate"),
        ({"stereo": "inverted", "channels": 2}, "inverted", None),
        ({"reverberation_seconds": 1.1}, "reverberation", None),
        ({"loudness_lufs": -50.0}, "quiet", None),
        ({"music_share": 0.9}, "music", None),
        ({"peak_dbfs": None}, "silent", None),
    ],
)
def test_each_problem_has_a_name_and_the_command_that_helps(fine, changed, kind, verb):
    assert find(fine) == []
    (found,) = find(replace(fine, **changed))
    assert found.kind == kind
    assert found.command is None if verb is None else found.command.startswith(f"clearstate {verb} '")


@pytest.mark.parametrize(
    "changed",
    [
        {"hum_hz": 50, "hum_dbfs": -80.0},  # below what can be heard
        {"snr_db": 25.0},
        {"dc_offset": [0.001]},
        {"clipped_share": 1e-5, "clipping_dbfs": 0.0},
        {"bandwidth_hz": 7_500.0},
        {"reverberation_seconds": 0.4},
    ],
)
def test_what_does_not_matter_is_not_a_problem(fine, changed):
    assert find(replace(fine, **changed)) == []


def test_music_is_never_enhanced(fine):
    assert [one.kind for one in find(replace(fine, music_share=0.9, snr_db=3.0))] == ["music"]


# ------------------------------------------------------------------------------------------------------------- doubts


VOICE = speech_in(np.zeros(RATE), RATE)._replace(speech=0.9, snr=23.0, pitch=200.0)


@pytest.mark.parametrize(
    "removed, heard, doubted",
    [
        ({"snr": 31.0}, {}, True),  # cleaner than the recording: a part of the voice
        ({"snr": 10.0}, {"snr": 35.0}, True),  # the recording has no noise to speak of
        ({"snr": 24.0}, {}, False),
        ({"snr": 31.0, "pitch": 235.0}, {}, False),  # another voice
        ({"snr": 31.0, "pitch": None}, {}, False),
        ({"snr": 31.0, "speech": 0.3}, {}, False),
        ({"snr": 31.0}, {"pitch": None}, False),
    ],
)
def test_the_model_is_doubted_where_it_removed_the_voice_itself(removed, heard, doubted):
    assert took_voice(VOICE._replace(**heard), VOICE._replace(**removed)) == doubted


def tones(levels, seconds=4):
    """Two outputs (2, n), each with a tone at these levels in dB in the first and the second half; None is silence."""
    rows = []
    for row, (first, second) in enumerate(levels):
        tone = np.sin(2 * np.pi * (300 + 200 * row) * np.arange(seconds * RATE // 2) / RATE)
        rows.append(
            np.concatenate([tone * (0.0 if level is None else 10 ** (level / 20)) for level in (first, second)])
        )
    return np.array(rows)


@pytest.mark.parametrize(
    "levels, together",
    [
        ([(0, 0), (0, 0)], True),
        ([(0, 0), (-10, -10)], True),
        ([(0, 0), (-20, -20)], False),  # what a separation leaves of a single voice
        ([(0, None), (None, 0)], False),  # in turn
        ([(0, 0), (None, 0)], True),
        ([(0, 0), (None, None)], False),
        ([(None, None), (None, None)], False),
    ],
)
def test_two_voices_are_together_if_both_are_loud_at_the_same_time(levels, together):
    assert simultaneous(tones(levels), RATE)[1] == together
