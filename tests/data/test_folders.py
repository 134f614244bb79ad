import os
import warnings

import numpy as np
import pytest
import soundfile
from corpora_in_miniature import RATE, hiss, voice, write

from clearstate.data import MixtureConfig, MixtureDataset, folders, open_sources
from clearstate.data.folders import FileSet, group_of, plain_files, read_crop, scan
from clearstate.data.shards import BrokenClipError
from clearstate.data.sources import Path, in_validation


def sine(seconds: float, rate: int, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.w64"])
def test_any_format_is_read_from_any_place(tmp_path, name):
    write(tmp_path / name, sine(3.0, RATE))
    opened = FileSet("plain", plain_files(tmp_path, "speech"), RATE)
    crop = opened.read(0, 20_000, 4_000)
    assert crop.dtype == np.float32
    np.testing.assert_allclose(crop, sine(3.0, RATE)[20_000:24_000], atol=0.05)


def test_a_crop_of_an_opus_file_is_in_place(tmp_path):
    path = tmp_path / "a.opus"
    soundfile.write(path, sine(3.0, RATE), RATE, format="OGG", subtype="OPUS")
    opened = FileSet("plain", plain_files(tmp_path, "speech"), RATE)
    np.testing.assert_allclose(opened.read(0, 20_000, 4_000), soundfile.read(path)[0][20_000:24_000], atol=0.05)


@pytest.mark.parametrize("native", [8_000, 22_050, 44_100, 48_000])
def test_a_crop_of_another_rate_is_the_crop_of_the_resampled_file(tmp_path, native):
    path = write(tmp_path / "a.wav", sine(2.0, native), native)
    for start in (0, 7, 12_345):
        crop = read_crop(path, native, RATE, start, 5_000)
        # 440 Hz turns by 0.17 rad in one sample of 16 kHz: a shift of one would show as 0.09
        np.testing.assert_allclose(crop[50:-50], sine(2.0, RATE)[start : start + 5_000][50:-50], atol=0.1)


def test_a_crop_of_a_long_file_decodes_little_of_it(tmp_path, monkeypatch):
    path = write(tmp_path / "long.flac", hiss(120.0))
    opened = FileSet("plain", plain_files(tmp_path, "speech"), RATE)
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames=-1, **kw: read.append(frames) or original(self, frames, **kw)
    )
    opened.read(0, 100 * RATE, RATE)
    assert path.stat().st_size > 1_000_000
    assert sum(read) < 1.1 * RATE


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([sine(1.0, RATE), np.zeros(RATE, np.float32)], axis=1)
    write(tmp_path / "s.wav", stereo)
    opened = FileSet("plain", plain_files(tmp_path, "speech"), RATE)
    np.testing.assert_allclose(opened.read(0), sine(1.0, RATE) / 2, atol=1e-4)


def test_speakers_come_from_folders_or_from_known_names(tmp_path):
    for name in ("anna/1.wav", "ben/x/2.wav", "p225_001_mic1.flac", "103-1240-0000.flac", "loose.wav"):
        write(tmp_path / name, voice(100, 0.1))
    owners = {file.path.name: file.owner for file in plain_files(tmp_path, "speech")}
    assert owners == {
        "1.wav": "anna",
        "2.wav": "ben",
        "p225_001_mic1.flac": "p225",
        "103-1240-0000.flac": "103",
        "loose.wav": "",
    }


def test_pieces_of_one_noise_recording_are_one_group():
    assert group_of(Path("street-1.wav")) == group_of(Path("street-12.wav")) == "street"
    assert group_of(Path("DKITCHEN/ch01.wav")) == "DKITCHEN"


def test_unreadable_files_are_reported_once_and_left_out(tmp_path):
    write(tmp_path / "s/anna/good.wav", voice(100, 2.0))
    (tmp_path / "s/anna/renamed.wav").write_text("not audio")
    (tmp_path / "s/anna/empty.flac").write_bytes(b"")
    with pytest.warns(UserWarning, match="2 files are unreadable"):
        sources = open_sources({"speech": str(tmp_path / "s")})
    assert len(sources.speech) == 1


def test_a_file_that_breaks_later_is_skipped_with_a_count_and_the_draw_stays_reproducible(tmp_path):
    for name in ("anna", "ben", "carl"):
        write(tmp_path / "s" / name / "1.flac", hiss(6.0, seed=len(name)))
    sources = open_sources({"speech": str(tmp_path / "s")})
    broken = tmp_path / "s/ben/1.flac"
    broken.write_bytes(broken.read_bytes()[:3000])  # cut after the headers were read
    dataset = MixtureDataset(sources, MixtureConfig(seconds=1.0, noise_only=0.0), items_per_epoch=30)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = list(dataset)
    about_ben = [w for w in caught if "ben" in str(w.message)]
    assert len(about_ben) == 1
    assert "1 broken so far" in str(about_ben[0].message)
    assert all("ben" not in str(item["info"].get("speech")) for item in items)
    skipped = [item for item in items if "skipped" in item["info"]]
    assert skipped
    again = MixtureDataset(sources, MixtureConfig(seconds=1.0, noise_only=0.0), items_per_epoch=30)
    i = skipped[0]["info"]["item"]
    np.testing.assert_array_equal(again[i]["noisy"], items[i]["noisy"])


def test_nothing_but_broken_files_ends_with_an_error(tmp_path):
    path = write(tmp_path / "s/anna/1.flac", hiss(6.0))
    sources = open_sources({"speech": str(tmp_path / "s")})
    path.unlink()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(RuntimeError, match="ten consecutive files"):
        MixtureDataset(sources)[0]


def test_nan_in_a_file_is_found(tmp_path):
    audio = hiss(1.0)
    audio[500] = np.nan
    path = tmp_path / "nan.wav"
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    with pytest.raises(BrokenClipError, match="not finite"):
        read_crop(path, RATE, RATE, 0, RATE)


def test_headers_are_scanned_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", voice(100, 0.5))
    assert scan([path], "x") == [(8000, RATE)]
    monkeypatch.setattr(folders, "open_reader", lambda _: pytest.fail("the file was opened again"))
    assert scan([path], "x") == [(8000, RATE)]


def test_an_empty_or_missing_folder_is_an_error_that_says_what_would_do(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no audio.*Any folder of audio files works"):
        open_sources({"speech": str(tmp_path / "empty")})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_sources({"speech": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="did you mean 'speech'"):
        open_sources({"speach": "x"})


def test_the_hash_split_is_by_speaker_complete_and_stable(tmp_path):
    for i in range(40):
        for j in range(2):
            write(tmp_path / f"s/speaker{i}/{j}.wav", voice(100, 0.1))
    spec = {"speech": str(tmp_path / "s"), "valid_share": 0.25}
    train, valid = (open_sources(spec | {"split": split}).speech for split in ("train", "valid"))
    assert len(train) + len(valid) == 80
    assert not set(train.by_voice) & set(valid.by_voice)
    assert 3 <= len(valid.by_voice) <= 18
    assert in_validation("speaker0", 0.25) == ("speaker0" in valid.by_voice)
    assert [in_validation(f"s{i}", 0.5) for i in range(6)] == [False, False, False, True, True, True]


def test_noncommercial_audio_needs_a_word(tmp_path):
    from corpora_in_miniature import make_shards

    row = {"file": "a.flac", "speaker": "x", "licence": "CC BY-NC-SA 4.0"}
    index = make_shards(tmp_path, "speech16k", [(row, voice(100, 1.0))])
    with pytest.raises(ValueError, match="noncommercial: true"):
        open_sources({"speech": str(index)})
    assert len(open_sources({"speech": str(index), "noncommercial": True}).speech) == 1


def test_one_bad_entry_is_reported_once_and_left_out(tmp_path):
    write(tmp_path / "speech/anna/one.wav", voice(100, 2.0))
    os.rename(
        write(tmp_path / "speech/anna/x.wav", voice(100, 2.0)), os.fsencode(tmp_path) + b"/speech/anna/caf\xe9.wav"
    )
    (tmp_path / "speech/anna/dead.wav").symlink_to("/nowhere.wav")
    (tmp_path / "speech/anna/loop").symlink_to("..")
    os.mkfifo(tmp_path / "speech/anna/pipe.wav")
    spec = {"speech": [str(tmp_path / "speech")], "cache": str(tmp_path / "cache"), "valid_share": 0.01, "split": "all"}
    with pytest.warns(UserWarning, match=r"2 unusable entries are skipped: .*dead.wav is a link to") as told:
        opened = open_sources(spec)
    assert len(told) == 1
    assert len(opened.speech) == 2
    assert all(len(opened.speech.read(i)) == 2 * RATE for i in range(2))


def test_a_file_that_vanishes_before_it_is_scanned_has_no_header(tmp_path):
    assert scan([tmp_path / "gone.wav"], "x", tmp_path / "cache") == [(0, 1)]


@pytest.mark.parametrize("name", ["crashed.wav", "joined.wav", "joined.flac", "joined.ogg", "endless.flac"])
@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_files_with_a_wrong_length_in_their_header_are_read_to_their_end(tmp_path, name, rate):
    path = write(tmp_path / name, sine(2.0, RATE))
    data = bytearray(path.read_bytes())
    if name == "crashed.wav":
        data[40:44] = bytes(4)
    elif name == "endless.flac":
        data[21] &= 0xF0
        data[22:42] = bytes(20)
    else:
        data = data * 2
    path.write_bytes(data)
    opened = FileSet("plain", plain_files(tmp_path, "speech"), rate)
    seconds = 4.0 if "joined" in name else 2.0
    assert opened.clips[0].samples == seconds * rate
    start = int((seconds - 0.5) * rate)
    crop = opened.read(0, start, rate // 4)
    at = start % (2 * rate)
    np.testing.assert_allclose(crop, sine(2.0, rate)[at : at + rate // 4], atol=0.05)


def test_a_file_that_was_cut_after_the_scan_is_broken_at_its_end_only(tmp_path):
    path = write(tmp_path / "a.flac", hiss(4.0))
    opened = FileSet("plain", plain_files(tmp_path, "speech"), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(opened.read(0, 0, RATE)) == RATE
    with pytest.raises(BrokenClipError, match="broken after"):
        opened.read(0, 3 * RATE, RATE // 2)
