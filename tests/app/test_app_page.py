"""The app's page in headless Chromium, as people use it."""

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

import clearstate

pytest.importorskip("gradio", reason="needs gradio: pip install 'clearstate[app]'")

from clearstate.app import work
from clearstate.app.server import Settings, running
from clearstate.app.work import Limits

pytestmark = pytest.mark.browser

WAIT = 60_000  # milliseconds: for a machine that does much else
LOADED = "() => [...document.querySelectorAll('#duration')].filter((d) => d.textContent != '0:00').length == 3"
OWN = ("Method not implemented.", "GPU stall")  # what Gradio and Chromium say of themselves


@pytest.fixture(scope="module")
def address():
    with running(Settings(port=0, limits=Limits(minutes=0.5), together=2)) as page:
        yield page.local_url


@pytest.fixture
def visit(chromium, address):
    """A function that opens the page as somebody new. Errors, and requests to other servers, fail the test."""
    contexts, complaints = [], []

    def open_page(width: int = 1280):
        context = chromium.new_context(viewport={"width": width, "height": 844})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda m: m.type == "error" and not m.text.startswith(OWN) and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: r.url.startswith((address, "blob:", "data:")) or complaints.append(r.url))
        page.goto(address)
        page.get_by_role("button", name="Remove noise").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def recording(path: Path, seconds: float, seed: int = 0) -> Path:
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal((int(seconds * 16_000), 2)), 16_000)
    return path


def choose(page, file: Path) -> None:
    page.locator("input[type=file]:visible, input[type=file]").first.set_input_files(file)
    page.get_by_text(file.stem).first.wait_for()


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def press(page, name: str) -> None:
    page.locator("button:visible").get_by_text(name, exact=True).click()


def downloaded(page, name: str, folder: Path) -> np.ndarray:
    with page.expect_download() as download:
        press(page, f"Download {name}")
    assert download.value.suggested_filename == name
    download.value.save_as(folder / name)
    return soundfile.read(folder / name)[0]


def test_upload_run_play_and_download(visit, tmp_path):
    page, file = visit(), recording(tmp_path / "my talk.wav", 4.0)
    choose(page, file)
    page.get_by_label("number input for Strength").fill("12")
    press(page, "Remove noise")
    page.get_by_text("Done: 4.0 s with studio.").wait_for()
    players = page.locator("button[aria-label=Play]:visible")
    players.nth(2).wait_for()
    page.wait_for_function(LOADED)  # a click before is lost
    players.nth(1).click()
    page.wait_for_function("() => [...document.querySelectorAll('#time')].some((time) => time.textContent != '0:00')")
    assert page.locator("img:visible").first.evaluate("(image) => image.naturalWidth") > 500
    result = downloaded(page, "my talk.clear.wav", tmp_path / "page")
    clearstate.enhance(file, tmp_path / "own.wav", strength=12.0, backend="onnx")
    np.testing.assert_array_equal(result, soundfile.read(tmp_path / "own.wav")[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("letter.mp3", b"Dear reader, this is no sound at all", "letter.mp3"),
        ("empty.wav", b"", "empty.wav: is empty (0 bytes); expected an audio file"),
    ],
)
def test_a_broken_file_shows_one_sentence(visit, tmp_path, name, content, message):
    page, file = visit(), tmp_path / name
    file.write_bytes(content)
    choose(page, file)
    press(page, "Remove noise")
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    told = toast.inner_text()
    assert message in told
    assert "/" not in told.replace("and/or", "")
    assert not page.get_by_text("Done:").count()


def test_a_long_recording_and_no_recording_are_refused(visit, tmp_path):
    page = visit()
    press(page, "Remove noise")
    page.get_by_text("choose a recording first").wait_for()
    choose(page, recording(tmp_path / "long.wav", 31.0))
    press(page, "Remove noise")
    page.get_by_text("long.wav is longer than 0.5 minutes, the limit of this app").wait_for()


def test_two_sessions_at_once_do_not_mix(visit, tmp_path, monkeypatch):
    both = threading.Barrier(2)
    opened = work.opened

    def together(*args):
        both.wait(timeout=WAIT / 1000)  # fails if one waits for the other
        return opened(*args)

    monkeypatch.setattr(work, "opened", together)
    pages, files = [visit(), visit()], []
    for number, page in enumerate(pages):
        (tmp_path / str(number)).mkdir()
        files.append(recording(tmp_path / str(number) / "talk.wav", 1.0, seed=number))
        choose(page, files[-1])
    for page in pages:
        press(page, "Remove noise")
    for number, (page, file) in enumerate(zip(pages, files, strict=True)):
        page.get_by_text("Done:").wait_for()
        result = downloaded(page, "talk.clear.wav", tmp_path / f"page{number}")
        clearstate.enhance(file, tmp_path / f"own{number}.wav", backend="onnx")
        np.testing.assert_array_equal(result, soundfile.read(tmp_path / f"own{number}.wav")[0])


class Endless:
    """An enhancer that works until its progress callback stops it."""

    stopped = 0

    def enhance_file(self, source, target, *, progress, **options):
        try:
            while True:
                progress(1.0, 10.0)
                threading.Event().wait(0.05)
        finally:
            Endless.stopped += 1


def test_work_shows_its_progress_and_can_be_cancelled_as_what_waits_and_what_is_left(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "opened", lambda *args: Endless())
    Endless.stopped = 0
    pages = [visit() for _ in range(3)]  # two work at the same time
    for page in pages:
        choose(page, recording(tmp_path / "talk.wav", 1.0))
    for page in pages[:2]:
        press(page, "Remove noise")
        page.get_by_text("Removing noise - 4.0%").wait_for()
    press(pages[2], "Remove noise")
    pages[2].get_by_text("Waiting for other recordings").wait_for()
    for page in (pages[2], pages[0]):
        press(page, "Cancel")
        page.get_by_text("Cancelled.").wait_for()
    assert Endless.stopped == 1
    pages[1].close()
    for _ in range(100):
        if Endless.stopped == 2:
            break
        threading.Event().wait(0.1)
    assert Endless.stopped == 2


def test_every_tab_has_an_example_of_one_click_and_fits_a_phone_and_a_desktop(visit):
    page = visit(390)
    for name, example, done in (
        ("Enhance", "Fire", "Done: 3.1 s"),
        ("Separate", "Two voices", "speaker 2 is active for"),
        ("Extend", "Telephone", "the model added those above"),
        ("Compare", "Fire", "Speed is in multiples of real time."),
        ("About", "Card of live", "The default model of everything live"),
    ):
        tab(page, name)
        if name == "Compare":
            for other in page.get_by_role("checkbox").locator("visible=true").all()[1:]:
                other.set_checked(False)
        press(page, example)
        page.get_by_text(done).first.wait_for()
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        if name == "Compare":
            page.locator("button[aria-label=Play]:visible").nth(1).wait_for()
            assert page.locator("button[aria-label=Play]:visible").count() == 2
            page.get_by_role("cell", name="studio", exact=True).wait_for()


def test_the_microphone_gives_a_recording(visit):
    page = visit()
    page.get_by_text("Or record with the microphone").locator("visible=true").click()
    page.get_by_role("button", name="Record", exact=True).locator("visible=true").click()
    stop = page.get_by_role("button", name="Stop", exact=True).locator("visible=true")
    stop.wait_for()
    page.wait_for_timeout(1500)
    stop.click()
    page.get_by_text("audio", exact=True).first.wait_for()
    press(page, "Remove noise")
    page.get_by_text("Done:").wait_for()
