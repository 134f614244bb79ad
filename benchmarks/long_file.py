"""Measure peak memory and speed of `enhance` for different file lengths. Memory must not depend on the length.

    python benchmarks/long_file.py [--model NAME_OR_FOLDER] [--minutes 1 10 60] [--rate 44100] [--channels 2]
                                   [--most 1] [--seams 0] [--passthrough] [--json FILE]

Each length runs in a new process and reports its peak resident memory (`ru_maxrss`). The reference is the first length
in the same run. Limits: `--most` GiB, and the longest within 5 % of the first. The exact output length is checked.
`--passthrough` replaces the model by one that does nothing, so only reading, resampling, linking and writing remain,
and hours of audio take minutes. For 10 hours use `--minutes 1 600`.

`--seams SECONDS` is for models with statistics of the whole signal. It enhances noise of growing level in blocks and in
one pass and prints the difference; also with independent blocks, as from a pipe.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

FLAT = 1.05


def write(path: Path, minutes: float, rate: int, channels: int) -> int:
    """Write a file of noise whose level changes."""
    rng = np.random.default_rng(0)
    minute = 0.1 * rng.standard_normal((60 * rate, channels)) * np.sin(np.linspace(0, 60, 60 * rate))[:, None]
    frames = round(minutes * 60 * rate) + 1  # an odd number
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", format="RF64" if frames > 2**29 else "WAV") as file:
        for start in range(0, frames, len(minute)):
            file.write(minute[: frames - start])
    return frames


class Nothing(NamedTuple):
    """No state."""


def passthrough() -> Any:
    import torch

    class Passthrough(torch.nn.Module):
        sample_rate, causal, hop, latency = 16_000, True, 256, 0

        def init_state(self, batch: int) -> Nothing:
            return Nothing()

        def step(self, x: Any, state: Nothing) -> tuple[Any, Nothing]:
            return 0.5 * x, state

    return Passthrough()


def opened(model: str) -> Any:
    """Open a model by name or folder. Without shipped weights it has fresh ones; memory and time are the same."""
    from clearstate.models import build, load_model

    if model == "-":
        return passthrough()
    try:
        return load_model(model)
    except ValueError:
        return build(model).eval()


def enhance_one(source: str, target: str, model: str) -> None:
    """In a new process: enhance, then print time and memory as JSON."""
    import torch

    from clearstate.tasks.enhance import Enhancer

    torch.set_num_threads(1)
    enhancer = Enhancer(opened(model))
    before = peak()
    worked = time.process_time()
    report = enhancer.enhance_file(source, target)
    print(
        json.dumps({"before": before, "peak": peak(), "seconds": report.elapsed, "cpu": time.process_time() - worked})
    )


def seams(model: str, seconds: float) -> None:
    """Print the difference between blocks and one pass in dB relative to the pass, and its largest place."""
    import torch

    from clearstate.tasks.chain import BLOCK_SECONDS, Chain
    from clearstate.tasks.enhance import Enhancer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    enhancer = Enhancer(opened(model))
    net: Any = enhancer.model.network
    if net.causal or seconds <= BLOCK_SECONDS:
        print(f"no seams: {'a causal model is one stream' if net.causal else f'{seconds:g} s are one block'}")
        return
    with torch.no_grad():
        for parameter in net.parameters():  # gains of one and offsets of zero would hide errors
            parameter.add_(0.02 * torch.randn_like(parameter))
    rate, samples = net.sample_rate, round(seconds * net.sample_rate)
    x = 0.2 * np.random.default_rng(0).standard_normal((1, samples)) * np.linspace(0.02, 1, samples) ** 2
    x = x.astype(np.float32)
    with torch.no_grad():
        whole = net(torch.from_numpy(x)).numpy()
    chain = Chain(enhancer.model, rate, 1)
    alone = np.concatenate([chain.push(x), chain.finish()], axis=1)
    for name, y in (("with an overview of the whole", enhancer.enhance(x, rate)), ("each block by itself", alone)):
        error = 10 * np.log10(np.mean((y - whole) ** 2) / np.mean(whole**2))
        worst = np.abs(y - whole).argmax() / rate
        print(f"blocks against one pass over {seconds:g} s, {name}: {error:6.1f} dB, most at {worst:.1f} s")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="live")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 2, 8])
    parser.add_argument("--rate", type=int, default=44_100)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--most", type=float, default=1.0, metavar="GIB", help="memory limit")
    parser.add_argument("--seams", type=float, metavar="SECONDS", help="compare blocks with one pass instead")
    parser.add_argument("--passthrough", action="store_true", help="a model that only halves the signal")
    parser.add_argument("--folder", help="folder for the (large) files; default: a temporary folder")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--one", nargs=3, metavar=("IN", "OUT", "MODEL"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        enhance_one(*wanted.one)
        return

    model = "-" if wanted.passthrough else wanted.model
    if wanted.seams:
        seams(model, wanted.seams)
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread used")
    print(f"{'passthrough' if model == '-' else model}, {wanted.rate} Hz, {wanted.channels} channels, 16 bits\n")
    print(f"{'minutes':>8}{'peak MiB':>10}{'of the first':>14}{'x real time':>13}{'by cpu':>9}   length")
    rows = []
    for minutes in wanted.minutes:
        with tempfile.TemporaryDirectory(dir=wanted.folder) as folder:
            source, target = Path(folder) / "in.wav", Path(folder) / "out.wav"
            frames = write(source, minutes, wanted.rate, wanted.channels)
            command = [sys.executable, __file__, "--one", str(source), str(target), model]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            same = soundfile.info(target).frames == frames
        rows.append({"minutes": minutes, **row, "same_length": same})
        ratio, speed, by_cpu = row["peak"] / rows[0]["peak"], minutes * 60 / row["seconds"], minutes * 60 / row["cpu"]
        print(f"{minutes:8g}{row['peak'] / 2**20:10.0f}{ratio:13.3f}x{speed:13.1f}{by_cpu:9.1f}   ", end="")
        print("exact" if same else "WRONG", flush=True)
    if wanted.json:
        with open(wanted.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)
    highest, flat = max(row["peak"] for row in rows), rows[-1]["peak"] / rows[0]["peak"]
    passed = highest < wanted.most * 2**30 and flat < FLAT and all(row["same_length"] for row in rows)
    print(f"\nunder {wanted.most:g} GiB, flat within 5 %, exact length: {'yes' if passed else 'NO'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
