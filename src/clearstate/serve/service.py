"""Everything that a running service consists of, its clock, and its end."""

import asyncio
import logging
import time

from clearstate.runtime.contract import EnhancementModel
from clearstate.serve.admission import TICK_SECONDS, Admission, Cost
from clearstate.serve.errors import RefusedError
from clearstate.serve.hops import Hops
from clearstate.serve.jobs import Jobs
from clearstate.serve.keys import Keys
from clearstate.serve.metrics import Metrics
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool
from clearstate.serve.streams import Streams
from clearstate.serve.workers import Workers

ROUND = 4  # ticks of the admission between two looks at streams and jobs

logger = logging.getLogger(__name__)


class Service:
    """Create it in its event loop, and `close` it there."""

    def __init__(self, settings: Settings, model: EnhancementModel, cost: Cost, spool: Spool) -> None:
        self.settings, self.draining = settings, False
        self.keys, self.metrics = Keys(settings.keys), Metrics()
        self.hops = Hops(settings.threads)
        self.workers = Workers(settings.workers)
        self.admission = Admission(settings, cost, self.metrics)
        self.streams = Streams(settings, model, self.keys, self.hops, self.admission)
        self.jobs = Jobs(settings, spool, self.workers, self.metrics)
        self._clock = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            count += 1
            try:
                self.admission.tick()
                if count % ROUND == 0:
                    self.streams.tick()
                    await self.jobs.tick()
            except Exception:  # the clock of everything else must not stop
                logger.exception("clearstate: housekeeping failed")

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and wait until everything is finished, at most so long; then close what is left."""
        self.draining = self.admission.draining = self.jobs.draining = True
        deadline = time.monotonic() + seconds
        while (self.streams.connections or self.jobs.unfinished) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.streams.end_all(RefusedError("draining", "the service is shutting down; connect again"))
        for job in self.jobs.unfinished:
            self.jobs.fail(job, RefusedError("draining", "the service is shutting down; send the file again"))

    async def close(self) -> None:
        """Release everything."""
        self._clock.cancel()
        self.hops.close()
        await asyncio.to_thread(self.workers.close)
