"""Help comes at once, teaches, and does not load the machinery."""

import os
import re
import subprocess
import sys

import pytest

from clearstate.cli import VERBS, main


def cli(*args, **options):
    """Run the command line in a process of its own."""
    code = "import sys; from clearstate.cli import main; main(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("args", [["--help"], *([verb, "--help"] for verb in VERBS), ["--version"]])
def test_help_does_not_import_torch_or_numba(args):
    code = (
        "import sys\n"
        "from clearstate.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as leave: assert not leave.code, leave.code\n"
        "heavy = {'torch', 'numba', 'scipy', 'matplotlib', 'soundfile', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_working_imports_numpy_so_the_test_above_can_fail():
    code = "import sys; import clearstate; clearstate.load(); print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.stdout.strip() == "True", result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_by_example(verb, capsys):
    with pytest.raises(SystemExit) as leave:
        main([verb, "--help"])
    assert leave.value.code == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert shown.count(f"clearstate {verb}") >= 2  # the usage line, and an example


def test_no_verb_shows_the_help():
    result = cli(env={**os.environ, "COLUMNS": "100"})
    assert "enhance" in result.stdout + result.stderr


@pytest.mark.parametrize("args", [["enhanse", "a.wav"], ["enhance"], ["enhance", "a.wav", "--strenght", "3"]])
def test_wrong_use_leaves_with_2_and_says_what(args):
    result = cli(*args)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr
