"""Run the service with uvicorn: start, signals, and a shutdown that lets work finish."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from clearstate.runtime import open_model
from clearstate.serve.admission import calibrate
from clearstate.serve.app import create_app
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool
from clearstate.serve.streams import ABORT, MOST_SECONDS

MOST_MESSAGE = int(MOST_SECONDS * 192_000 * 8 * 4)  # bytes: the largest message that a header can allow
SWITCH_SECONDS = 0.001  # how long a thread of Python may keep others waiting


class WebSockets(WebSocketsSansIOProtocol):
    """Uvicorn's WebSockets. The application can end a connection whose client does not read."""

    def handle_connect(self, event: Any) -> None:
        """Also called for requests that are refused, which have no scope."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            scope: Any = self.scope
            scope[ABORT] = self.transport.abort

    def data_received(self, data: bytes) -> None:
        """Close the connection after a request head that cannot be read; uvicorn would leave it open."""
        super().data_received(data)
        if not self.handshake_initiated:  # the first data is the whole head
            self.transport.abort()


def http_protocol(header_seconds: float) -> type:
    """Uvicorn's HTTP protocol; a connection that sends no complete request head in time is closed."""

    class Http(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.deadline = asyncio.get_running_loop().call_later(header_seconds, self.close_if_silent)

        def close_if_silent(self) -> None:
            if self.cycle is None:
                self.transport.abort()

        def handle_websocket_upgrade(self, *args: Any) -> None:
            self.deadline.cancel()
            super().handle_websocket_upgrade(*args)

        def connection_lost(self, error: Exception | None) -> None:
            self.deadline.cancel()
            super().connection_lost(error)

    return Http


class Server(uvicorn.Server):
    """A server whose shutdown first lets streams and jobs finish."""

    def __init__(self, settings: Settings, app: Any, sock: socket.socket, started: Callable[[str], None]) -> None:
        self.settings, self.app, self.interrupted = settings, app, False
        self._socket, self._started = sock, started
        config = uvicorn.Config(
            app, settings.host, settings.port,
            http=http_protocol(settings.header_seconds), ws=WebSockets, ws_max_size=MOST_MESSAGE,
            ws_per_message_deflate=False, log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=2, proxy_headers=False,
        )  # fmt: skip
        super().__init__(config)

    def run(self, sockets: Any = None) -> None:
        """Serve until a signal, or `should_exit`, ends it."""
        super().run([self._socket])

    async def startup(self, sockets: Any = None) -> None:
        """Tell the address, which matters for port 0."""
        await super().startup(sockets)
        if self.started:
            host, port = self._socket.getsockname()[:2]
            self._started(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: Any = None) -> None:
        """Drain, then close."""
        drain = asyncio.ensure_future(self.app.state.service.drain(self.settings.drain_seconds))
        while not (drain.done() or self.force_exit):
            await asyncio.sleep(0.05)
        drain.cancel()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on SIGTERM and Ctrl-C; a second Ctrl-C stops at once. The signals are not raised again."""
        if threading.current_thread() is not threading.main_thread():  # which alone can receive signals
            yield
            return
        handlers = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Note which signal it was."""
        self.interrupted |= sig == signal.SIGINT
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Reserve the address of the service; connections are accepted when the server starts.

    Raises:
        OSError: in one line, if the address is unknown or in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        if os.name == "posix":  # elsewhere it would allow a second service on the same port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host} port {port} ({reason}); choose another --host or --port") from None
    return sock


@contextlib.contextmanager
def prepared(settings: Settings, started: Callable[[str], None]) -> Iterator[Server]:
    """Load the model, open the socket, and yield a server whose `run` serves until a signal ends it.

    Args:
        started: called with the address when the service accepts connections.
    Raises:
        ValueError, OSError: one line, if it cannot start.
    """
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # about clients; our own faults: `app`, `streams`
    with listen(settings.host, settings.port) as sock:
        model = open_model(settings.model, "enhance", backend=settings.backend)
        cost = calibrate(model)
        spool = Spool(settings.spool)
        try:
            sys.setswitchinterval(SWITCH_SECONDS)
            raise_open_files()
            gc.collect()
            gc.freeze()  # the collector does not look at the libraries again: shorter pauses
            yield Server(settings, create_app(settings, model, cost, spool), sock, started)
        finally:
            spool.close()


def raise_open_files() -> None:
    """Allow as many open files, and so connections, as the system permits."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
