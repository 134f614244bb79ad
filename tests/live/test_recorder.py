"""Two files, before and after: complete, aligned, or not there at all."""

import errno

import numpy as np
import pytest
import soundfile

from clearstate.live.recorder import Recorder, before_and_after

RATE, LATE = 8_000, 37


def blocks(count=20, size=80, channels=1):
    rng = np.random.default_rng(0)
    return [rng.uniform(-0.5, 0.5, (channels, size)).astype(np.float32) for _ in range(count)]


def recorded(path, sound, **settings):
    """What a stream makes of `sound` that halves it and is LATE samples late."""
    recorder = Recorder(str(path), RATE, sound[0].shape[0], LATE, **settings)
    whole = np.concatenate([np.zeros((sound[0].shape[0], LATE), np.float32), *sound], 1) / 2
    for i, block in enumerate(sound):
        recorder.put(block, whole[:, i * 80 : (i + 1) * 80])
    recorder.put(sound[0][:, :0], whole[:, -LATE:])
    return recorder


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["call.wav", "call.flac", "two.dots.wav"])
def test_both_files_are_aligned_and_equally_long(tmp_path, name, channels):
    sound = blocks(channels=channels)
    recorder = recorded(tmp_path / name, sound)
    assert list(tmp_path.glob("[!.]*")) == []  # none until it is complete
    recorder.close()
    before, after = (soundfile.read(path, always_2d=True)[0].T for path in recorder.names)
    np.testing.assert_allclose(before, np.concatenate(sound, 1), atol=1 / 32768)
    np.testing.assert_allclose(after, before / 2, atol=1 / 32768)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before_and_after(name))


def test_a_recording_that_is_discarded_leaves_nothing(tmp_path):
    recorded(tmp_path / "call.wav", blocks()).close(complete=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["before", "after"])
def test_existing_files_are_kept_unless_allowed(tmp_path, kind):
    old = tmp_path / f"call.{kind}.wav"
    old.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="already exists"):
        Recorder(str(tmp_path / "call.wav"), RATE, 1, LATE)
    assert old.read_bytes() == b"mine"
    recorded(tmp_path / "call.wav", blocks(), overwrite=True).close()
    assert soundfile.info(old).frames == 1_600


@pytest.mark.parametrize(
    ("name", "says"), [("call.xyz", "xyz"), ("nowhere/call.wav", "does not exist"), ("call", "ends in one of")]
)
def test_a_name_that_cannot_be_written_is_refused_at_once(tmp_path, name, says):
    with pytest.raises((OSError, ValueError), match=says):
        Recorder(str(tmp_path / name), RATE, 1, LATE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_recording_and_not_the_call(tmp_path, monkeypatch):
    recorder = Recorder(str(tmp_path / "call.wav"), RATE, 1, LATE)
    monkeypatch.setattr(
        "clearstate.audio.io.FileWriter.write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk is full"))
    )
    for block in blocks():
        recorder.put(block, block)
    recorder.close()
    assert "disk is full" in str(recorder.error)
    assert list(tmp_path.iterdir()) == []
