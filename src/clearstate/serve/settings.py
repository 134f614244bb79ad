"""The limits of a service, each with its unit and default."""

import os
from dataclasses import dataclass, field
from pathlib import Path


def usable_cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def stream_processes() -> int:
    """One per core; on a single core, and where sockets cannot be passed on, the service serves streams itself."""
    return usable_cores() if os.name == "posix" and usable_cores() > 1 else 0


@dataclass(frozen=True)
class Settings:
    """What a service offers, and how much of it."""

    model: str = "live"  # enhancement model of the streams, and default of /v1/enhance
    backend: str = "auto"  # see `runtime.choose`
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)  # API keys; empty: everybody may use the service
    origins: tuple[str, ...] = ()  # web pages that may call the service from a browser
    spool: Path | None = None  # folder for uploads and results; None: the system's folder for temporary files

    processes: int = field(default_factory=stream_processes)  # for streams; 0: the service itself
    most_streams: int | None = None  # None: as many as the machine can serve in time
    streams_per_key: int = 1_000
    lag_seconds: float = 0.020  # new streams are refused while 1 % of the chunks take longer
    stream_seconds: float = 24 * 3600  # longest stream
    header_seconds: float = 10.0  # for the first message of a stream, and for the head of an HTTP request
    idle_seconds: float = 60.0  # a stream or an upload that sends nothing for so long is closed
    send_seconds: float = 20.0  # a client that does not read for so long is disconnected

    workers: int = 1  # files processed at the same time
    jobs_per_key: int = 50  # uploads, waiting, running and finished jobs
    most_jobs: int = 200  # the same, of all keys together
    most_bytes: int = 2**30  # of an upload
    most_seconds: float = 4 * 3600  # of audio in a file
    transfer_seconds: float = 900.0  # for a whole upload, or download
    work_seconds: float = 3600.0  # for the processing of a file
    keep_seconds: float = 3600.0  # until a finished job is deleted
    drain_seconds: float = 30.0  # after SIGTERM, for streams and jobs to finish

    @property
    def model_name(self) -> str:
        """The name of `model` for clients; the path of a folder is not for them."""
        from clearstate.models import PRESETS

        return self.model if self.model in PRESETS else "custom"
