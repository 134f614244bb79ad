"""Signals, as every test found them, and an S3 server."""

import os
import signal

import pytest

from clearstate.audio import remote


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    """The command line installs a handler for SIGTERM; pytest's own process keeps what it had."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")  # fsspec keeps its connections, so a second server would not be found
def s3():
    """An S3 server on this machine, with its address and credentials in the environment."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key-that-is-shown-nowhere",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    fs, _ = remote.file_system("s3://archive")
    fs.mkdir("archive")
    yield "s3://archive"
    server.stop()
    os.environ.clear()
    os.environ.update(before)
