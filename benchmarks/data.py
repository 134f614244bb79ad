"""Measure how many hours of training mixtures one process makes per hour, and the gain from the cache and the FFTs.

    python benchmarks/data.py [FOLDER_OF_SHARDS] [--items 300] [--json FILE]

FOLDER_OF_SHARDS defaults to $CLEARSTATE_DATA, then ../shared/data, then a small synthetic corpus. Limit: 250 hours per
hour of CPU time, because workers share the machine with the training. Ratios are measured in the same run: crops from
the cache against decoding the clip each time, and rooms by FFT against direct convolution, with the largest
difference.
"""

import argparse
import io
import json
import os
import platform
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from clearstate.data import MixtureDataset, Sources, open_sources
from clearstate.data.effects import synthetic_room
from clearstate.data.shards import read_index

MUST = 250  # hours of audio per hour, one process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        folder = options.folder or found() or made_up(Path(aside))
        started = time.perf_counter()
        sources = open_sources(folder)
        print(f"{platform.processor() or platform.machine()}, NumPy {np.__version__}, audio from {folder.name}")
        print(f"opened in {time.perf_counter() - started:.2f} s\n{sources.report}\n")
        rows = [mixtures(sources, options.items), cache(folder, sources), rooms()]
        effects(sources, options.items)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def mixtures(sources: Sources, items: int) -> dict:
    dataset = MixtureDataset(sources)
    for i in range(20):
        dataset[i]
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(items):
        dataset[i]
    wall, cpu = (time.perf_counter() - wall) / items, (time.process_time() - cpu) / items
    speed = dataset.config.seconds / cpu
    verdict = "ok" if speed >= MUST else "BELOW"
    what = f"mixtures of {dataset.config.seconds:g} s"
    print(f"{what:22}{1e3 * cpu:7.2f} ms of CPU each, {1e3 * wall:.2f} ms on the clock")
    print(f"                      {speed:7.0f} hours an hour on a core of its own (must: {MUST}, {verdict})")
    return {"case": "mixtures", "cpu_ms": 1e3 * cpu, "wall_ms": 1e3 * wall, "hours_per_hour": speed}


def cache(folder: Path, sources: Sources, crops: int = 40) -> dict:
    """Compare a crop of 3 s from the memory map with decoding its clip."""
    pool, rng = sources.speech, np.random.default_rng(0)
    started = time.process_time()
    for number in [pool.draw(rng) for _ in range(crops)]:
        pool.read(number, 0, 3 * sources.rate)
    fast = (time.process_time() - started) / crops
    index = sorted(folder.glob("speech*.jsonl"))[0]
    rows = read_index(index)[:crops]
    members = {}
    for shard in {row["shard"] for row in rows}:
        with tarfile.open(folder / shard) as tar:
            members |= {m.name: tar.extractfile(m).read() for m in tar if m.name in {row["file"] for row in rows}}
    started = time.process_time()
    for row in rows:
        soundfile.read(io.BytesIO(members[row["file"]]), dtype="float32")
    slow = (time.process_time() - started) / len(rows)
    print(f"crop from the cache   {1e3 * fast:7.3f} ms   decoded {1e3 * slow:8.2f} ms   {slow / fast:6.0f}x")
    return {"case": "crop", "ms": 1e3 * fast, "reference_ms": 1e3 * slow, "ratio": slow / fast}


def rooms(rate: int = 16_000) -> dict:
    """Compare a room of half a second on 3 s of speech with np.convolve (direct sums)."""
    rng = np.random.default_rng(0)
    room = synthetic_room(rng, rate)
    dry = rng.standard_normal(3 * rate, dtype=np.float32)
    room.apply(dry)
    started = time.process_time()
    for _ in range(10):
        wet, _ = room.apply(dry)
    fast = (time.process_time() - started) / 10
    started = time.process_time()
    early, late = (np.convolve(dry, part)[room.lead : room.lead + len(dry)] for part in (room.early, room.late))
    slow = time.process_time() - started
    gain = 1 / np.sqrt(np.dot(room.early, room.early) + np.dot(room.late, room.late))
    error = float(np.abs(wet - gain * (early + late)).max())
    print(
        f"room by FFT           {1e3 * fast:7.2f} ms    direct {1e3 * slow:8.2f} ms   {slow / fast:6.0f}x   "
        f"max |diff| {error:.1e}"
    )
    return {"case": "room", "ms": 1e3 * fast, "reference_ms": 1e3 * slow, "ratio": slow / fast, "max_error": error}


def effects(sources: Sources, items: int) -> None:
    """Mean CPU milliseconds of the items with each effect, and their number."""
    dataset = MixtureDataset(sources, seed=1)
    spent: dict[str, list[float]] = defaultdict(list)
    for i in range(items):
        started = time.process_time()
        info = dataset[i]["info"]
        took = time.process_time() - started
        names = {noise["kind"] for noise in info.get("noises", [])}
        names |= {name for name in ("room", "lowpass_hz", "highpass_hz", "clipping_db") if name in info}
        names |= {f"codec {info['codec']}"} if "codec" in info else set()
        for name in names or {"clean only"}:
            spent[name].append(took)
    print("\nitems with ...        ms      of items")
    for name, times in sorted(spent.items(), key=lambda row: -float(np.mean(row[1]))):
        print(f"  {name:18} {1e3 * np.mean(times):6.2f}   {100 * len(times) / items:5.1f} %")


def found() -> Path | None:
    named = os.environ.get("CLEARSTATE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if list(folder.glob("speech*.jsonl")) else None


def made_up(folder: Path) -> Path:
    """Write shards with a minute of noise bursts, so that the benchmark runs anywhere."""
    rng = np.random.default_rng(0)
    for name, label in (("speech16k", "speaker"), ("noise16k", "group")):
        rows = []
        with tarfile.open(folder / f"{name}-00.tar", "w") as tar:
            for i in range(12):
                memory = io.BytesIO()
                bursts = (np.arange(5 * 16_000) % 6_400 < 4_800).astype(np.float32)
                soundfile.write(
                    memory, 0.1 * rng.standard_normal(len(bursts)) * bursts, 16_000, format="OGG", subtype="OPUS"
                )
                info = tarfile.TarInfo(f"{i}.opus")
                info.size = len(memory.getvalue())
                tar.addfile(info, io.BytesIO(memory.getvalue()))
                rows.append({"shard": f"{name}-00.tar", "file": info.name, label: f"x{i}", "source": name})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.environ["CLEARSTATE_CACHE"] = str(folder / "cache")
    return folder


if __name__ == "__main__":
    main()
