"""Run the service with uvicorn: start, signals, and a shutdown that lets work finish."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from clearstate.serve.app import create_app
from clearstate.serve.processes import Processes, settle
from clearstate.serve.protocols import WebSockets, handing_over, uvicorn_config
from clearstate.serve.service import Local
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool


class Server(uvicorn.Server):
    """A server whose shutdown first lets streams and jobs finish."""

    def __init__(
        self, settings: Settings, app: Any, ws: type, sock: socket.socket, started: Callable[[str], None]
    ) -> None:
        self.settings, self.app, self.interrupted = settings, app, False
        self._socket, self._started = sock, started
        super().__init__(uvicorn_config(app, settings, ws, timeout_graceful_shutdown=2))

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
    """Open the socket, load the model, and yield a server whose `run` serves until a signal ends it.

    Args:
        started: called with the address when the service accepts connections.
    Raises:
        ValueError, OSError: one line, if it cannot start.
    """
    with listen(settings.host, settings.port) as sock, contextlib.ExitStack() as stack:
        streams: Processes | Local
        if settings.processes:
            streams = stack.enter_context(contextlib.closing(Processes(settings)))
            ws: type = handing_over(streams.adopt)
        else:
            streams, ws = Local(settings), WebSockets
        spool = stack.enter_context(contextlib.closing(Spool(settings.spool)))
        settle()
        yield Server(settings, create_app(settings, streams, spool), ws, sock, started)
