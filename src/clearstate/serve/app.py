"""The HTTP interface. `openapi.py` has the words of its description."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from clearstate import __version__
from clearstate.installed import has_torch
from clearstate.models import PRESETS
from clearstate.runtime import exported_file
from clearstate.runtime.contract import KINDS
from clearstate.serve import openapi
from clearstate.serve.errors import RefusedError
from clearstate.serve.jobs import Job
from clearstate.serve.keys import bearer
from clearstate.serve.openapi import AUDIO, JOB_EXAMPLE, MEDIA, MODELS_EXAMPLE, example_of, file_answers, refusals
from clearstate.serve.processes import Processes
from clearstate.serve.service import Local, Service
from clearstate.serve.settings import Settings
from clearstate.serve.spool import Spool

logger = logging.getLogger(__name__)

CLIENT = Path(__file__).with_name("client.js")


def create_app(settings: Settings, streams: Processes | Local, spool: Spool) -> FastAPI:
    """Create the application.

    Args:
        spool: for uploads and results; the caller closes it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(settings, streams, spool)
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="clearstate", version=__version__, description=openapi.ABOUT, license_info={"name": "MIT"},
        lifespan=lifespan, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"],
            expose_headers=["X-Clearstate-Note", "Location", "Retry-After"],
        )  # fmt: skip
    add_errors(app)
    add_files(app)
    add_jobs(app)
    add_rest(app)
    app.router.routes.append(WebSocketRoute("/v1/stream", StreamRoute()))
    return app


class StreamRoute:
    """The live streams of the running service, as an ASGI application. `Processes` take theirs before that."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket."""
        await scope["app"].state.service.streams(scope, receive, send)


def service_of(request: Request) -> Service:
    """The running service."""
    service: Service = request.app.state.service
    return service


def owner_of(request: Request) -> str:
    """Who sends a request; refuses a wrong key."""
    host = request.client.host if request.client else ""
    return service_of(request).keys.owner(bearer(request.headers.get("authorization")), host)


Owner = Annotated[str, Depends(owner_of)]


def add_errors(app: FastAPI) -> None:
    """Give every error the same form."""

    def answer(request: Request, refusal: RefusedError, status: int | None = None, **headers: str) -> Response:
        service_of(request).metrics.rejected.labels(refusal.code).inc()
        if request.method == "POST":  # the rest of the upload is not read, and must not be taken for a request
            headers["Connection"] = "close"
        return JSONResponse(refusal.as_json(), status or refusal.status, headers=refusal.headers | headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        return answer(request, RefusedError("bad_request", wrong))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        code = "not_found" if error.status_code == 404 else "bad_request"
        message = f"{error.detail}: {request.method} on this path; /docs lists what there is"
        return answer(request, RefusedError(code, message), error.status_code, **(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody receives it

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        logger.error("clearstate: a request failed", exc_info=error)
        service_of(request).metrics.errors.labels("http").inc()
        return answer(request, RefusedError("failed", "the service failed; its log has the reason"))


# ------------------------------------------------------------------------------------------------------- files


def add_files(app: FastAPI) -> None:
    """The tasks."""
    described: dict[str, Any] = {
        "openapi_extra": openapi.UPLOAD_BODY, "response_class": Response, "tags": ["files"],
    }  # fmt: skip

    @app.post("/v1/enhance", responses=file_answers(*AUDIO), **described)
    async def enhance(
        request: Request,
        owner: Owner,
        model: openapi.Model = None,
        format: openapi.ResultFormat = "wav",
        strength: openapi.Strength = None,
        residual: openapi.Residual = False,
        channels: openapi.Channels = "linked",
        track: openapi.Track = None,
        background: openapi.Background = False,
    ) -> Response:
        """Remove noise. The result has the length, sample rate, channels and tags of the input."""
        options = {"strength": strength, "residual": residual, "channels": channels, "track": track}
        return await process(request, owner, "enhance", model, f"result.{format}", options, background)

    @app.post("/v1/separate", responses=file_answers(MEDIA["zip"]), **described)
    async def separate(
        request: Request,
        owner: Owner,
        model: openapi.Model = None,
        enhance: openapi.Denoise = False,
        track: openapi.Track = None,
        background: openapi.Background = False,
    ) -> Response:
        """Separate speakers. The result is a ZIP file: one WAV per speaker, and who speaks when in `timeline.json`."""
        options = {"enhance": service_of(request).settings.model if enhance else None, "track": track}
        return await process(request, owner, "separate", model, "result.zip", options, background)

    @app.post("/v1/extend", responses=file_answers(*AUDIO), **described)
    async def extend(
        request: Request,
        owner: Owner,
        model: openapi.Model = None,
        format: openapi.ResultFormat = "wav",
        to: openapi.Rate = 48_000,
        track: openapi.Track = None,
        background: openapi.Background = False,
    ) -> Response:
        """Add the missing high frequencies of a narrow recording."""
        options = {"to": to, "track": track}
        return await process(request, owner, "extend", model, f"result.{format}", options, background)


async def process(
    request: Request,
    owner: str,
    verb: str,
    model: str | None,
    result: str,
    options: dict[str, Any],
    background: bool,
) -> Response:
    """Receive a file and queue it; then answer with the job, or wait and answer with the result."""
    jobs = service_of(request).jobs
    opened = chosen(model, verb, jobs.settings)
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() and len(declared) < 20 else None
    job = await jobs.upload(owner, verb, result, request.stream(), length)
    jobs.start(job, opened, options)
    if background:
        return JSONResponse(jobs.as_json(job), 202, headers={"Location": f"/v1/jobs/{job.id}"})
    try:
        await finished_or_gone(job, request)
        return result_of(job, jobs.settings, after=lambda: jobs.remove(job))
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


class Result(FileResponse):
    """A file, for a limited time.

    Args:
        after: called when it has been sent, or the client has left.
    """

    def __init__(
        self, *args: Any, seconds: float, after: Callable[[], Awaitable[None]] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.seconds, self.after = seconds, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await asyncio.wait_for(super().__call__(scope, receive, send), self.seconds)
        except (asyncio.TimeoutError, OSError) as error:
            raise ClientDisconnect from error
        finally:
            if self.after:
                await self.after()


def result_of(job: Job, settings: Settings, after: Callable[[], Awaitable[None]] | None = None) -> Response:
    """The response with the result of a job.

    Raises:
        RefusedError: if it failed, or is not finished.
    """
    if job.error:
        raise job.error
    if job.state != "done":
        raise RefusedError("not_ready", f"the job is {job.state}; ask again later")
    suffix = Path(job.result).suffix
    headers = {"X-Clearstate-Note": job.note.encode("ascii", "replace").decode()} if job.note else {}
    return Result(
        job.folder / job.result, media_type=MEDIA[suffix[1:]], filename=f"{job.verb}{suffix}", headers=headers,
        seconds=settings.transfer_seconds, after=after,
    )  # fmt: skip


def offered(task: str, settings: Settings) -> dict[str, str]:
    """The models for a task: the name in the interface, and what `open_model` takes."""
    names = {
        name: name
        for name, preset in PRESETS.items()
        if preset.task == task and preset.weights and (has_torch() or exported_file(name))
    }
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


# -------------------------------------------------------------------------------------------------------- jobs


def add_jobs(app: FastAPI) -> None:
    """Long files."""

    @app.get(
        "/v1/jobs/{job_id}", response_model=openapi.JobStatus, tags=["jobs"],
        responses=example_of("application/json", JOB_EXAMPLE) | refusals(401, 404, 422),
    )  # fmt: skip
    async def job(request: Request, owner: Owner, job_id: str) -> Any:
        """How far a job is."""
        jobs = service_of(request).jobs
        return jobs.as_json(jobs.find(job_id, owner))

    @app.get(
        "/v1/jobs/{job_id}/result", response_class=Response, tags=["jobs"],
        responses=openapi.result_in(*AUDIO, MEDIA["zip"])
        | refusals(401, 404, 409, 413, 422, 500, 503, 504, 507),
    )  # fmt: skip
    async def result(request: Request, owner: Owner, job_id: str) -> Response:
        """The result of a finished job. It can be fetched until the job expires or is deleted."""
        jobs = service_of(request).jobs
        return result_of(jobs.find(job_id, owner), jobs.settings)

    @app.delete("/v1/jobs/{job_id}", status_code=204, tags=["jobs"], responses=refusals(401, 404, 422))
    async def delete(request: Request, owner: Owner, job_id: str) -> Response:
        """Delete a job and its result; stop it if it is running."""
        jobs = service_of(request).jobs
        await jobs.remove(jobs.find(job_id, owner))
        return Response(status_code=204)


# -------------------------------------------------------------------------------------------------------- rest


def add_rest(app: FastAPI) -> None:
    """Models, health and metrics."""

    @app.get(
        "/v1/models", response_model=list[openapi.ModelInfo], tags=["service"],
        responses=example_of("application/json", MODELS_EXAMPLE) | refusals(401),
    )  # fmt: skip
    async def models(request: Request, owner: Owner) -> Any:
        """The models, by task."""
        settings = service_of(request).settings
        return [described(name, task, settings) for task in KINDS for name in offered(task, settings)]

    @app.get(
        "/healthz", response_model=dict[str, str], tags=["service"],
        responses=example_of("application/json", {"status": "ok"}),
    )  # fmt: skip
    async def healthz() -> Any:
        """Whether the process is alive."""
        return {"status": "ok"}

    @app.get(
        "/readyz", response_model=dict[str, str], tags=["service"],
        responses=example_of("application/json", {"status": "ready"}) | refusals(503),
    )  # fmt: skip
    async def readyz(request: Request) -> Any:
        """Whether the service takes new work."""
        if service_of(request).draining:
            raise RefusedError("draining", "the service is shutting down")
        if not service_of(request).streams.ready:
            raise RefusedError("busy", "the processes for streams are starting; try again later")
        return {"status": "ready"}

    @app.get(
        "/metrics", response_class=Response, tags=["service"],
        responses=example_of("text/plain", "clearstate_streams 42.0") | refusals(401),
    )  # fmt: skip
    async def metrics(request: Request, owner: Owner) -> Response:
        """Metrics for Prometheus."""
        return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/client.js", include_in_schema=False)
    async def client() -> Response:
        return FileResponse(CLIENT, media_type="text/javascript")


def described(name: str, task: str, settings: Settings) -> dict[str, Any]:
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
