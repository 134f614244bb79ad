"""A real service on a free port of this machine, in a thread or in a process of its own."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from websockets.sync.client import connect

from clearstate.serve.server import prepared
from clearstate.serve.settings import Settings


class Served:
    """The address of a service, and short ways to talk to it."""

    def __init__(self, url, server=None, process=None):
        self.url, self.server, self.process = url, server, process

    @property
    def service(self):
        return self.server.app.state.service

    @property
    def address(self):
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def ask(self, method, path, body=None, key=None, **headers):
        """Status, headers and body of an answer."""
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def error(self, *args, **kwargs):
        """Status and code of an answer that is an error."""
        status, _, body = self.ask(*args, **kwargs)
        return status, json.loads(body)["error"]["code"]

    def socket(self, **options):
        url = self.url.replace("http", "ws", 1) + "/v1/stream"
        return connect(url, compression=None, max_size=None, **options)

    @contextmanager
    def stream(self, **header):
        """A live stream: the WebSocket, and the answer to its header."""
        with self.socket() as socket:
            socket.send(json.dumps(header))
            yield socket, json.loads(socket.recv(timeout=60))

    @contextmanager
    def raw_stream(self, header="{}"):
        """A live stream without a library: the TCP socket, after the handshake and the header."""
        with socket.create_connection(self.address, timeout=30) as sock:
            sock.sendall(
                b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert b" 101 " in sock.recv(4096)
            if header is not None:
                sock.sendall(frame(1, header.encode()))
                assert b"ready" in sock.recv(4096)
            yield sock

    def metric(self, name):
        text = self.ask("GET", "/metrics")[2].decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))

    def wait_until(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)


@contextmanager
def in_a_thread(model, spool, **settings):
    # ONNX Runtime loads faster than PyTorch, which matters in the processes for files.
    settings = {"backend": "onnx"} | settings if str(model) == "live" else settings
    settings = {"processes": 0, "port": 0, "lag_seconds": 10.0, "drain_seconds": 1.0, **settings}
    addresses, ready = [], threading.Event()

    def started(address):
        addresses.append(address)
        ready.set()

    with prepared(Settings(model=str(model), spool=Path(spool), **settings), started) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert ready.wait(60)
        try:
            yield Served(addresses[0], server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def in_a_process(model, spool, *options, env=None, **popen):
    command = [sys.executable, "-m", "clearstate", "serve", "--port", "0", "--model", str(model), "--spool", str(spool)]
    command += ["--backend", "onnx"]  # loads faster than PyTorch
    log = Path(spool, "log.txt")
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [*command, *map(str, options)], stderr=stderr, env={**os.environ, **(env or {})}, **popen
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"serving on (http://\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        served = Served(found[1], process=process)
        served.told = log.read_text
        yield served
    finally:
        process.kill()
        process.wait()


def frame(opcode, payload):
    """A WebSocket frame of a client, with a mask of zeros."""
    size = len(payload)
    head = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + head + bytes(4) + payload


def sound(samples):
    """Noise as 16-bit samples of one channel."""
    return np.rint(noise(samples) * 20_000).astype("<i2").tobytes()


def noise(samples, channels=1, seed=0):
    shape = (samples, channels) if channels > 1 else samples
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def pids_below(pid):
    """The processes that a process has started."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def wait_for_end(pids):
    """Wait until none of these processes exists."""
    deadline = time.monotonic() + 30
    while alive := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
