"""The programs of docs/embed.md, as they are printed there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import clearstate

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "src" / "clearstate" / "weights" / "live" / "model.onnx"
LATENCY = 256  # samples
TOLERANCE = 1e-5  # the same model, in other builds of ONNX Runtime


def program(language: str) -> str:
    """The only program of the page in this language."""
    page = (ROOT / "docs" / "embed.md").read_text(encoding="utf-8")
    [text] = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return text


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    return soundfile.read(ROOT / "examples" / "clips" / "helicopter_0db.noisy.flac", dtype="float32")[0][: 16_000 * 2]


@pytest.fixture(scope="module")
def expected(noisy) -> np.ndarray:
    return clearstate.Enhancer(MODEL).enhance(noisy, 16_000, warm_up=False)


def enhanced(command: list[str], noisy: np.ndarray, folder: Path) -> np.ndarray:
    """The output of a program, aligned with its input."""
    samples = np.concatenate([noisy, np.zeros(LATENCY, dtype=np.float32)]).tobytes()
    done = subprocess.run([*command, str(MODEL)], cwd=folder, input=samples, capture_output=True, check=True)
    return np.frombuffer(done.stdout, dtype=np.float32)[LATENCY:][: len(noisy)]


def test_the_program_in_python(noisy, expected, tmp_path):
    (tmp_path / "live.py").write_text(program("python"))
    y = enhanced([sys.executable, "live.py"], noisy, tmp_path)
    np.testing.assert_allclose(y, expected, atol=TOLERANCE)


def test_the_program_in_python_has_at_most_30_lines():
    assert len(program("python").splitlines()) <= 30


def headers() -> Path | None:
    """The folder with the C++ headers of ONNX Runtime: $ONNXRUNTIME_INCLUDE, or where Debian's package has them."""
    places = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    return next((Path(place) for place in places if (Path(place) / "onnxruntime_cxx_api.h").is_file()), None)


def test_the_program_in_cpp(noisy, expected, tmp_path):
    include, compiler = headers(), shutil.which("g++")
    if include is None or compiler is None:
        pytest.skip("needs g++ and the headers of ONNX Runtime: apt-get install g++ libonnxruntime-dev (Debian 13)")
    import onnxruntime

    [library] = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)  # the name that the linker stores
    (tmp_path / "live.cpp").write_text(program("cpp"))
    command = [compiler, "-std=c++17", "live.cpp", f"-I{include}", "libonnxruntime.so.1", f"-Wl,-rpath,{tmp_path}"]
    subprocess.run([*command, "-o", "live"], cwd=tmp_path, check=True)
    np.testing.assert_allclose(enhanced(["./live"], noisy, tmp_path), expected, atol=TOLERANCE)


@pytest.mark.slow
def test_the_program_in_node(noisy, expected, tmp_path):
    if not shutil.which("npm"):
        pytest.skip("needs Node.js: apt-get install nodejs npm")
    (tmp_path / "package.json").write_text("{}")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-node@1.30.0"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs onnxruntime-node, which npm could not install: {done.stderr.splitlines()[0]}")
    (tmp_path / "live.mjs").write_text(program("js"))
    np.testing.assert_allclose(enhanced(["node", "live.mjs"], noisy, tmp_path), expected, atol=TOLERANCE)
