"""What the app's server gives away, and what it leaves behind."""

import functools
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from clearstate.cli import main

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("gradio", reason="needs gradio: pip install 'clearstate[app]'")

from clearstate.app.server import Settings, running  # noqa: E402
from clearstate.app.work import Limits  # noqa: E402


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The app with small limits; `root` is its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))
        with running(Settings(port=0, limits=Limits(minutes=0.2, megabytes=1))) as page:
            page.root = Path(os.environ["GRADIO_TEMP_DIR"]).parent
            yield page


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(app, name: str, content: bytes) -> tuple[int, bytes]:
    """Send a file as the page does."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + b"\r\n--x--\r\n"
    return ask(f"{app.local_url}gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../../../etc/passwd", "/proc/self/environ", str(ROOT / "README.md"), "README.md", "file:///etc/passwd",
        str(ROOT / "src" / "clearstate" / "weights" / "live" / "model.onnx"),
    ],
)  # fmt: skip
def test_no_file_of_the_server_can_be_read(app, path, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, body = ask(f"{app.local_url}gradio_api/file={path}")
    assert status in (403, 404)
    assert b"root:" not in body


def test_the_work_of_others_cannot_be_read(app):
    (app.root / "work" / "secret.wav").write_bytes(b"secret")
    assert ask(f"{app.local_url}gradio_api/file={app.root}/work/secret.wav")[0] == 403


def test_an_upload_can_be_read_back_so_the_tests_above_can_fail(app):
    status, body = upload(app, "hello.wav", b"hello")
    assert status == 200
    assert ask(f"{app.local_url}gradio_api/file={json.loads(body)[0]}") == (200, b"hello")


@pytest.mark.parametrize("place", ["/etc/passwd", "http://127.0.0.1:1/secret"])
def test_an_input_that_was_not_uploaded_is_refused(app, place):
    """A request that the page would not send: a file of the server, or of its network, as the recording."""
    run = next(i for i, fn in app.fns.items() if fn.name == "run")
    settings = ["live", 40, False, True]
    data = [{"path": place, "url": place, "meta": {"_type": "gradio.FileData"}}, *settings]
    query = json.dumps({"data": data, "fn_index": run, "session_hash": "x", "trigger_id": 1}).encode()
    status, body = ask(f"{app.local_url}gradio_api/queue/join", query, **{"Content-Type": "application/json"})
    told = ask(f"{app.local_url}gradio_api/queue/data?session_hash=x")[1] if status == 200 else body
    assert b"root:" not in told
    assert status != 200 or b'"success":false' in told
    assert not list((app.root / "work").glob("tmp*"))


def test_a_large_upload_is_refused(app):
    assert upload(app, "large.wav", bytes(1_100_000))[0] == 413


def test_the_folder_for_temporary_files_goes_with_the_app(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with running(Settings(port=0)) as page:
        assert upload(page, "hello.wav", b"hello")[0] == 200
        assert list(tmp_path.glob("clearstate-app-*/uploads/*/hello.wav"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_serves_until_it_is_ended(tmp_path):
    words = [sys.executable, "-m", "clearstate", "app", "--port", "0", "--no-browser"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # deaf if we are
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard) as process:
        try:
            line = process.stderr.readline()
            assert line.startswith("clearstate: the app is at http://127.0.0.1:"), line
            assert ask(line.split()[5].rstrip(";"))[0] == 200
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_named(app):
    with (
        pytest.raises(OSError, match=f"port {app.server_port}; choose another"),
        running(Settings(port=app.server_port)),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "livee"], "did you mean 'live'"),
        (["--model", "extend-fast"], "an extension model"),
        (["--max-minutes", "0"], "max-minutes"),
    ],
)
def test_wrong_use_is_told_before_the_app_starts(words, message, capsys):
    with pytest.raises(SystemExit) as leave:
        main(["app", *words])
    assert leave.value.code == 2
    assert message in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["clearstate.cli.app"], "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as leave:
        main(["app"])
    assert leave.value.code == 2
    assert capsys.readouterr().err == "clearstate: app needs gradio: pip install 'clearstate[app]'\n"
