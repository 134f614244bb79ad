import json
import pickle

import numpy as np
import pytest
from corpora_in_miniature import RATE, hiss, make_shards, voice

from clearstate.audio.level import active_level
from clearstate.data.shards import open_shards
from clearstate.data.sources import open_sources, shard_indexes


def test_what_is_read_is_what_was_packed(tmp_path):
    audio = [voice(100, 1.5), 1e-3 * hiss(0.7), voice(200, 2.0)]  # the second is quiet: it keeps its own 16 bits
    index = make_shards(
        tmp_path, "speech16k", [({"file": f"{i}.flac", "speaker": "x"}, a) for i, a in enumerate(audio)]
    )
    opened = open_shards(index, RATE)
    assert [clip.samples for clip in opened.clips] == [len(a) for a in audio]
    for i, a in enumerate(audio):
        # FLAC and the cache each round to 16 bits, the cache relative to the clip's own peak
        np.testing.assert_allclose(opened.read(i), a, atol=1 / 32768 + np.abs(a).max() / 32767)
    np.testing.assert_array_equal(opened.read(0, 100, 50), opened.read(0)[100:150])
    assert len(opened.read(0, len(audio[0]) - 10, 50)) == 10


def test_another_rate_is_resampled_while_decoding(tmp_path):
    index = make_shards(tmp_path, "speech", [({"file": "a.flac"}, voice(100, 1.0, rate=48_000))], rate=48_000)
    opened = open_shards(index, RATE)
    assert opened.clips[0].samples == RATE
    error = opened.read(0)[800:-800] - voice(100, 1.0)[800:-800]
    assert np.sqrt((error**2).mean()) < 0.02 * np.sqrt((voice(100, 1.0) ** 2).mean())


def test_the_second_opening_decodes_nothing(tmp_path):
    index = make_shards(tmp_path, "speech16k", [({"file": "a.flac"}, voice(100, 1.0))])
    seen = []
    first = open_shards(index, RATE, progress=lambda *state: seen.append(state))
    assert seen == [("speech16k", 1, 1)]
    seen.clear()
    second = open_shards(index, RATE, progress=lambda *state: seen.append(state))
    assert not seen
    assert second.folder == first.folder
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]  # nothing half-made is left


def test_a_changed_shard_is_decoded_again(tmp_path):
    rows = [({"file": "a.flac"}, voice(100, 1.0))]
    before = open_shards(make_shards(tmp_path, "speech16k", rows), RATE)
    rows = [({"file": "a.flac"}, voice(100, 2.0))]
    after = open_shards(make_shards(tmp_path, "speech16k", rows), RATE)
    assert after.folder != before.folder
    assert after.clips[0].samples == 2 * RATE


def test_broken_files_are_left_out_with_a_count(tmp_path):
    rows = [({"file": "good.flac"}, voice(100, 1.0)), ({"file": "bad.flac"}, b"no audio at all")]
    with pytest.warns(UserWarning, match=r"1 of 2 files could not be decoded.*bad\.flac"):
        opened = open_shards(make_shards(tmp_path, "speech16k", rows), RATE)
    assert [clip.key for clip in opened.clips] == ["good.flac"]


def test_a_set_without_one_good_file_is_an_error_and_leaves_no_cache(tmp_path):
    index = make_shards(tmp_path / "s", "speech16k", [({"file": "bad.flac"}, b"nothing")])
    with pytest.raises(ValueError, match="none of its 1 files"):
        open_shards(index, RATE, cache=tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_missing_shard_is_named(tmp_path):
    index = tmp_path / "speech16k.jsonl"
    index.write_text(json.dumps({"shard": "speech16k-07.tar", "file": "a.flac"}) + "\n")
    with pytest.raises(FileNotFoundError, match=r"speech16k-07\.tar"):
        open_shards(index, RATE)


def test_a_pickled_set_carries_no_audio(tmp_path):
    index = make_shards(tmp_path, "speech16k", [({"file": "a.flac"}, voice(100, 30.0))])
    opened = open_shards(index, RATE)
    audio = opened.read(0)
    packed = pickle.dumps(opened)
    assert len(packed) < 10_000
    np.testing.assert_array_equal(pickle.loads(packed).read(0), audio)


def test_pieces_of_one_unlabelled_recording_are_one_voice(tmp_path):
    names = ["7f-0", "7f-1", "8a-0"]
    rows = [({"file": f"{name}.flac", "speaker": "x_unknown", "source": "x"}, voice(100, 1.0)) for name in names]
    opened = open_shards(make_shards(tmp_path, "speech16k", rows), RATE)
    assert [clip.voice for clip in opened.clips] == ["x/7f", "x/7f", "x/8a"]
    assert not any(clip.labelled for clip in opened.clips)


def test_pauses_do_not_lower_the_active_level():
    tone = np.sin(np.arange(RATE) * 0.3).astype(np.float32)
    with_pause = np.concatenate([tone, np.zeros(3 * RATE, np.float32)])
    assert active_level(tone, RATE) == pytest.approx(-3.01, abs=0.02)
    assert active_level(with_pause, RATE) == pytest.approx(active_level(tone, RATE), abs=0.02)
    assert active_level(np.zeros(100, np.float32), RATE) == -np.inf


@pytest.mark.parametrize(
    ("rate", "expected"), [(16_000, ["speech16k", "speech48k"]), (48_000, ["speech48k"]), (96_000, ["speech48k"])]
)
def test_a_folder_gives_every_set_whose_rate_is_enough(tmp_path, rate, expected):
    for name in ("speech16k", "speech48k"):
        make_shards(tmp_path, name, [({"file": "a.flac"}, hiss(0.1))])
    assert [path.stem for path in shard_indexes(tmp_path, "speech", rate)] == expected


def test_training_at_16_khz_draws_from_both_sets_and_leaves_noisy_clips_out(tmp_path):
    clean, noisy = voice(120, 1.0), voice(120, 1.0) + hiss(1.0)
    make_shards(tmp_path, "speech16k", [({"file": "a.flac"}, clean), ({"file": "b.flac"}, noisy)])
    make_shards(tmp_path, "speech48k", [({"file": "c.flac"}, voice(120, 1.0, rate=48_000))], rate=48_000)
    assert {clip.key for clip in open_sources(tmp_path).speech.clips} == {"a.flac", "b.flac", "c.flac"}
    kept = open_sources({"speech": [tmp_path], "least_snr": 20})
    assert {clip.key for clip in kept.speech.clips} == {"a.flac", "c.flac"}
    with pytest.raises(ValueError, match="least_snr"):
        open_sources({"speech": [tmp_path], "least_snr": 200})
