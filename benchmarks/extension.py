"""Compute the table of an extension model's card: log-spectral distance and SNR, compared with interpolation.

    python benchmarks/extension.py --model extend-fast --data FOLDER

FOLDER contains wide validation files at 48 kHz. Each is narrowed to 8, 16 and 24 kHz by soxr's HQ sinc (flat to 0.91 of
half the rate, linear phase). It is extended by the same resampler ("sinc"), by linear interpolation, and by the model
as in `clearstate extend`. Both interpolations are aligned, without a delay of half a sample. LSD uses Hann frames of
2048 with a hop of 512 and a power floor of 1e-8; HF is above half the narrow rate, LF below. The LSD of the sinc
depends on the noise floor of the resampler; it only marks an empty band.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from rich.progress import track

from clearstate.metrics.intrusive import lsd, snr
from clearstate.tasks.extend import MODEL_RATE, Extender, load_extender

COLUMNS = ("lsd", "lsd_high", "lsd_low", "snr")


def lsd_below(wide: np.ndarray, estimate: np.ndarray, edge: float) -> float:
    """LSD of the bins below `edge` Hz, frame by frame: the total without the bins above."""
    n_fft, hop = 2048, 512
    high = int(np.ceil(edge * n_fft / MODEL_RATE))

    def log_power(x: np.ndarray) -> np.ndarray:
        x = np.pad(x, (0, max(0, n_fft - len(x))))
        frames = np.lib.stride_tricks.sliding_window_view(x, n_fft)[::hop] * np.hanning(n_fft + 1)[:-1]
        return np.log10(np.maximum(np.abs(np.fft.rfft(frames)[:, :high]) ** 2, 1e-8))

    return float(np.sqrt(((log_power(wide) - log_power(estimate)) ** 2).mean(1)).mean())


def linear(narrow: np.ndarray, rate: int, samples: int) -> np.ndarray:
    """Interpolate linearly between the samples, without a shift."""
    return np.interp(np.arange(samples) / MODEL_RATE, np.arange(len(narrow)) / rate, narrow)


def sinc(narrow: np.ndarray, rate: int, samples: int) -> np.ndarray:
    back = soxr.resample(narrow, rate, MODEL_RATE)[:samples]
    return np.pad(back, (0, samples - len(back)))


def score(wide: np.ndarray, estimate: np.ndarray, rate: int) -> list[float]:
    return [
        lsd(wide, estimate, MODEL_RATE),
        lsd(wide, estimate, MODEL_RATE, above=rate / 2),
        lsd_below(wide, estimate, rate / 2),
        snr(wide, estimate),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="extend-fast", help="a name, or a folder with weights")
    parser.add_argument("--data", type=Path, required=True, help="folder of wide files at 48 kHz")
    parser.add_argument("--rates", type=int, nargs="+", default=[8_000, 16_000, 24_000], help="Hz")
    parser.add_argument("--items", type=int, help="use only the first ITEMS files")
    parser.add_argument("--steps", type=int, help="sampling steps of a diffusion model")
    parser.add_argument("--seed", type=int, help="seed of a diffusion model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    extender = load_extender(given.model, steps=given.steps, seed=given.seed)
    files = sorted(p for p in given.data.iterdir() if p.suffix in (".wav", ".flac"))[: given.items]
    if not files:
        raise SystemExit(f"{given.data} holds no .wav or .flac: name the folder that does, such as valid/extend/wide")
    read = [soundfile.read(path, dtype="float32") for path in files]
    if wrong := [path.name for path, (_, rate) in zip(files, read, strict=True) if rate != MODEL_RATE]:
        raise SystemExit(f"{wrong[0]} in {given.data} is not at {MODEL_RATE} Hz: expected wide files")
    signals = [x if x.ndim == 1 else x[:, 0] for x, _ in read]
    extender.extend(signals[0][: MODEL_RATE // 3], MODEL_RATE // 3)  # loads the kernels before the timing starts

    print(f"{given.model} on {len(files)} files in {given.data}, {sum(map(len, signals)) / MODEL_RATE:.0f} s; soxr HQ")
    print(f"{'Hz':>6}  {'':12}{'LSD':>7}{'LSD-HF':>8}{'LSD-LF':>8}{'SNR dB':>8}{'RTF':>8}{'CPU':>8}")
    result = {}
    for rate in given.rates:
        rows = measure_rate(extender, signals, rate)
        for name, row in rows.items():
            tail = f"{row['rtf']:8.3f}{row['cpu']:8.3f}" if "rtf" in row else ""
            cells = "".join(f"{row[c]:{w}.3f}" for c, w in zip(COLUMNS, (7, 8, 8, 8), strict=True))
            print(f"{rate:6}  {name:12}{cells}{tail}")
        result[str(rate)] = rows
    print(f"RTF: wall time over length, {given.threads} threads; CPU: processor time over length")
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def measure_rate(extender: Extender, signals: list[np.ndarray], rate: int) -> dict[str, dict[str, float]]:
    """Means over the files for each way to extend from one narrow rate."""
    rows: dict[str, list[list[float]]] = {"linear": [], "sinc": [], "model": []}
    wall = cpu = seconds = 0.0
    for wide in track(signals, description=f"{rate} Hz", transient=True):
        narrow = soxr.resample(wide, MODEL_RATE, rate)
        rows["linear"].append(score(wide, linear(narrow, rate, len(wide)), rate))
        rows["sinc"].append(score(wide, sinc(narrow, rate, len(wide)), rate))
        before = time.perf_counter(), time.process_time()
        extended = extender.extend(narrow, rate)
        wall, cpu = wall + time.perf_counter() - before[0], cpu + time.process_time() - before[1]
        seconds += len(wide) / MODEL_RATE
        extended = np.pad(extended, (0, max(0, len(wide) - len(extended))))[: len(wide)]
        rows["model"].append(score(wide, extended, rate))
    means = {name: dict(zip(COLUMNS, np.mean(values, axis=0).tolist(), strict=True)) for name, values in rows.items()}
    means["model"] |= {"rtf": wall / seconds, "cpu": cpu / seconds}
    return means


if __name__ == "__main__":
    main()
