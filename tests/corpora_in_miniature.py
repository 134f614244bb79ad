"""Small made-up corpora: voices that differ in pitch, noises, shards and public layouts."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def voice(pitch: float, seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Harmonics of one pitch in bursts of 0.3 s with pauses of 0.1 s: what an energy gate takes for speech."""
    t = np.arange(int(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * pitch * h * t + h * seed) / h for h in range(1, 8))
    return (0.1 * tone * ((t + 0.05 * seed) % 0.4 < 0.3)).astype(np.float32)


def hiss(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return 0.05 * np.random.default_rng(seed).standard_normal(int(seconds * rate)).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate)
    return path


def make_shards(folder: Path, name: str, rows: list[tuple[dict, np.ndarray | bytes]], rate: int = RATE) -> Path:
    """`name`.jsonl and one tar of FLAC files; a row given as bytes goes in as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{name}-00.tar", "w") as tar:
        for row, audio in rows:
            if isinstance(audio, bytes):
                content = audio
            else:
                memory = io.BytesIO()
                soundfile.write(memory, audio, rate, format="FLAC")
                content = memory.getvalue()
            info = tarfile.TarInfo(row["file"])
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    index = folder / f"{name}.jsonl"
    index.write_text("".join(json.dumps({"shard": f"{name}-00.tar"} | row) + "\n" for row, _ in rows))
    return index


def make_corpus(folder: Path) -> Path:
    """Shards in `folder`: four labelled voices of two clips, an unlabelled source, three noises, two rooms."""
    speech: list = [
        ({"file": f"a/{s}-{i}.flac", "speaker": f"so_{s}", "source": "a"}, voice(90 + 40 * s, 2 + i, seed=s))
        for s in range(4)
        for i in range(2)
    ]
    speech += [
        ({"file": f"b/{i}-{j}.flac", "speaker": "b_unknown", "source": "b"}, voice(110 + 15 * i, 3))
        for i in range(3)
        for j in range(2)
    ]
    make_shards(folder, "speech16k", speech)
    noises = [({"file": f"n/{i}.flac", "group": f"g{i}", "source": "n"}, hiss(2 + 3 * i, i)) for i in range(3)]
    make_shards(folder, "noise16k", noises)
    responses = []
    for i, split in enumerate(["train", "valid"]):
        h = np.random.default_rng(i).standard_normal(24000) * np.exp(-np.arange(24000) / 4000) * 0.05
        h[:480] = 0
        h[480] = 0.9
        responses.append(({"file": f"r/{i}.flac", "source": "r", "split": split}, h.astype(np.float32)))
    make_shards(folder, "rir48k", responses, rate=48_000)
    return folder
