"""What is stored beside the sound survives, and what counts samples is right after a change of the rate."""

import struct
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from clearstate.audio import chunks, tags
from clearstate.audio.chunks import append_chunks, channel_mask, read_chunks, scaled, set_channel_mask
from clearstate.audio.io import AudioInfo, open_reader, open_writer

RATES = [(8_000, 48_000), (16_000, 44_100), (44_100, 48_000)]


def noise(samples, channels=1):
    return np.random.default_rng(0).standard_normal((channels, samples)) / 10


def copy(source, target, to=None):
    """Through reader and writer; `to` pretends that the sound was brought to another rate."""
    with open_reader(source) as reader:
        info = reader.info
        if to:
            metadata = tags.of(info).at_rate(info.sample_rate, to)
            info = AudioInfo(
                info.name, to, info.channels, None, None, info.container, info.subtype, info.endian, metadata=metadata
            )
        with open_writer(target, info) as writer:
            for block in reader.blocks():
                writer.write(block)


# Each chunk as a function of the byte order and a position or length that it holds.
def bext(order, at):
    return b"bext", b"a scene".ljust(338, b"\0") + struct.pack(order + "Q", at) + bytes(256)


def cue(order, at):
    points = [struct.pack(order + "II4sIII", i, at, b"data", 0, 0, at) for i in (1, 2)]
    return b"cue ", struct.pack(order + "I", 2) + b"".join(points)


def smpl(order, at):
    loop = struct.pack(order + "6I", 0, 0, at, at, 0, 0)
    return b"smpl", bytes(28) + struct.pack(order + "2I", 1, 0) + loop


def plst(order, at):
    return b"plst", struct.pack(order + "4I", 1, 1, at, 3)


def adtl(order, at):
    label = b"labl" + struct.pack(order + "I", 9) + struct.pack(order + "I", 1) + b"here\0\0"  # padded
    return b"LIST", b"adtl" + label + b"ltxt" + struct.pack(order + "3I4sIHH", 20, 1, at, b"rgn ", 0, 0, 0)[:28]


def cart(order, at):
    return b"cart", bytes(684) + b"".join(b"AUDs" + struct.pack(order + "I", at) for _ in range(8)) + bytes(1300)


def mark(order, at):
    return b"MARK", struct.pack(order + "H", 2) + b"".join(
        struct.pack(order + "HIB", i, at, len(name)) + name + b"\0" * ((len(name) + 1) % 2)
        for i, name in ((1, b"odd"), (2, b"even"))
    )


def caf_mark(order, at):
    one = struct.pack(order + "IdI8sI", 0, float(at), 1, bytes(8), 0)
    return b"mark", struct.pack(order + "II", 0, 2) + one + one


COUNTING = [
    ("RIFF", bext), ("RIFF", cue), ("RIFF", smpl), ("RIFF", plst), ("RIFF", adtl), ("RIFF", cart),
    ("RIFX", bext), ("RIFX", cue), ("RIFX", adtl), ("AIFF", mark), ("CAF", caf_mark),
]  # fmt: skip


@pytest.mark.parametrize(("rate", "to"), RATES)
@pytest.mark.parametrize(("family", "make"), COUNTING)
def test_positions_and_lengths_keep_their_time_at_another_rate(family, make, rate, to):
    order = chunks.FAMILIES[family].order
    assert scaled(family, make(order, rate * 7), Fraction(to, rate)) == make(order, to * 7)
    assert scaled(family, make(order, rate * 7), Fraction(1)) == make(order, rate * 7)


def test_a_count_that_would_not_fit_or_means_none_stays_in_its_field():
    high = scaled("RIFF", plst("<", 2**32 - 2), Fraction(3))
    assert high == plst("<", 2**32 - 1) and scaled("RIFF", plst("<", 2**32 - 1), Fraction(3)) == plst("<", 2**32 - 1)


IXML = (
    "<BWFXML><SPEED><FILE_SAMPLE_RATE>{rate}</FILE_SAMPLE_RATE><TIMESTAMP_SAMPLE_RATE>{rate}</TIMESTAMP_SAMPLE_RATE>"
    "<DIGITIZER_SAMPLE_RATE>96000</DIGITIZER_SAMPLE_RATE><TIMECODE_RATE>25/1</TIMECODE_RATE>"
    "<TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO> {low} </TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO>"
    "<TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI>{high}</TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI></SPEED>"
    "<NOTE>Müller took 16000 breaths</NOTE></BWFXML>"
)


@pytest.mark.parametrize(("rate", "to"), RATES)
def test_the_rates_and_64_bit_times_of_ixml_are_corrected_and_nothing_else(rate, to):
    def document(rate):
        high, low = divmod(rate * 200_000, 2**32)
        return b"iXML", IXML.format(rate=rate, high=high, low=low).encode()

    assert scaled("RIFF", document(rate), Fraction(to, rate)) == document(to)


def test_the_rate_in_adm_is_corrected_and_times_in_seconds_stay():
    before = b'<audioTrackUID UID="ATU_1" sampleRate="16000" bitDepth="24"/><x start="00:00:16.16000"/>'
    _, after = scaled("RIFF", (b"axml", before), Fraction(3))
    assert after == before.replace(b'sampleRate="16000"', b'sampleRate="48000"')


@pytest.mark.parametrize("body", [b"", b"\xff\xff\xff\xff", b"\x09\0\0\0 too short"])
@pytest.mark.parametrize("name", [b"cue ", b"smpl", b"plst", b"bext", b"MARK", b"mark", b"cart"])
def test_a_damaged_chunk_is_dropped_rather_than_written_with_wrong_times(name, body):
    assert scaled("RIFF", (name, body), Fraction(3)) is None


SOURCES = [
    ("wav", "WAV", "FILE", [bext, cue, smpl, plst, adtl, cart]),
    ("wav", "WAVEX", "FILE", [bext, cue, adtl]),
    ("wav", "RF64", "FILE", [bext, cue, adtl]),
    ("wav", "WAV", "BIG", [bext, cue, adtl]),  # RIFX
    ("aiff", "AIFF", "FILE", [mark]),
    ("caf", "CAF", "FILE", [caf_mark]),
]


@pytest.mark.parametrize(("suffix", "container", "endian", "makers"), SOURCES)
@pytest.mark.parametrize("to", [None, 48_000])
def test_chunks_survive_in_every_container_with_their_times(tmp_path, suffix, container, endian, makers, to, caplog):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    soundfile.write(source, noise(4_001).T, 16_000, subtype="PCM_24", format=container, endian=endian)
    order = {"wav": "<", "aiff": ">", "caf": ">"}[suffix] if endian == "FILE" else ">"
    ours = [make(order, 16_000) for make in makers]
    append_chunks(source, [*ours, (b"strc", b"not known to anybody.")])
    assert soundfile.info(source).frames == 4_001
    copy(source, target, to)
    assert soundfile.info(target).frames == 4_001 and len(soundfile.read(target)[0]) == 4_001
    if to:
        assert read_chunks(target) == [make(order, to) for make in makers] and "dropped" in caplog.text
        assert caplog.text.count("strc") == 1
    else:
        assert read_chunks(target) == [*ours, (b"strc", b"not known to anybody.")] and not caplog.text


def test_markers_that_another_format_cannot_hold_are_named(tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", noise(100).T, 16_000)
    append_chunks(tmp_path / "a.wav", [cue("<", 5), bext("<", 5)])
    copy(tmp_path / "a.wav", tmp_path / "a.flac")
    assert "a.flac: dropped" in caplog.text and "2 markers, broadcast data" in caplog.text


@pytest.mark.parametrize("mask", [0x3F, 0x60F, 0x0])
@pytest.mark.parametrize("container", ["WAVEX", "RF64"])
def test_the_loudspeakers_of_an_extensible_wav_survive(tmp_path, mask, container):
    soundfile.write(tmp_path / "a.wav", noise(100, 6).T, 16_000, format=container, subtype="PCM_24")
    set_channel_mask(tmp_path / "a.wav", mask)
    copy(tmp_path / "a.wav", tmp_path / "b.wav")
    assert channel_mask(tmp_path / "b.wav") == mask and soundfile.info(tmp_path / "b.wav").channels == 6
    copy(tmp_path / "a.wav", tmp_path / "b.flac")
    found = dict(tags.read(tmp_path / "b.flac").comments)
    assert found.get("WAVEFORMATEXTENSIBLE_CHANNEL_MASK") == (f"0x{mask:04X}" if mask else None)


def test_a_plain_wav_has_no_loudspeakers_to_write(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(100, 2).T, 16_000)
    before = (tmp_path / "a.wav").read_bytes()
    set_channel_mask(tmp_path / "a.wav", 3)
    assert channel_mask(tmp_path / "a.wav") is None and (tmp_path / "a.wav").read_bytes() == before
