"""Restore files: the right choice for known damage, clean files untouched, and the guarantees of `enhance`."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clearstate.audio import tags
from clearstate.audio.io import BrokenOffError
from clearstate.tasks.findings import STEPS
from clearstate.tasks.restore import Restorer

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT / "examples" / "clips"
RATE = 16_000

spec = importlib.util.spec_from_file_location("benchmark_restore", ROOT / "benchmarks" / "restore.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def restorer():
    return Restorer()


@pytest.fixture(scope="module")
def clean():
    return soundfile.read(CLIPS / "chainsaw_5db.clean.flac")[0]


@pytest.mark.parametrize("case", list(benchmark.cases(count=18)), ids=lambda case: case.name)
def test_the_steps_are_those_that_the_damage_needs(restorer, tmp_path, case):
    """A part of the labelled set of benchmarks/restore.py, which checks the whole of it."""
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, case.damaged.T, case.rate, "PCM_16")
    done = restorer.restore_file(source, target)
    assert {step.kind for step in done.steps} == case.damage
    if not case.damage:
        assert source.read_bytes() == target.read_bytes()
        return
    before = benchmark.scores(case, soundfile.read(source, always_2d=True)[0].T, case.rate)
    y, rate = soundfile.read(target, always_2d=True)
    after = benchmark.scores(case, y.T, rate)
    assert all(after[key] >= before[key] - benchmark.WORSE[key] for key in before), (before, after)


@pytest.mark.parametrize(
    "suffix, subtype", [(".wav", "PCM_24"), (".flac", "PCM_16"), (".ogg", "VORBIS"), (".mp3", None)]
)
def test_a_clean_file_of_any_format_is_copied_byte_for_byte(restorer, tmp_path, clean, suffix, subtype):
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    soundfile.write(source, clean, RATE, subtype)
    done = restorer.restore_file(source, target)
    assert done.steps == [] and source.read_bytes() == target.read_bytes()


def test_a_clean_file_in_another_format_is_converted(restorer, tmp_path, clean):
    soundfile.write(tmp_path / "in.wav", clean, RATE)
    restorer.restore_file(tmp_path / "in.wav", tmp_path / "out.flac")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.flac")[0], soundfile.read(tmp_path / "in.wav")[0])


@pytest.mark.parametrize("rate, channels, subtype", [(44_100, 2, "PCM_24"), (48_000, 1, "FLOAT"), (RATE, 3, "PCM_16")])
def test_length_rate_channels_and_depth_stay(restorer, tmp_path, rate, channels, subtype):
    rng = np.random.default_rng(0)
    x = 0.05 * rng.standard_normal((2 * rate + 7, channels)) + 0.1
    soundfile.write(tmp_path / "in.wav", x, rate, subtype)
    done = restorer.restore_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert "offset" in {step.kind for step in done.steps}
    before, after = soundfile.info(tmp_path / "in.wav"), soundfile.info(tmp_path / "out.wav")
    assert (after.frames, after.samplerate, after.channels, after.subtype) == (
        before.frames, before.samplerate, before.channels, before.subtype
    )  # fmt: skip
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0].mean(0)).max() < 1e-3


def test_a_dry_run_chooses_and_writes_nothing(restorer, tmp_path, clean):
    soundfile.write(tmp_path / "in.wav", clean * 0.8 + 0.1, RATE)
    done = restorer.restore_file(tmp_path / "in.wav", tmp_path / "out.wav", dry_run=True)
    assert [step.kind for step in done.steps] == ["offset"] and done.output is None
    assert not (tmp_path / "out.wav").exists()


def test_a_skipped_step_is_not_done_and_told(tmp_path, clean):
    soundfile.write(tmp_path / "in.wav", clean * 0.8 + 0.1, RATE)
    done = Restorer(["offset"]).restore_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert done.steps == [] and "skipped" in done.left[0]


def test_an_unknown_step_is_an_error():
    with pytest.raises(ValueError, match="echo.*expected one of " + ", ".join(STEPS)):
        Restorer(["echo"])


def test_an_existing_file_stays_and_the_input_always(restorer, tmp_path, clean):
    soundfile.write(tmp_path / "in.wav", clean, RATE)
    (tmp_path / "out.wav").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        restorer.restore_file(tmp_path / "in.wav", tmp_path / "out.wav")
    with pytest.raises(FileExistsError):
        restorer.restore_file(tmp_path / "in.wav", tmp_path / "in.wav", overwrite=True)
    assert (tmp_path / "out.wav").read_bytes() == b"mine"


def test_stopping_leaves_no_file(restorer, tmp_path, clean):
    soundfile.write(tmp_path / "in.wav", clean * 0.8 + 0.1, RATE)

    def stop(done, total):
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restorer.restore_file(tmp_path / "in.wav", tmp_path / "out.wav", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_the_readable_part_of_a_damaged_file_is_written(restorer, tmp_path, clean):
    path = tmp_path / "in.wav"
    soundfile.write(path, clean, RATE)
    path.write_bytes(path.read_bytes()[:-40_000])
    with pytest.raises(BrokenOffError, match=r"readable part is in .*out\.wav"):
        restorer.restore_file(path, tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").frames == len(clean) - 20_000


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".caf"])
def test_a_comment_in_the_tags_lists_the_steps_and_the_old_tags_stay(restorer, tmp_path, clean, suffix):
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    with soundfile.SoundFile(source, "w", RATE, 1) as file:
        file.title, file.comment = "A talk", "recorded in May"
        file.write(clean * 0.8 + 0.1)
    restorer.restore_file(source, target)
    found = [(key.upper(), text) for key, text in tags.read(target).comments]
    comments = [text for key, text in found if key == "COMMENT"]
    assert any("recorded in May" in text for text in comments)
    assert any("restore: removed the offset (constant offset of 10 % of full scale)" in text for text in comments)
    assert ("TITLE", "A talk") in found


def test_other_frames_of_an_id3_tag_stay(restorer, tmp_path, clean):
    source = tmp_path / "in.mp3"
    soundfile.write(source, clean * 0.8 + 0.1, RATE)
    frames = b"".join(
        name + struct.pack(">IH", len(body), 0) + body
        for name, body in ((b"TIT2", b"\0A talk"), (b"PRIV", b"owner\0secret"), (b"COMM", b"\0eng\0in May"))
    )
    size = bytes((len(frames) + 20) >> shift & 127 for shift in (21, 14, 7, 0))
    source.write_bytes(b"ID3\3\0\0" + size + frames + bytes(20) + source.read_bytes())
    restorer.restore_file(source, tmp_path / "out.mp3")
    found = tags.read(tmp_path / "out.mp3")
    assert b"owner\0secret" in found.tag and ("TITLE", "A talk") in found.comments
    assert next(text for key, text in found.comments if key == "COMMENT") == "in May"
    assert len([key for key, _ in found.comments if key == "COMMENT"]) == 2


def test_restored_peaks_have_room(restorer, tmp_path, clean):
    level = np.quantile(np.abs(clean), 0.97)
    soundfile.write(tmp_path / "in.wav", np.clip(clean / level, -1, 1) * 0.999, RATE)
    done = restorer.restore_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert "dB quieter to make room" in done.steps[0].what
    assert np.mean(np.abs(soundfile.read(tmp_path / "out.wav")[0]) > 0.99) < 1e-4


def test_a_telephone_recording_gets_the_rate_of_the_new_band(restorer, tmp_path, clean):
    import soxr

    narrow = soxr.resample(clean, RATE, 8_000)
    soundfile.write(tmp_path / "in.wav", narrow, 8_000)
    done = restorer.restore_file(tmp_path / "in.wav", tmp_path / "out.wav")
    info = soundfile.info(tmp_path / "out.wav")
    assert [step.kind for step in done.steps] == ["band"]
    assert (info.samplerate, info.frames) == (48_000, 6 * len(narrow))


def test_chunks_of_a_wav_stay(restorer, tmp_path, clean):
    path = tmp_path / "in.wav"
    soundfile.write(path, clean * 0.8 + 0.1, RATE)
    with open(path, "r+b") as file:
        file.seek(0, 2)
        file.write(b"bext" + struct.pack("<I", 602) + b"A broadcast".ljust(602, b"\0"))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))
    restorer.restore_file(path, tmp_path / "out.wav")
    assert dict(tags.read(tmp_path / "out.wav").chunks)[b"bext"].startswith(b"A broadcast")
