"""Every error Helix raises on purpose.

::

    HelixError
    ├── ConfigurationError          a setting or flag is wrong
    │   ├── DeviceInUseError        another worker holds this device on this host
    │   └── HomeInUseError          another local worker runs under this HELIX_HOME
    ├── InputError                  the prompts file is wrong
    │   ├── InvalidInputError       one or more bad lines (carries them all)
    │   └── IdempotencyConflictError  the key was used with different content
    ├── NotFoundError               no such batch or job
    ├── NotEndedError               a batch that waits or runs cannot be removed
    ├── UnreadableRowError          a stored row does not have the expected content
    ├── UnfinishedSubmissionError   not all of the batch's lines are stored, and no command continues
    ├── UnreachableError            a service does not answer
    │   ├── BrokerUnreachableError
    │   ├── EndpointUnreachableError  the user's server, with HELIX_ENGINE=endpoint
    │   └── DatabaseUnreachableError
    │       └── DatabaseRefusedError  it answers, but lacks something that waiting does not bring
    │       └── UncertainSubmissionError  it went silent over a submission's last step
    ├── NotDeliveredError           somebody was not told of an event
    ├── DatabaseReplacedError       another database has replaced this process's
    ├── SchemaVersionError          the database's schema is not this version's
    ├── EngineBrokenError           the engine cannot go on; the worker ends and its jobs are reclaimed
    ├── ExhaustedError              descriptors, memory or threads are gone; the worker ends, its jobs are handed back
    ├── ModelError                  the models cannot be served
    │   ├── ModelNotFoundError
    │   ├── TokenizerMismatchError
    │   ├── UnsupportedArchitectureError
    │   └── InsufficientMemoryError
    └── RequestError                one request cannot be served; it fails alone
        ├── InvalidRequestError     code ``invalid_request``
        │   └── InvalidFieldError   names the field, the reason and the remedy
        ├── PromptTooLongError      code ``prompt_too_long``
        ├── OutOfMemoryError        code ``out_of_memory``
        ├── DeadlineError           code ``deadline``
        └── EngineError             code ``engine_error``

Messages say what is wrong, where, and the remedy. They never carry a prompt or a password.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar


class HelixError(Exception):
    """Base of the tree. A command ends with ``exit_code`` when this error reaches the user."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(HelixError):
    """A setting or a flag is missing, malformed or out of range."""

    exit_code = 2


class DeviceInUseError(ConfigurationError):
    """Another worker already holds this device on this host."""


class HomeInUseError(ConfigurationError):
    """Another local worker, which commands with ``--local`` share, already runs under this HELIX_HOME."""


class InputError(HelixError):
    """The prompts file cannot be accepted as it is."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class BadLine:
    """Why one line of the input was refused. Carries no prompt text.

    Attributes:
        line: Line number, from 1 (for mappings handed over in Python: the position, from 1).
        field: The field at fault, or ``(line)`` when the line as a whole is.
        reason: What is wrong with it.
        remedy: The accepted values.
        others: The line's other faults, each of the same form and without others of its own.
    """

    line: int
    field: str
    reason: str
    remedy: str
    others: tuple[BadLine, ...] = ()

    @property
    def faults(self) -> tuple[BadLine, ...]:
        """All faults of the line, one by one."""
        return (replace(self, others=()), *self.others) if self.others else (self,)

    def __str__(self) -> str:
        return f"line {self.line}: {self.field}: {self.reason}; {self.remedy}"


class InvalidInputError(InputError):
    """One or more lines are bad; nothing was enqueued.

    ``bad_lines`` are the first of them, in order; ``count`` is how many there are.
    """

    def __init__(self, message: str, bad_lines: tuple[BadLine, ...] = (), count: int | None = None) -> None:
        super().__init__(message)
        self.bad_lines = bad_lines
        self.count = len(bad_lines) if count is None else count


class IdempotencyConflictError(InputError):
    """The idempotency key already names a batch with different content."""


class NotFoundError(HelixError):
    """No batch or job has this id."""

    exit_code = 2


class NotEndedError(HelixError):
    """Jobs of the batch wait or run, or it is still being submitted."""

    exit_code = 2


class UnreadableRowError(HelixError):
    """A stored row does not have the expected content."""


class UnfinishedSubmissionError(HelixError):
    """The batch's submission did not finish, so none of its jobs was accepted."""

    exit_code = 2


class UnreachableError(HelixError):
    """A service Helix depends on does not answer."""

    exit_code = 3


class BrokerUnreachableError(UnreachableError):
    """The Redis-compatible broker does not answer."""


class EndpointUnreachableError(UnreachableError):
    """The server that HELIX_ENDPOINT_URL names does not answer."""


class DatabaseUnreachableError(UnreachableError):
    """The results database does not answer, or refuses for a reason other than the data."""


class DatabaseRefusedError(DatabaseUnreachableError):
    """The database answers but lacks something that waiting does not bring: a right, a table, a schema, a role.

    A worker waits all the same and keeps its answers, as a person may put it right. A command does not wait.
    """


class UncertainSubmissionError(DatabaseUnreachableError):
    """The database went silent while a batch was being completed: either its jobs run, or none does.

    ``batch_id`` names the batch.
    """

    def __init__(self, message: str, batch_id: str = "") -> None:
        super().__init__(message)
        self.batch_id = batch_id


class NotDeliveredError(HelixError):
    """A channel did not take an event. The message holds no address beyond the host's name."""


class DatabaseReplacedError(HelixError):
    """Another database has replaced this process's: its file was replaced or removed, or its server's."""

    exit_code = 3


class SchemaVersionError(HelixError):
    """The database's schema is not the one this version works with."""

    exit_code = 3


class EngineBrokenError(HelixError):
    """Step after step fails, whatever is in the batch: the device or the engine is at fault, not the requests."""


class ExhaustedError(HelixError):
    """The system gives this process no more descriptors, memory or threads; no request is to blame."""


class ModelError(HelixError):
    """The models cannot be served; raised before anything is taken from the queue."""

    exit_code = 2


class ModelNotFoundError(ModelError):
    """No model under that name, path or hub id."""


class TokenizerMismatchError(ModelError):
    """Target and draft do not share one vocabulary."""


class UnsupportedArchitectureError(ModelError):
    """The engine cannot serve this architecture exactly."""


class InsufficientMemoryError(ModelError):
    """The device cannot hold the models and the smallest useful KV cache."""


class ErrorCode(StrEnum):
    """Why a job failed, as stored in ``jobs.error_code``.

    A job that failed as ``not_accepted`` has an answer, the last of those that its acceptance rule refused.
    """

    INVALID_REQUEST = "invalid_request"
    PROMPT_TOO_LONG = "prompt_too_long"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"
    SERVER_LOST = "server_lost"
    DEADLINE = "deadline"
    ENGINE_ERROR = "engine_error"
    NOT_ACCEPTED = "not_accepted"


class RequestError(HelixError):
    """One request cannot be served. ``code`` is stored as the job's ``error_code``."""

    code: ClassVar[ErrorCode] = ErrorCode.ENGINE_ERROR


class InvalidRequestError(RequestError):
    """The request is malformed for this model."""

    code = ErrorCode.INVALID_REQUEST


class InvalidFieldError(InvalidRequestError):
    """One field is wrong. ``field`` names it, ``reason`` says why, ``remedy`` gives the accepted values."""

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(f"{field}: {reason}; {remedy}")
        self.field = field
        self.reason = reason
        self.remedy = remedy


class InvalidFieldsError(InvalidFieldError):
    """Several fields of one line are wrong: ``faults``. The message gives the first."""

    def __init__(self, faults: tuple[InvalidFieldError, ...]) -> None:
        super().__init__(faults[0].field, faults[0].reason, faults[0].remedy)
        self.faults = faults


class PromptTooLongError(RequestError):
    """Prompt plus at least one new token exceed the model's context."""

    code = ErrorCode.PROMPT_TOO_LONG


class OutOfMemoryError(RequestError):
    """The request does not fit into memory even alone."""

    code = ErrorCode.OUT_OF_MEMORY


class DeadlineError(RequestError):
    """The request ran longer than a job may."""

    code = ErrorCode.DEADLINE


class EngineError(RequestError):
    """The engine failed on this request."""

    code = ErrorCode.ENGINE_ERROR


def without_text(error: BaseException) -> EngineError:
    """Keep only the error's kind and traceback for a log: a library's message may quote the prompt."""
    return EngineError(type(error).__name__).with_traceback(error.__traceback__)
