"""Records of files and batches that came over HTTP: frozen values, no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiFile:
    """An uploaded file without its content.

    Attributes:
        bytes: The content's size.
        expires_at: When it is removed; None keeps it.
    """

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiBatch:
    """A batch as its client asks for it.

    Attributes:
        expires_at: When the completion window ends.
        output_expires_after: Seconds after its end when its requests and answers are removed; None keeps them.
        idempotency_key: Another request under this key gets the same batch.
    """

    id: str
    owner: str
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Mapping[str, Any]
    created_at: datetime
    expires_at: datetime
    output_expires_after: int | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiBatch(NewApiBatch):
    """A stored batch.

    Attributes:
        due_at: When a server has to look at it; None if nothing is left to do.
        batch_id: The batch of its jobs, once its lines are accepted.
        in_progress_at: When they were accepted.
        errors: Why they were not, as members of OpenAI's ``errors.data``.
        failed_at: When they were not.
        cancelling_at: When its client asked for its cancel.
        cancelled_at: When it was cancelled before its lines were accepted.
        expired_at: When its completion window ended before its jobs.
    """

    due_at: datetime | None = None
    batch_id: str | None = None
    in_progress_at: datetime | None = None
    errors: Sequence[Mapping[str, Any]] | None = None
    failed_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None
    expired_at: datetime | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it ended without jobs."""
        return self.batch_id is None and (self.failed_at or self.cancelled_at or self.expired_at) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of an owner's list is asked for.

    Attributes:
        limit: The most entries.
        after: The id of the entry before them; None from the beginning.
        newest_first: The order, by time of creation.
    """

    limit: int
    after: str | None = None
    newest_first: bool = True
