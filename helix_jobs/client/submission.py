"""One submission: lines in, a sealed batch out, or nothing.

Lines are validated and stored in one pass, chunk by chunk, into a batch that is not sealed and so invisible to
workers; sealing it is the one moment at which all of its jobs come into being. A submission that dies before leaves an
unsealed batch: with an idempotency key the next submission of the same content finishes it, without one it is waste.

Trade-off: storing while validating means a bad line near the end costs the deletion of what was stored, but the good
file, which is the common one, is read once, and standard input cannot be read twice.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import (
    BadLine,
    DatabaseUnreachableError,
    HelixError,
    IdempotencyConflictError,
    InputError,
    InvalidInputError,
    NotFoundError,
    UncertainSubmissionError,
)
from helix_jobs.intake.limits import NO_LIMITS, Limits
from helix_jobs.storage import batches
from helix_jobs.storage.outage import outlast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

    from helix_jobs.new_job import NewJob
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import NewBatch, StoredBatch

logger = logging.getLogger(__name__)

# A chunk is one transaction: small enough that a worker's writer never waits long, large enough to be fast.
CHUNK_ROWS: Final = 1000
CHUNK_BYTES: Final = 4 * 1024 * 1024
# Bad lines held for the report; ``on_invalid`` sees them all.
MAX_REPORTED_BAD_LINES: Final = 10_000
_PROGRESS_LINES: Final = 1000
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class SubmitStage(Enum):
    """How much of a submission has become true, for whoever has to say so when it is interrupted.

    Attributes:
        READING: None of its jobs exists for a worker.
        SEALING: The batch is being made complete: either all of its jobs have come into being, or none.
        STORED: All of its jobs run, now or when a worker is there.
    """

    READING = "reading"
    SEALING = "sealing"
    STORED = "stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What became of an input.

    Attributes:
        batch_id: The batch.
        total: Its jobs.
        invalid: The first bad lines that were skipped, at most 10,000.
        invalid_count: How many were skipped.
        reused: The idempotency key named a batch with this very content; nothing was stored.
        published: Job ids handed to the broker now. Whatever is not, the worker publishes.
    """

    batch_id: str
    total: int
    invalid: tuple[BadLine, ...] = ()
    invalid_count: int = 0
    reused: bool = False
    published: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitProgress:
    """How far a submission has come. The byte counts are None when the input is not a file."""

    accepted: int
    invalid: int
    bytes_read: int | None = None
    bytes_total: int | None = None


@dataclass(slots=True)
class Tally:
    """What has been seen of the input so far."""

    accepted: int = 0
    invalid: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    on_invalid: Callable[[BadLine], None] | None = None

    def refuse(self, bad: BadLine) -> None:
        """Count a bad line, keep it if there is room, pass it on."""
        self.invalid += 1
        if len(self.bad_lines) < MAX_REPORTED_BAD_LINES:
            self.bad_lines.append(bad)
        if self.on_invalid is not None:
            self.on_invalid(bad)


def submit_lines(
    database: Database,
    new: NewBatch,
    lines: Iterable[NewJob | BadLine],
    *,
    skip_invalid: bool,
    limits: Limits = NO_LIMITS,
    tally: Tally,
    on_progress: Callable[[Tally], None] | None = None,
    on_stage: Callable[[SubmitStage, str], None] = lambda _stage, _batch_id: None,
) -> Submission:
    """Store every good line under ``new`` or the batch its idempotency key already names, and seal it.

    Args:
        database: Where to.
        new: The batch to create.
        lines: The lines in order, read once the batch is there.
        skip_invalid: Store the good lines although there are bad ones.
        limits: How many lines there may be.
        tally: Receives the counts.
        on_progress: Called now and then.
        on_stage: Told each stage the submission enters, with the batch id. An interrupt while the batch is sealed asks
            the database what has become of it, and the answer is the last stage told.

    Raises:
        InvalidInputError: There are bad lines (without ``skip_invalid``), or nothing but bad lines.
        InputError: There are no lines, or too many.
        IdempotencyConflictError: The key names a batch with different content.
        DatabaseUnreachableError: The database does not answer.
        UncertainSubmissionError: It stopped answering over the last step.
    """
    batch = _create(database, new)
    on_stage(SubmitStage.READING, batch.id)
    writer = _BatchWriter(database, batch, new.idempotency_key)
    try:
        for count, item in enumerate(lines, start=1):
            if isinstance(item, BadLine):
                tally.refuse(item)
                if not skip_invalid:
                    writer.abandon()
            else:
                tally.accepted += 1
                limits.check_count(tally.accepted, item.line)
                writer.add(item)
            if on_progress is not None and count % _PROGRESS_LINES == 0:
                on_progress(tally)
        if on_progress is not None:
            on_progress(tally)
        _require_jobs(tally, skip_invalid=skip_invalid)
        writer.flush()
    except BaseException as error:
        # With a key, what is stored is left for the next submission to finish, unless the input is to blame.
        if isinstance(error, InputError):
            writer.abandon_quietly()
        else:
            writer.give_up()
        raise
    reused = _seal(writer, batch.id, tally.accepted, on_stage)
    return Submission(
        batch_id=batch.id,
        total=tally.accepted,
        invalid=tuple(tally.bad_lines),
        invalid_count=tally.invalid,
        reused=reused,
    )


def _require_jobs(tally: Tally, *, skip_invalid: bool) -> None:
    if tally.invalid and (not skip_invalid or not tally.accepted):
        lines = "1 line is" if tally.invalid == 1 else f"{tally.invalid:,} lines are"
        first = tally.bad_lines[0]
        remedy = "correct them" if skip_invalid else "correct them, or skip them (--skip-invalid)"
        raise InvalidInputError(
            f"{lines} bad, nothing was enqueued; {remedy}. The first: {first}", tuple(tally.bad_lines), tally.invalid
        )
    if not tally.accepted:
        raise InputError('the input holds no prompts; give one JSON object a line, such as {"prompt": "..."}')


def _create(database: Database, new: NewBatch) -> StoredBatch:
    """Store the batch, also when the answer to a first try was lost: then it is removed first, unsealed as it is."""
    tries = 0

    def create(connection: Connection) -> StoredBatch:
        if tries > 1 and new.idempotency_key is None:
            batches.delete_batch(connection, new.id)
        return batches.create_batch(connection, new)

    def attempt() -> StoredBatch:
        nonlocal tries
        tries += 1
        return database.transact(create)

    return outlast(database, attempt)


def _seal(writer: _BatchWriter, batch_id: str, total: int, on_stage: Callable[[SubmitStage, str], None]) -> bool:
    """Make the jobs come into being, or find out whether they did; True if they had before.

    From the first try on nobody may say that nothing was enqueued before the database has said so.
    """
    on_stage(SubmitStage.SEALING, batch_id)
    try:
        reused = writer.seal(total)
    except DatabaseUnreachableError as error:
        try:
            sealed = _has_sealed(writer, batch_id, on_stage)
        except DatabaseUnreachableError:
            raise UncertainSubmissionError(
                f"{error}. Whether batch {batch_id} is stored is uncertain: all of its jobs are, or none. When the "
                f"database answers, `helix status {batch_id}` tells; do not submit the file again before, unless with "
                "the same idempotency key",
                batch_id,
            ) from error
        if not sealed:
            raise
        reused = False
    except HelixError:
        # The database has answered: this input is not what the batch holds, or the batch is gone.
        on_stage(SubmitStage.READING, batch_id)
        writer.abandon_quietly()
        raise
    except BaseException:
        with suppress(DatabaseUnreachableError):
            _has_sealed(writer, batch_id, on_stage)
        raise
    on_stage(SubmitStage.STORED, batch_id)
    return reused


def _has_sealed(writer: _BatchWriter, batch_id: str, on_stage: Callable[[SubmitStage, str], None]) -> bool:
    """Ask whether a seal without an answer has come through, and tell it; one that has not is given up."""
    sealed = writer.is_sealed()
    on_stage(SubmitStage.STORED if sealed else SubmitStage.READING, batch_id)
    if not sealed:
        writer.give_up()
    return sealed


class _BatchWriter:
    """Stores accepted lines in one batch, or only compares them with what a sealed batch holds."""

    def __init__(self, database: Database, batch: StoredBatch, key: str | None) -> None:
        self._database = database
        self._batch = batch
        self._key = key
        self._storing = batch.total is None
        self._chunk: list[NewJob] = []
        self._chunk_bytes = 0
        self._digest = sha256()

    def add(self, job: NewJob) -> None:
        """Take one line; every now and then a chunk of them is stored.

        Raises:
            IdempotencyConflictError: An interrupted submission with this key left other lines.
            InputError: Someone removed the batch meanwhile.
        """
        job.seed_from(self._batch.id)
        content = [job.line, job.custom_id, job.priority, job.request]
        self._digest.update(_CANONICAL.encode(content).encode() + b"\n")
        if not self._storing:
            return
        self._chunk.append(job)
        self._chunk_bytes += job.size
        if len(self._chunk) >= CHUNK_ROWS or self._chunk_bytes >= CHUNK_BYTES:
            self.flush()

    def seal(self, total: int) -> bool:
        """Make the jobs come into being; True if the batch had been sealed with this very content before.

        Sealing twice alike is harmless, so a seal whose answer was lost is simply repeated.

        Raises:
            IdempotencyConflictError: It holds different content.
            InputError: Someone removed the batch meanwhile.
        """
        digest = self._digest.hexdigest()
        if self._storing:
            self._transact(lambda c: batches.seal_batch(c, self._batch.id, total, digest))
            return False
        if (self._batch.total, self._batch.content_digest) != (total, digest):
            raise IdempotencyConflictError(
                f"idempotency key {self._key!r} already names batch {self._batch.id}, which has different content; "
                "submit the same input, or use another key"
            )
        return True

    def is_sealed(self) -> bool:
        """Whether the batch is complete. A seal that is still on its way is waited for."""
        return self._database.transact(lambda c: batches.is_sealed(c, self._batch.id))

    def give_up(self) -> None:
        """Remove the batch, unless its idempotency key lets the next submission finish it."""
        if self._key is None:
            self.abandon_quietly()

    def abandon(self) -> None:
        """Store nothing more; if this submission created the batch, remove it."""
        if not self._storing:
            return
        self._storing = False
        self._chunk.clear()
        if not self._batch.reused:
            self._database.transact(lambda c: batches.delete_batch(c, self._batch.id), unlimited=True)

    def abandon_quietly(self) -> None:
        """The same on the way out of an error, which must stay the one that is seen."""
        try:
            self.abandon()
        except HelixError as error:
            logger.warning("batch %s was left unfinished: %s", self._batch.id, error)

    def flush(self) -> None:
        """Store the lines taken so far; errors as from `add`."""
        if not self._chunk or not self._storing:
            return
        self._transact(lambda c: batches.insert_jobs(c, self._batch.id, self._chunk, datetime.now(UTC)))
        self._chunk.clear()
        self._chunk_bytes = 0

    def _transact(self, change: Callable[[Connection], object]) -> None:
        try:
            outlast(self._database, lambda: self._database.transact(change))
        except NotFoundError as error:
            message = (
                f"batch {self._batch.id} was removed while it was being submitted (someone cancelled it); "
                "nothing of it is stored, submit the input again"
            )
            raise InputError(message) from error
