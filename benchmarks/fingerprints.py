"""Compare the outputs of two versions of clearstate: fingerprints of every model with weights on one clip.

    python benchmarks/fingerprints.py --save before/         # arrays and their hashes
    python benchmarks/fingerprints.py --compare before/      # hashes, and the largest difference over the peak

Covers files, streams, separation, extension, networks with fresh seeded weights, and one training step.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import clearstate
from clearstate.models import PRESETS

CLIP = Path(__file__).resolve().parents[1] / "examples/clips/fire_10db.noisy.flac"
FRESH = ("semamba-advanced", "semamba-causal-1", "semamba-basic", "mp-senet-mamba-small", "s4m-tiny", "saf-causal")


def whole_file(name: str, task: str) -> dict[str, np.ndarray]:
    """The outputs of the file functions for the clip, by name."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "clip.wav"
        x, rate = soundfile.read(CLIP, dtype="float32")
        wide = np.stack([x, 0.5 * x], axis=1)[: 3 * rate]
        soundfile.write(source, wide, rate, subtype="FLOAT")
        if task == "enhance":
            clearstate.enhance(source, Path(folder) / "out.wav", model=name)
        elif task == "extend":
            clearstate.extend(source, Path(folder) / "out.wav", model=name)
        else:
            clearstate.separate(source, Path(folder) / "out", model=name)
        found = sorted(path for path in Path(folder).rglob("*.wav") if path != source)
        return {path.name: soundfile.read(path, dtype="float32")[0] for path in found}


def stream(name: str) -> np.ndarray:
    x, rate = soundfile.read(CLIP, dtype="float32")
    wide = np.repeat(x[: 2 * rate], 3)
    held = clearstate.Stream(name, 3 * rate)
    return np.concatenate([*(held.process(part) for part in np.split(wide, 96)), held.flush()])


def fresh(name: str) -> np.ndarray:
    torch.manual_seed(0)
    model = clearstate.build(name).eval()
    x = soundfile.read(CLIP, dtype="float32")[0][: model.sample_rate]
    with torch.inference_mode():
        y = model(torch.from_numpy(x)[None])
    return (y[0] if isinstance(y, tuple) else y).numpy()


def training_step() -> np.ndarray:
    """The gradient of a simple loss on `live`, flattened."""
    torch.manual_seed(0)
    model = clearstate.build("live")
    x = torch.from_numpy(soundfile.read(CLIP, dtype="float32")[0][:16_000])[None]
    model(x).square().mean().backward()
    return np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None])


def outputs() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, preset in PRESETS.items():
        if preset.weights:
            yield f"{name} file", lambda name=name, task=preset.task: whole_file(name, task)
            if preset.task == "enhance" and clearstate.build(name, **preset.shipped_config).causal:
                yield f"{name} stream", lambda name=name: stream(name)
    for name in FRESH:
        yield f"{name} fresh", lambda name=name: fresh(name)
    yield "live gradient", training_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, metavar="DIR", help="store the arrays here")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="compare with the arrays that --save stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    for title, make in outputs():
        made = make()
        for part, array in (made if isinstance(made, dict) else {"": made}).items():
            key = f"{title} {part}".strip().replace(" ", "_").replace("/", "_")
            line = f"{key:48} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"
            if options.save:
                options.save.mkdir(parents=True, exist_ok=True)
                np.save(options.save / f"{key}.npy", array)
            if options.compare:
                before = np.load(options.compare / f"{key}.npy")
                same = before.shape == array.shape
                far = float(np.abs(before - array).max() / np.abs(before).max()) if same else float("nan")
                line += "  equal" if far == 0 else f"  {far:.1e} of the peak"
            print(line, flush=True)


if __name__ == "__main__":
    main()
