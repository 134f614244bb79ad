"""WS /v1/stream: live sound in, enhanced sound out.

    client                                         service
    {"rate": 16000, "format": "s16le"}     ->
                                           <-      {"type": "ready", "latency_samples": 511, ...}
    samples (binary)                       ->
                                           <-      as many samples (binary), one message for each
    {"type": "flush"}                      ->
                                           <-      the last `latency_samples` (binary), {"type": "flushed"}

A stream has one message in work at a time. The next one is read when the output of the last one is on its way, so a
client that sends too fast or reads too slowly is held back by its own connection, and memory stays bounded.
"""

import asyncio
import json
import logging
import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from clearstate.runtime.contract import EnhancementModel
from clearstate.serve.admission import Admission
from clearstate.serve.errors import RefusedError
from clearstate.serve.hops import Hops
from clearstate.serve.keys import Keys, bearer
from clearstate.serve.metrics import Metrics
from clearstate.serve.settings import Settings
from clearstate.tasks.stream import Stream

logger = logging.getLogger(__name__)

ABORT = "clearstate.abort"  # in the scope of a WebSocket: ends its connection at once
FAREWELL_SECONDS = 1.0  # to send the reason of a refusal
MOST_REASON = 100  # characters of the reason in a close message, which holds 123 bytes
MOST_TEXT = 4096  # characters of a JSON message
MOST_SECONDS = 1.0  # of audio in a message
PIECE_SECONDS = 0.064  # of audio that a thread processes at a time, so that others need not wait for a long message
BURST_SECONDS = 2.0  # of audio that a client may send ahead of real time
PACE = 1.05  # times real time; above 1, because the clocks of sound cards differ


class Header(BaseModel):
    """The first message of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rate: int = Field(16_000, ge=4_000, le=192_000)
    channels: int = Field(1, ge=1, le=8)
    format: Literal["s16le", "f32le"] = "s16le"
    strength: float | None = Field(None, ge=0, le=1_000)
    channels_mode: Literal["linked", "apart"] = "linked"
    key: str | None = Field(None, max_length=512)


class Session:
    """One stream, in bytes. `process` and `flush` run in a thread."""

    def __init__(self, model: EnhancementModel, header: Header) -> None:
        self.stream = Stream(
            model, header.rate, header.channels, header.strength, channels_mode=header.channels_mode
        )  # fmt: skip
        self.header = header
        self.dtype = np.dtype("<i2" if header.format == "s16le" else "<f4")
        self.width = header.channels * self.dtype.itemsize  # bytes of one sample of all channels
        self.piece = max(1, int(PIECE_SECONDS * header.rate)) * self.width

    def process(self, data: bytes) -> tuple[bytes, float]:
        """Process samples; returns as many, and the seconds of work."""
        started = time.perf_counter()
        flat = np.frombuffer(data, self.dtype)
        x = flat.astype(np.float32) / 32768 if self.dtype.kind == "i" else flat
        out = self._encoded(self.stream.process(np.ascontiguousarray(x.reshape(-1, self.header.channels).T)))
        return out, time.perf_counter() - started

    def flush(self, _: bytes = b"") -> bytes:
        """Return the last samples and start anew."""
        return self._encoded(np.atleast_2d(self.stream.flush()))

    def _encoded(self, y: NDArray[np.float32]) -> bytes:
        flat = y.T
        if self.dtype.kind == "i":
            flat = np.clip(np.rint(flat * 32768), -32768, 32767)
        return flat.astype(self.dtype, order="C").tobytes()


class Connection:
    """One WebSocket, from its first message to its close."""

    def __init__(self, service: "Streams", websocket: WebSocket) -> None:
        self.service, self.websocket = service, websocket
        self.started = self.heard = time.monotonic()
        self.sending_since: float | None = None
        self.session: Session | None = None
        self.credit = BURST_SECONDS
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.ending: RefusedError | None = None  # why the task is cancelled

    async def run(self) -> None:
        """Serve the stream; ends without an exception when the client leaves."""
        presented = self.websocket.headers.get("authorization")
        host = self.websocket.client.host if self.websocket.client else ""
        if presented is not None:
            self.service.keys.owner(bearer(presented), host)  # refused before the WebSocket opens
        await self.websocket.accept()
        header = parse(await self._text())
        owner = self.service.keys.owner(header.key or bearer(presented), host)
        seat = self.service.admission.admit(owner, header.rate, header.channels)
        try:
            self.session = session = await self.service.hops.submit(self._open, header)
            await self._send(text=json.dumps(self._ready(session)))
            self.credited = time.monotonic()
            while True:
                message = await self._message()
                data = message.get("bytes")
                if data is not None:
                    await self._samples(session, data)
                else:
                    await self._command(session, message.get("text") or "")
        finally:
            self.service.admission.leave(seat)

    def _open(self, header: Header) -> Session:
        return Session(self.service.model, header)

    def _ready(self, session: Session) -> dict[str, Any]:
        stream = session.stream
        return {
            "type": "ready",
            "model": self.service.model_name,
            "rate": stream.sample_rate,
            "channels": stream.channels,
            "format": session.header.format,
            "latency_samples": stream.latency_samples,
            "latency_ms": round(1000 * stream.latency_seconds, 3),
            "most_message_bytes": int(MOST_SECONDS * stream.sample_rate) * session.width,
        }

    async def _samples(self, session: Session, data: bytes) -> None:
        arrived = time.monotonic()
        seconds = len(data) / session.width / session.header.rate
        if len(data) % session.width:
            raise RefusedError(
                "bad_request",
                f"a message of {len(data)} bytes: expected a multiple of {session.width}, one sample of all channels",
            )
        if seconds > MOST_SECONDS:
            raise RefusedError(
                "too_large", f"a message of {seconds:.3g} s: expected at most {MOST_SECONDS:g} s of audio"
            )
        await self._paced(arrived, seconds)
        started, out = time.monotonic(), []
        for start in range(0, len(data), session.piece):
            done, worked = await self.service.hops.submit(session.process, data[start : start + session.piece])
            out.append(done)
            hops = max(1.0, len(done) / session.width / session.header.rate / self.service.hop_seconds)
            self.service.metrics.hop.observe(worked / hops)
        self.service.admission.delivered(time.monotonic() - started)
        self.service.audio_seconds += seconds
        await self._send(bytes=b"".join(out))

    async def _paced(self, now: float, seconds: float) -> None:
        """Wait if the client is too far ahead of real time."""
        self.credit = min(BURST_SECONDS, self.credit + PACE * (now - self.credited)) - seconds
        self.credited = now
        if self.credit < 0:
            await asyncio.sleep(-self.credit / PACE)

    async def _command(self, session: Session, text: str) -> None:
        if as_object(text).get("type") != "flush":
            raise RefusedError("bad_request", 'unknown message; expected samples, or {"type": "flush"}')
        rest = await self.service.hops.submit(session.flush, b"")
        if rest:
            await self._send(bytes=rest)
        await self._send(text='{"type": "flushed"}')

    async def _message(self) -> dict[str, Any]:
        message = dict(await self.websocket.receive())
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        self.heard = time.monotonic()
        return message

    async def _text(self) -> str:
        text = (await self._message()).get("text")
        if text is None:
            raise RefusedError("bad_request", "the first message is binary; expected the header of the stream as JSON")
        return str(text)

    async def _send(self, **content: Any) -> None:
        self.sending_since = time.monotonic()
        await self.websocket.send({"type": "websocket.send", **content})
        self.sending_since = None

    def overdue(self, now: float) -> RefusedError | None:
        """Why the connection must end, if it must."""
        settings = self.service.settings
        if self.sending_since is not None:
            if now - self.sending_since > settings.send_seconds:
                return RefusedError("timeout", f"the output was not read for {settings.send_seconds:g} s")
        elif self.session is None and now - self.started > settings.header_seconds:
            return RefusedError("timeout", f"no header within {settings.header_seconds:g} s")
        elif now - self.heard > settings.idle_seconds:
            return RefusedError("timeout", f"nothing arrived for {settings.idle_seconds:g} s")
        if now - self.started > settings.stream_seconds:
            return RefusedError("timeout", f"streams end after {settings.stream_seconds:g} s; connect again")
        return None

    def end(self, why: RefusedError) -> None:
        """Close the connection with this reason."""
        self.ending = self.ending or why
        if self.task:
            self.task.cancel()


class Streams:
    """All live streams of a service."""

    def __init__(
        self,
        settings: Settings,
        model: EnhancementModel,
        keys: Keys,
        hops: Hops,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self.settings, self.model, self.keys, self.hops = settings, model, keys, hops
        self.admission, self.metrics = admission, metrics
        self.model_name = settings.model_name
        self.hop_seconds = model.hop / model.sample_rate
        self.audio_seconds = 0.0  # not yet in the metrics: a counter per chunk would take longer than the sum
        self.connections: set[Connection] = set()

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one WebSocket."""
        connection = Connection(self, websocket)
        self.connections.add(connection)
        try:
            await connection.run()
        except (WebSocketDisconnect, asyncio.CancelledError) as error:
            if connection.ending:
                await self._refuse(websocket, connection.ending)
            elif isinstance(error, asyncio.CancelledError):
                raise
        except RefusedError as refusal:
            await self._refuse(websocket, refusal)
        except OSError:
            pass  # the client vanished while we sent
        except Exception:
            logger.exception("a stream failed")
            self.metrics.errors.labels("stream").inc()
            await self._refuse(websocket, RefusedError("failed", "the service failed; its log has the reason"))
        finally:
            self.connections.discard(connection)

    async def _refuse(self, websocket: WebSocket, refusal: RefusedError) -> None:
        self.metrics.rejected.labels(refusal.code).inc()
        try:
            await asyncio.wait_for(self._say(websocket, refusal), FAREWELL_SECONDS)
        except (RuntimeError, OSError, WebSocketDisconnect, asyncio.TimeoutError):
            if abort := websocket.scope.get(ABORT):  # it does not read: do not wait until it has read what we sent
                abort()

    async def _say(self, websocket: WebSocket, refusal: RefusedError) -> None:
        if websocket.application_state is WebSocketState.CONNECTED:
            await websocket.send_text(json.dumps({"type": "error", **refusal.as_json()["error"]}))
            await websocket.close(refusal.close_code, refusal.message[:MOST_REASON])
        else:
            await websocket.send_denial_response(
                JSONResponse(refusal.as_json(), refusal.status, headers=refusal.headers)
            )

    def tick(self) -> None:
        """End the connections that are overdue, and add up what the chunks left."""
        now = time.monotonic()
        for connection in list(self.connections):
            if why := connection.overdue(now):
                connection.end(why)
        self.metrics.audio.labels("stream").inc(self.audio_seconds)
        self.audio_seconds = 0.0

    def end_all(self, why: RefusedError) -> None:
        """Close every connection with this reason."""
        for connection in list(self.connections):
            connection.end(why)


def parse(text: str) -> Header:
    """Read the header of a stream.

    Raises:
        RefusedError: with the fields that are wrong.
    """
    as_object(text)
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        raise RefusedError("bad_request", f"header: {wrong}") from None


def as_object(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RefusedError: for anything else.
    """
    if len(text) > MOST_TEXT:
        raise RefusedError("too_large", f"a text of {len(text)} characters: expected at most {MOST_TEXT}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RefusedError("bad_request", 'not a JSON object; the first message is the header, such as {"rate": 16000}')
    return found
