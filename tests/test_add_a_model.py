"""docs/add-a-model.md works as it stands: its files are written, its commands are run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/add-a-model.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(
    r"^\$ (.+)$", "".join(re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), re.M
)
TABLE = "src/clearstate/models/presets.py"


def make_audio(folder: Path) -> None:
    """Voices, noises and held-out pairs that need no corpus."""
    rng = np.random.default_rng(0)
    t = np.arange(48_000) / 16_000
    for name in ("speech", "noise", "valid/noisy", "valid/clean"):
        (folder / name).mkdir(parents=True)
    for i in range(4):
        voice = 0.1 * np.sign(np.sin(2 * np.pi * (110 + 20 * i) * t)) * np.clip(np.sin(2 * np.pi * 3 * t), 0, 1)
        noise = 0.05 * rng.standard_normal(len(t))
        soundfile.write(folder / f"speech/anna{i}.wav", voice, 16_000)
        soundfile.write(folder / f"noise/street{i}.wav", noise, 16_000)
        if i < 2:
            soundfile.write(folder / f"valid/clean/{i}.wav", voice[::-1], 16_000)
            soundfile.write(folder / f"valid/noisy/{i}.wav", voice[::-1] + noise, 16_000)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what the steps need from a clone, with the files of the page written into it."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "model.*"))
    (root / "tests/models").mkdir(parents=True)
    shutil.copy(ROOT / "tests/contracts.py", root / "tests")
    for name, text in FILES.items():
        path = root / name
        if name == TABLE:
            context, added = text.splitlines()
            assert context[0] == " " and added[0] == "+"
            before = path.read_text()
            text = before.replace(context[1:], f"{context[1:]}\n{added[1:]}")
            assert text != before
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    make_audio(root / "audio")
    (root / "bin").mkdir()
    for program in ("clearstate", "pytest", "python"):
        script, module = root / "bin" / program, "" if program == "python" else f"-m {program}"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    return root


def run(command: str, root: Path) -> None:
    if " train " in command and "max_steps" not in command and "--preview" not in command:
        command += " schedule.max_steps=3"  # instead of an hour
    paths = f"{root / 'src'}{os.pathsep}{root / 'tests'}"
    env = {**os.environ, "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
    done = subprocess.run(
        command.replace("/audio", str(root / "audio")), shell=True, cwd=root, env=env, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_every_step_of_the_page_works(clone):
    for command in COMMANDS:
        run(command, clone)
    assert (clone / "runs/gate/preview").is_dir()
    for folder in ("enhanced", "again", "shipped"):
        outputs = [soundfile.read(file)[0] for file in sorted((clone / folder).iterdir())]
        assert [len(output) for output in outputs] == [48_000, 48_000]
        assert all(np.isfinite(output).all() and output.any() for output in outputs)


def test_the_files_of_the_page_are_python_and_the_table_takes_the_new_name(clone):
    for name in FILES:
        if name.endswith(".py"):
            compile((clone / name).read_text(), name, "exec")
    assert '_preset("gate"' in (clone / TABLE).read_text()


def test_the_page_has_ten_steps_and_every_kind_of_file():
    assert re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE) == [str(step) for step in range(1, 11)]
    assert list(FILES) == [
        "src/clearstate/models/gate.py", TABLE, "tests/models/test_gate.py", "recipes/gate.yaml"
    ]  # fmt: skip
    assert len(COMMANDS) >= 10
