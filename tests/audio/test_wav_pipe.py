"""Streams: opened once, read to the end of their sound, drained; other formats are stored; closed ones are said."""

import io
import os
import socket
import stat
import struct
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from clearstate.audio import chunks, tags
from clearstate.audio.io import AudioError, AudioInfo, check_target, open_reader, open_writer
from clearstate.audio.wav_pipe import encode

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")

RATE, SAMPLES = 16_000, 3_001
TAIL = [(b"JUNK", bytes(300_000)), (b"bext", bytes(602)), (b"LIST", b"INFOINAM\5\0\0\0Talk\0\0")]
HEAD = [(b"JUNK", bytes(28)), (b"odd ", b"123"), (b"LIST", b"INFOINAM\5\0\0\0Talk\0\0")]


def sound(channels=1, samples=SAMPLES):
    return np.round(np.random.default_rng(0).uniform(-0.5, 0.5, (channels, samples)) * 128) / 128  # exact in 8 bits


def wav(x, subtype="PCM_16", magic=b"RIFF", size=None, wide=None, mask=None, head=(), tail=()):
    """A WAV stream; `size` overrides the size of the data, `wide` the one in 64 bits."""
    data = encode(x.T, subtype)
    bits = len(data) * 8 // x.size
    code, frame = 3 if subtype in ("FLOAT", "DOUBLE") else 1, len(x) * bits // 8
    layout = struct.pack("<HHIIHH", code if mask is None else 0xFFFE, len(x), RATE, RATE * frame, frame, bits)
    if mask is not None:
        layout += struct.pack("<HHIH", 22, bits, mask, code) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    ds64 = [] if wide is None else [(b"ds64", struct.pack("<QQQI", 0, wide, 0, 0))]
    body = b"WAVE" + chunks.packed("RIFF", [*ds64, *head, (b"fmt ", layout), *head])
    body += b"data" + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)
    return magic + struct.pack("<I", 0xFFFFFFFF) + body + chunks.packed("RIFF", list(tail))


def is_device(path):
    return os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode)


class Feeder:
    """Somebody who writes into a pipe and sees whether it was read to the end."""

    def __init__(self, open_it, data):
        self.error = None
        self.thread = threading.Thread(target=self.feed, args=(open_it, data))
        self.thread.start()

    def feed(self, open_it, data):
        try:
            with open_it() as file:
                file.write(data)
        except OSError as error:
            self.error = error

    def join(self):
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture(params=["named pipe", "descriptor", "socket", "socket file"])
def place(request, tmp_path):
    """A function that gives the name of a stream with this content, and its feeder."""
    closing = []

    def connect(data):
        if request.param == "named pipe":
            os.mkfifo(tmp_path / "fifo")
            return str(tmp_path / "fifo"), Feeder(lambda: open(tmp_path / "fifo", "wb"), data)
        if request.param == "descriptor":
            out, into = os.pipe()
            closing.append(lambda: os.close(out))
            return f"/dev/fd/{out}", Feeder(lambda: os.fdopen(into, "wb"), data)
        if request.param == "socket":
            ours, theirs = socket.socketpair()
            closing.append(ours.close)

            def open_it():
                with theirs:
                    return theirs.makefile("wb")

            return f"/proc/self/fd/{ours.fileno()}", Feeder(open_it, data)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "sock"))
        server.listen(1)
        closing.append(server.close)

        def accept():
            with server.accept()[0] as connection:
                return connection.makefile("wb")

        return str(tmp_path / "sock"), Feeder(accept, data)

    yield connect
    for close in closing:
        close()


def read(name):
    with open_reader(name) as reader:
        return np.concatenate(list(reader.blocks()), axis=1), reader.info


def test_every_kind_of_pipe_is_read_once_and_to_its_end(place):
    x = sound()
    name, feeder = place(wav(x, tail=TAIL))
    check_target(name, "other.wav", overwrite=False)  # looks at it, and must not open it
    y, info = read(name)
    feeder.join()
    assert feeder.error is None and np.array_equal(y, x)
    assert dict(info.metadata.comments)["TITLE"] == "Talk"  # although it came behind the sound


@pytest.fixture
def stdin(monkeypatch):
    def put(data):
        stream = io.BytesIO(data)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        return stream

    return put


FULL = SAMPLES * 2


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({}, True),
        ({"head": HEAD}, True),
        ({"magic": b"RF64", "size": 0xFFFFFFFF, "wide": FULL}, True),
        ({"magic": b"BW64", "size": 0xFFFFFFFF, "wide": FULL, "head": HEAD}, True),
        ({"mask": 4}, True),
        ({"size": FULL - 2}, True),  # says less than there is: the rest is not sound
        ({"size": 0}, False),
        ({"size": 0xFFFFFFFF}, False),
        ({"magic": b"RF64", "size": 0xFFFFFFFF, "wide": 2**64 - 1}, False),
        ({"size": 0x7FFFF000}, False),
        ({"size": 10 * FULL}, False),  # more than there is
    ],
)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_the_sizes_in_the_header_are_believed_where_they_can_be(stdin, options, exact, subtype):
    x = sound()
    bytes_each = {"PCM_16": 2, "PCM_U8": 1, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}[subtype]
    scale = {key: value * bytes_each // 2 if key in ("size", "wide") and value in (FULL, FULL - 2) else value
             for key, value in options.items()}  # fmt: skip
    stream = stdin(wav(x, subtype, **scale, tail=TAIL if exact else []))
    y, info = read("-")
    expected = x[:, :-1] if options.get("size") == FULL - 2 else x
    pad = SAMPLES * bytes_each % 2 and not exact  # a padding byte that only a known size tells from sound
    assert np.array_equal(y[:, : expected.shape[1]], expected) and y.shape[1] - expected.shape[1] <= pad
    assert stream.read() == b"" and info.subtype == subtype


def test_a_stream_that_ends_early_says_so(stdin, caplog):
    stdin(wav(sound(), size=2 * FULL))
    read("-")
    assert "stdin: ended after 0.188 s of 0.375 s" in caplog.text


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("FLAC", "PCM_16"), ("MP3", None), ("OGG", "VORBIS"), ("AIFF", "PCM_16"), ("W64", "PCM_16"), ("WAV", "ULAW"),
     ("WAV", "GSM610"), ("CAF", "PCM_16")],
)  # fmt: skip
def test_a_stream_in_another_format_is_stored_first(stdin, tmp_path, monkeypatch, format, subtype, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "a"
    soundfile.write(path, sound(samples=32_000).T, RATE, subtype, format=format)
    stdin(path.read_bytes())
    with open_reader("-") as reader, open_writer(tmp_path / "out.wav", reader.info) as writer:
        assert reader.info.name == "stdin"
        for block in reader.blocks():
            writer.write(block)
    assert np.allclose(soundfile.read(tmp_path / "out.wav")[0], np.clip(soundfile.read(path)[0], -1, 1), atol=2**-14)
    assert "stdin: not WAV in PCM or float, so it was stored first" in caplog.text
    assert os.listdir(tmp_path / "temporary") == []


def test_what_is_no_sound_on_a_stream_is_one_line_with_the_remedy(stdin, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stdin(b"<html>not found</html>" * 50)
    with pytest.raises(AudioError, match=r"stdin: begins with b'<html>not .*`ffmpeg -i INPUT -f wav -`") as caught:
        open_reader("-")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_a_closed_stdin_or_stdout_is_said(monkeypatch, name):
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match="stdin is closed; name an input file"):
        open_reader(name)
    with pytest.raises(OSError, match="stdout is closed; name an output file with -o"):
        open_writer({"/dev/stdin": "/dev/stdout", "/dev/fd/0": "/dev/fd/1"}.get(name, name), AudioInfo("x", 8, 1, 1, 1))
    with pytest.raises(OSError, match="/dev/fd/999: cannot be opened"):
        open_reader("/dev/fd/999")


def test_a_named_pipe_is_written_as_wav_with_tags_and_loudspeakers(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    x = sound(channels=3)
    metadata = tags.Metadata([("TITLE", "Talk")], mask=0x7)
    with open_writer(tmp_path / "fifo", AudioInfo("a.flac", RATE, 3, SAMPLES, None, metadata=metadata)) as writer:
        writer.write(x)
    reader.join()
    (tmp_path / "a.wav").write_bytes(got[0])
    assert np.array_equal(soundfile.read(tmp_path / "a.wav")[0].T, x)
    assert chunks.channel_mask(tmp_path / "a.wav") == 7
    assert dict(tags.read(tmp_path / "a.wav").comments) == {"TITLE": "Talk"}
    assert struct.unpack("<I", got[0][4:8])[0] == len(got[0]) - 8


def test_a_pipe_named_like_another_format_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.mp3")
    with pytest.raises(AudioError, match=r"a\.mp3: is a pipe, which receives WAV, not \.mp3"):
        open_writer(tmp_path / "a.mp3", AudioInfo("x", RATE, 1, None, None))


@pytest.mark.skipif(not is_device("/dev/full"), reason="needs /dev/full")
def test_a_device_that_is_full_says_so():
    with (
        pytest.raises(OSError, match="/dev/full: the disk is full"),
        open_writer("/dev/full", AudioInfo("x", RATE, 1, None, None)),
    ):
        pytest.fail("the header was written")


def test_chunks_behind_the_sound_of_a_stream_reach_a_file_and_are_named_where_they_cannot(stdin, tmp_path, caplog):
    for target in ("a.wav", "a.flac"):
        stdin(wav(sound(), tail=TAIL))
        with open_reader("-") as reader, open_writer(tmp_path / target, reader.info) as writer:
            for block in reader.blocks():
                writer.write(block)
    assert chunks.read_chunks(tmp_path / "a.wav") == TAIL[1:]
    assert "a.wav" not in caplog.text and "a.flac: dropped" in caplog.text and "broadcast data" in caplog.text
