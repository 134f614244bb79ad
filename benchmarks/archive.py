"""Measure a Ray cluster of this machine: throughput of 1 and 2 workers, overhead per file, and what 1,000 workers need.

    python benchmarks/archive.py [--short 500] [--long 3] [--seconds 2] [--minutes 2] [--empty 1000] [--json FILE]

    throughput  enhancement of --short files of --seconds and --long files of --minutes, 1 worker against 2
    overhead    wall time per file of --empty files without work, Ray against local processes, 2 workers each
    simulation  --workers machines with one CPU each, --hours of audio in files of --file-minutes, with the measured
                real-time factors and the measured processor time of the driver per file. The storage and the price
                are assumptions, which the options change.

Rates count the time in which all workers are at work: from the first file of the last worker to begin, to the last
file of the first worker to end. The start of the cluster and the loading of the models are printed apart. By processor
time: the audio per second of the workers' processors, times their number. That is the rate without what the driver and
other programs take from the processors.

The defaults take two minutes on an idle machine with two cores.
"""

import argparse
import functools
import heapq
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from clearstate.cli.batch import run_batch
from clearstate.cli.engines import EngineName, find, local
from clearstate.cli.enhance import open_worker
from clearstate.cli.inputs import Job
from clearstate.cli.manifest import Manifest

RATE = 16_000  # Hz
LEAST_SPEED_UP = 1.8
MOST_OVERHEAD = 0.050  # seconds


def make_files(folder: Path, short: int, seconds: float, long: int, minutes: float) -> dict[str, float]:
    """Write noise; returns the seconds of each file."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    lengths = {}
    for count, length, name in ((short, seconds, "short"), (long, 60 * minutes, "long")):
        for i in range(count):
            path = folder / f"{name}{i:04}.wav"
            soundfile.write(path, 0.05 * generator.standard_normal(int(length * RATE)), RATE)
            lengths[str(path)] = length
    return lengths


def open_empty() -> Any:
    """A worker that writes an empty file."""

    def work(job: Job, progress: Any) -> dict[str, Any]:
        Path(job.target).touch()
        return {"seconds": 0.0}

    return work


def open_counted(opener: Any) -> Any:
    """A worker that also reports its process and the processor time that it used."""
    work = opener()

    def counted(job: Job, progress: Any) -> dict[str, Any]:
        before = time.process_time()
        report = work(job, progress)
        return report | {"process": os.getpid(), "processor": time.process_time() - before}

    return counted


def silent(outcome: Any) -> None:
    """Show nothing of a finished file."""


class Work(NamedTuple):
    """One finished file."""

    start: float
    end: float
    process: int
    seconds: float  # of audio
    processor: float  # seconds


class Rates(NamedTuple):
    """What a run reached while all its workers were at work."""

    start: float  # seconds until the first file began
    files: float  # per second
    audio: float  # seconds per second
    by_processor: float  # seconds of audio per second of the workers' processors, times the number of workers
    driver: float  # seconds of its processor per file
    speeds: list[float]  # real-time factor of each file


def rates(work: list[Work], workers: int) -> tuple[float, float, float]:
    """Files and audio per second, and audio by processor time, while all workers are at work.

    >>> whole = [Work(0, 2, 1, 20, 1), Work(2, 4, 1, 20, 1), Work(2, 4, 2, 20, 1)]
    >>> rates(whole, 2)
    (1.0, 20.0, 40.0)
    """
    processes = {one.process for one in work}
    if len(processes) < workers:
        sys.exit(f"only {len(processes)} of {workers} workers had files; use more or longer files")
    own = [[one for one in work if one.process == process] for process in processes]
    begin, end = max(min(one.start for one in part) for part in own), min(max(one.end for one in part) for part in own)
    shares = [max(0.0, min(one.end, end) - max(one.start, begin)) / (one.end - one.start) for one in work]
    audio = sum(share * one.seconds for share, one in zip(shares, work, strict=True))
    processor = sum(share * one.processor for share, one in zip(shares, work, strict=True))
    return sum(shares) / (end - begin), audio / (end - begin), workers * audio / processor


def timed(engine: Any, jobs: list[Job], opener: Any, workers: int, lengths: dict[str, float]) -> Rates:
    """Run jobs into a new folder, with a manifest as on an archive."""
    seen: list[Work] = []

    def watched(*args: Any) -> Any:
        for outcome in engine(*args):
            if outcome.error:
                sys.exit(outcome.line())
            now, report = time.perf_counter(), outcome.report
            seen.append(Work(now - outcome.wall, now, report["process"], report["seconds"], report["processor"]))
            yield outcome

    import archive  # this file under a name that workers can import

    with tempfile.TemporaryDirectory() as folder:
        placed = [Job(job.source, os.path.join(folder, os.path.basename(job.source))) for job in jobs]
        began, processor = time.perf_counter(), time.process_time()
        outcomes = run_batch(
            placed, functools.partial(archive.open_counted, opener), processes=workers, lengths=lengths, show=silent,
            engine=watched, manifest=Manifest(folder, {}),
        )  # fmt: skip
        processor = time.process_time() - processor
    start = min(one.start for one in seen) - began
    return Rates(start, *rates(seen, workers), processor / len(jobs), [outcome.speed for outcome in outcomes])


def simulate(
    speeds: list[float], driver: float, workers: int, hours: float, file_minutes: float, storage: float, share: float,
    price: float,
) -> dict[str, float | str]:  # fmt: skip
    """Schedule an archive on idle workers, one file each; the driver and the storage serve one request after another.

    Args:
        speeds: measured real-time factors, from which each file draws one.
        driver: seconds of the driver's processor per file.
        storage: bytes per second of the whole storage.   share: of one worker.
        price: of a worker's hour.
    """
    files = int(hours * 60 / file_minutes)
    sound = file_minutes * 60
    size = 2 * sound * RATE * 2  # bytes read and written, 16 bits
    drawn = np.random.default_rng(0).choice(speeds, files)
    idle = [0.0] * workers
    driver_free = storage_free = 0.0
    for speed in drawn:
        asked = heapq.heappop(idle)
        driver_free = max(driver_free, asked) + driver
        storage_free = max(storage_free, driver_free) + size / storage
        moved = max(storage_free, driver_free + size / share)
        heapq.heappush(idle, moved + sound / speed)
    end = max(idle)
    loads = {
        "driver": files * driver / end,
        "storage": files * size / storage / end,
        "compute": float((sound / drawn).sum()) / workers / end,
    }
    busiest = max(loads, key=lambda name: loads[name])
    return {"files": files, "hours": end / 3600, "cost": end / 3600 * workers * price, "bottleneck": busiest} | loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=500)
    parser.add_argument("--long", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a short file")
    parser.add_argument("--minutes", type=float, default=2.0, help="of a long file")
    parser.add_argument("--empty", type=int, default=1000)
    parser.add_argument("--model", default="live")
    parser.add_argument("--workers", type=int, default=1000, help="of the simulation")
    parser.add_argument("--hours", type=float, default=100_000, help="of the simulated archive")
    parser.add_argument("--file-minutes", type=float, default=30.0, help="of its files")
    parser.add_argument("--storage", type=float, default=10e9, help="bytes per second of the storage, assumed")
    parser.add_argument("--share", type=float, default=50e6, help="bytes per second of one worker, assumed")
    parser.add_argument("--price", type=float, default=0.04, help="of one CPU for an hour, assumed")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(sys.modules["clearstate"].__file__ or "").parents[1])]
    )
    import archive  # this file under a name that workers can import
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray_engine = find(EngineName.ray, cluster.address)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        lengths = make_files(Path(folder, "in"), args.short, args.seconds, args.long, args.minutes)
        jobs = [Job(name, "") for name in lengths]
        opener = functools.partial(
            open_worker, args.model, "onnx", strength=None, residual=False, pcs=False, highs=True, warm_up=True,
            channels="linked", overwrite=False,
        )  # fmt: skip
        total = sum(lengths.values())
        runs = {}
        for workers in (1, 2):
            runs[workers] = done = timed(ray_engine, jobs, opener, workers, lengths)
            print(
                f"throughput  ray, {workers} worker{'s' * (workers > 1)}: {len(jobs)} files, {total / 3600:.2f} h: "
                f"{done.audio:.1f} x real time, {done.by_processor:.1f} by processor time (start {done.start:.1f} s)",
                flush=True,
            )
        gain, by_processor = runs[2].audio / runs[1].audio, runs[2].by_processor / runs[1].by_processor
        print(
            f"            2 workers against 1: {gain:.2f} x (at least {LEAST_SPEED_UP}), by processor time "
            f"{by_processor:.2f} x",
            flush=True,
        )

        empty = [Job(f"empty{i:05}.wav", "") for i in range(args.empty)]
        here = timed(local.run, empty, archive.open_empty, 2, {})
        there = timed(ray_engine, empty, archive.open_empty, 2, {})
        overhead = 1 / there.files - 1 / here.files
        print(
            f"overhead    {args.empty} empty files, each: local processes {1000 / here.files:.2f} ms, "
            f"ray {1000 / there.files:.2f} ms: {1000 * overhead:.2f} ms more (at most {1000 * MOST_OVERHEAD:.0f}); "
            f"driver {1000 * there.driver:.2f} ms of processor time"
        )
    cluster.shutdown()

    plan = simulate(
        runs[2].speeds, there.driver, args.workers, args.hours, args.file_minutes, args.storage, args.share, args.price
    )
    print(
        f"simulation  {args.hours:g} h in {plan['files']} files on {args.workers} workers: {plan['hours']:.1f} h, "
        f"cost {plan['cost']:.0f} at {args.price} per CPU and hour; {plan['bottleneck']} is the bottleneck (load: "
        f"compute {plan['compute']:.1%}, storage {plan['storage']:.1%}, driver {plan['driver']:.1%})"
    )
    if args.json:
        report = {"speed_up": gain, "by_processor": by_processor, "overhead": overhead, "driver": there.driver,
                  "simulation": plan, "real_time": {workers: done.audio for workers, done in runs.items()},
                  "seconds": total}  # fmt: skip
        Path(args.json).write_text(json.dumps(report, indent=2))
    sys.exit(gain < LEAST_SPEED_UP or overhead > MOST_OVERHEAD)


if __name__ == "__main__":
    main()
