"""Problem: a refusal in OpenAI's shape, with the reasons and remedies of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import (
    ConfigurationError,
    ErrorCode,
    HelixError,
    IdempotencyConflictError,
    InputError,
    InvalidFieldError,
    InvalidFieldsError,
    NotEndedError,
    NotFoundError,
    RequestError,
    UnreachableError,
)
from helix_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

_RETRY_SECONDS: Final = 5
# A job's error code -> HTTP status and OpenAI's code. A code that is not here is the server's fault.
_OF_JOBS: Final[Mapping[str, tuple[int, str]]] = {
    ErrorCode.INVALID_REQUEST: (400, "invalid_request"),
    ErrorCode.PROMPT_TOO_LONG: (400, "context_length_exceeded"),
    ErrorCode.DEADLINE: (504, "deadline"),
    ErrorCode.SERVER_LOST: (502, "server_lost"),
    ErrorCode.OUT_OF_MEMORY: (507, "out_of_memory"),
    ErrorCode.NOT_ACCEPTED: (422, "not_accepted"),
}
_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class Problem(Exception):  # noqa: N818  (an answer to a client, not a fault of the program)
    """A request that is refused.

    Args:
        status: The HTTP status.
        message: What is wrong, and the remedy.
        param: The field at fault.
        code: A word for programs.
        retry_after: Seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = redact(message)
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})  # noqa: PLR2004  (the status that asks for a key)

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": error_object(self.status, self.message, self.param, self.code)}


@dataclass(frozen=True, slots=True)
class _Kind:
    status: int
    code: str
    retry_after: int | None = None


# The first that fits. An error that is not here is a fault of the server.
_KINDS: Final[tuple[tuple[type[HelixError], _Kind], ...]] = (
    (NotFoundError, _Kind(404, "not_found")),
    (IdempotencyConflictError, _Kind(409, "idempotency_conflict")),
    (NotEndedError, _Kind(409, "not_ended")),
    (RequestError, _Kind(400, "invalid_request")),
    (InputError, _Kind(400, "invalid_request")),
    (ConfigurationError, _Kind(400, "invalid_request")),
    (UnreachableError, _Kind(503, "unavailable", _RETRY_SECONDS)),
)


def error_object(status: int, message: str | None, param: str | None, code: str | None) -> dict[str, Any]:
    """OpenAI's error object for a status."""
    server = 500  # the first of the server's own
    kind = _TYPES.get(status, "server_error" if status >= server else "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": code}


def problem_of(error: HelixError) -> Problem:
    """The refusal that an error of Helix means for a client."""
    if isinstance(error, InvalidFieldError):
        first = error.faults[0] if isinstance(error, InvalidFieldsError) else error
        field = _field(first.field)
        return Problem(400, f"{field}: {first.reason}; {first.remedy}", param=field, code="invalid_request")
    for kind, found in _KINDS:
        if isinstance(error, kind):
            return Problem(found.status, str(error), code=found.code, retry_after=found.retry_after)
    return Problem(500, str(error), code="server_error")


def problem_of_job(code: str | None, message: str | None) -> Problem:
    """The refusal that a failed job means for the client who waits for it."""
    status, name = _OF_JOBS.get(code or "", (500, code or "engine_error"))
    return Problem(status, message or "the request failed; the worker's log has more", code=name)


def _field(name: str) -> str:
    """A field's name as the client wrote it: its request is the line's body."""
    return name.removeprefix("body.")
