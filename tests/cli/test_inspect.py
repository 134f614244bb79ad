"""clearstate inspect: what it prints, as text, JSON and a page."""

import json
import re
import xml.etree.ElementTree as ElementTree
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from as_typed import in_this_process

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
RATE = 16_000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clean = soundfile.read(CLIPS / "chainsaw_5db.clean.flac")[0]
    soundfile.write("clean.wav", clean, RATE)
    soundfile.write("my <talk>.wav", np.stack([clean * 0.8 + 0.1, 0 * clean], 1), RATE)
    return tmp_path


def inspect(*args, **options):
    return in_this_process("inspect", "--quick", *args, **options)


def test_the_text_names_the_problem_and_the_command():
    result = inspect("my <talk>.wav")
    text = result.stdout.decode()
    assert result.returncode == 0, result.stderr
    first = text.splitlines()[0]
    assert first == "my <talk>.wav: channel 2 is dead; constant offset of 10 % of full scale"
    assert "> clearstate restore 'my <talk>.wav'" in text
    assert re.search(r"file +WAV, 16-bit PCM, 16 kHz, 2 channels, 4.0 s", text)


def test_a_clean_file_needs_no_command():
    text = inspect("clean.wav").stdout.decode()
    assert text.startswith("clean.wav: nothing is wrong") and ">" not in text


def test_the_json_report_has_every_file_and_every_failure():
    Path("broken.wav").write_bytes(b"no sound")
    result = inspect(".", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 1 and (report["done"], report["failed"]) == (2, 1)
    files = {entry["input"]: entry for entry in report["files"]}
    assert files["clean.wav"]["findings"] == [] and files["clean.wav"]["snr_db"] > 30
    assert [one["kind"] for one in files["my <talk>.wav"]["findings"]] == ["channel", "offset"]
    assert files["my <talk>.wav"]["dead_channels"] == [2] and not files["broken.wav"]["ok"]


def test_one_process_per_job_gives_the_same_report():
    alone, together = (json.loads(inspect(".", "--json", "--jobs", jobs).stdout)["files"] for jobs in (1, 2))
    for report in (alone, together):
        report.sort(key=lambda entry: entry["input"])
        for entry in report:
            del entry["wall_seconds"], entry["speed"]
    assert alone == together


def test_stdin_is_inspected():
    result = inspect("-", stdin=Path("clean.wav").read_bytes())
    assert result.stdout.decode().startswith("stdin: nothing is wrong"), result.stderr


class Elements(HTMLParser):
    """Collects the elements of a page and checks that they are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_all_pictures_and_needs_no_other_file():
    result = inspect(".", "--html", "page.html")
    assert result.returncode == 0 and "page.html" in result.stderr
    page = Path("page.html").read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(page)
    assert elements.open == [] and elements.seen.count("section") == 2 and elements.seen.count("svg") == 4
    assert all(link.startswith(("data:image/png", "#f")) for link in elements.links)
    assert "my &lt;talk&gt;.wav" in page and "<talk>" not in page
    assert "prefers-color-scheme: dark" in page
    for drawing in re.findall(r"<svg.*?</svg>", page):
        ElementTree.fromstring(drawing)


def test_the_pictures_are_valid_png():
    inspect("clean.wav", "--html", "page.html")
    png = b64decode(re.search(r"base64,([^\"]+)", Path("page.html").read_text())[1])
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    start = png.index(b"IDAT") + 4
    assert png.startswith(b"\x89PNG") and len(zlib.decompress(png[start:-16])) == height * (1 + 3 * width)


@pytest.mark.parametrize("name", ["page.txt", "page"])
def test_a_page_of_another_kind_is_refused(name):
    assert inspect("clean.wav", "--html", name).returncode == 2


def test_an_existing_page_stays_without_overwrite():
    Path("page.html").write_text("mine")
    assert inspect("clean.wav", "--html", "page.html").returncode == 2
    assert Path("page.html").read_text() == "mine"
    assert inspect("clean.wav", "--html", "page.html", "--overwrite").returncode == 0


def test_with_models_the_report_has_speakers():
    result = in_this_process("inspect", CLIPS / "fire_10db.noisy.flac", "--json")
    (entry,) = json.loads(result.stdout)["files"]
    assert entry["speakers"] == 1 and abs(entry["snr_db"] - 10) < 3
