import numpy as np
import pytest
from corpora_in_miniature import RATE, hiss, voice, write

from clearstate.data import MixtureFolder, PairedCrops, PairedFolder, mixtures_of, open_sources, recognise


def voicebank(root):
    """Two training speakers, the two held-out ones, and the test speakers, one pair each."""
    for part, speakers in (("trainset_28spk", ("p225", "p226", "p227", "p287")), ("testset", ("p232", "p257"))):
        for i, speaker in enumerate(speakers):
            clean = voice(100 + 10 * i, 1.0)
            write(root / f"clean_{part}_wav/{speaker}_001.wav", clean)
            write(root / f"noisy_{part}_wav/{speaker}_001.wav", clean + hiss(1.0, i))
    return root


def names(pairs):
    return [noisy.stem for noisy, _ in pairs]


def test_voicebank_holds_out_two_training_speakers_for_validation(tmp_path):
    corpus = recognise(voicebank(tmp_path / "VB"))
    assert corpus.layout.name == "VoiceBank+DEMAND"
    assert names(corpus.pairs("train")) == ["p225_001", "p227_001"]
    assert names(corpus.pairs("valid")) == ["p226_001", "p287_001"]


def test_a_test_set_is_refused_unless_spelt_out(tmp_path):
    corpus = recognise(voicebank(tmp_path / "VB"))
    with pytest.raises(ValueError, match=r"is a test set.*p226 and p287"):
        corpus.pairs("test")
    assert names(corpus.pairs("test", validate_on_test_set=True)) == ["p232_001", "p257_001"]
    noisy, clean = tmp_path / "VB/noisy_testset_wav", tmp_path / "VB/clean_testset_wav"
    with pytest.raises(ValueError, match="is a test set"):
        PairedFolder(noisy, clean)
    assert len(PairedFolder(noisy, clean, validate_on_test_set=True)) == 2


def test_a_renamed_test_set_is_recognised_by_its_speakers(tmp_path):
    root = voicebank(tmp_path / "VB")
    for kind in ("noisy", "clean"):
        (root / f"{kind}_testset_wav").rename(tmp_path / f"{kind}_mine")
    with pytest.raises(ValueError, match="is a test set"):
        PairedFolder(tmp_path / "noisy_mine", tmp_path / "clean_mine")


def test_paired_folders_can_hold_out_the_validation_speakers(tmp_path):
    root = voicebank(tmp_path / "VB")
    folders = root / "noisy_trainset_28spk_wav", root / "clean_trainset_28spk_wav"
    assert PairedFolder(*folders, split="train").names == ["p225_001", "p227_001"]
    assert PairedFolder(*folders, split="valid").names == ["p226_001", "p287_001"]
    assert len(PairedFolder(*folders)) == 4
    assert PairedFolder.of_corpus(root, "valid").names == ["p226_001", "p287_001"]


def test_test_speakers_never_reach_the_training_pool(tmp_path):
    for speaker in ("p225", "p226", "p232", "p257", "p280"):
        for microphone in (1, 2):
            name = f"wav48_silence_trimmed/{speaker}/{speaker}_001_mic{microphone}.flac"
            write(tmp_path / "VCTK" / name, voice(100, 0.5))
    train = open_sources({"speech": str(tmp_path / "VCTK")}).speech
    assert [clip.owner for clip in train.clips] == ["p225"]
    assert train.clips[0].key.endswith("mic1.flac")
    every = open_sources({"speech": str(tmp_path / "VCTK"), "split": "all"}).speech
    assert sorted(every.by_voice) == ["p225", "p226"]
    with pytest.raises(ValueError, match="test sets are for scoring only"):
        open_sources({"speech": str(tmp_path / "VCTK"), "split": "test"})


def test_dns_challenge_parts_are_found(tmp_path):
    root = tmp_path / "DNS-Challenge"
    reader = "book_00000_chp_0009_reader_06709_0_seg_0.wav"
    write(root / "datasets/clean/read_speech" / reader, voice(100, 0.5))
    write(root / "datasets/noise/door_Freesound_validated_414378_3.wav", hiss(0.5))
    response = np.eye(1, 800, 20, dtype=np.float32)[0]
    write(root / "datasets/impulse_responses/SLR28/real/room_1.wav", response)
    write(root / "datasets/impulse_responses/SLR28/real/type1_noise_1.wav", hiss(0.5))
    for kind in ("noisy", "clean"):
        prefix = "snr5_" if kind == "noisy" else "clean_"
        write(root / f"datasets/test_set/synthetic/no_reverb/{kind}/{prefix}fileid_7.wav", voice(100, 0.5))
    sources = open_sources({"speech": str(root), "noise": str(root), "rooms": str(root)})
    assert [clip.owner for clip in sources.speech.clips] == ["reader_06709"]
    assert len(sources.noise) == 1
    assert [name for name, _ in sources.rooms] == ["room_1.wav"]
    pairs = recognise(root).pairs("test", validate_on_test_set=True)
    assert [(a.name, b.name) for a, b in pairs] == [("snr5_fileid_7.wav", "clean_fileid_7.wav")]


def test_librispeech_splits_are_its_own(tmp_path):
    for part, speaker in (("train-clean-100", 103), ("dev-clean", 84), ("test-clean", 61)):
        write(tmp_path / f"LibriSpeech/{part}/{speaker}/1/{speaker}-1-0000.flac", voice(100, 0.5))
    for split, owners in (("train", ["103"]), ("valid", ["84"]), ("all", ["84", "103"])):
        clips = open_sources({"speech": str(tmp_path), "split": split}).speech.clips
        assert sorted((clip.owner for clip in clips), key=int) == owners


def mixtures(root, folder, kinds=("mix_clean", "mix_both"), speakers=2):
    voices = [voice(100 + 50 * i, 2.0) for i in range(speakers)]
    for i, audio in enumerate(voices):
        write(root / folder / f"s{i + 1}/one.wav", audio)
    for kind in kinds:
        write(root / folder / kind / "one.wav", sum(voices) + (hiss(2.0) if kind == "mix_both" else 0))
    return voices


@pytest.mark.parametrize(
    ("folder", "layout", "kinds"),
    [
        ("Libri2Mix/wav16k/min/{}", "LibriMix", ("mix_clean", "mix_both")),
        ("wsj0-mix/2speakers/wav8k/min/{}", "WSJ0-2mix", ("mix",)),
        ("wham/wav8k/min/{}", "WSJ0-2mix", ("mix_clean", "mix_both")),
        ("lrs2/audio/wav16k/min/{}", "LRS2-2Mix", ("mix",)),
    ],
)
def test_published_mixtures_are_read_with_their_sources(tmp_path, folder, layout, kinds):
    train, test = ("train-100", "test") if layout == "LibriMix" else ("tr", "tt")
    voices = mixtures(tmp_path, folder.format(train), kinds)
    mixtures(tmp_path, folder.format(test), kinds)
    corpus = recognise(tmp_path / folder.split("/")[0])
    assert corpus.layout.name == layout
    found = corpus.mixtures("train")
    item = MixtureFolder(found, RATE)[0]
    np.testing.assert_allclose(item["sources"], voices, atol=1e-4)
    np.testing.assert_allclose(item["mixture"], sum(voices), atol=1e-4)
    with pytest.raises(ValueError, match="is a test set"):
        corpus.mixtures("test")
    with pytest.raises(ValueError, match="no valid mixtures"):
        corpus.mixtures("valid")
    for choice in ({"kind": kinds[-1]}, {"noisy": True}):
        chosen = MixtureFolder(corpus.mixtures("train", **choice), RATE)[0]
        noise = np.abs(chosen["mixture"] - chosen["sources"].sum(axis=0)).max()
        assert (noise > 0.01) == ("mix_both" in kinds)


def test_three_speakers_are_found_by_their_folders(tmp_path):
    mixtures(tmp_path, "Libri3Mix/wav16k/max/dev", speakers=3)
    found = recognise(tmp_path / "Libri3Mix").mixtures("valid")
    assert MixtureFolder(found, RATE, seconds=0.5)[0]["sources"].shape == (3, 8000)


def test_wham_noise_keeps_its_splits_and_its_licence(tmp_path):
    for split in ("tr", "cv", "tt"):
        write(tmp_path / f"wham/wham_noise/{split}/a_{split}.wav", hiss(1.0))
    write(tmp_path / "s/anna/1.wav", voice(100, 0.5))
    spec = {"speech": str(tmp_path / "s"), "noise": str(tmp_path / "wham")}
    with pytest.raises(ValueError, match=r"CC BY-NC 4\.0"):
        open_sources(spec)
    noise = open_sources(spec | {"noncommercial": True}).noise
    assert [clip.key.rsplit("/", 1)[-1] for clip in noise.clips] == ["a_tr.wav"]


def test_the_report_names_what_is_there_what_is_missing_and_where_to_get_it(tmp_path):
    write(tmp_path / "VB/clean_trainset_28spk_wav/p225_001.wav", voice(100, 0.5))
    report = recognise(tmp_path / "VB").report()
    assert "found    clean_trainset_28spk_wav (speech)" in report
    assert "missing  noisy_trainset_28spk_wav" in report
    assert "DataShare" in report


def test_a_folder_inside_a_folder_of_its_name_is_seen_through(tmp_path):
    root = voicebank(tmp_path / "VB")
    for kind in ("noisy", "clean"):
        folder = root / f"{kind}_trainset_28spk_wav"
        folder.rename(root / "aside")
        folder.mkdir()
        (root / "aside").rename(folder / folder.name)
    assert names(recognise(root).pairs("train")) == ["p225_001", "p227_001"]


def test_an_unknown_folder_is_not_recognised(tmp_path):
    write(tmp_path / "anna/one.wav", voice(100, 0.5))
    assert recognise(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="paired corpus"):
        PairedFolder.of_corpus(tmp_path, "train")


def test_unmatched_and_misaligned_pairs_are_errors(tmp_path):
    write(tmp_path / "noisy/a.wav", voice(100, 1.0))
    write(tmp_path / "clean/b.wav", voice(100, 1.0))
    with pytest.raises(ValueError, match=r"1 files of .* have no partner"):
        PairedFolder(tmp_path / "noisy", tmp_path / "clean")
    write(tmp_path / "clean/a.flac", voice(100, 0.5))
    with pytest.raises(ValueError, match="must be aligned"):
        PairedFolder(tmp_path / "noisy", tmp_path / "clean")[0]
    with pytest.raises(ValueError, match="not a pair"):
        PairedCrops(PairedFolder(tmp_path / "noisy", tmp_path / "clean"))


def test_crops_of_pairs_stay_aligned_and_repeat_by_epoch(tmp_path):
    clean = hiss(4.0)
    write(tmp_path / "clean/a.wav", clean)
    write(tmp_path / "noisy/a.wav", 0.5 * clean)
    write(tmp_path / "clean/short.wav", clean[:4000])
    write(tmp_path / "noisy/short.wav", 0.5 * clean[:4000])
    crops = PairedCrops(PairedFolder(tmp_path / "noisy", tmp_path / "clean"), seconds=1.0)
    for i in range(4):
        item = crops[2 * i]
        np.testing.assert_allclose(item["noisy"], 0.5 * item["clean"], atol=1e-4)
        np.testing.assert_array_equal(item["noisy"], crops[2 * i]["noisy"])
    assert len({crops[2 * i]["info"]["start"] for i in range(4)}) > 1
    assert crops[1]["clean"].shape == (RATE,)
    assert not crops[1]["clean"][4000:].any()


def test_a_crop_knows_the_level_of_its_whole_recording(tmp_path):
    loud = hiss(4.0) * np.repeat([1, 10], 32_000).astype(np.float32)
    for folder in ("clean", "noisy"):
        write(tmp_path / folder / "a.wav", 0.5 * loud)
        write(tmp_path / folder / "silent.wav", 0 * loud)
    pairs = PairedFolder(tmp_path / "noisy", tmp_path / "clean")
    crops = PairedCrops(pairs, seconds=0.5, levels=True)
    gains = [crops[2 * epoch]["gain"] for epoch in range(5)]
    whole = 1 / np.sqrt(np.mean(np.square(pairs[0]["noisy"])))
    np.testing.assert_allclose(gains, whole, rtol=1e-4)
    assert crops[1]["gain"] == [1.0]
    assert "gain" not in PairedCrops(pairs, seconds=0.5)[0]


def test_the_shared_validation_pairs_are_read_as_they_are(shared_data):
    valid = shared_data / "valid"
    pairs = PairedFolder(valid / "denoise/noisy", valid / "denoise/clean", meta=valid / "valid.json")
    assert len(pairs) == 100
    assert pairs[0]["info"]["snr_db"] == -5
    assert pairs[0]["noisy"].shape == pairs[0]["clean"].shape
    two = MixtureFolder(mixtures_of(valid / "separate/s1", valid / "separate/s2"), RATE)
    assert len(two) == 40
    np.testing.assert_array_equal(two[0]["mixture"], two[0]["sources"].sum(axis=0))


@pytest.mark.parametrize("side", ["clean", "noisy"])
@pytest.mark.parametrize("fault", ["dead link", "broken", "shorter"])
def test_one_bad_pair_is_left_out_and_the_others_train(tmp_path, side, fault):
    for name in ("a", "b"):
        for folder in ("clean", "noisy"):
            write(tmp_path / folder / f"{name}.wav", hiss(1.0))
    bad = tmp_path / side / "b.wav"
    bad.unlink()
    if fault == "dead link":
        bad.symlink_to("/nowhere.wav")
    elif fault == "broken":
        bad.write_bytes(b"RIFF")
    else:
        write(bad, hiss(0.5))
    with pytest.warns(UserWarning, match="skipped"):
        crops = PairedCrops(PairedFolder(tmp_path / "noisy", tmp_path / "clean"), seconds=0.5)
    assert [crops[i]["info"]["name"] for i in range(len(crops))] == ["a"]


def test_a_pair_that_vanishes_during_a_run_gives_its_turn_to_the_next(tmp_path):
    for folder in ("clean", "noisy"):
        for name in ("a", "b"):
            write(tmp_path / folder / f"{name}.wav", hiss(1.0))
    crops = PairedCrops(PairedFolder(tmp_path / "noisy", tmp_path / "clean"), seconds=0.5)
    (tmp_path / "clean/a.wav").unlink()
    item = crops[0]
    assert item["info"]["name"] == "b"
    assert "a.wav" in item["info"]["skipped"][0]
