"""Peak memory and speed of enhancing a file, against its length: the memory must not depend on it.

    python benchmarks/long_file.py [--model NAME_OR_FOLDER] [--minutes 1 10 60] [--rate 44100] [--channels 2]
                                   [--passthrough] [--json FILE]

Each length runs in a fresh process and reports the peak of its resident memory (`ru_maxrss`); the reference is the
first length in the same run. Must: under 1 GiB, and the longest within 5 % of the first. The exact length of the
output is checked. `--passthrough` puts a model that does nothing in place of the real one: what is left is the
reading, resampling, linking and writing, so that hours of sound take minutes. 10 hours are `--minutes 1 600`.
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

MUST = 2**30  # bytes
FLAT = 1.05


def write(path: Path, minutes: float, rate: int, channels: int) -> int:
    """A file of noise that swells, written in seconds; the same second over and over would do for memory, too."""
    rng = np.random.default_rng(0)
    minute = 0.1 * rng.standard_normal((60 * rate, channels)) * np.sin(np.linspace(0, 60, 60 * rate))[:, None]
    frames = round(minutes * 60 * rate) + 1  # an odd end
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


def enhance_one(source: str, target: str, model: str) -> None:
    """In a process of its own: enhance, then print what it took as JSON."""
    import torch

    from clearstate.models import build, load_model
    from clearstate.restore import Enhancer

    torch.set_num_threads(1)
    if model == "-":
        enhancer = Enhancer(passthrough())
    else:
        try:
            enhancer = Enhancer(load_model(model))
        except ValueError:
            enhancer = Enhancer(build(model))  # without shipped weights: memory and time are the same
    before = peak()
    worked = time.process_time()
    report = enhancer.enhance_file(source, target)
    print(
        json.dumps({"before": before, "peak": peak(), "seconds": report.elapsed, "cpu": time.process_time() - worked})
    )


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="live")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 2, 8])
    parser.add_argument("--rate", type=int, default=44_100)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--passthrough", action="store_true", help="a model that only halves the signal")
    parser.add_argument("--folder", help="where to put the files (they are large); a temporary folder if not given")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--one", nargs=3, metavar=("IN", "OUT", "MODEL"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        enhance_one(*wanted.one)
        return

    model = "-" if wanted.passthrough else wanted.model
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
    passed = highest < MUST and flat < FLAT and all(row["same_length"] for row in rows)
    print(f"\nunder 1 GiB, flat within 5 %, exact length: {'yes' if passed else 'NO'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
