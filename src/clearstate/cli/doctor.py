"""clearstate doctor: check the installation and measure the speed of this machine."""

import platform
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import typer

from clearstate import __version__
from clearstate.cli.terminal import explain
from clearstate.installed import has_torch

EXTRAS = {
    "torch": (("torch", "numba", "safetensors"), "compiled kernels, all models: fastest for long files and streams"),
    "metrics": (("pesq", "pystoi", "scipy", "yaml"), "scores: PESQ, STOI and others"),
    "demo": (("matplotlib",), "spectrogram pictures"),
    "av": (("av",), "m4a, video and other files that soundfile does not read"),
    "train": (("lightning", "scipy", "matplotlib", "pydantic", "yaml"), "training"),
    "export": (("onnx", "onnxscript"), "ONNX export"),
}
SECONDS = 10.0  # length of the noise for the speed test


class Finding(NamedTuple):
    """One line of the report. `state` is "ok", "absent" (optional and not installed) or "wrong"."""

    state: str
    what: str
    detail: str
    remedy: str = ""


def run() -> None:
    """Check the installation: libraries, what runs the models, audio formats, models and speed.

    The report gives a remedy for everything that is missing. The exit code is 1 if `enhance` cannot work properly;
    missing extras do not count.

    **Example**

    `clearstate doctor`
    """
    wrong = 0
    for examine in (_python, _onnx, _torch, _codecs, _extras, _models, _speed):
        for finding in _safely(examine):
            wrong += finding.state == "wrong"
            print(f"{finding.state:<7} {finding.what:<12} {finding.detail}", flush=True)
            if finding.remedy:
                print(f"{'':20} remedy: {finding.remedy}")
    if wrong:
        raise typer.Exit(1)


def _safely(examine: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn an exception into a finding: a broken library must not end the report."""
    try:
        yield from examine()
    except Exception as error:
        yield Finding(
            "wrong", examine.__name__.strip("_"), explain(error), "reinstall: pip install --upgrade clearstate"
        )


def _python() -> Iterator[Finding]:
    yield Finding("ok", "clearstate", __version__)
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _onnx() -> Iterator[Finding]:
    import onnxruntime

    from clearstate.runtime import BREAK_EVEN_SECONDS

    yield Finding("ok", "onnxruntime", onnxruntime.__version__)
    if has_torch():
        rule = f"compiled kernels; ONNX Runtime for commands with less than {BREAK_EVEN_SECONDS:.0f} s of audio"
    else:
        rule = "ONNX Runtime, for the models that have an .onnx file"
    yield Finding("ok", "backend", f"auto: {rule}")


def _torch() -> Iterator[Finding]:
    """PyTorch, where it is installed, and its compiled kernels."""
    if not has_torch():
        return
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU (none is needed)"
    yield Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}")
    yield from _scan()
    yield from _cache()


def _scan() -> Iterator[Finding]:
    """The backend of the selective scan. The slow reference, or a warning about the choice, counts as wrong."""
    from clearstate import ssm

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        name = ssm.backend()
    if name in ("numba", "triton"):
        yield Finding("ok", "scan", f"{name}: compiled kernels")
    else:
        detail = f"{name}: the slow form" + "".join(f" ({warning.message})" for warning in said)
        yield Finding("wrong", "scan", detail, "unset CLEARSTATE_SCAN if it is set; pip install --upgrade numba")


def _cache() -> Iterator[Finding]:
    """Where compiled kernels are kept. Without such a place everything works; each start compiles again."""
    from clearstate.kernels.cache import cache_folders, reason_unwritable

    best, *others = cache_folders() or (None,)
    reason = reason_unwritable(best) if best else "no home folder"
    if best and reason is None:
        yield Finding("ok", "cache", f"compiled kernels are in {best}; to clear: rm -r {best.parent}")
    else:
        usable = next((folder for folder in others if folder and reason_unwritable(folder) is None), None)
        instead = f"they are in {usable}" if usable else "each start compiles them again"
        detail = f"compiled kernels cannot be kept in {best or 'a cache folder'} ({reason}): {instead}"
        yield Finding("absent", "cache", detail, "set XDG_CACHE_HOME to a folder that you can write to")


def _codecs() -> Iterator[Finding]:
    import soundfile

    held = soundfile.available_formats()
    kinds = soundfile.available_subtypes("OGG") if "OGG" in held else {}
    there = {
        "WAV": "WAV" in held,
        "FLAC": "FLAC" in held,
        "OGG": "OGG" in held,
        "Opus": "OPUS" in kinds,
        "MP3": "MP3" in held,
    }
    detail = f"{' '.join(name for name, here in there.items() if here)} (libsndfile {soundfile.__libsndfile_version__})"
    if all(there.values()):
        yield Finding("ok", "codecs", detail)
    else:
        lacking = " ".join(name for name, here in there.items() if not here)
        yield Finding("wrong", "codecs", f"{detail}; no {lacking}", "pip install --upgrade soundfile")


def _extras() -> Iterator[Finding]:
    for extra, (modules, purpose) in EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        if lacking:
            detail = f"{purpose}: no {' '.join(lacking)}"
            yield Finding("absent", extra, detail, f"pip install 'clearstate[{extra}]'")
        else:
            yield Finding("ok", extra, purpose)


def _models() -> Iterator[Finding]:
    from clearstate.models import PRESETS
    from clearstate.runtime import exported_file

    shipped = [name for name, preset in PRESETS.items() if preset.weights]
    usable = [name for name in shipped if has_torch() or exported_file(name)]
    if "live" not in usable:
        remedy = "reinstall clearstate; in a checkout, fetch src/clearstate/weights"
        detail = f"the weights of the default model 'live' are missing (found: {' '.join(usable) or 'none'})"
        yield Finding("wrong", "models", detail, remedy)
        return
    yield Finding("ok", "models", f"ready: {' '.join(usable)}; to be trained: {len(PRESETS) - len(shipped)}")
    if lacking := [name for name in shipped if name not in usable]:
        yield Finding("absent", "models", f"need PyTorch: {' '.join(lacking)}", "pip install 'clearstate[torch]'")


def _speed() -> Iterator[Finding]:
    """Real-time factor of the default model with each backend, best of three runs."""
    import numpy as np

    import clearstate

    noise = np.random.default_rng(0).normal(0, 0.1, int(SECONDS * 16_000)).astype("f4")
    for backend in ("onnx", "torch") if has_torch() else ("onnx",):
        enhancer = clearstate.load("live", backend)
        enhancer.enhance(noise[:16_000], 16_000)  # compiles the kernels on first use
        times = []
        for _ in range(3):
            started = time.perf_counter()
            enhancer.enhance(noise, 16_000)
            times.append(time.perf_counter() - started)
        rtf = min(times) / SECONDS
        detail = f"'live' with {backend} takes {rtf:.4f} s per second of audio, {1 / rtf:.0f} x real time"
        remedy = "close other programs; set OMP_NUM_THREADS to the number of cores"
        yield Finding("ok", "speed", detail) if rtf < 1 else Finding("wrong", "speed", detail, remedy)
