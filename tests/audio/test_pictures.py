"""Spectrogram pictures: right numbers on right axes, any length, whole or not at all."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from clearstate.audio.pictures import before_and_after, spectrogram


def write(path, samples, rate=16_000):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def tone(seconds, hertz, rate=16_000):
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("amplitude", [1.0, 0.01])
def test_a_tone_shows_at_its_frequency_with_its_level(tmp_path, rate, amplitude):
    shown = spectrogram(write(tmp_path / "tone.wav", amplitude * tone(2, 1000, rate), rate))
    hertz = np.linspace(0, rate / 2, len(shown.level))
    middle = shown.level[:, shown.level.shape[1] // 2]
    assert abs(hertz[middle.argmax()] - 1000) < 20  # a bin is 31 Hz
    assert abs(middle.max() - 20 * np.log10(amplitude)) < 1.5  # a Hann window between bins loses 1.4 dB at most
    assert (shown.seconds, shown.rate) == (2.0, rate)


def test_silence_is_dark_and_finite(tmp_path):
    shown = spectrogram(write(tmp_path / "silence.wav", np.zeros(16_000)))
    assert np.all(shown.level == -140)


def test_a_long_recording_is_averaged_down_without_losing_power(tmp_path):
    noise = 0.1 * np.random.default_rng(0).normal(size=400_000)
    noise[:100_000] *= 3  # in the first quarter of the columns, too
    file = write(tmp_path / "noise.wav", noise)
    fine, coarse = (10 ** (spectrogram(file, columns=n).level / 10) for n in (10**9, 50))
    assert 25 < coarse.shape[1] <= 50 < fine.shape[1]
    together = -(-fine.shape[1] // coarse.shape[1])
    for column in (0, 7, 20, coarse.shape[1] - 2):
        np.testing.assert_allclose(coarse[:, column], fine[:, column * 64 : column * 64 + 64].mean(1))
    assert together == 64


def test_reading_in_pieces_gives_what_reading_at_once_does(tmp_path):
    """Against a direct transform of every frame, over several blocks of the reader."""
    noise = np.random.default_rng(1).normal(size=200_003)
    shown = spectrogram(write(tmp_path / "noise.wav", noise.astype("f4")), columns=10**9)
    window = np.hanning(513)[:-1]
    padded = np.concatenate([noise.astype("f4").astype(float), np.zeros(512)])
    assert shown.level.shape[1] == 1 + -(-(200_003 - 512) // 128)  # as many frames as it takes to show every sample
    for frame in (0, 249, 250, 251, 1024, shown.level.shape[1] - 1):  # a block of the reader has 32 000 samples
        power = np.abs(np.fft.rfft(window * padded[128 * frame : 128 * frame + 512])) ** 2 * (2 / window.sum()) ** 2
        np.testing.assert_allclose(shown.level[:, frame], 10 * np.log10(power), atol=1e-6)


def test_channels_are_averaged_in_power_so_opposite_phases_do_not_vanish(tmp_path):
    left = tone(1, 1000)
    shown = spectrogram(write(tmp_path / "wide.wav", np.stack([left, -left], 1)))
    assert shown.level.max() > -1.5


@pytest.mark.parametrize("samples", [1, 512, 513])
def test_very_short_recordings_have_a_picture(tmp_path, samples):
    file = write(tmp_path / "short.wav", np.ones(samples))
    before_and_after(file, file, tmp_path / "short.png")
    assert (tmp_path / "short.png").read_bytes().startswith(b"\x89PNG")


def test_two_rates_share_one_axis(tmp_path):
    one, two = write(tmp_path / "a.wav", tone(1, 500)), write(tmp_path / "b.wav", tone(1, 500, 48_000), 48_000)
    before_and_after(one, two, tmp_path / "new" / "both.svg")
    drawn = (tmp_path / "new" / "both.svg").read_text()
    assert "<svg" in drawn
    assert "kHz" in drawn or "frequency" in drawn or "glyph" in drawn or "DejaVu" in drawn
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["both.svg"]  # no partial file is left


@pytest.mark.parametrize("content", [b"", b"this is text, whatever its name says"])
def test_what_is_not_audio_is_named(tmp_path, content):
    (tmp_path / "text.wav").write_bytes(content)
    with pytest.raises(ValueError, match=r"text.wav: .* expected an audio file"):
        spectrogram(tmp_path / "text.wav")


def test_no_samples_and_broken_samples_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no samples"):
        spectrogram(write(tmp_path / "none.wav", np.zeros(0)))
    with pytest.raises(ValueError, match="is nan"):
        spectrogram(write(tmp_path / "nan.wav", np.array([0, np.nan])))


def test_matplotlib_is_imported_only_for_drawing_and_named_when_missing(tmp_path):
    file = write(tmp_path / "a.wav", tone(1, 500))
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "from clearstate.audio.pictures import before_and_after\n"
        f"before_and_after({str(file)!r}, {str(file)!r}, {str(tmp_path / 'a.png')!r})\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "clearstate[demo]" in result.stderr
    assert not (tmp_path / "a.png").exists()
