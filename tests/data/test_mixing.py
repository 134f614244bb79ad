import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora_in_miniature import RATE, make_shards, voice
from torch.utils.data import DataLoader

from clearstate.audio.level import active_level
from clearstate.data import MixtureConfig, MixtureDataset, collate, noises, open_sources
from clearstate.data.mixing import at_snr, noise_crop, speech_crop

# Nothing but a voice and noise: what is left of the signal path when every chance is zero.
PLAIN = MixtureConfig(
    seconds=1.5,
    clean_only=0,
    noise_only=0,
    room=0,
    equaliser=0,
    noise_gain=0,
    resampling=0,
    lowpass=0,
    highpass=0,
    level_control=0,
    offset=0,
    clipping=0,
    codec=0,
    packet_loss=0,
    silence=0,
    speed=0,
    voice_gain=0,
    faint_noise=0,
    snr_db=(3.0, 3.0),
    level_dbfs=(-6.0, -6.0),
)


@pytest.fixture
def sources(shards):
    return open_sources(shards)


def first(sources, config, **kwargs):
    return MixtureDataset(sources, config, **kwargs)[0]


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
@pytest.mark.parametrize("kind", ["recorded", "babble", "speech_shaped", "coloured"])
def test_the_snr_is_the_one_asked_for(sources, snr_db, kind):
    weights = dict.fromkeys(("recorded", "babble", "speech_shaped", "coloured", "synthetic"), 0.0) | {kind: 1.0}
    config = replace(PLAIN, snr_db=(snr_db, snr_db), noise_counts=(1.0,), **weights)
    for i in range(3):
        item = MixtureDataset(sources, config, seed=i)[0]
        noise = item["noisy"] - item["clean"]
        measured = active_level(item["clean"], RATE) - 10 * np.log10(np.mean(noise**2))
        assert measured == pytest.approx(snr_db, abs=0.05)
        assert item["info"]["snr_db"] == snr_db
        assert item["info"]["noises"][0]["kind"] == kind


def test_the_snr_of_several_noises_is_that_of_their_sum(sources):
    config = replace(PLAIN, snr_db=(0.0, 0.0), noise_counts=(0.0, 0.0, 1.0), synthetic=0.0)
    for seed in range(4):
        item = first(sources, config, seed=seed)
        assert len(item["info"]["noises"]) == 3
        noise = item["noisy"] - item["clean"]
        measured = active_level(item["clean"], RATE) - 10 * np.log10(np.mean(noise**2))
        assert measured == pytest.approx(0.0, abs=0.05)


def test_pauses_do_not_count_as_quiet_speech():
    rng = np.random.default_rng(0)
    speech = np.zeros(RATE, np.float32)
    speech[:3840] = np.sin(np.arange(3840) * 0.2)  # a quarter of the time, in whole frames
    noise = rng.standard_normal(RATE, dtype=np.float32)
    noise /= np.sqrt(np.mean(noise**2))
    mixed, _ = at_snr(speech, noise, 5.0, RATE)
    measured = 10 * np.log10(np.mean(speech[:3840] ** 2) / np.mean((mixed - speech) ** 2))
    assert measured == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("level", [-40.0, -0.5])
def test_the_peak_of_the_mixture_is_the_one_asked_for(sources, level):
    item = first(sources, replace(PLAIN, level_dbfs=(level, level)))
    assert 20 * np.log10(np.abs(item["noisy"]).max()) == pytest.approx(level, abs=0.01)


def test_items_depend_on_seed_epoch_and_item_and_nothing_else(sources):
    config = MixtureConfig(seconds=1.0)
    dataset = MixtureDataset(sources, config, seed=3, items_per_epoch=10)
    again = MixtureDataset(sources, config, seed=3, items_per_epoch=10)
    for i in (0, 7, 23):
        np.testing.assert_array_equal(dataset[i]["noisy"], again[i]["noisy"])
    assert dataset[23]["info"]["epoch"] == 2
    assert dataset[23]["info"]["item"] == 3
    again.set_epoch(2)
    np.testing.assert_array_equal(dataset[23]["clean"], again[3]["clean"])
    others = [dataset[0], dataset[1], dataset[10], MixtureDataset(sources, config, 4, 10)[0]]
    for i, one in enumerate(others):
        for other in others[:i]:
            assert not np.array_equal(one["noisy"], other["noisy"])


def test_any_number_of_workers_gives_the_same_batches_and_a_resumed_epoch_its_rest(sources):
    dataset = MixtureDataset(sources, MixtureConfig(seconds=0.5), seed=1, items_per_epoch=12)

    def epoch(workers, start=0):
        order = dataset.order(2, start)
        loader = DataLoader(dataset, batch_size=4, sampler=order, num_workers=workers, collate_fn=collate)
        return torch.cat([batch["noisy"] for batch in loader])

    alone = epoch(0)
    assert alone.shape == (12, 8000)
    torch.testing.assert_close(epoch(2), alone, rtol=0, atol=0)
    torch.testing.assert_close(epoch(1, start=4), alone[4:], rtol=0, atol=0)


def test_ranks_share_an_epoch_without_overlap():
    dataset = MixtureDataset.__new__(MixtureDataset)
    dataset.items_per_epoch = 11
    parts = [list(dataset.order(1, 3, rank, 2)) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(14, 22))


def test_clean_only_items_are_their_own_target(sources):
    item = first(sources, MixtureConfig(seconds=1.0, clean_only=1.0, noise_only=0.0, silence=1.0))
    np.testing.assert_array_equal(item["noisy"], item["clean"])
    assert item["clean"].any()


def test_noise_only_items_have_silence_for_a_target(sources):
    item = first(sources, MixtureConfig(seconds=1.0, clean_only=0.0, noise_only=1.0))
    assert item["noisy"].any()
    assert not item["clean"].any()
    assert "voice" not in item["info"]


def test_gaps_are_silent_in_mixture_and_target(sources):
    config = replace(PLAIN, silence=1.0, silence_seconds=(0.4, 0.4), packet_loss=1.0, packet_loss_rate=(0.2, 0.2))
    items = (first(sources, config, seed=seed) for seed in range(20))
    item = next(item for item in items if not item["info"]["concealed"])
    start, stop = item["info"]["silence"]
    for name in ("noisy", "clean"):
        assert not item[name][start:stop].any()
    lost = item["noisy"] == 0
    assert lost.sum() > stop - start
    assert not item["clean"][lost].any()


def treble_db(x, above):
    """Power from `above` Hz on, of all."""
    spectrum = np.abs(np.fft.rfft(x)) ** 2 + 1e-9
    return 10 * np.log10(spectrum[np.fft.rfftfreq(len(x), 1 / RATE) > above].sum() / spectrum.sum())


HISSING = replace(PLAIN, recorded=1.0, babble=0.0, speech_shaped=0.0, coloured=0.0, synthetic=0.0)


@pytest.mark.parametrize("seed", range(4))  # steep filters and gentle ones of several orders
def test_band_limits_hold_for_mixture_and_target(sources, seed):
    plain = first(sources, HISSING, seed=seed)
    limited = first(sources, replace(HISSING, lowpass=1.0, lowpass_hz=(500.0, 500.0)), seed=seed)
    assert limited["info"]["lowpass_hz"] == 500
    for name in ("noisy", "clean"):
        assert treble_db(limited[name], 1000) < treble_db(plain[name], 1000) - 5


def test_resampling_limits_the_band_and_keeps_mixture_and_target_in_place(sources):
    plain, met = first(sources, HISSING), set()
    for seed in range(12):
        item = first(sources, replace(HISSING, resampling=1.0), seed=seed)
        through, _ = item["info"]["resampled"]
        met.add(through)
        assert treble_db(item["noisy"], min(0.52 * through, 7900)) < -20
        again = np.correlate(item["noisy"], item["clean"], "full")  # the voice stays where the target has it
        assert abs(int(np.argmax(np.abs(again))) - (len(item["clean"]) - 1)) <= 1
    assert len(met) > 3
    assert treble_db(plain["noisy"], 4160) > -20  # negative control


def test_damage_is_done_to_the_mixture_and_not_to_the_target(sources):
    config = replace(PLAIN, clipping=1.0, clipping_db=(6.0, 6.0), codec=1.0, offset=1.0)
    plain, met = first(sources, PLAIN), set()
    for seed in range(6):
        info = first(sources, config, seed=seed)["info"]
        assert {"codec", "offset"} <= set(info)
        met |= {"clipping_db", "saturation_db"} & set(info)
    assert met == {"clipping_db", "saturation_db"}
    damaged = first(sources, config)
    np.testing.assert_array_equal(damaged["clean"], plain["clean"])
    assert np.abs(damaged["noisy"] - plain["noisy"]).max() > 0.01


def test_level_control_turns_mixture_and_target_alike(sources):
    plain, item = first(sources, PLAIN), first(sources, replace(PLAIN, level_control=1.0))
    heard = np.abs(plain["clean"]) > 1e-3
    gain = item["clean"][heard] / plain["clean"][heard]
    np.testing.assert_allclose(item["noisy"][heard], plain["noisy"][heard] * gain, rtol=1e-4, atol=1e-5)
    assert gain.max() > 1.05 * gain.min()


def test_concealed_packets_repeat_the_last_that_came(sources):
    config = replace(PLAIN, packet_loss=1.0, packet_loss_rate=(0.3, 0.3))
    met = set()
    for seed in range(8):
        item = first(sources, config, seed=seed)
        met.add(item["info"]["concealed"])
        silent = (item["noisy"][:-320].reshape(-1, 320) == 0).all(axis=1).mean()
        assert (silent > 0.1) != item["info"]["concealed"]
    assert met == {True, False}


@pytest.mark.parametrize("kind", sorted(noises._KINDS))
def test_made_up_noises_are_never_the_same_and_never_silent(kind):
    first, second = (noises._KINDS[kind](np.random.default_rng(seed), 2 * RATE, RATE) for seed in (0, 1))
    assert first.shape == (2 * RATE,)
    assert np.isfinite(first).all()
    assert first.std() > 1e-4
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_reverberant_items_have_a_drier_target(sources):
    item = first(sources, replace(PLAIN, room=1.0, synthetic_room=0.0, snr_db=(60.0, 60.0), closeness_db=(0.0, 0.0)))
    assert item["info"]["room"] == "r/0.flac"  # the one of split "train"
    difference = item["noisy"] - item["clean"]
    assert 10 * np.log10(np.mean(item["clean"] ** 2) / np.mean(difference**2)) < 30


def test_every_kind_of_item_and_noise_comes_up_and_can_be_written_as_json(sources):
    dataset = MixtureDataset(sources, MixtureConfig(seconds=0.5), items_per_epoch=300)
    kinds = Counter()
    for item in dataset:
        assert item["noisy"].shape == item["clean"].shape == (8000,)
        assert item["noisy"].dtype == item["clean"].dtype == np.float32
        assert np.isfinite(item["noisy"]).all()
        assert np.isfinite(item["clean"]).all()
        info = json.loads(json.dumps(item["info"]))
        kinds.update([info["kind"], *(noise["kind"] for noise in info.get("noises", []))])
    expected = {"mixture", "clean_only", "noise_only", "recorded", "babble", "speech_shaped", "coloured"}
    assert expected <= set(kinds)
    assert set(noises._KINDS) <= set(kinds)
    assert 0.04 < kinds["clean_only"] / 300 < 0.15


def test_a_crop_has_one_voice_only(sources):
    config = MixtureConfig()
    for seed in range(30):
        _, info = speech_crop(np.random.default_rng(seed), 6 * RATE, sources.speech, config, RATE)
        folder, voices = info["voice"], {file.rsplit("-", 1)[0] for file in info["speech"]}
        assert len(info["speech"]) > 1  # clips are 2-3 s: it had to be joined
        assert len(voices) == 1, f"{folder} got clips of {voices}"


def test_a_crop_is_filled_with_speech_of_one_level(sources):
    for seed in range(10):
        crop, _ = speech_crop(np.random.default_rng(seed), 6 * RATE, sources.speech, MixtureConfig(), RATE)
        assert active_level(crop, RATE) == pytest.approx(-25, abs=2.5)
        seconds = np.abs(crop[: 6 * RATE]).reshape(6, RATE).max(axis=1)
        assert (seconds > 0).all()


def test_a_crop_does_not_take_the_hiss_of_a_long_pause_for_the_voice(tmp_path):
    recording = 1e-4 * np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32)
    recording[20 * RATE : 30 * RATE] += voice(120, 10.0)
    rows = [({"file": "long.flac", "speaker": "x", "source": "s"}, recording)]
    pool = open_sources({"speech": str(make_shards(tmp_path, "speech16k", rows))}).speech

    def levels(config):
        crops = [speech_crop(np.random.default_rng(i), 3 * RATE, pool, config, RATE)[0] for i in range(40)]
        return np.array([active_level(crop, RATE) for crop in crops])

    kept, control = levels(MixtureConfig()), levels(MixtureConfig(least_speech=0.0))
    assert (control < -45).mean() > 0.6  # a crop of 3 s misses 10 s out of 60 s as a rule
    assert (kept < -45).mean() < 0.6 * (control < -45).mean()
    # What no drawing saves is not scaled to the SNR, as if hiss were speech.
    quiet = np.float32(10 ** (-80 / 20)) * np.ones(RATE, np.float32)
    assert at_snr(quiet, np.ones(RATE, np.float32), 0.0, RATE)[1] is None


@pytest.mark.parametrize("speed", [0.85, 1.0, 1.2])
def test_speed_moves_the_pitch_and_still_fills_the_crop(tmp_path, speed):
    rows = [({"file": "v.flac", "speaker": "x", "source": "s"}, voice(200, 6.0))]
    pool = open_sources({"speech": str(make_shards(tmp_path, "speech16k", rows))}).speech
    config = MixtureConfig(speed=1.0, speed_range=(speed, speed), pause_seconds=(0.05, 0.06))
    crop, info = speech_crop(np.random.default_rng(0), 4 * RATE, pool, config, RATE)
    assert info.get("speed", 1.0) == speed
    assert np.abs(crop.reshape(8, -1)).max(axis=1).min() > 0
    spectrum = np.abs(np.fft.rfft(crop * np.hanning(len(crop))))
    strongest = np.argmax(spectrum) * RATE / len(crop)
    assert strongest / (200 * speed) == pytest.approx(round(strongest / (200 * speed)), abs=0.03)  # a harmonic
    assert strongest > 100


def test_faint_noise_lies_above_the_range_of_the_snr(sources):
    config = replace(PLAIN, snr_db=(0.0, 5.0), faint_noise=0.5, faint_noise_db=45.0)
    snrs = [item["info"]["snr_db"] for item in MixtureDataset(sources, config, items_per_epoch=40)]
    faint = [snr for snr in snrs if snr > 5]
    assert 8 <= len(faint) <= 32 and max(faint) > 30 and max(snrs) <= 45


def test_a_voice_that_rises_and_falls_does_so_in_the_target_too(sources):
    config = replace(PLAIN, snr_db=(60.0, 60.0), voice_gain=1.0, voice_gain_db=20.0)
    even = MixtureDataset(sources, replace(config, voice_gain_db=0.0))[0]["clean"]
    item = MixtureDataset(sources, config)[0]
    assert np.abs(item["noisy"] - item["clean"]).max() < 0.02 * np.abs(item["clean"]).max()
    loud = np.abs(even) > 0.1 * np.abs(even).max()
    gain_db = 20 * np.log10(np.abs(item["clean"][loud] / even[loud]))
    assert np.percentile(gain_db, 95) - np.percentile(gain_db, 5) > 4


def test_babble_leaves_out_the_voice_it_hides(sources):
    for seed in range(20):
        info = noises.babble(np.random.default_rng(seed), RATE, sources.speech, avoid="so_1").info
        assert "so_1" not in info["voices"]
        assert len(set(info["voices"])) == len(info["voices"]) >= 3


def test_speech_shaped_noise_has_the_spectrum_of_speech_and_no_pauses(sources):
    noise = noises.speech_shaped(np.random.default_rng(0), 4 * RATE, sources.speech, RATE).audio
    blocks = (noise.reshape(-1, 1600) ** 2).mean(axis=1)
    assert blocks.min() > 0.25 * blocks.mean()
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.fft.rfftfreq(len(noise), 1 / RATE)
    assert spectrum[frequency < 2000].sum() > 20 * spectrum[frequency > 4000].sum()


def test_coloured_noise_falls_as_its_slope_says():
    for seed in range(5):
        noise = noises.coloured(np.random.default_rng(seed), 8 * RATE, RATE)
        power = np.abs(np.fft.rfft(noise.audio)) ** 2
        frequency = np.fft.rfftfreq(8 * RATE, 1 / RATE)
        octaves = [power[(frequency > f) & (frequency < 1.2 * f)].mean() for f in (300, 4800)]
        assert 10 * np.log10(octaves[0] / octaves[1]) == pytest.approx(12.04 * noise.info["beta"], abs=1.5)


def test_short_noises_are_repeated_to_any_length(sources):
    rng = np.random.default_rng(0)
    for n in (100, RATE, 20 * RATE):
        assert noises.recorded(rng, n, sources.noise).audio.shape == (n,)
        assert noise_crop(rng, n, sources, MixtureConfig(), "")[0].shape == (n,)


def test_mixing_works_without_recorded_noise_and_rooms(shards):
    sources = open_sources({"speech": str(shards)})
    dataset = MixtureDataset(sources, MixtureConfig(seconds=0.5, room=1.0), items_per_epoch=20)
    kinds = {noise["kind"] for item in dataset for noise in item["info"].get("noises", [])}
    assert kinds
    assert "recorded" not in kinds
