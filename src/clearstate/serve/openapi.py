"""What the OpenAPI description says: the shapes of the answers, and an example of each."""

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel

Answers = dict[int | str, dict[str, Any]]  # in the terms of FastAPI: `responses` of a route

ABOUT = """
Cleans up speech: removes noise, separates speakers, extends bandwidth.

**Files**: send the file itself as the body of a POST, in any format, and receive the result. Add `background=true`
for a long file: the answer is then a job to ask for progress and result.

**Live streams**: `WS /v1/stream`. The first message is a JSON header such as
`{"rate": 16000, "channels": 1, "format": "s16le"}`, and the service answers
`{"type": "ready", "latency_samples": 511, ...}`. Then it answers every binary message of samples by one of the same
length. `{"type": "flush"}` returns the last `latency_samples` and starts anew. `GET /client.js` is a client for
browsers and Node.js.

**Keys**: if the service has API keys, send one as `Authorization: Bearer KEY`; in the header of a stream, as `"key"`.

**Errors** have one form, `{"error": {"code": ..., "message": ...}}`.
"""

MEDIA = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "mp3": "audio/mpeg",
    "zip": "application/zip",
}
AUDIO = ("audio/wav", "audio/flac", "audio/ogg", "audio/mpeg")

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
MODELS_EXAMPLE = [
    {
        "name": "live",
        "task": "enhance",
        "summary": "for live sound: small, causal, real time on a CPU",
        "licence": "CC BY 4.0",
        "default": True,
        "streams": True,
    }
]
NOTE_HEADER = {
    "X-Clearstate-Note": {
        "description": "A remark, such as where a damaged file breaks off.",
        "schema": {"type": "string"},
    }
}
REFUSALS = (
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


Model = Annotated[str | None, Query(max_length=100, description="A name of /v1/models.")]
ResultFormat = Annotated[Literal["wav", "flac", "ogg", "opus", "mp3"], Query(description="Format of the result.")]
Strength = Annotated[float | None, Query(ge=0, le=1_000, description="Attenuate noise by at most so many dB.")]
Residual = Annotated[bool, Query(description="Return the removed sound instead.")]
Channels = Annotated[
    Literal["linked", "apart"], Query(description="One gain for all channels, or every channel separately.")
]
Denoise = Annotated[bool, Query(description="Remove noise first.")]
Rate = Annotated[int, Query(gt=4_000, le=48_000, description="Sample rate of the result in Hz.")]
Track = Annotated[int | None, Query(ge=1, le=1000, description="Sound track of a video. Default: the video's default.")]
Background = Annotated[bool, Query(description="Answer at once with a job, for long files.")]


def refusals(*statuses: int) -> Answers:
    """Errors, by their status."""
    return {
        status: {
            "model": ErrorBody,
            "content": {"application/json": {"example": {"error": {"code": code, "message": message}}}},
        }
        for status, code, message in REFUSALS
        if status in statuses
    }


def example_of(media: str, example: Any) -> Answers:
    """An answer, by an example."""
    return {200: {"content": {media: {"example": example}}}}


def result_in(*media: str) -> Answers:
    """A result as a file."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The result.", "content": dict.fromkeys(media, binary), "headers": NOTE_HEADER}}


def file_answers(*media: str) -> Answers:
    """What an upload is answered by."""
    job: Answers = {
        202: {
            "model": JobStatus,
            "description": "With `background=true`: the job.",
            "content": {"application/json": {"example": JOB_EXAMPLE}},
        }
    }
    return result_in(*media) | job | refusals(401, 408, 413, 422, 429, 500, 503, 504, 507)
