import numpy as np
import pytest
from corpora_in_miniature import hiss, make_shards, write

from clearstate.audio.bandwidth import bandwidth
from clearstate.data import ExtensionConfig, ExtensionDataset, open_sources
from clearstate.data.extension import magnitude, narrowed, tilted

WIDE = 48_000


@pytest.fixture
def sources(tmp_path):
    write(tmp_path / "s/anna/1.wav", hiss(4.0, rate=WIDE), WIDE)
    return open_sources({"speech": str(tmp_path / "s"), "sample_rate": WIDE})


def band(x: np.ndarray, low: float, high: float) -> np.ndarray:
    spectrum = np.fft.rfft(x * np.hanning(len(x)))
    frequency = np.fft.rfftfreq(len(x), 1 / WIDE)
    return spectrum[(frequency >= low) & (frequency < high)]


def test_the_narrow_signal_has_nothing_above_half_its_rate(sources):
    for item in ExtensionDataset(sources, ExtensionConfig(seconds=0.5), items_per_epoch=20):
        half = item["info"]["narrow_rate"] / 2
        assert item["narrow"].shape == item["wide"].shape == (WIDE // 2,)
        above = np.sum(np.abs(band(item["narrow"], 1.02 * half, WIDE / 2)) ** 2)
        assert 10 * np.log10(above / np.sum(np.abs(band(item["wide"], 1.02 * half, WIDE / 2)) ** 2)) < -60


@pytest.mark.parametrize("narrow_rate", [8_000, 11_025, 24_000, 32_000])
@pytest.mark.parametrize("family", ["brickwall", "chebyshev", "butterworth", "cosine"])
def test_the_low_band_is_the_same_sample_by_sample(family, narrow_rate):
    wide = hiss(0.5, rate=WIDE)
    narrow = narrowed(wide, WIDE, narrow_rate, 0.95 * narrow_rate / 2, family, 10)
    top = 0.5 * narrow_rate / 2
    low, target = band(narrow, 0, top), band(wide, 0, top)

    def error_db(a):
        return 10 * np.log10(np.sum(np.abs(a - target) ** 2) / np.sum(np.abs(target) ** 2))

    assert error_db(low) < (-24 if family == "chebyshev" else -35)  # the former has 0.5 dB of ripple
    # Half a sample of delay, the classic mistake, would show at the top of the band.
    late = band(np.roll(narrow, 1), 0, top)
    assert error_db(late) > error_db(low) + 3


@pytest.mark.parametrize("family", ["brickwall", "chebyshev", "butterworth", "cosine"])
def test_filters_pass_the_low_and_stop_the_high(family):
    gain = magnitude(np.array([10.0, 2000.0, 12_000.0, 23_000.0]), 4000.0, family, 8)
    np.testing.assert_allclose(gain[:2], 1.0, atol=0.06)
    assert (gain[2:] < 1e-3).all()


def test_rates_above_the_sources_are_refused(tmp_path):
    write(tmp_path / "s/anna/1.wav", hiss(1.0, rate=8000), 8000)
    sources = open_sources({"speech": str(tmp_path / "s"), "sample_rate": 8000})
    with pytest.raises(ValueError, match="sample_rate=48000"):
        ExtensionDataset(sources)


def test_files_that_are_narrow_themselves_are_reported(tmp_path):
    write(tmp_path / "s/anna/1.wav", hiss(1.0, rate=16_000), 16_000)
    assert "1 files below 48000 Hz" in open_sources({"speech": str(tmp_path / "s"), "sample_rate": WIDE}).report


def shards(folder, **reach):
    """Clips of hiss at 48 kHz whose rows say where they end, in kHz."""
    rows = [{"file": f"{name}.flac", "speaker": name, "source": name, "reach_khz": khz} for name, khz in reach.items()]
    return make_shards(folder, "speech48k", [(row, hiss(3.0, rate=WIDE)) for row in rows], rate=WIDE)


def opened(index, **more):
    return open_sources({"speech": str(index), "sample_rate": WIDE, **more})


def test_what_lies_above_the_end_of_a_clip_is_not_in_the_target(tmp_path):
    """There the clip has the noise of a converter or a codec, whose edge may be too gentle to be measured."""
    sources = opened(shards(tmp_path, anna=15.0))
    assert sources.speech.clips[0].reach_hz == 15_000
    for item in ExtensionDataset(sources, ExtensionConfig(seconds=0.5, speed=0.5), items_per_epoch=12):
        end = 0.75 * 15_000 * item["info"].get("speed", 1.0)  # the quarter below is thinned out by the codec
        assert bandwidth(item["wide"][None], WIDE)[0] == pytest.approx(end, rel=0.03)
        assert 1.15 * item["info"]["narrow_rate"] <= 2 * end


def test_corpora_are_drawn_by_their_weights(tmp_path):
    sources = opened(shards(tmp_path, anna=22.0, bert=22.0, cora=22.0, dora=22.0))
    config = ExtensionConfig(seconds=0.1, corpora={"anna": 3, "dora": 1})
    voices = [item["info"]["voice"] for item in ExtensionDataset(sources, config, items_per_epoch=200)]
    assert set(voices) == {"anna", "dora"} and voices.count("anna") == pytest.approx(150, abs=20)
    with pytest.raises(ValueError, match="no speech of the corpus 'vctk': expected one of anna, bert, cora, dora"):
        ExtensionDataset(sources, ExtensionConfig(corpora={"vctk": 1}))


def test_a_tilt_raises_the_high_frequencies_evenly():
    x = hiss(1.0, rate=WIDE)
    for low, high, change in ((100, 1_900, 0), (3_900, 4_100, 4), (7_900, 8_100, 8), (17_000, 23_000, 12)):
        before, after = (np.sum(np.abs(band(y, low, high)) ** 2) for y in (x, tilted(x, WIDE, 12.0)))
        assert 10 * np.log10(after / before) == pytest.approx(change, abs=0.2)


def test_to_a_noise_nothing_is_added(sources):
    items = ExtensionDataset(sources, ExtensionConfig(seconds=0.5, voiceless=1.0), items_per_epoch=12)
    for item in items:
        assert "voice" not in item["info"] and item["info"]["noises"]
        half = item["info"]["narrow_rate"] / 2
        above = np.abs(band(item["wide"], 1.05 * half, WIDE / 2)) ** 2
        assert 10 * np.log10(above.sum() / np.sum(np.abs(band(item["narrow"], 0, half)) ** 2)) < -55
        assert bandwidth(item["wide"][None], WIDE)[0] < 1.02 * half


def test_items_repeat(sources):
    one, two = (ExtensionDataset(sources, ExtensionConfig(seconds=0.3), seed=2)[9] for _ in range(2))
    np.testing.assert_array_equal(one["narrow"], two["narrow"])


def test_another_speed_moves_the_band(tmp_path):
    wide = hiss(4.0, rate=WIDE)
    spectrum = np.fft.rfft(wide)
    spectrum[round(len(spectrum) * 20 / 24) :] = 0  # as a codec leaves it
    write(tmp_path / "s/anna/1.wav", np.fft.irfft(spectrum, len(wide)), WIDE)
    sources = open_sources({"speech": str(tmp_path / "s"), "sample_rate": WIDE})
    plain = ExtensionDataset(sources, ExtensionConfig(seconds=0.5), items_per_epoch=4)
    quick = ExtensionDataset(
        sources, ExtensionConfig(seconds=0.5, speed=1.0, speed_range=(1.15, 1.2)), items_per_epoch=4
    )
    for items, full in ((plain, False), (quick, True)):
        for item in items:
            top, below = (np.mean(np.abs(band(item["wide"], *edges)) ** 2) for edges in ((21e3, 22.5e3), (17e3, 19e3)))
            assert (top > 1e-2 * below) == full
            assert ("speed" in item["info"]) == full
