"""The HTTP interface: routes, their OpenAPI description, and what runs beside them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from clearstate import __version__
from clearstate.models import PRESETS
from clearstate.runtime.contract import KINDS, EnhancementModel
from clearstate.serve.admission import TICK_SECONDS, Admission, Cost
from clearstate.serve.errors import RefusedError
from clearstate.serve.hops import Hops
from clearstate.serve.jobs import Job, Jobs
from clearstate.serve.keys import Keys, bearer
from clearstate.serve.metrics import Metrics
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool
from clearstate.serve.streams import Streams
from clearstate.serve.workers import Workers

CLIENT = Path(__file__).with_name("client.js")
JANITOR_TICKS = 4  # ticks of the admission between two rounds of the janitor
MEDIA = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "mp3": "audio/mpeg",
    "zip": "application/zip",
}
Format = Literal["wav", "flac", "ogg", "opus", "mp3"]
ABOUT = """
Cleans up speech: removes noise, separates speakers, extends bandwidth.

**Files**: send the file itself as the body of a POST, in any format, and receive the result. Add `background=true`
for a long file: the answer is then a job to ask for progress and result.

**Live streams**: `WS /v1/stream`. The first message is a JSON header such as
`{"rate": 16000, "channels": 1, "format": "s16le"}`. The service answers `{"type": "ready", "latency_samples": 511, ...}`.
Then every binary message of samples is answered by one of the same length. `{"type": "flush"}` returns the last
`latency_samples` and starts anew. `GET /client.js` is a client for browsers and Node.js.

**Keys**: if the service has API keys, send one as `Authorization: Bearer KEY`; in the header of a stream, as `"key"`.

**Errors** have one form, `{"error": {"code": ..., "message": ...}}`.
"""

logger = logging.getLogger(__name__)


class Error(BaseModel):
    """Why a request failed."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """The body of every error."""

    error: Error


class JobStatus(BaseModel):
    """A file in work."""

    id: str
    task: Literal["enhance", "separate", "extend"]
    state: Literal["queued", "running", "done", "failed"]
    progress: float
    audio_seconds: float
    note: str
    error: Error | None
    result: str | None
    expires_in: float | None


class ModelInfo(BaseModel):
    """A model that the service offers."""

    name: str
    task: Literal["enhance", "separate", "extend"]
    summary: str
    licence: str
    default: bool
    streams: bool


class Service:
    """Everything that a running service consists of. Create it in its event loop."""

    def __init__(self, settings: Settings, model: EnhancementModel, cost: Cost, spool: Spool) -> None:
        self.settings = settings
        self.keys, self.metrics = Keys(settings.keys), Metrics()
        self.hops = Hops(settings.threads)
        self.workers = Workers(settings.workers)
        self.admission = Admission(settings, cost, self.metrics)
        self.streams = Streams(settings, model, self.keys, self.hops, self.admission, self.metrics)
        self.jobs = Jobs(settings, spool, self.workers, self.metrics)
        self._clock = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            count += 1
            try:
                self.admission.tick()
                if count % JANITOR_TICKS == 0:
                    self.streams.tick()
                    await self.jobs.tick()
            except Exception:  # the clock of everything else must not stop
                logger.exception("housekeeping failed")

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        return self.admission.draining

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and wait until everything is finished, at most so long; then close what is left."""
        self.admission.draining = self.jobs.draining = True
        deadline = asyncio.get_running_loop().time() + seconds
        while (self.streams.connections or self.jobs.unfinished) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self.streams.end_all(RefusedError("draining", "the service is shutting down; connect again"))
        for job in self.jobs.unfinished:
            await self.jobs.remove(job)

    async def close(self) -> None:
        """Release everything."""
        self._clock.cancel()
        self.hops.close()
        await asyncio.to_thread(self.workers.close)


def create_app(settings: Settings, model: EnhancementModel, cost: Cost, spool: Spool) -> FastAPI:
    """Create the application.

    Args:
        model: of the streams.
        cost: of a stream on this machine; see `admission.calibrate`.
        spool: for uploads and results; the caller closes it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(settings, model, cost, spool)
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="clearstate", version=__version__, description=ABOUT, lifespan=lifespan, redoc_url=None,
        license_info={"name": "MIT"},
    )  # fmt: skip
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"],
            expose_headers=["X-Clearstate-Note", "Location", "Retry-After"],
        )  # fmt: skip
    _answer_errors(app)
    _add_files(app)
    _add_jobs(app)
    _add_rest(app)

    @app.websocket("/v1/stream")
    async def stream(websocket: WebSocket) -> None:
        await websocket.app.state.service.streams.serve(websocket)

    return app


# ------------------------------------------------------------------------------------------------------ shared


def the_service(request: Request) -> Service:
    """The running service."""
    service: Service = request.app.state.service
    return service


def the_owner(request: Request) -> str:
    """Who sends a request; refuses a wrong key."""
    host = request.client.host if request.client else ""
    return the_service(request).keys.owner(bearer(request.headers.get("authorization")), host)


Owner = Annotated[str, Depends(the_owner)]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of errors."""
    return {
        status: {
            "model": ErrorBody,
            "content": {"application/json": {"example": {"error": {"code": code, "message": message}}}},
        }
        for status, code, message in EXAMPLES
        if status in statuses
    }


EXAMPLES = (
    (401, "unauthorized", "the API key is wrong; send it as 'Authorization: Bearer KEY'"),
    (404, "not_found", "no such job; it was deleted, or its time is over"),
    (408, "timeout", "the upload took too long, or stopped arriving"),
    (409, "not_ready", "the job is running; ask again later"),
    (413, "too_large", "the upload is too large; this service accepts 1074 MB"),
    (422, "bad_audio", "upload: holds no samples (empty or cut off); expected at least one"),
    (429, "limit", "50 jobs exist, the most for one client; delete some"),
    (500, "failed", "the worker process died (exit code -9); try again"),
    (503, "busy", "200 jobs exist, the most of this service; try again later"),
    (504, "work_timeout", "stopped, because it took too long"),
    (507, "storage", "the disk of the service is full; try again later"),
)


def _answer_errors(app: FastAPI) -> None:
    def answer(request: Request, refusal: RefusedError) -> Response:
        the_service(request).metrics.rejected.labels(refusal.code).inc()
        # What is left of an upload is not read: close, so that it is not taken for the next request.
        closing = {"Connection": "close"} if request.method == "POST" else {}
        return JSONResponse(refusal.as_json(), refusal.status, headers=refusal.headers | closing)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        return answer(request, RefusedError("bad_request", wrong))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found"}.get(error.status_code, "bad_request")
        body = {"error": {"code": code, "message": f"{error.detail}; /docs lists what there is"}}
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody receives it

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        the_service(request).metrics.errors.labels("http").inc()
        body = {"error": {"code": "failed", "message": "the service failed; its log has the reason"}}
        return JSONResponse(body, 500)


# ------------------------------------------------------------------------------------------------------- files

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "description": "The file itself, in any audio or video format.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
JOB_EXAMPLE = {
    "id": "mq1Zb0Yx9m7Jw2cWl4h6Qg",
    "task": "enhance",
    "state": "running",
    "progress": 0.42,
    "audio_seconds": 3600.0,
    "note": "",
    "error": None,
    "result": None,
    "expires_in": None,
}
NOTE_HEADER = {
    "X-Clearstate-Note": {
        "description": "Remarks, such as where a damaged file breaks off.",
        "schema": {"type": "string"},
    }
}


def file_answers(*media: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of what a file is answered by."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {"description": "The result.", "content": dict.fromkeys(media, binary), "headers": NOTE_HEADER},
        202: {
            "model": JobStatus,
            "description": "With `background=true`: the job.",
            "content": {"application/json": {"example": JOB_EXAMPLE}},
        },
    } | refusals(401, 408, 413, 422, 429, 500, 503, 504, 507)


def offered(task: str, settings: Settings) -> dict[str, str]:
    """The models for a task: the name in the interface, and what `open_model` takes."""
    names = {name: name for name, preset in PRESETS.items() if preset.task == task and preset.weights}
    return names | ({settings.model_name: settings.model} if task == "enhance" else {})


def chosen(name: str | None, task: str, settings: Settings) -> str:
    """The model for a request. A name is never a path.

    Raises:
        RefusedError: for a model that the service does not offer.
    """
    known = offered(task, settings)
    name = name or (settings.model_name if task == "enhance" else KINDS[task][1])
    if name not in known:
        raise RefusedError("bad_request", f"no model for {task} is called {name[:60]!r}; expected {', '.join(known)}")
    return known[name]


Model = Annotated[str | None, Query(max_length=100, description="A name of /v1/models.")]
Background = Annotated[bool, Query(description="Answer at once with a job, for long files.")]
Track = Annotated[int | None, Query(ge=1, le=1000, description="Sound track of a video. Default: the video's default.")]
ResultFormat = Annotated[Format, Query(description="Format of the result.")]


def _add_files(app: FastAPI) -> None:
    audio = [MEDIA[name] for name in ("wav", "flac", "ogg", "mp3")]
    described: dict[str, Any] = {"openapi_extra": UPLOAD_BODY, "response_class": Response, "tags": ["files"]}

    @app.post("/v1/enhance", responses=file_answers(*audio), **described)
    async def enhance(
        request: Request,
        owner: Owner,
        model: Model = None,
        format: ResultFormat = "wav",
        strength: Annotated[
            float | None, Query(ge=0, le=1_000, description="Attenuate noise by at most so many dB.")
        ] = None,
        residual: Annotated[bool, Query(description="Return the removed sound instead.")] = False,
        channels: Annotated[
            Literal["linked", "apart"], Query(description="One gain for all channels, or each by itself.")
        ] = "linked",
        track: Track = None,
        background: Background = False,
    ) -> Response:
        """Remove noise. The result has the length, sample rate, channels and tags of the input."""
        options = {"strength": strength, "residual": residual, "channels": channels, "track": track}
        return await process(request, owner, "enhance", model, f"result.{format}", options, background)

    @app.post("/v1/separate", responses=file_answers(MEDIA["zip"]), **described)
    async def separate(
        request: Request,
        owner: Owner,
        model: Model = None,
        enhance: Annotated[bool, Query(description="Remove noise first.")] = False,
        track: Track = None,
        background: Background = False,
    ) -> Response:
        """Separate speakers. The result is a ZIP file with one WAV per speaker, and `timeline.json`: who speaks when."""
        options = {"enhance": the_service(request).settings.model if enhance else None, "track": track}
        return await process(request, owner, "separate", model, "result.zip", options, background)

    @app.post("/v1/extend", responses=file_answers(*audio), **described)
    async def extend(
        request: Request,
        owner: Owner,
        model: Model = None,
        format: ResultFormat = "wav",
        to: Annotated[int, Query(gt=4_000, le=48_000, description="Sample rate of the result in Hz.")] = 48_000,
        track: Track = None,
        background: Background = False,
    ) -> Response:
        """Add the missing high frequencies of a narrow recording."""
        options = {"to": to, "track": track}
        return await process(request, owner, "extend", model, f"result.{format}", options, background)


async def process(
    request: Request, owner: str, verb: str, model: str | None, result: str, options: dict[str, Any], background: bool
) -> Response:
    """Receive a file and start its job; then answer with the job, or wait and answer with the result."""
    jobs = the_service(request).jobs
    opened = chosen(model, verb, jobs.settings)
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() and len(declared) < 20 else None
    job = await jobs.upload(owner, verb, result, request.stream(), length)
    jobs.start(job, opened, options)
    if background:
        return JSONResponse(jobs.as_json(job), 202, headers={"Location": f"/v1/jobs/{job.id}"})
    try:
        await finished_or_gone(job, request)
        return result_of(job, BackgroundTask(jobs.remove, job))
    except BaseException:
        await jobs.remove(job)
        raise


async def finished_or_gone(job: Job, request: Request) -> None:
    """Wait for a job.

    Raises:
        ClientDisconnect: if the client leaves first.
    """
    gone = asyncio.ensure_future(request.receive())  # after the body, the next message is the end of the connection
    finished = asyncio.ensure_future(job.finished.wait())
    try:
        await asyncio.wait({gone, finished}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        finished.cancel()
    if not job.finished.is_set():
        raise ClientDisconnect


def result_of(job: Job, after: BackgroundTask | None = None) -> Response:
    """The response with the result of a job.

    Raises:
        RefusedError: if it failed, or is not finished.
    """
    if job.error:
        raise job.error
    if job.state != "done":
        raise RefusedError("not_ready", f"the job is {job.state}; ask again later")
    name = f"{job.verb}{Path(job.result).suffix}"
    headers = {"X-Clearstate-Note": job.note.encode("ascii", "replace").decode()} if job.note else {}
    media = MEDIA[Path(job.result).suffix[1:]]
    return FileResponse(job.folder / job.result, media_type=media, filename=name, headers=headers, background=after)


# -------------------------------------------------------------------------------------------------------- jobs


def _add_jobs(app: FastAPI) -> None:
    @app.get(
        "/v1/jobs/{job_id}", response_model=JobStatus, tags=["jobs"],
        responses={200: {"content": {"application/json": {"example": JOB_EXAMPLE}}}} | refusals(401, 404, 422),
    )  # fmt: skip
    async def job(request: Request, owner: Owner, job_id: str) -> Any:
        """How far a job is."""
        jobs = the_service(request).jobs
        return jobs.as_json(jobs.find(job_id, owner))

    @app.get(
        "/v1/jobs/{job_id}/result", response_class=Response, tags=["jobs"],
        responses={
            200: {"description": "The result.", "content": {kind: {} for kind in dict.fromkeys(MEDIA.values())}, "headers": NOTE_HEADER}
        } | refusals(401, 404, 409, 413, 422, 500, 504, 507),
    )  # fmt: skip
    async def result(request: Request, owner: Owner, job_id: str) -> Response:
        """The result of a finished job. It can be fetched until the job expires or is deleted."""
        return result_of(the_service(request).jobs.find(job_id, owner))

    @app.delete("/v1/jobs/{job_id}", status_code=204, tags=["jobs"], responses=refusals(401, 404, 422))
    async def delete(request: Request, owner: Owner, job_id: str) -> Response:
        """Delete a job and its result; stop it if it is running."""
        jobs = the_service(request).jobs
        await jobs.remove(jobs.find(job_id, owner))
        return Response(status_code=204)


# -------------------------------------------------------------------------------------------------------- rest


def _add_rest(app: FastAPI) -> None:
    @app.get("/v1/models", response_model=list[ModelInfo], tags=["service"], responses=refusals(401))
    async def models(request: Request, owner: Owner) -> Any:
        """The models, by task."""
        settings = the_service(request).settings
        return [describe(name, task, settings) for task in KINDS for name in offered(task, settings)]

    @app.get("/healthz", tags=["service"], response_model=dict[str, str])
    async def healthz() -> Any:
        """Whether the process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"], response_model=dict[str, str], responses=refusals(503))
    async def readyz(request: Request) -> Any:
        """Whether the service takes new work."""
        if the_service(request).draining:
            raise RefusedError("draining", "the service is shutting down")
        return {"status": "ready"}

    @app.get(
        "/metrics",
        tags=["service"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}} | refusals(401),
    )
    async def metrics(request: Request, owner: Owner) -> Response:
        """Metrics for Prometheus."""
        return Response(the_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/client.js", include_in_schema=False)
    async def client() -> Response:
        return FileResponse(CLIENT, media_type="text/javascript")


def describe(name: str, task: str, settings: Settings) -> dict[str, Any]:
    """The entry of a model in /v1/models."""
    preset = PRESETS.get(name)
    streams = task == "enhance" and name == settings.model_name
    return {
        "name": name,
        "task": task,
        "summary": preset.summary if preset else "the model of this service",
        "licence": preset.licence if preset else "",
        "default": streams if task == "enhance" else name == KINDS[task][1],
        "streams": streams,
    }
