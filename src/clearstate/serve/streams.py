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

`Streams` is an ASGI application of its own: fifty messages per second and stream pass through here, and every layer
of a framework costs as much as the rest of the work. The event loop runs the model itself, in pieces of PIECE_SECONDS:
to hand a piece to a thread takes a third of the time of the piece. So the loop serves streams and nothing else where
`processes.py` gives it a process of its own. What may take long, to open a stream at an unusual rate, a thread does.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from clearstate.audio.resample import table_bytes
from clearstate.runtime.contract import EnhancementModel
from clearstate.serve.errors import RefusedError
from clearstate.serve.keys import Keys, bearer
from clearstate.serve.metrics import Tally
from clearstate.serve.settings import Settings
from clearstate.tasks.stream import Stream

logger = logging.getLogger(__name__)

ABORT = "clearstate.abort"  # in the scope of a WebSocket: ends its connection at once
AT_ONCE = "clearstate.at_once"  # likewise: an `AtOnce`
FAREWELL_SECONDS = 1.0  # to send the reason of a refusal
MOST_REASON = 100  # characters of the reason in a close message, which holds 123 bytes
MOST_TEXT = 4096  # characters of a JSON message
MOST_SECONDS = 1.0  # of audio in a message
PIECE_SECONDS = 0.064  # of audio that the loop processes at a time, so that others need not wait for a long message
BURST_SECONDS = 2.0  # of audio that a client may send ahead of real time
PACE = 1.05  # times real time; above 1, because the clocks of sound cards differ
MOST_FILTERS = 256 << 20  # bytes, of the filters for the rates in use; each of the usual rates needs less than 1 MB
BEAT_SECONDS = 0.010  # between two looks at how late the event loop is
TIMER_SECONDS = 0.001  # uvloop rounds up to it


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
    """One stream, in bytes."""

    def __init__(self, model: EnhancementModel, header: Header) -> None:
        self.stream = Stream(model, header.rate, header.channels, header.strength, channels_mode=header.channels_mode)
        self.rate, self.channels, self.format = header.rate, header.channels, header.format
        self.dtype = np.dtype("<i2" if header.format == "s16le" else "<f4")
        self.width = header.channels * self.dtype.itemsize  # bytes of one sample of all channels
        self.piece = max(1, int(PIECE_SECONDS * header.rate)) * self.width  # bytes
        self.worked = 0.0  # seconds since the caller set it to 0

    def process(self, data: bytes) -> bytes:
        """Process samples and return as many."""
        started = time.perf_counter()
        x = np.frombuffer(data, self.dtype)
        if self.dtype.kind == "i":
            x = x.astype(np.float32)
            x /= 32768
        if self.channels > 1:
            x = np.ascontiguousarray(x.reshape(-1, self.channels).T)
        out = self._encoded(self.stream.process(x))
        self.worked += time.perf_counter() - started
        return out

    def flush(self) -> bytes:
        """Return the last samples and start anew."""
        return self._encoded(self.stream.flush())

    def _encoded(self, y: NDArray[np.float32]) -> bytes:
        if self.dtype.kind == "i":
            y = np.rint(y * np.float32(32768))
            y = np.minimum(np.maximum(y, -32768), 32767)  # np.clip takes three times as long on a short chunk
        return y.T.astype(self.dtype, order="C").tobytes()


@dataclass
class AtOnce:
    """What answers messages of samples while the task waits for one.

    An object of its own, which both sides know: they must not refer to each other when the connection is over, because
    a cycle keeps 20 KB until the collector comes.
    """

    answer: Callable[[Any], bytes | None] | None = None  # returns None for a message that must take the usual way


class LeftError(Exception):
    """The client has closed the connection."""


class Connection:
    """One WebSocket, from its first message to its close."""

    def __init__(self, service: "Streams", scope: Scope, receive: Receive, send: Send) -> None:
        self.service, self.scope, self.receive, self.send = service, scope, receive, send
        self.accepted = False
        self.started = self.heard = self.credited = time.monotonic()
        self.sending_since: float | None = None
        self.session: Session | None = None
        self.seat: int | None = None
        self.rate: int | None = None  # Hz
        self.credit = BURST_SECONDS
        self.waiting = False  # for a message
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.ending: RefusedError | None = None  # why the task was cancelled

    async def run(self) -> None:
        """Serve the stream.

        Raises:
            LeftError: when the client leaves.
            RefusedError: if the service ends the stream.
        """
        service = self.service
        presented = Headers(scope=self.scope).get("authorization")
        host = self.scope["client"][0] if self.scope.get("client") else ""
        await self.receive()  # "websocket.connect"
        if presented is not None:
            service.keys.owner(bearer(presented), host)  # refused before the WebSocket opens
        await self.send({"type": "websocket.accept"})
        self.accepted = True
        header = parse((await self._message()).get("text"))
        owner = service.keys.owner(header.key or bearer(presented), host)
        self.seat = seat = await service.admit(owner, header.rate, header.channels)
        try:
            service.check_filters(header.rate)
            self.rate = header.rate
            self.session = session = await service.apart(Session, service.model, header)
            await self._send(text=json.dumps(self._ready(session)))
            self.credited = time.monotonic()
            self._answer_with(self.answer)
            while True:
                message = await self._message()
                if (data := message.get("bytes")) is not None:
                    await self._samples(session, data)
                else:
                    await self._command(session, message.get("text"))
        finally:
            self._answer_with(None)
            service.leave(seat)

    def _ready(self, session: Session) -> dict[str, Any]:
        latency = session.stream.latency_samples
        return {
            "type": "ready",
            "model": self.service.model_name,
            "rate": session.rate,
            "channels": session.channels,
            "format": session.format,
            "latency_samples": latency,
            "latency_ms": round(1000 * latency / session.rate, 3),
            "most_message_bytes": int(MOST_SECONDS * session.rate) * session.width,
        }

    def _answer_with(self, answer: Callable[[Any], bytes | None] | None) -> None:
        if at_once := self.scope.get(AT_ONCE):
            at_once.answer = answer

    def answer(self, data: Any) -> bytes | None:
        """Answer a message of samples now, which is the usual case; None: `_samples` has to."""
        session, now = self.session, time.monotonic()
        if session is None or not self.waiting or len(data) % session.width or len(data) > session.piece:
            return None
        seconds = len(data) / session.width / session.rate
        credit = self._credit(now, seconds)
        if credit < 0:
            return None
        try:
            out = session.process(data)
        except Exception:  # again in `_samples`, where it is told
            return None
        self.heard = self.credited = now
        self.credit = credit
        self._count(session, seconds, now)
        return out

    def _credit(self, now: float, seconds: float) -> float:
        """Seconds that the client may still send ahead of real time after a message of some seconds."""
        return min(BURST_SECONDS, self.credit + PACE * (now - self.credited)) - seconds

    def _count(self, session: Session, seconds: float, started: float) -> None:
        """Count a message for the metrics."""
        service, tally = self.service, self.service.tally
        lag = service.behind + time.monotonic() - started
        hops = max(1, round(seconds / service.hop_seconds))
        tally.hops.observe(session.worked / hops, hops)
        tally.lags.observe(lag)
        tally.late += lag > service.settings.lag_seconds
        tally.audio_seconds += seconds
        session.worked = 0.0

    async def _samples(self, session: Session, data: bytes) -> None:
        """Answer a message of samples."""
        size = len(data)
        seconds = size / session.width / session.rate
        if size % session.width:
            raise RefusedError(
                "bad_request",
                f"a message of {size} bytes: expected a multiple of {session.width}, the size of a sample",
            )
        if seconds > MOST_SECONDS:
            raise RefusedError("too_large", f"a message of {seconds:.3g} s of audio: expected at most {MOST_SECONDS} s")
        self.credit = self._credit(self.heard, seconds)
        self.credited = started = self.heard
        if self.credit < 0:  # the client is ahead of real time
            await asyncio.sleep(-self.credit / PACE)
            started = time.monotonic()
        if size <= session.piece:
            out = session.process(data)
        else:
            out = b""
            for start in range(0, size, session.piece):
                out += session.process(data[start : start + session.piece])
                await asyncio.sleep(0)  # the others' turn
        self._count(session, seconds, started)
        await self._send(bytes=out)

    async def _command(self, session: Session, text: str | None) -> None:
        if as_object(text).get("type") != "flush":
            raise RefusedError("bad_request", 'unknown message; expected samples, or {"type": "flush"}')
        if rest := await self.service.apart(session.flush):
            await self._send(bytes=rest)
        await self._send(text='{"type": "flushed"}')

    async def _message(self) -> Message:
        self.waiting = True
        message = await self.receive()
        self.waiting = False
        if message["type"] != "websocket.receive":
            raise LeftError
        self.heard = time.monotonic()
        return message

    async def _send(self, **content: Any) -> None:
        self.sending_since = self.heard
        await self.send({"type": "websocket.send", **content})
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
        if self.ending is None and self.task:
            self.ending = why
            self.task.cancel()

    async def refuse(self, why: RefusedError) -> None:
        """Tell the client why its connection ends, and end it."""
        self.service.tally.rejected[why.code] += 1
        try:
            await asyncio.wait_for(self._say(why), FAREWELL_SECONDS)
        except (RuntimeError, OSError, asyncio.TimeoutError):
            if abort := self.scope.get(ABORT):  # it does not read: do not wait until it has read what we sent
                abort()

    async def _say(self, why: RefusedError) -> None:
        if self.accepted:
            text = json.dumps({"type": "error", **why.as_json()["error"]})
            await self.send({"type": "websocket.send", "text": text})
            await self.send({"type": "websocket.close", "code": why.close_code, "reason": why.message[:MOST_REASON]})
        else:
            response = JSONResponse(why.as_json(), why.status, headers=why.headers)
            await response(self.scope, self.receive, self.send)  # a denial response


class Streams:
    """The live streams of this process.

    Args:
        admit: reserves a seat for an owner, a rate and a number of channels, and returns its number, or raises a
            RefusedError.
        leave: gives a seat back.
    """

    def __init__(
        self,
        settings: Settings,
        model: EnhancementModel,
        admit: Callable[[str, int, int], Awaitable[int]],
        leave: Callable[[int], None],
    ) -> None:
        self.settings, self.model, self.keys = settings, model, Keys(settings.keys)
        self.admit, self.leave, self.tally = admit, leave, Tally()
        self.behind = 0.0  # seconds that the event loop is late; so long do messages wait in their sockets
        self.model_name = settings.model_name
        self.hop_seconds = model.hop / model.sample_rate
        self.connections: set[Connection] = set()
        self._thread = ThreadPoolExecutor(1, "clearstate-open")

    def check_filters(self, rate: int) -> None:
        """Refuse a stream whose rate needs too much memory, with the filters that are in use."""
        own = self.model.sample_rate
        rates = {rate, *(connection.rate for connection in self.connections if connection.rate)} - {own}
        if sum(table_bytes(one, own) + table_bytes(own, one) for one in rates) > MOST_FILTERS:
            raise RefusedError("busy", f"no memory for the filter of {rate} Hz; choose 44100 or 48000, or try later")

    async def apart(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run a call in a thread: the filter for a rate such as 44,101 Hz takes up to seconds."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    @property
    def open(self) -> int:
        """The number of connections."""
        return len(self.connections)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket."""
        connection = Connection(self, scope, receive, send)
        self.connections.add(connection)
        try:
            await connection.run()
        except asyncio.CancelledError:
            if connection.ending is None:
                raise
            await connection.refuse(connection.ending)
        except RefusedError as refusal:
            await connection.refuse(refusal)
        except (LeftError, OSError):
            pass
        except Exception:
            logger.exception("clearstate: a stream failed")
            self.tally.failed += 1
            await connection.refuse(RefusedError("failed", "the service failed; its log has the reason"))
        finally:
            self.connections.discard(connection)

    def take(self) -> Tally:
        """What was counted since the last call."""
        tally, self.tally = self.tally, Tally()
        return tally

    async def watch(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            due = time.monotonic() + BEAT_SECONDS + TIMER_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self.behind = max(0.0, time.monotonic() - due)

    def tick(self) -> None:
        """End the connections that are overdue."""
        now = time.monotonic()
        for connection in list(self.connections):
            if why := connection.overdue(now):
                connection.end(why)

    def give_up(self, seats: list[int]) -> None:
        """Close streams that the machine cannot serve."""
        for connection in list(self.connections):
            if connection.seat in seats:
                connection.end(RefusedError("busy", "the service is too late with its streams; try again later"))

    def end_all(self, why: RefusedError) -> None:
        """Close every connection with this reason."""
        for connection in list(self.connections):
            connection.end(why)


def parse(text: str | None) -> Header:
    """Read the header of a stream.

    Raises:
        RefusedError: with the fields that are wrong.
    """
    as_object(text)
    try:
        return Header.model_validate_json(text or "")
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        raise RefusedError("bad_request", f"header: {wrong}") from None


def as_object(text: str | None) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RefusedError: for anything else.
    """
    if text is not None and len(text) > MOST_TEXT:
        raise RefusedError("too_large", f"a text of {len(text)} characters: expected at most {MOST_TEXT}")
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RefusedError("bad_request", 'expected a JSON object; the first message is the header: {"rate": 16000}')
    return found
