"""Everything that a running service consists of, its clock, and its end."""

import asyncio
import logging
import time

from clearstate.runtime import open_model
from clearstate.serve.admission import TICK_SECONDS, Admission, calibrate
from clearstate.serve.errors import RefusedError
from clearstate.serve.jobs import Jobs
from clearstate.serve.keys import Keys
from clearstate.serve.metrics import Metrics
from clearstate.serve.processes import Processes
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool
from clearstate.serve.streams import Streams
from clearstate.serve.workers import Workers

ROUND = 4  # ticks between two looks at the jobs
FAREWELL_SECONDS = 2.0  # for the last streams to learn why they end

logger = logging.getLogger(__name__)


class Local(Streams):
    """The streams in the process of the service."""

    ready = True

    def __init__(self, settings: Settings) -> None:
        model = open_model(settings.model, "enhance", backend=settings.backend)
        self.cost = calibrate(model)
        super().__init__(settings, model, self._admit, self._leave)

    def begin(self, admission: Admission) -> "Local":
        """Start to serve, in the running event loop."""
        self.admission, self._watch = admission, asyncio.create_task(self.watch())
        return self

    def tick(self) -> None:
        """Tell what was counted, too."""
        self.admission.count(self.take())
        super().tick()

    async def _admit(self, owner: str, rate: int, channels: int) -> int:
        return self.admission.admit(owner, rate, channels)

    def _leave(self, seat: int) -> None:
        self.admission.leave(seat)


class Service:
    """Create it in its event loop, and `close` it there."""

    def __init__(self, settings: Settings, streams: Processes | Local, spool: Spool) -> None:
        self.settings, self.draining = settings, False
        self.keys, self.metrics = Keys(settings.keys), Metrics()
        self.workers = Workers(settings.workers)
        self.admission = Admission(settings, streams.cost, self.metrics, settings.processes)
        self.streams = streams.begin(self.admission)
        self.jobs = Jobs(settings, spool, self.workers, self.metrics)
        self._clock = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            count += 1
            try:
                self.streams.tick()
                self.admission.tick()
                self.streams.give_up(self.admission.to_give_up())
                if count % ROUND == 0:
                    await self.jobs.tick()
            except Exception:  # the clock of everything else must not stop
                logger.exception("clearstate: housekeeping failed")

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and wait until everything is finished, at most so long; then close what is left."""
        self.draining = self.admission.draining = self.jobs.draining = True
        deadline = time.monotonic() + seconds
        while self._busy() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.streams.end_all(RefusedError("draining", "the service is shutting down; connect again"))
        for job in self.jobs.unfinished:
            self.jobs.fail(job, RefusedError("draining", "the service is shutting down; send the file again"))
        deadline = time.monotonic() + FAREWELL_SECONDS
        while self.streams.open and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    def _busy(self) -> bool:
        # A process tells how many connections it has four times a second; of a younger one only its seat is known.
        return bool(self.streams.open or self.admission.seats or self.jobs.unfinished)

    async def close(self) -> None:
        """Release everything."""
        self._clock.cancel()
        await asyncio.to_thread(self.workers.close)
