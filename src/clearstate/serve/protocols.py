"""What uvicorn lacks: limits for connections that do not speak, and WebSockets that can be cut or handed over."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from clearstate.serve.errors import RefusedError
from clearstate.serve.settings import Settings
from clearstate.serve.streams import ABORT, AT_ONCE, MOST_SECONDS, AtOnce

MOST_MESSAGE = int(MOST_SECONDS * 192_000 * 8 * 4)  # bytes: the largest message that a header can allow


class WebSockets(WebSocketsSansIOProtocol):
    """Uvicorn's WebSockets, with what it lacks for live sound, through the scope.

    The application can end a connection whose client does not read. It can also answer binary messages at once, while
    its task waits for one: the queue, two turns of the event loop and the pause in reading cost a fifth of a message.
    """

    first = False  # of the messages that arrived together; the others wait, so that other connections have their turn
    at_once: AtOnce | None = None

    def handle_connect(self, event: Any) -> None:
        """Also called for requests that are refused, which have no scope."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            scope: Any = self.scope
            scope[ABORT] = self.transport.abort
            scope[AT_ONCE] = self.at_once = AtOnce()

    def handle_bytes(self, event: Any) -> None:
        """Answer a message at once if nothing is before it, the client reads, and the application can."""
        first, self.first = self.first, False
        answer = self.at_once.answer if self.at_once else None
        free = first and event.fin and self.queue.empty() and self.writable.is_set() and self.conn.state is State.OPEN
        if not free or answer is None or (output := answer(event.data)) is None:
            super().handle_bytes(event)
            return
        self.conn.send_binary(output)
        self.transport.write(b"".join(self.conn.data_to_send()))

    def handle_parser_exception(self) -> None:
        """After a broken frame; uvicorn would take what the application still sends for an error of the application."""
        super().handle_parser_exception()
        self.disconnected = True

    def keepalive_timeout(self) -> None:
        """After a ping that was not answered; the same."""
        super().keepalive_timeout()
        self.disconnected = True

    def data_received(self, data: bytes) -> None:
        """Close the connection after a request head that cannot be read; uvicorn would leave it open."""
        self.first = True
        super().data_received(data)
        if not self.handshake_initiated:  # the first data is the whole head
            self.transport.abort()


def handing_over(adopt: Callable[[int, bytes], RefusedError | None]) -> type[asyncio.Protocol]:
    """A protocol that gives each WebSocket away, before anything is answered.

    Args:
        adopt: takes a file descriptor, which it must duplicate, and the head of the request; or refuses them.
    """

    class HandOver(asyncio.Protocol):
        def __init__(self, **_: Any) -> None:  # as uvicorn creates a protocol
            self.transport: Any = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            """The first data is the whole head."""
            transport, self.transport = self.transport, None  # they refer to each other: another cycle
            if (why := adopt(transport.get_extra_info("socket").fileno(), data)) is None:
                transport.abort()  # closes our descriptor, not the connection
                return
            body = json.dumps(why.as_json()).encode()
            head = f"HTTP/1.1 {why.status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            headers = "".join(f"{name}: {value}\r\n" for name, value in why.headers.items())
            transport.write(f"{head}{headers}Connection: close\r\n\r\n".encode() + body)
            transport.close()

    return HandOver


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
            self.parser = None  # it refers to this object: a cycle of 6 KB, as `connection_lost` is not called

        def connection_lost(self, error: Exception | None) -> None:
            self.deadline.cancel()
            super().connection_lost(error)

    return Http


def uvicorn_config(app: Any, settings: Settings, ws: type, **options: Any) -> uvicorn.Config:
    """The configuration that all processes of a service share."""
    return uvicorn.Config(
        app, settings.host, settings.port, http=http_protocol(settings.header_seconds), ws=ws,
        ws_max_size=MOST_MESSAGE, ws_per_message_deflate=False, log_config=None, access_log=False,
        server_header=False, proxy_headers=False, **options,
    )  # fmt: skip
