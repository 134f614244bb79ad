import numpy as np
import pytest
from corpora_in_miniature import RATE, make_shards, voice, write

from clearstate.audio.level import active_level
from clearstate.data import MixtureFolder, SeparationConfig, SeparationDataset, mixtures_of, open_sources


@pytest.fixture
def sources(shards):
    return open_sources(shards)


@pytest.mark.parametrize("speakers", [2, 3])
def test_the_mixture_is_the_sum_of_different_known_speakers(sources, speakers):
    dataset = SeparationDataset(sources, SeparationConfig(speakers=speakers, seconds=1.0), items_per_epoch=40)
    for item in dataset:
        assert item["sources"].shape == (speakers, RATE)
        np.testing.assert_allclose(item["mixture"], item["sources"].sum(axis=0), atol=1e-6)
        voices = [row["voice"] for row in item["info"]["voices"]]
        assert len(set(voices)) == speakers
        assert all(name.startswith("so_") for name in voices), "an unlabelled source was taken for a speaker"


def test_the_pool_does_hold_unlabelled_voices_that_are_left_out(sources):
    assert any(not clip.labelled for clip in sources.speech.clips)


def test_in_rooms_the_reverberation_of_a_voice_is_part_of_it(sources):
    """Same draws with and without: what follows the end of a dry voice is its room."""
    dry, wet = (SeparationDataset(sources, SeparationConfig(seconds=1.0, room=chance))[3] for chance in (0.0, 1.0))
    np.testing.assert_allclose(wet["mixture"], wet["sources"].sum(axis=0), atol=1e-6)
    assert dry["info"]["voices"][0]["voice"] == wet["info"]["voices"][0]["voice"]
    a, b = dry["sources"][0], wet["sources"][0]
    b = b * (a @ b) / (b @ b)
    assert np.sum((a - b) ** 2) > 0.05 * np.sum(a**2)


@pytest.mark.parametrize("speakers", [2, 3])
def test_at_most_one_voice_is_unlabelled_and_as_often_as_asked_for(sources, speakers):
    config = SeparationConfig(speakers=speakers, seconds=0.5, unlabelled=0.5)
    strangers = np.array(
        [
            [not row["voice"].startswith("so_") for row in item["info"]["voices"]]
            for item in SeparationDataset(sources, config, items_per_epoch=100)
        ]
    )
    assert strangers.sum(axis=1).max() == 1, "two voices without labels may be one person"
    assert 35 < strangers.sum() < 65
    assert strangers.any(axis=0).all()  # none of the places is theirs


def test_without_unlabelled_voices_all_are_labelled(tmp_path):
    rows = [({"file": f"{name}.flac", "speaker": name, "source": "s"}, voice(100, 1.0)) for name in ("anna", "bert")]
    sources = open_sources({"speech": str(make_shards(tmp_path, "speech16k", rows))})
    item = SeparationDataset(sources, SeparationConfig(seconds=0.5, unlabelled=1.0))[0]
    assert {row["voice"] for row in item["info"]["voices"]} == {"anna", "bert"}


def test_too_few_labelled_speakers_is_an_error(tmp_path):
    rows = [
        ({"file": f"{i}.flac", "speaker": name, "source": "s"}, voice(100, 1.0))
        for i, name in enumerate(["mssnsd_unknown", "s2i_unknown", "", "anna"])
    ]
    sources = open_sources({"speech": str(make_shards(tmp_path, "speech16k", rows))})
    with pytest.raises(ValueError, match="need as many labelled speakers, and the speech has 1"):
        SeparationDataset(sources)


def test_one_person_of_two_corpora_is_not_two_speakers(tmp_path):
    rows = [
        ({"file": "a.flac", "speaker": "vctk_p225", "source": "a"}, voice(100, 2.0)),
        ({"file": "b.flac", "speaker": "anna", "source": "a"}, voice(200, 2.0)),
    ]
    index = make_shards(tmp_path / "shards", "speech16k", rows)
    write(tmp_path / "plain/p225/p225_001.wav", voice(100, 2.0))
    sources = open_sources({"speech": [str(index), str(tmp_path / "plain")]})
    assert len(sources.speech.by_voice) == 3
    for item in SeparationDataset(sources, SeparationConfig(seconds=0.5), items_per_epoch=30):
        assert "anna" in [row["voice"] for row in item["info"]["voices"]]


def test_voices_at_other_speeds_and_microphones_are_as_often_as_asked_for(sources):
    def drawn(**config):
        return list(SeparationDataset(sources, SeparationConfig(seconds=0.5, **config), items_per_epoch=12))

    plain, fast, filtered = drawn(speed=0.0), drawn(speed=1.0), drawn(speed=0.0, equaliser=1.0)
    assert not any("speed" in row for item in plain for row in item["info"]["voices"])
    assert sum("speed" in row for item in fast for row in item["info"]["voices"]) >= 20  # of 24; 1.00 is not told
    assert max(np.abs(a["sources"] - b["sources"]).max() for a, b in zip(plain, filtered, strict=True)) > 1e-3


def test_one_voice_alone_as_often_as_asked_for(sources):
    config = SeparationConfig(seconds=1.0, alone=0.5, level_db=(0.0, 0.0))
    silent = []
    for item in SeparationDataset(sources, config, items_per_epoch=60):
        first, second = item["sources"]
        assert first.any()
        silent.append(not second.any())
        assert len(item["info"]["voices"]) == (1 if silent[-1] else 2)
        if silent[-1]:
            np.testing.assert_array_equal(item["mixture"], first)
    assert 18 < sum(silent) < 42


def test_near_voices_are_nearer_in_pitch(tmp_path):
    pitches = 90.0 * 2 ** (np.arange(8) / 4)  # three semitones apart
    rows = [
        ({"file": f"{i}.flac", "speaker": f"speaker{i}", "source": "s"}, voice(pitch, 2.0, seed=i))
        for i, pitch in enumerate(pitches)
    ]
    sources = open_sources({"speech": str(make_shards(tmp_path, "speech16k", rows))})

    def apart(near):
        config = SeparationConfig(seconds=1.0, near=near, speed=0.0, full_overlap=1.0)
        names = [
            [row["voice"] for row in item["info"]["voices"]]
            for item in SeparationDataset(sources, config, items_per_epoch=60)
        ]
        assert all(first != second for first, second in names)
        return np.mean([abs(int(first[-1]) - int(second[-1])) for first, second in names])

    assert apart(1.0) < 0.7 * apart(0.0)


def test_relative_levels_are_as_drawn(sources):
    config = SeparationConfig(seconds=2.0, level_db=(-5.0, 5.0), full_overlap=1.0)
    drawn = []
    for item in SeparationDataset(sources, config, items_per_epoch=20):
        first, second = (active_level(source, RATE) for source in item["sources"])
        asked = item["info"]["voices"][1]["level_db"]
        assert second - first == pytest.approx(asked, abs=0.02)
        drawn.append(asked)
    assert min(drawn) < -2 < 2 < max(drawn)
    assert -5 <= min(drawn) <= max(drawn) <= 5


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("speakers", [2, 3])
def test_voices_overlap_as_much_as_asked(sources, overlap, speakers):
    config = SeparationConfig(speakers=speakers, seconds=3.0, full_overlap=0.0, overlap=(overlap, overlap))
    item = SeparationDataset(sources, config)[0]
    n = 3 * RATE
    stretch = n / (1 + (1 - overlap) * (speakers - 1))
    starts = sorted(row["start"] for row in item["info"]["voices"])
    shared = [starts[i] + stretch - starts[i + 1] for i in range(speakers - 1)]
    np.testing.assert_allclose(shared, overlap * stretch, atol=3)
    for source, row in zip(item["sources"], item["info"]["voices"], strict=True):
        assert not source[: row["start"]].any()
        assert not source[row["start"] + round(stretch) + 1 :].any()


def test_noise_is_added_when_asked_for(sources):
    config = SeparationConfig(seconds=1.0, noise=1.0, snr_db=(5.0, 5.0))
    item = SeparationDataset(sources, config)[0]
    noise = item["mixture"] - item["sources"].sum(axis=0)
    assert np.sqrt(np.mean(noise**2)) > 0
    assert item["info"]["snr_db"] == 5.0


def test_items_repeat(sources):
    config = SeparationConfig(seconds=0.5)
    one, two = (SeparationDataset(sources, config, seed=5)[77] for _ in range(2))
    np.testing.assert_array_equal(one["sources"], two["sources"])


def test_folders_of_voices_are_summed(tmp_path):
    for s, pitch in (("s1", 100), ("s2", 170)):
        write(tmp_path / s / "000.wav", voice(pitch, 1.0))
    item = MixtureFolder(mixtures_of(tmp_path / "s1", tmp_path / "s2"), RATE)[0]
    np.testing.assert_allclose(item["mixture"], voice(100, 1.0) + voice(170, 1.0), atol=1e-4)
    (tmp_path / "s2/000.wav").unlink()
    with pytest.raises(FileNotFoundError, match="same file names"):
        mixtures_of(tmp_path / "s1", tmp_path / "s2")
