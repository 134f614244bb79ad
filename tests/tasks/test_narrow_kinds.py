"""Narrow recordings as people have them, through the shipped weights: telephones, codecs, gentle filters, noise above.

The edge is found, what is there stays, the new band has the level of the old one, and what is no speech gets nothing.
"""

import io

import av
import numpy as np
import pytest
import soundfile
import soxr
from scipy import signal

from clearstate.tasks.extend import MODEL_RATE, Extender, measure

FULL = 48_000


@pytest.fixture(scope="module")
def extender():
    return Extender("extend-fast")


@pytest.fixture(scope="module")
def voices(shared_data):
    """Two held-out voices at 48 kHz, to 22 kHz and more, peaks at -6 dBFS."""
    files = sorted((shared_data / "valid/extend/wide").iterdir())[::12]
    read = [soundfile.read(file)[0] for file in files]
    return [0.5 * x / np.abs(x).max() for x in read]


def at(x, rate):
    return soxr.resample(x, FULL, rate, "HQ")


def lowpass(x, hertz, order):
    return signal.sosfilt(signal.butter(order, hertz, fs=FULL, output="sos"), x)


def coded(x, rate, kind, subtype=None, **more):
    """Through a codec of libsndfile."""
    memory = io.BytesIO()
    soundfile.write(memory, x, rate, format=kind, subtype=subtype, **more)
    memory.seek(0)
    return soundfile.read(memory)[0]


def aac(x, rate, bits_per_second):
    memory = io.BytesIO()
    with av.open(memory, "w", format="adts") as out:
        stream = out.add_stream("aac", rate=rate, layout="mono")
        stream.bit_rate = bits_per_second
        frame = av.AudioFrame.from_ndarray(x[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    memory.seek(0)
    with av.open(memory) as read:
        return np.concatenate([frame.to_ndarray()[0] for frame in read.decode(audio=0)])[1024:][: len(x)]


def telephone(x):
    band = signal.butter(4, [300, 3400], btype="band", fs=8_000, output="sos")
    return signal.sosfilt(band, at(x, 8_000))


def hiss(x, dbfs):
    return 10 ** (dbfs / 20) * np.random.default_rng(0).standard_normal(len(x))


def noisy(x, dbfs):
    return x + hiss(x, dbfs)


KINDS = {  # rate, what happens to the voice, where the edge is expected in Hz
    "8 kHz": (8_000, lambda x: at(x, 8_000), (3_400, 4_000)),
    "A-law telephone": (8_000, lambda x: coded(telephone(x), 8_000, "WAV", "ALAW"), (3_300, 4_000)),
    "GSM telephone": (8_000, lambda x: coded(telephone(x), 8_000, "WAV", "GSM610"), (3_300, 4_000)),
    "16 kHz": (16_000, lambda x: at(x, 16_000), (7_000, 8_000)),
    "22 kHz": (22_050, lambda x: at(x, 22_050), (9_900, 11_025)),
    "8 kHz in a file of 48": (FULL, lambda x: soxr.resample(at(x, 8_000), 8_000, FULL, "HQ"), (3_400, 4_000)),
    "MP3": (44_100, lambda x: coded(at(x, 44_100), 44_100, "MP3", compression_level=0.7), (14_000, 16_500)),
    "MP3 of low rate": (44_100, lambda x: coded(at(x, 44_100), 44_100, "MP3", compression_level=0.95), (5_000, 6_000)),
    "AAC at 24 kbit/s": (44_100, lambda x: aac(at(x, 44_100), 44_100, 24_000), (7_000, 8_000)),
    "gentle filter at 6 kHz": (FULL, lambda x: lowpass(x, 6_000, 16), (5_400, 7_000)),
    "gentle filter at 11 kHz": (FULL, lambda x: lowpass(x, 11_000, 20), (10_000, 12_500)),
    "4 kHz in 16 bits": (FULL, lambda x: np.round(2**15 * lowpass(x, 4_000, 20)) / 2**15, (3_400, 4_800)),
    "noise above": (FULL, lambda x: noisy(soxr.resample(at(x, 8_000), 8_000, FULL), -80), (3_400, 4_000)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_edge_is_found_and_what_is_there_stays(extender, voices, kind):
    rate, narrow, (least, most) = KINDS[kind]
    for voice in voices:
        x = narrow(voice)
        reach = measure([x[None]], rate, 1)
        assert least <= reach <= most
        y = extender.extend(x, rate, FULL)
        plain = soxr.resample(x, rate, FULL, "HQ") if rate != FULL else x
        n = min(map(len, (y, plain, voice)))
        f = np.fft.rfftfreq(n, 1 / FULL)
        new, old, true = (np.abs(np.fft.rfft(z)) ** 2 for z in (y[:n] - plain[:n], plain[:n], voice[:n]))
        below, above = f < reach - 600, (f > 1.1 * reach) & (f < min(20_000, 2 * reach))
        assert 10 * np.log10(new[below].sum() / old[below].sum()) < -80
        level = 10 * np.log10(new[above].sum() / true[above].sum())
        assert -18 < level < 6  # a missing band costs at least 1 dB of SNR at 0 dB: the weights stay below


NO_SPEECH = {
    "hum": lambda t: 0.1 * sum(np.sin(2 * np.pi * 50 * k * t) / k for k in range(1, 40)),
    "hiss": lambda t: hiss(t, -30),
    "faint hiss": lambda t: hiss(t, -60),
    "digital silence": np.zeros_like,
    "a constant": lambda t: np.full_like(t, 0.1),
}


@pytest.mark.parametrize("kind", NO_SPEECH)
@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_nothing_is_added_to_what_is_no_speech(extender, kind, rate):
    x = NO_SPEECH[kind](np.arange(4 * rate) / rate)
    y = extender.extend(x, rate, FULL)
    power, f = np.abs(np.fft.rfft(y)) ** 2, np.fft.rfftfreq(len(y), 1 / MODEL_RATE)
    assert power[f > 0.51 * rate].sum() <= 10 ** (-35 / 10) * power.sum()
