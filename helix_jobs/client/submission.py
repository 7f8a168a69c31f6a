"""One submission: lines in, a sealed batch out, or nothing.

One pass validates the lines and stores them, chunk by chunk, in an unsealed batch, which workers do not see. Sealing
the batch makes all of its jobs visible at one moment. A submission that dies earlier leaves an unsealed batch: with an
idempotency key, the next submission of the same content finishes it; without one, the batch is waste.

Trade-off: as lines are stored during validation, a bad line near the end costs the deletion of the stored ones. But the
common good file is read once, and standard input cannot be read twice.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.answer_key import answer_key
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
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Connection

    from helix_jobs.new_job import NewJob
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import NewBatch, StoredBatch

logger = logging.getLogger(__name__)

# A chunk is one transaction: small enough that a worker's writer never waits long, large enough to be fast.
CHUNK_ROWS: Final = 1000
CHUNK_BYTES: Final = 4 * 1024 * 1024
# Bad lines held for the report; ``on_invalid`` gets all of them.
MAX_REPORTED_BAD_LINES: Final = 10_000
_PROGRESS_LINES: Final = 1000
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class SubmitStage(Enum):
    """How far a submission has come; an interrupted caller learns from it whether the jobs exist.

    Attributes:
        READING: Workers see none of its jobs.
        SEALING: The batch is being sealed: workers see either all of its jobs or none.
        STORED: Workers see all of its jobs and run them, now or once a worker starts.
    """

    READING = "reading"
    SEALING = "sealing"
    STORED = "stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The outcome of a submission.

    Attributes:
        batch_id: The batch.
        total: Number of its jobs.
        invalid: The first bad lines that were skipped, at most 10,000.
        invalid_count: Number of bad lines that were skipped.
        reused: The idempotency key named a batch with the same content; nothing was stored.
        published: Number of job ids handed to the broker now. The worker publishes the others.
    """

    batch_id: str
    total: int
    invalid: tuple[BadLine, ...] = ()
    invalid_count: int = 0
    reused: bool = False
    published: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitProgress:
    """Counts of a submission under way. The byte counts are None when the input is not a file."""

    accepted: int
    invalid: int
    bytes_read: int | None = None
    bytes_total: int | None = None


@dataclass(slots=True)
class Tally:
    """Counts of the input read so far."""

    accepted: int = 0
    invalid: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    on_invalid: Callable[[BadLine], None] | None = None

    def refuse(self, bad: BadLine) -> None:
        """Count a bad line, keep it if there is room, and pass it on."""
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
    facts: Callable[[], Mapping[str, Any]] | None = None,
    cache: bool | None = None,
) -> Submission:
    """Store every good line in ``new``, or in the batch that its idempotency key names, and seal the batch.

    Args:
        database: The database.
        new: The batch to create.
        lines: The lines in order, read once the batch exists.
        skip_invalid: Store the good lines although there are bad ones.
        limits: How many lines are allowed.
        tally: Receives the counts.
        on_progress: Called every ``_PROGRESS_LINES`` lines and at the end.
        on_stage: Called with each stage the submission enters, and the batch id. If an interrupt comes during sealing,
            the database is asked whether the seal succeeded, and the answer is the last stage passed.
        facts: Called when all lines are read; what it returns is added to the batch's defaults.
        cache: Whether jobs take answers that are stored already; None where each is repeatable.

    Raises:
        InvalidInputError: There are bad lines (without ``skip_invalid``), or all lines are bad.
        InputError: There are no lines, or too many.
        IdempotencyConflictError: The key names a batch with different content.
        DatabaseUnreachableError: The database does not answer.
        UncertainSubmissionError: The database stopped answering during the last step.
    """
    batch = _create(database, new)
    on_stage(SubmitStage.READING, batch.id)
    writer = _BatchWriter(database, batch, new.idempotency_key, cache)
    answers = 0
    try:
        for count, item in enumerate(lines, start=1):
            if isinstance(item, BadLine):
                tally.refuse(item)
                if not skip_invalid:
                    writer.abandon()
            else:
                tally.accepted += 1
                answers += item.num_choices
                limits.check_count(tally.accepted, answers, item.line)
                writer.add(item)
            if on_progress is not None and count % _PROGRESS_LINES == 0:
                on_progress(tally)
        if on_progress is not None:
            on_progress(tally)
        _require_jobs(tally, skip_invalid=skip_invalid)
        writer.flush()
    except BaseException as error:
        # With a key, the stored lines stay for the next submission to finish, unless the input is at fault.
        if isinstance(error, InputError):
            writer.abandon_quietly()
        else:
            writer.give_up()
        raise
    writer.facts = {} if facts is None else facts()
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
    """Store the batch. After an unanswered try without a key, first remove the unsealed batch that it may have left."""
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
    """Seal the batch, or find out whether it was sealed; True if it had been before.

    From the first try on, only the database can tell that nothing was enqueued.
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
        # The database has answered: the batch holds other content, or is gone.
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
    """Ask whether an unanswered seal succeeded, and report the stage; give the batch up if it did not."""
    sealed = writer.is_sealed()
    on_stage(SubmitStage.STORED if sealed else SubmitStage.READING, batch_id)
    if not sealed:
        writer.give_up()
    return sealed


class _BatchWriter:
    """Stores accepted lines in one batch, or only compares them with the content of a sealed batch.

    Attributes:
        facts: What is known of the input when it has been read; stored when the batch is sealed.
    """

    def __init__(self, database: Database, batch: StoredBatch, key: str | None, cache: bool | None) -> None:  # noqa: FBT001  (yes, no, or not said)
        self._database = database
        self._batch = batch
        self._key = key
        self._cache = cache
        self._storing = batch.total is None
        self._chunk: list[NewJob] = []
        self._chunk_bytes = 0
        self._digest = sha256()
        self.facts: Mapping[str, Any] = {}

    def add(self, job: NewJob) -> None:
        """Take one line, and store a chunk once it is full.

        Raises:
            IdempotencyConflictError: An interrupted submission with this key left other lines.
            InputError: The batch was removed meanwhile.
        """
        job.seed_from(self._batch.id)
        content = [job.line, job.custom_id, job.priority, job.request]
        self._digest.update(_CANONICAL.encode(content).encode() + b"\n")
        if not self._storing:
            return
        self._chunk.append(replace(job, answer_key=answer_key(job.request, wanted=self._cache)))
        self._chunk_bytes += job.size
        if len(self._chunk) >= CHUNK_ROWS or self._chunk_bytes >= CHUNK_BYTES:
            self.flush()

    def seal(self, total: int) -> bool:
        """Seal the batch; True if it had been sealed with the same content before.

        Sealing twice with the same content is harmless, so a seal whose answer was lost is simply repeated.

        Raises:
            IdempotencyConflictError: The batch holds different content.
            InputError: The batch was removed meanwhile.
        """
        digest = self._digest.hexdigest()
        if self._storing:
            self._transact(lambda c: batches.seal_batch(c, self._batch.id, total, digest, self.facts))
            return False
        if (self._batch.total, self._batch.content_digest) != (total, digest):
            raise IdempotencyConflictError(
                f"idempotency key {self._key!r} already names batch {self._batch.id}, which has different content; "
                "submit the same input, or use another key"
            )
        return True

    def is_sealed(self) -> bool:
        """Whether the batch is complete. Waits for a seal that is under way."""
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
        """Like ``abandon``, but only log its own failure, so that the original error is the one raised."""
        try:
            self.abandon()
        except HelixError as error:
            logger.warning("batch %s was left unfinished: %s", self._batch.id, error)

    def flush(self) -> None:
        """Store the lines taken so far. Raises as `add` does."""
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
