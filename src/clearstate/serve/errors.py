"""The one form of every refusal: a code for programs, one line for people, and the status of HTTP and WebSocket."""

from typing import Any

# Code to (HTTP status, WebSocket close code). RFC 6455 and the IANA registry define the close codes.
CODES = {
    "bad_request": (422, 1007),
    "bad_audio": (422, 1007),
    "unauthorized": (401, 1008),
    "not_found": (404, 1008),
    "not_ready": (409, 1008),
    "timeout": (408, 1008),
    "too_large": (413, 1009),
    "too_long": (413, 1008),
    "limit": (429, 1008),
    "busy": (503, 1013),
    "draining": (503, 1012),
    "storage": (507, 1011),
    "failed": (500, 1011),
    "work_timeout": (504, 1011),
}
RETRY = {"busy": 2, "draining": 10, "limit": 10}  # seconds, for the header Retry-After


class RefusedError(Exception):
    """A request that is not served."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.status, self.close_code = CODES[code]

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the status."""
        headers = {"Retry-After": str(RETRY[self.code])} if self.code in RETRY else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.code == "unauthorized" else {})
