"""Damage clean speech in 120 known ways, and check what `restore` chooses and what it does to the scores.

    python benchmarks/restore.py [--data FOLDER] [--cases 120] [--seed 0] [--list] [--json FILE]

Clean speech comes from examples/clips and, where present, from the validation set in FOLDER (valid/denoise). A case is
right if `restore` chooses exactly the steps for its damage. A clean file must come back byte for byte. Scores compare
the input and the output with the clean speech, both without a constant offset: SI-SDR, PESQ, and for narrow-band cases
the log-spectral distance (a generated band cannot match the waveform). A score is worse if it falls by more than its
resolution: 0.1 dB SI-SDR, 0.02 PESQ, 0.02 LSD.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000  # Hz
WORSE = {"si_sdr": 0.1, "pesq": 0.02, "lsd": 0.02}
RECIPE = (  # damage, and how many of 120 cases have it
    ("", 20), ("noise", 20), ("hum", 15), ("band", 15), ("clipping", 15), ("channel", 10), ("offset", 5),
    ("noise hum", 5), ("noise channel", 3), ("hum channel", 3), ("offset hum", 3), ("clipping channel", 2),
    ("noise band", 2), ("offset channel", 2),
)  # fmt: skip


class Case(NamedTuple):
    """One damaged recording."""

    name: str
    damage: frozenset[str]  # the steps that are right
    clean: np.ndarray  # (n,)
    damaged: np.ndarray  # (channels, n)
    rate: int  # of the damaged recording, Hz


def sources(data: Path | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clean speech with a noise of the same length."""
    folders = [(ROOT / "examples/clips", "{}.clean.flac", "{}.noisy.flac")]
    pairs = []
    for folder, clean, noisy in folders:
        for path in sorted(folder.glob(clean.format("*"))):
            stem = path.name.removesuffix(clean.format(""))
            x, y = soundfile.read(path)[0], soundfile.read(folder / noisy.format(stem))[0]
            pairs.append((x, y - x))
    if data and (data / "valid/denoise/clean").is_dir():
        for path in sorted((data / "valid/denoise/clean").glob("*.flac")):
            x, y = soundfile.read(path)[0], soundfile.read(data / "valid/denoise/noisy" / path.name)[0]
            pairs.append((x, y - x))
    return pairs


def cases(data: Path | None = None, count: int = 120, seed: int = 0) -> Iterator[Case]:
    """The labelled set. It is the same in every run; another seed makes other cases of the same kinds."""
    kinds = [kind for kind, share in RECIPE for _ in range(share)]
    known = sources(data)
    for number in np.linspace(0, len(kinds) - 1, count).round().astype(int):
        rng = np.random.default_rng(int(number) + seed)
        speech = known[(number + seed) % len(known)][0]
        noise = known[int(rng.integers(len(known)))][1]
        yield damaged(int(number), frozenset(kinds[number].split()), speech, noise, rng)


def damaged(
    number: int, damage: frozenset[str], speech: np.ndarray, noise: np.ndarray, rng: np.random.Generator
) -> Case:
    """Damage one clip."""
    clean = speech / np.abs(speech).max() * 10 ** rng.uniform(-0.6, -0.1)
    x, rate = clean, RATE
    power = float(np.mean(clean**2))
    if "noise" in damage:
        noise = np.resize(noise, len(x)) if number % 3 else rng.standard_normal(len(x))
        x = x + noise * np.sqrt(power / np.mean(noise**2) * 10 ** (-rng.uniform(0, 15) / 10))
    if "band" in damage:
        if number % 3 == 0:
            x, rate = soxr.resample(x, RATE, 8_000), 8_000
        else:
            x = low_pass(x, float(rng.choice([3400, 4000, 5000])))
    if "clipping" in damage:
        level = np.quantile(np.abs(x), 1 - 10 ** rng.uniform(-2.7, -1.3))
        x = np.clip(x, -level, level) * (1.0 if number % 2 else 0.99 / level)
    if "hum" in damage:
        mains, time_ = (50, 60)[number % 2] + rng.uniform(-0.03, 0.03), np.arange(len(x)) / rate
        tones = [
            1 / k * np.sin(2 * np.pi * (mains * k * time_ + rng.uniform())) for k in range(1, int(rng.integers(3, 9)))
        ]
        hum = np.sum(tones, axis=0)
        x = x + hum * np.sqrt(power / np.mean(hum**2) * 10 ** (-rng.uniform(5, 25) / 10))
    if "offset" in damage:
        x = x + rng.choice([-1, 1]) * rng.uniform(0.01, 0.1)
    peak = np.abs(x).max()
    x = x / peak * 0.95 if peak > 0.99 and "clipping" not in damage else x
    rows = np.stack([x])
    if "channel" in damage:
        dead = np.zeros_like(x) if number % 2 else 10**-4.6 * rng.standard_normal(len(x))
        rows = np.stack([x, dead][:: 1 if number % 4 < 2 else -1])
    return Case(f"{number:03d} {'+'.join(sorted(damage)) or 'clean'}", damage, clean, rows, rate)


def low_pass(x: np.ndarray, edge: float) -> np.ndarray:
    """Remove everything above `edge` Hz."""
    spectrum = np.fft.rfft(x)
    spectrum[int(edge * len(x) / RATE) :] = 0
    return np.fft.irfft(spectrum, len(x))


def scores(case: Case, x: np.ndarray, rate: int) -> dict[str, float]:
    """Scores of the worst channel of x (channels, n)."""
    from clearstate.metrics.intrusive import lsd, si_sdr
    from clearstate.metrics.perceptual import pesq_wb

    found: dict[str, list[float]] = {}
    for row in x:
        y = row if rate == RATE else soxr.resample(row, rate, RATE)
        y = np.pad(y, (0, max(0, len(case.clean) - len(y))))[: len(case.clean)]
        y = y - y.mean()
        if not np.any(y):
            found.setdefault("si_sdr", []).append(-100.0)
            continue
        if "band" in case.damage:
            scale = float(case.clean @ y / (y @ y))
            found.setdefault("lsd", []).append(-float(lsd(case.clean, scale * y, RATE)))
        else:
            found.setdefault("si_sdr", []).append(float(si_sdr(case.clean, y)))
            found.setdefault("pesq", []).append(float(pesq_wb(case.clean, y, RATE)))
    return {key: min(values) for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("CLEARSTATE_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0, help="of other cases than those that the rules were tuned on")
    parser.add_argument("--list", action="store_true", help="print every case")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    wanted = parser.parse_args()

    from clearstate.tasks.restore import Restorer

    restorer = Restorer()
    rows, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.wav", Path(folder) / "out.wav"
        for case in cases(wanted.data, wanted.cases, wanted.seed):
            soundfile.write(source, case.damaged.T, case.rate, "PCM_16")
            done = restorer.restore_file(source, target, overwrite=True)
            chosen = {step.kind for step in done.steps}
            row = {"case": case.name, "chosen": sorted(chosen), "right": chosen == case.damage}
            row["untouched"] = source.read_bytes() == target.read_bytes()
            row["worse"] = []
            if not row["untouched"]:
                before = scores(case, soundfile.read(source, always_2d=True)[0].T, case.rate)
                y, rate = soundfile.read(target, always_2d=True)
                after = scores(case, y.T, rate)
                row["before"], row["after"] = before, after
                row["worse"] = [key for key in before if after[key] < before[key] - WORSE[key]]
            rows.append(row)
            if wanted.list or not row["right"] or row["worse"]:
                snr = done.inspection.snr_db
                print(f"{case.name:24} chose {' '.join(sorted(chosen)) or '-':20} snr {snr and round(snr)}", end="  ")
                print(
                    {k: (round(v, 2), round(row["after"][k], 2)) for k, v in row.get("before", {}).items()}, flush=True
                )
    right = sum(row["right"] for row in rows)
    clean = [row for row in rows if row["case"].endswith("clean")]
    touched, worse = sum(not row["untouched"] for row in clean), sum(bool(row["worse"]) for row in rows)
    print(f"\n{len(rows)} cases in {time.perf_counter() - started:.0f} s: ", end="")
    print(f"{right} right choices ({right / len(rows):.1%}), {touched} of {len(clean)} clean files touched, ", end="")
    print(f"{worse} with a worse score")
    for kind in dict.fromkeys(row["case"][4:] for row in rows):
        own = [row for row in rows if row["case"][4:] == kind and "before" in row]
        for key in sorted({key for row in own for key in row["before"]}):
            pairs = [
                (row["before"][key], row["after"][key]) for row in own if key in row["before"] and key in row["after"]
            ]
            before, after = np.mean(pairs, axis=0)
            print(f"  {kind:20} {key:7} {before:7.2f} -> {after:7.2f}")
    if wanted.json:
        Path(wanted.json).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    sys.exit(not (right >= 0.95 * len(rows) and not touched and not worse))


if __name__ == "__main__":
    main()
