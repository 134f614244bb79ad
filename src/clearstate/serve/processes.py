"""Processes for live streams, one per core, because a process of Python uses little more than one core.

The service accepts every connection. When one asks for a WebSocket, the service passes its socket to the process with
the least work, which serves it from then on. What concerns all streams stays in the service: admission, limits,
metrics and the drain.

    service                                     process
                                            <-  ready: what a stream costs; or failed: why
    adopt: the head of a request, a socket  ->
                                            <-  ask: for a seat
    seat, or refused                        ->
                                            <-  leave: a seat
                                            <-  report: what was counted, every TICK_SECONDS
    give_up: some streams; end: all         ->

A process that dies costs its own streams, and is started again. When the service dies, however it dies, the pipes
close, and its processes end.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from uvicorn.server import ServerState

from clearstate.runtime import open_model
from clearstate.serve.admission import TICK_SECONDS, Admission, Cost, calibrate
from clearstate.serve.errors import RefusedError
from clearstate.serve.protocols import WebSockets, uvicorn_config
from clearstate.serve.settings import Settings
from clearstate.serve.streams import Streams
from clearstate.serve.workers import start

SILENT_SECONDS = 30.0  # without a report; then the process is killed
SLOW_SECONDS = 2.0  # between two ticks of the service
SEND_SECONDS = 1.0  # that a message may take through a pipe; then the process is killed, too
RESTART_SECONDS = 1.0  # after a death
SWITCH_SECONDS = 0.001  # how long a thread of Python may keep others waiting
END_SECONDS = 2.0  # for a process to end by itself

logger = logging.getLogger(__name__)


@dataclass
class Child:
    """A process as the service sees it."""

    process: Any
    pipe: Any
    ready: bool = False
    open: int = 0  # connections
    heard: float = field(default_factory=time.monotonic)  # the last message


class Processes:
    """The processes of a service. `close` them in the end.

    Raises:
        ValueError, OSError: one line, if a process cannot load the model.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.admission: Admission | None = None
        self.children: list[Child] = []
        try:
            self.children = [self._start() for _ in range(settings.processes)]
            self.cost = max((self._cost(child) for child in self.children), key=lambda cost: cost.plain)
        except BaseException:
            self.close()
            raise

    def _start(self) -> Child:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_streams, args=(self.settings, theirs), daemon=True)
        start(process)
        theirs.close()
        return Child(process, ours)

    def _cost(self, child: Child) -> Cost:
        try:
            kind, news = child.pipe.recv()
        except EOFError:
            raise OSError("a process for streams died at its start; its log has the reason") from None
        if kind == "failed":
            raise news
        child.ready = True
        cost: Cost = news
        return cost

    # ------------------------------------------------------------------------------------ like `streams.Streams`

    def begin(self, admission: Admission) -> "Processes":
        """Start to serve, in the running event loop."""
        self.admission, self._loop, self._ticked = admission, asyncio.get_running_loop(), time.monotonic()
        for place in range(len(self.children)):
            self._listen(place)
        return self

    @property
    def ready(self) -> bool:
        """Whether a process can take a stream."""
        return any(child.ready for child in self.children)

    @property
    def open(self) -> int:
        """The number of connections."""
        return sum(child.open for child in self.children)

    def tick(self) -> None:
        """Start processes again that have died; kill those that hang."""
        now, before, self._ticked = time.monotonic(), self._ticked, time.monotonic()
        for place, child in enumerate(self.children):
            if now - before > SLOW_SECONDS:  # the service itself did not run: it has not read what they report
                child.heard = max(child.heard, now - SLOW_SECONDS)
            silence = now - child.heard
            if child.ready and silence > SILENT_SECONDS:
                self._lose(place, f"nothing heard for {silence:.0f} s")
            elif child.pipe.closed and silence > RESTART_SECONDS:
                self.children[place] = self._start()
                self._listen(place)

    def give_up(self, seats: list[int]) -> None:
        """Close streams that the machine cannot serve."""
        if seats:
            self._tell_all("give_up", seats)

    def end_all(self, why: RefusedError) -> None:
        """Close every connection with this reason."""
        self._tell_all("end", (why.code, why.message))

    def close(self) -> None:
        """End the processes."""
        for child in self.children:
            child.pipe.close()
        deadline = time.monotonic() + END_SECONDS
        for child in self.children:
            child.process.join(max(0.0, deadline - time.monotonic()) if child.ready else 0.0)
            child.process.kill()
            child.process.join()

    # ---------------------------------------------------------------------------------------------- connections

    def adopt(self, descriptor: int, head: bytes) -> RefusedError | None:
        """Pass a connection to the process with the least work, or say why not."""
        ready = [place for place, child in enumerate(self.children) if child.ready]
        if not ready:
            return RefusedError("busy", "the processes for streams are starting; try again later")
        place = min(ready, key=self._work)
        child = self.children[place]
        child.open += 1
        if self._tell(place, "adopt", head):
            try:
                send_handle(child.pipe, descriptor, child.process.pid)
            except OSError as error:  # it waits for the socket, and cannot go on
                self._lose(place, repr(error))
        return None

    def _work(self, place: int) -> float:
        """What the streams of a place cost, and those that its other connections may become."""
        assert self.admission
        costs = [seat.cost for seat in self.admission.seats.values() if seat.place == place]
        return sum(costs) + self.cost.plain * max(0, self.children[place].open - len(costs))

    # ---------------------------------------------------------------------------------------------------- pipes

    def _listen(self, place: int) -> None:
        pipe = self.children[place].pipe
        poll(self._loop, pipe, self._read, place)
        with socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(SEND_SECONDS), 0))

    def _read(self, place: int) -> None:
        """Receive one message of a process."""
        child, admission = self.children[place], self.admission
        assert admission
        try:
            kind, news = child.pipe.recv()
        except (EOFError, OSError) as error:
            self._lose(place, repr(error))
            return
        child.heard = time.monotonic()
        if kind == "report":
            tally, spent, child.open = news
            admission.count(tally, place, spent)
        elif kind == "ask":
            number, owner, rate, channels = news
            try:
                self._tell(place, "seat", (number, admission.admit(owner, rate, channels, place)))
            except RefusedError as why:
                self._tell(place, "refused", (number, why.code, why.message))
        elif kind == "leave":
            admission.leave(news)
        elif kind == "ready":
            child.ready = True
        else:
            logger.error("clearstate: a process for streams cannot start: %s", news)

    def _tell(self, place: int, kind: str, news: Any) -> bool:
        try:
            self.children[place].pipe.send((kind, news))
        except OSError as error:  # dead, or it does not read
            self._lose(place, repr(error))
            return False
        return True

    def _tell_all(self, kind: str, news: Any) -> None:
        for place, child in enumerate(self.children):
            if child.ready:
                self._tell(place, kind, news)

    def _lose(self, place: int, why: str) -> None:
        """Give up a process; `tick` starts another one."""
        child, admission = self.children[place], self.admission
        assert admission
        if child.pipe.closed:
            return
        self._loop.remove_reader(child.pipe.fileno())
        child.pipe.close()
        child.process.kill()
        child.process.join(END_SECONDS)
        code = child.process.exitcode
        logger.error("clearstate: a process for streams died with its streams (%s; exit code %s)", why, code)
        admission.metrics.errors.labels("process").inc()
        admission.evacuate(place)
        child.ready, child.open, child.heard = False, 0, time.monotonic()


def poll(loop: asyncio.AbstractEventLoop, pipe: Any, read: Callable[..., None], *arguments: Any) -> None:
    """Call `read` when a message has arrived."""
    loop.add_reader(pipe.fileno(), read, *arguments)
    os.set_blocking(pipe.fileno(), True)  # uvloop has changed that; half a message would be an error


def settle() -> None:
    """Prepare a process that is about to serve: many connections, short pauses, a log without the faults of clients."""
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # about clients; our own faults: `app`, `streams`
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # the collector does not look at the libraries again
    gc.collect()  # it counts anew, so it runs again before much has gathered


# ------------------------------------------------------------------------------------------- inside the process


def serve_streams(settings: Settings, pipe: Any) -> None:
    """Load the model, and serve the connections that arrive through the pipe until the service closes it."""
    try:
        model = open_model(settings.model, "enhance", backend=settings.backend)
        cost = calibrate(model)
    except (ValueError, OSError, ImportError) as error:
        pipe.send(("failed", OSError(str(error)) if isinstance(error, OSError) else ValueError(str(error))))
        return
    settle()
    with contextlib.suppress(OSError):
        pipe.send(("ready", cost))
        config = uvicorn_config(None, settings, WebSockets)
        factory = config.get_loop_factory()
        loop = factory() if factory else asyncio.new_event_loop()
        loop.run_until_complete(Adopted(settings, model, pipe, config, loop).run())


class Adopted:
    """The streams of a process, and its end of the pipe."""

    def __init__(self, settings: Settings, model: Any, pipe: Any, config: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.pipe, self.loop, self.config = pipe, loop, config
        self.streams = Streams(settings, model, self.admit, self.leave)
        config.app, config.interface, config.lifespan = self.route, "asgi3", "off"
        config.load()
        self.state = ServerState()
        self.asked: dict[int, asyncio.Future[int]] = {}
        self.numbers = itertools.count()

    async def run(self) -> None:
        """Serve.

        Raises:
            OSError: when the service is gone.
        """
        poll(self.loop, self.pipe, self.read)
        self.state.tasks.add(self.loop.create_task(self.streams.watch()))
        spent = time.process_time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.streams.tick()
            spent, before = time.process_time(), spent
            self.pipe.send(("report", (self.streams.take(), spent - before, self.streams.open)))

    async def route(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one WebSocket."""
        if scope["path"] == "/v1/stream":
            await self.streams(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def admit(self, owner: str, rate: int, channels: int) -> int:
        """Ask the service for a seat."""
        number = next(self.numbers)
        self.asked[number] = answer = self.loop.create_future()
        self.pipe.send(("ask", (number, owner, rate, channels)))
        return await answer

    def leave(self, seat: int) -> None:
        """Give a seat back."""
        self.pipe.send(("leave", seat))

    def read(self) -> None:
        """Receive one message of the service."""
        try:
            kind, news = self.pipe.recv()
            sock = socket.socket(fileno=recv_handle(self.pipe)) if kind == "adopt" else None
        except (EOFError, OSError):  # the service is gone; the next report finds it out
            self.loop.remove_reader(self.pipe.fileno())
            return
        if sock:
            task = self.loop.create_task(self.connect(sock, news))
            self.state.tasks.add(task)
            task.add_done_callback(self.state.tasks.discard)
        elif kind == "seat":
            number, seat = news
            if (answer := self.asked.pop(number)).done():  # its connection is gone
                self.leave(seat)
            else:
                answer.set_result(seat)
        elif kind == "refused":
            number, *why = news
            if not (answer := self.asked.pop(number)).done():
                answer.set_exception(RefusedError(*why))
        elif kind == "give_up":
            self.streams.give_up(news)
        else:
            self.streams.end_all(RefusedError(*news))

    async def connect(self, sock: socket.socket, head: bytes) -> None:
        """Serve a connection whose request has this head."""

        class Begun(WebSockets):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                self.data_received(head)

        with contextlib.suppress(OSError):  # the client has left
            sock.setblocking(False)
            await self.loop.connect_accepted_socket(
                lambda: Begun(config=self.config, server_state=self.state, app_state={}), sock
            )
