"""What libsndfile cannot read, through PyAV (the libraries of FFmpeg): m4a, wma, the sound of a video.

PyAV is an extra, `pip install 'clearstate[av]'`; its wheels bring their own libraries.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from clearstate.audio.io import BLOCK_SECONDS, AudioError, AudioInfo, Block, Reader, checked

SUBTYPES = {"s16": "PCM_16", "s32": "PCM_32", "flt": "FLOAT", "dbl": "DOUBLE", "u8": "PCM_U8"}
LOSSLESS = ("alac", "flac", "pcm_s16le", "pcm_s24le", "pcm_s32le", "wavpack", "ape")
TAGS = ("title", "artist", "album", "comment", "date", "genre", "copyright")


def open_with_av(name: str) -> Reader:
    """Open the first sound track of a file.

    Raises:
        AudioError: where PyAV is missing or finds no sound either.
    """
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{name}: {_beginning(name)}, which soundfile does not know; expected WAV, FLAC, OGG, Opus or MP3, "
            "or for m4a, video and the like: pip install 'clearstate[av]'"
        ) from None
    try:
        container = av.open(name)
    except (av.error.FFmpegError, OSError):
        container = None
    if container is None or not container.streams.audio:
        if container is not None:
            container.close()
        raise AudioError(f"{name}: {_beginning(name)}; expected an audio file, or a video with sound")
    return AvReader(name, container)


class AvReader:
    """The first sound track of an open PyAV container."""

    def __init__(self, name: str, container: Any) -> None:
        self._container = container
        stream = self._stream = container.streams.audio[0]
        stream.thread_type = "AUTO"
        seconds = stream.duration * stream.time_base if stream.duration else None
        if seconds is None and container.duration:
            seconds = container.duration / 1e6
        lossless = stream.codec_context.name in LOSSLESS
        sample = stream.format.name.removesuffix("p")
        self.info = AudioInfo(
            name=name,
            sample_rate=stream.rate,
            channels=stream.channels,
            frames=None,
            seconds=float(seconds) if seconds else None,
            container="AV",
            subtype=SUBTYPES.get(sample, "PCM_16") if lossless else "PCM_16",
            tags={key: text for key, text in container.metadata.items() if key in TAGS},
        )

    def blocks(self) -> Iterator[Block]:
        """Blocks of about BLOCK_SECONDS: (channels, n) float64."""
        import av

        size, done = int(BLOCK_SECONDS * self.info.sample_rate), 0
        held: list[Block] = []  # a frame is some 20 ms: gathered, so that the model gets something to work on
        try:
            for frame in self._container.decode(self._stream):
                held.append(checked(_samples(frame, self.info.channels), self.info, done))
                done += held[-1].shape[1]
                if sum(block.shape[1] for block in held) >= size:
                    yield np.concatenate(held, axis=1)
                    held = []
        except av.error.FFmpegError as error:
            at = f"{done / self.info.sample_rate:.3f} s"
            raise AudioError(
                f"{self.info.name}: broken after {at} ({error.strerror}); fetch it again, or convert it to WAV"
            ) from None
        if held:
            yield np.concatenate(held, axis=1)
        if not done:
            raise AudioError(f"{self.info.name}: holds no samples; expected at least one")

    def __enter__(self) -> "AvReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self._container.close()


def _samples(frame: Any, channels: int) -> Block:
    raw = frame.to_ndarray()  # planar (channels, n); packed (1, n channels)
    x = raw if frame.format.is_planar else raw.reshape(-1, channels).T
    if x.dtype.kind == "f":
        return x.astype(np.float64)
    if x.dtype == np.uint8:
        return (x.astype(np.float64) - 128) / 128
    return x / 2.0 ** (8 * x.dtype.itemsize - 1)


def _beginning(name: str) -> str:
    with open(name, "rb") as file:
        return f"begins with {file.read(16)!r}"
