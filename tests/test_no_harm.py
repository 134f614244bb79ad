"""The shipped models of `enhance` do no harm: clean speech, silence, music, any level and any finite number go in."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import clearstate

LEAST_CLEAN_PESQ = 4.2  # of every fifth clean file


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def band(x, rate, low, high):
    spectrum = np.fft.rfft(x)
    frequency = np.fft.rfftfreq(x.shape[-1], 1 / rate)
    return rms(np.fft.irfft(spectrum * ((frequency >= low) & (frequency < high)), x.shape[-1]))


@pytest.fixture(scope="module", params=["live", "studio"])
def shipped(request):
    return clearstate.load(request.param)


def clip(name):
    folder = Path(__file__).parent.parent / "examples" / "clips"
    return soundfile.read(folder / f"{name}.flac")[0]


def si_sdr(estimate, reference):
    """Energy of the reference's part in the estimate over the rest, in dB (Le Roux et al. 2019)."""
    part = (estimate @ reference) / (reference @ reference) * reference
    return 10 * np.log10((part @ part) / ((estimate - part) @ (estimate - part)))


@pytest.mark.parametrize("name", ["helicopter_0db", "chainsaw_5db", "fire_10db"])
def test_it_makes_noisy_speech_cleaner_in_mono_and_in_stereo(shipped, name):
    clean, noisy = clip(f"{name}.clean"), clip(f"{name}.noisy")
    before = si_sdr(noisy, clean)
    assert si_sdr(shipped.enhance(noisy, 16_000), clean) > before + 1
    stereo = shipped.enhance(np.stack([0.9 * noisy, 0.4 * noisy + 0.05 * (noisy - clean)]), 16_000)
    assert min(si_sdr(channel, clean) for channel in stereo) > before + 1


def test_it_treats_quiet_and_loud_recordings_alike(shipped):
    noisy = clip("chainsaw_5db.noisy")
    noisy = noisy / np.abs(noisy).max()
    loud, quiet = (shipped.enhance(noisy * 10 ** (dbfs / 20), 16_000) * 10 ** (-dbfs / 20) for dbfs in (-1, -50))
    # Pauses at -67 dB under the peak fall below the level that counts as digital silence: a difference, inaudible.
    assert si_sdr(quiet, loud) > 30


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_it_leaves_digital_silence_silent(shipped, rate):
    assert not shipped.enhance(np.zeros((2, 2 * rate)), rate).any()


@pytest.mark.parametrize("strength", [6, 20])
def test_it_takes_no_more_than_the_strength_from_noise(shipped, strength):
    hiss = 0.05 * np.random.default_rng(0).standard_normal(4 * 48_000)
    removed = rms(hiss) / rms(shipped.enhance(hiss, 48_000, strength)[48_000:])
    assert 20 * np.log10(removed) <= strength + 0.2


def test_clean_speech_passes_nearly_unchanged(shipped, shared_data):
    """Every fifth of the clean validation files; the whole set is in the model's card."""
    perceptual = pytest.importorskip("clearstate.metrics.perceptual")
    files = sorted((shared_data / "valid" / "denoise" / "clean").glob("*.flac"))[::5]
    ratios, scores = [], []
    for file in files:
        clean, rate = soundfile.read(file)
        y = shipped.enhance(clean, rate)
        ratios.append(si_sdr(y, clean))
        scores.append(perceptual.pesq_wb(clean, y, rate))
    assert len(scores) >= 20 and np.mean(ratios) >= 25, ratios
    assert np.mean(scores) >= LEAST_CLEAN_PESQ, scores


def test_clean_speech_loses_no_more_above_the_band_than_in_it(shipped, shared_data):
    def loss(x, y, low, high):
        return 20 * np.log10(band(x, 48_000, low, high) / band(y, 48_000, low, high))

    with tarfile.open(shared_data / "speech48k-00.tar") as shard:
        names = [m for m in shard.getmembers() if m.name.endswith((".opus", ".flac", ".wav"))]
        for member in names[:: len(names) // 6][:6]:
            x, rate = soundfile.read(io.BytesIO(shard.extractfile(member).read()))
            assert rate == 48_000
            x = x[: 3 * rate]
            y = shipped.enhance(x, rate)
            assert loss(x, y, 8_500, 20_000) < loss(x, y, 4_000, 7_500) + 1, member.name


def test_the_level_of_the_input_does_not_change_the_score(shipped):
    perceptual = pytest.importorskip("clearstate.metrics.perceptual")
    for name in ("helicopter_0db", "chainsaw_5db", "fire_10db"):
        clean, noisy = clip(f"{name}.clean"), clip(f"{name}.noisy")
        noisy = noisy / np.abs(noisy).max()
        scores = [
            perceptual.pesq_wb(clean, shipped.enhance(noisy * 10 ** (dbfs / 20), 16_000) * 10 ** (-dbfs / 20), 16_000)
            for dbfs in (-50, -25, -1)
        ]
        assert max(scores) - min(scores) < 0.1, f"{name}: {scores}"


def not_speech(name):
    """Six seconds at 16 kHz of what is no speech, peaking at -14 dBFS."""
    rate, rng = 16_000, np.random.default_rng(0)
    n = 6 * rate
    t = np.arange(n) / rate
    if name == "white":
        x = rng.standard_normal(n)
    elif name == "pink":
        x = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / np.sqrt(np.maximum(np.arange(n // 2 + 1), 1)), n)
    elif name == "hum":
        x = sum(np.sin(2 * np.pi * 50 * h * t) / h for h in range(1, 12))
    elif name == "chord":
        x = sum(np.sin(2 * np.pi * f * h * t) / h for f in (220, 277.2, 329.6) for h in range(1, 5))
    elif name == "melody":  # plucked: four notes a second
        since = t % 0.25
        pitch = np.array([262, 330, 392, 523])[(t / 0.25).astype(int) % 4]
        x = sum(np.exp(-3 * since) * np.sin(2 * np.pi * h * pitch * since) / h for h in range(1, 6))
    elif name == "drums":
        x = rng.standard_normal(n) * np.exp(-(t % 0.25) / 0.03)
    elif name == "clicks":
        x = (np.arange(n) % 3_200 == 0).astype(float)
    else:  # a siren
        x = np.sin(2 * np.pi * np.cumsum(800 + 400 * np.sin(np.pi * t)) / rate)
    return 0.2 * x / np.abs(x).max()


@pytest.mark.parametrize("name", ["white", "pink", "hum", "chord", "melody", "drums", "clicks", "siren"])
def test_what_is_not_speech_becomes_quieter_and_nowhere_louder(shipped, name):
    x = not_speech(name)
    y = shipped.enhance(x, 16_000)
    assert 20 * np.log10(rms(x) / rms(y)) > 2  # a plucked melody, whose notes begin as words do, is the hardest
    before, after = (np.sqrt(np.square(z).reshape(-1, 800).mean(axis=1)) for z in (x, y))  # of 50 ms each
    around = np.maximum.reduce([np.roll(before, shift) for shift in (-1, 0, 1)])
    assert (after <= 1.06 * around + 1e-6).all()  # half a decibel


@pytest.mark.parametrize("value", [1e30, 1.0, 1e-38, -1e6])
def test_no_finite_input_gives_anything_but_finite_sound(shipped, value):
    burst = np.zeros(8_000)
    burst[100] = burst[4_000:6_000] = value
    for x in (np.full(8_000, value), burst, value * np.random.default_rng(0).standard_normal(8_000)):
        assert np.isfinite(shipped.enhance(x, 16_000)).all()
        assert np.isfinite(shipped.enhance(x.astype(np.float32), 44_100)).all()
