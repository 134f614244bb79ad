"""Rooms that work without PyTorch load without it, directly and through others; pyproject.toml has the other rules."""

import subprocess
import sys

ROOMS = ("app", "audio", "cli", "serve", "tasks")
LOAD = """
import importlib, pkgutil, sys
import clearstate
sys.modules["torch"] = None  # from here on, importing it is an error
for room in sys.argv[1:]:
    package = importlib.import_module(f"clearstate.{room}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(module.name.removeprefix("clearstate."), error)
"""


def that_need_torch(*rooms: str) -> dict[str, str]:
    """Names of the modules that cannot be imported without PyTorch, with the reason."""
    done = subprocess.run([sys.executable, "-c", LOAD, *rooms], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_tasks_terminal_and_sound_load_without_pytorch():
    found = that_need_torch(*ROOMS)
    assert not found, found


def test_a_network_does_not_so_the_test_above_can_fail():
    assert "torch" in that_need_torch("models")["models.live"]
