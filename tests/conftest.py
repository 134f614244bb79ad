"""Fixtures that more than one test file needs."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
import soxr

# A pytest-xdist worker computes with one thread: the workers already fill the cores. PyTorch reads this when it loads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

CLIP = Path(__file__).resolve().parents[1] / "examples" / "clips" / "helicopter_0db.noisy.flac"


def data_folder() -> Path | None:
    """The shared audio, if this machine has it: $CLEARSTATE_DATA, or ../shared/data beside the repository."""
    named = os.environ.get("CLEARSTATE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if (folder / "speech16k.jsonl").is_file() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("needs the training audio: set CLEARSTATE_DATA to its folder")
    return folder


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """The command line shows the package's log; the next test gets it as a program does that set up nothing."""
    yield
    logger = logging.getLogger("clearstate")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a small `live` model whose weights were drawn at random (and change what goes through it)."""
    from clearstate.models import build, save_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(build("live", fine_channels=4, channels=6, bands=8, blocks=1, states=4, wide=8), "live", folder)
    return folder


@contextlib.contextmanager
def undisturbed() -> Iterator[bool]:
    """Programs started here take precedence over all others, whose load must not decide a test; False if not permitted.

    A nice value does not do that: Linux shares a busy processor equally between sessions, and Chromium has its own.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, OSError):
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture
def quiet() -> Callable[[], bool]:
    """Whether other programs leave the browser the time that it needs."""

    def ask() -> bool:
        with undisturbed() as permitted:
            return permitted or os.getloadavg()[0] <= os.cpu_count()

    return ask


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Chromium with a microphone that repeats a noisy clip."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'clearstate[dev]'")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    noisy, rate = soundfile.read(CLIP, dtype="float32")
    microphone = tmp_path_factory.mktemp("microphone") / "noisy.wav"
    soundfile.write(microphone, soxr.resample(noisy, rate, 48_000), 48_000, subtype="PCM_16")
    arguments = [
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
    ]
    with undisturbed():
        play = playwright.sync_playwright().start()
        browser = play.chromium.launch(executable_path=path, args=arguments)
    yield browser
    browser.close()
    play.stop()
