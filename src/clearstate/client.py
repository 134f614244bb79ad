"""Use a service that `clearstate serve` runs, from Python. It needs the package websockets for streams, no models.

    client = Client("http://127.0.0.1:8000", key=None)
    client.enhance("talk.mp3", "clean.flac", strength=12)      # the extension selects the format
    client.separate("talk.mp3", "voices.zip")
    client.extend("old.wav", "wide.wav")

    job = client.submit("enhance", "lecture.m4a", format="mp3")  # a long file
    while not job.finished():
        print(f"{job.progress:.0%}")
    job.save("lecture.mp3")

    with client.stream(rate=48_000) as stream:                 # live sound: 16-bit samples as bytes
        speaker.write(stream.process(microphone.read(960)))
        speaker.write(stream.flush())

Files are sent and received piece by piece, so their size does not matter.
"""

import http.client
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from clearstate.audio.atomic import replacing

AnyPath = str | os.PathLike[str]


class ServiceError(RuntimeError):
    """A request that the service refused.

    Attributes:
        code: for programs, such as "busy"; the documentation lists all codes.
        status: of HTTP; 0 for a stream.
    """

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.status = code, status


class Client:
    """A connection to a service.

    Args:
        url: of the service, http or https.
        key: an API key, if the service has keys.
        timeout: seconds without an answer after which a request fails; None waits as long as a file takes.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", key: str | None = None, timeout: float | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url {url!r}: expected a service, such as http://127.0.0.1:8000")
        self.secure, self.host, self.port = parts.scheme == "https", parts.hostname, parts.port
        self.base = parts.path.rstrip("/")
        self.timeout = timeout
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def enhance(self, source: AnyPath, target: AnyPath, **options: Any) -> str:
        """Remove noise from a file. Options: strength, residual, channels, model, track.

        Returns:
            A remark of the service, such as where a damaged file breaks off; usually empty.
        Raises:
            ServiceError: with the reason. No file is written.
        """
        return self._convert("enhance", source, target, options)

    def separate(self, source: AnyPath, target: AnyPath, **options: Any) -> str:
        """Separate speakers; the target is a ZIP file. Options: enhance, model, track."""
        return self._convert("separate", source, target, options)

    def extend(self, source: AnyPath, target: AnyPath, **options: Any) -> str:
        """Add the missing high frequencies. Options: to, model, track."""
        return self._convert("extend", source, target, options)

    def submit(self, task: str, source: AnyPath, **options: Any) -> "Job":
        """Send a file to be processed in the background. Options: those of the task, and format."""
        with self._post(task, source, {**options, "background": True}) as response:
            return Job(self, json.load(response))

    def models(self) -> list[dict[str, Any]]:
        """List the models of the service."""
        with self.request("GET", "/v1/models") as response:
            return json.load(response)

    def stream(self, rate: int = 16_000, channels: int = 1, format: str = "s16le", **options: Any) -> "LiveStream":
        """Open a live stream. Options: strength, channels_mode."""
        return LiveStream(self, {"rate": rate, "channels": channels, "format": format, **options})

    @contextmanager
    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request, and yield the response.

        Raises:
            ServiceError: if the service refuses it.
        """
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=self.timeout, blocksize=1 << 16)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before the end of the body: it says why
                connection.request(method, self.base + path, body, self.headers | (headers or {}))
            response = connection.getresponse()
            if response.status >= 400:
                raise _error(response.status, response.read(1 << 16))
            yield response
        finally:
            connection.close()

    @contextmanager
    def _post(self, task: str, source: AnyPath, options: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        with open(source, "rb") as file:
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(os.fstat(file.fileno()).st_size),
            }
            with self.request("POST", f"/v1/{task}?{query}", file, headers) as response:
                yield response

    def _convert(self, task: str, source: AnyPath, target: AnyPath, options: dict[str, Any]) -> str:
        if task != "separate":
            options = {"format": Path(target).suffix[1:].lower() or "wav", **options}
        with self._post(task, source, options) as response:
            _save(response, target)
            return response.headers.get("X-Clearstate-Note", "")


class Job:
    """A file that the service processes in the background."""

    def __init__(self, client: Client, status: dict[str, Any]) -> None:
        self.client, self.status = client, status
        self.id: str = status["id"]

    @property
    def progress(self) -> float:
        """Share that was done when the service was last asked."""
        return float(self.status["progress"])

    def finished(self, wait: float = 0.5) -> bool:
        """Ask the service, after some seconds, whether the job has ended.

        Raises:
            ServiceError: if it failed.
        """
        time.sleep(wait)
        with self.client.request("GET", f"/v1/jobs/{self.id}") as response:
            self.status = json.load(response)
        if error := self.status["error"]:
            raise ServiceError(error["code"], error["message"])
        return bool(self.status["state"] == "done")

    def save(self, target: AnyPath) -> None:
        """Fetch the result of a finished job."""
        with self.client.request("GET", f"/v1/jobs/{self.id}/result") as response:
            _save(response, target)

    def delete(self) -> None:
        """Delete the job and its result; stop it if it is running."""
        with self.client.request("DELETE", f"/v1/jobs/{self.id}"):
            pass


class LiveStream:
    """A live stream. Use it in a `with` block.

    Attributes:
        latency_samples: by how much the output trails the input.
    """

    def __init__(self, client: Client, header: dict[str, Any]) -> None:
        from websockets.exceptions import ConnectionClosed, InvalidStatus
        from websockets.sync.client import connect

        address = f"[{client.host}]" if ":" in client.host else client.host
        port = f":{client.port}" if client.port else ""
        url = f"{'wss' if client.secure else 'ws'}://{address}{port}{client.base}/v1/stream"
        try:
            self._stack = ExitStack()
            self._socket = self._stack.enter_context(
                connect(url, additional_headers=client.headers, compression=None, max_size=None)
            )
        except InvalidStatus as refusal:
            raise _error(refusal.response.status_code, bytes(refusal.response.body or b"")) from None
        self._closed = ConnectionClosed
        self.ready = self._json(self._ask(json.dumps(header)))
        self.latency_samples: int = self.ready["latency_samples"]

    def process(self, samples: bytes) -> bytes:
        """Send samples (at most one second), and return as many: the enhanced sound, `latency_samples` late."""
        return self._bytes(self._ask(samples))

    def flush(self) -> bytes:
        """Return the last `latency_samples` and start anew."""
        message = self._ask('{"type": "flush"}')
        if isinstance(message, str):  # there is no latency
            self._json(message)
            return b""
        self._json(self._ask())
        return message

    def close(self) -> None:
        """End the stream."""
        self._stack.close()

    def __enter__(self) -> "LiveStream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _ask(self, message: str | bytes | None = None) -> str | bytes:
        """Send a message, if any, and receive the next one."""
        try:
            if message is not None:
                with suppress(self._closed):  # an error may have arrived before
                    self._socket.send(message)
            return self._socket.recv()
        except self._closed as error:
            raise ServiceError("closed", f"the service closed the stream: {error}") from None

    def _bytes(self, message: str | bytes) -> bytes:
        if isinstance(message, str):
            self._json(message)
            raise ServiceError("failed", f"unexpected message: {message[:100]}")
        return message

    def _json(self, message: str | bytes) -> dict[str, Any]:
        found = json.loads(message)
        if found.get("type") == "error":
            self.close()
            raise ServiceError(found["code"], found["message"])
        return dict(found)


def _save(response: http.client.HTTPResponse, target: AnyPath) -> None:
    """Write a body to a file, which appears when it is complete."""
    with replacing(target) as part, open(part, "wb") as file:
        shutil.copyfileobj(response, file, 1 << 16)


def _error(status: int, body: bytes) -> ServiceError:
    try:
        error = json.loads(body)["error"]
        return ServiceError(error["code"], error["message"], status)
    except (ValueError, KeyError, TypeError):
        return ServiceError("failed", body.decode(errors="replace")[:200] or "no reason given", status)
