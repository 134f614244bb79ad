"""Sound files of many formats, and damage to them that is the same for the same seed."""

import io
from contextlib import suppress

import numpy as np
import soundfile

RATE = 16_000
SNDFILE = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "float.wav": {"format": "WAV", "subtype": "FLOAT"},
    "adpcm.wav": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "aiff": {"format": "AIFF", "subtype": "PCM_24"},
    "au": {"format": "AU", "subtype": "PCM_16"},
    "caf": {"format": "CAF", "subtype": "PCM_16"},
    "w64": {"format": "W64", "subtype": "PCM_16"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {"format": "MP3"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}
CONTAINERS = {  # through PyAV: format of the container, codec, format of the samples
    "m4a": ("mp4", "aac", "fltp"),
    "mkv": ("matroska", "aac", "fltp"),
    "avi": ("avi", "libmp3lame", "fltp"),
    "ts": ("mpegts", "aac", "fltp"),
}


def sound(seconds=0.4, channels=1):
    """A tone in noise (channels, n), peak 0.5."""
    n = int(seconds * RATE)
    noise = np.random.default_rng(0).normal(0, 0.02, (channels, n))
    return 0.4 * np.sin(2 * np.pi * 440 * np.arange(n) / RATE) + noise


def contained(parts, kind, *, rate=RATE, video=0.0, tracks=1, options=None, codec_options=None, file=None, **settings):
    """A file made by PyAV, its bytes without `file`: parts are (start in s, samples (channels, n)).

    `video` is the length of a picture beside them in s; `settings` are those of the sound's streams.
    """
    import av

    form, codec, sample = CONTAINERS.get(kind, kind)
    memory = io.BytesIO()
    with av.open(str(file) if file else memory, "w", format=form, options=options or {}) as container:
        picture = None
        if video:
            picture = container.add_stream("mpeg4", rate=25)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        layout = "mono" if len(parts[0][1]) == 1 else "stereo"
        settings = {"layout": layout, "options": codec_options} | settings
        streams = [container.add_stream(codec, rate=rate, **settings) for _ in range(tracks)]
        for i in range(int(video * 25)):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts = i
            container.mux(picture.encode(frame))
        for stream in streams:
            for start, samples in parts:
                for at in range(0, samples.shape[1], 1024):
                    piece = np.ascontiguousarray(samples[:, at : at + 1024].astype(np.float32))
                    if sample == "s16":
                        piece = np.rint(piece.T * 32767).astype(np.int16).reshape(1, -1)
                    frame = av.AudioFrame.from_ndarray(piece, format=sample, layout=layout)
                    frame.sample_rate, frame.pts = rate, round(start * rate) + at
                    container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if picture:
            container.mux(picture.encode(None))
    return memory.getvalue()


def originals():
    """Whole files by their endings; those of PyAV where it is installed."""
    files = {}
    for ending, how in SNDFILE.items():
        memory = io.BytesIO()
        soundfile.write(memory, sound().T, RATE, **how)
        files[ending] = memory.getvalue()
    with suppress(ImportError):
        files |= {ending: contained([(0, sound())], ending) for ending in CONTAINERS}
    return files


def mutated(data, seed):
    """The file with one to four kinds of damage, in its header or anywhere."""
    rng = np.random.default_rng(seed)
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        reach = min(len(out), int(rng.choice([48, 256, len(out)])))
        at, kind = int(rng.integers(max(1, reach))), rng.integers(8)
        size = int(rng.choice([1, 2, 4, 8, 64, 1000]))
        if kind == 0:
            out[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 1 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            out[at : at + size] = bytes(len(out[at : at + size]))
        elif kind == 3:
            out[at : at + size] = b"\xff" * len(out[at : at + size])
        elif kind == 4:
            out[at : at + size] = rng.bytes(len(out[at : at + size]))
        elif kind == 5:
            del out[int(rng.integers(1, len(out) + 1)) :]
        elif kind == 6:
            del out[at : at + size]
        else:
            out[at:at] = rng.bytes(size)
    return bytes(out)
