"""BatchIntake: works at the batches that are due: reads their files, ends their windows, removes what has expired."""

from __future__ import annotations

import io
import logging
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from helix_jobs.api.batch_claim import BatchClaim, BatchInterrupted
from helix_jobs.api.batch_duty import Duty, duty_of
from helix_jobs.api.batch_request import ANY_ENDPOINT
from helix_jobs.client.line_defaults import LineDefaults
from helix_jobs.client.purge import plan_purge, purge
from helix_jobs.client.submit_source import submit_source
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import HelixError, InputError, InvalidInputError, NotFoundError
from helix_jobs.storage import api_batches, api_files, batch_changes, changes_in_steps
from helix_jobs.storage.api_files import StoredFile
from helix_jobs.storage.batches import delete_batch, find_by_idempotency_key
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from helix_jobs.settings import Settings
    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus

logger = logging.getLogger(__name__)

# Trade-off: a second thread lets a small batch past a large one; each takes processor time from the server's answers.
_THREADS: Final = 2
_POLL_SECONDS: Final = 2.0
_SWEEP_SECONDS: Final = 60.0
_RETRY: Final = timedelta(seconds=10)
# After a duty, to see whether another one follows.
_AGAIN: Final = timedelta(seconds=1)
_STOP_SECONDS: Final = 10.0
# Bad lines that a batch keeps.
MAX_ERRORS: Final = 100
_GZIP: Final = b"\x1f\x8b"


class BatchIntake:
    """Threads that take due batches, see ``duty_of``. Several servers share the work by claims in the database.

    Args:
        settings: The limits, and where the broker is.
        database: The database.
        on_change: Called after each duty, which may have changed a batch.
    """

    def __init__(self, settings: Settings, database: Database, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._database = database
        self._on_change = on_change
        self._lease = database.time_limits.submitter_silence
        self._wanted = threading.Condition()
        self._stopping = False
        self._claims: set[BatchClaim] = set()
        runs = [self._work] * _THREADS + [self._sweep]
        self._threads = [threading.Thread(target=run, name="helix-intake", daemon=True) for run in runs]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for due batches now."""
        with self._wanted:
            self._wanted.notify_all()

    def close(self) -> None:
        """End the threads. A batch in the middle goes on where another server, or the next start, takes it up."""
        with self._wanted:
            self._stopping = True
            for claim in self._claims:
                claim.interrupt()
            self._wanted.notify_all()
        for thread in self._threads:
            thread.join(_STOP_SECONDS)

    def _work(self) -> None:
        while not self._stopping:
            if not self._attempt(self._take_one):
                self._pause(_POLL_SECONDS)

    def _sweep(self) -> None:
        """Remove files that have expired, and what broken uploads and removals left."""
        while not self._stopping:
            self._attempt(self._remove_files)
            self._pause(_SWEEP_SECONDS)

    def _attempt(self, duty: Callable[[], bool]) -> bool:
        try:
            return duty()
        except HelixError as error:
            logger.warning("batches over HTTP: %s; trying again", error)
        except Exception:
            logger.exception("batches over HTTP: unexpected error, trying again")
        return False

    def _pause(self, seconds: float) -> None:
        with self._wanted:
            if not self._stopping:
                self._wanted.wait(seconds)

    def _remove_files(self) -> bool:
        with self._database.read() as c:
            found = api_files.removable_files(c, datetime.now(UTC))
        for file_id in found:
            api_files.remove_file(self._database, file_id)
        return bool(found)

    def _take_one(self) -> bool:
        """Work at one due batch; returns whether there was one."""
        now = datetime.now(UTC)
        with self._database.read() as c:
            if not api_batches.is_any_due(c, now):  # so that an idle server takes no writer's lock
                return False
        until = now + timedelta(seconds=self._lease)
        batch = self._database.transact(lambda c: api_batches.claim_due(c, now, until))
        if batch is None:
            return False
        claim = BatchClaim(self._database, batch, self._lease)
        with self._wanted:
            self._claims.add(claim)
            if self._stopping:
                claim.interrupt()
        next_due: datetime | None = datetime.now(UTC) + _RETRY
        try:
            with claim:
                next_due = self._do(batch, claim)
        except BatchInterrupted:
            next_due = datetime.now(UTC)
        finally:
            self._on_change()
            with self._wanted:
                self._claims.discard(claim)
            # Only where the duty has not set it itself.
            self._database.transact(lambda c: api_batches.move_due(c, batch.id, claim.due_at, next_due))
        return True

    def _do(self, batch: ApiBatch, claim: BatchClaim) -> datetime | None:
        """Do the batch's duty; returns when it is due next."""
        now = datetime.now(UTC)
        status = self._status(batch)
        duty, due_at = duty_of(batch, status, now)
        if duty is Duty.VALIDATE:
            self._validate(batch, claim)
        elif duty in (Duty.WITHDRAW, Duty.LAPSE):
            self._withdraw(batch, api_batches.close_cancelled if duty is Duty.WITHDRAW else api_batches.close_expired)
        elif duty is Duty.EXPIRE:
            self._database.transact(lambda c: _expire(c, batch, now))
        elif duty is Duty.FINISH_CANCEL:
            assert status is not None, "its jobs are not all cancelled"
            changes_in_steps.finish_cancel(self._database, batch_changes.Change(status.id, status.cancelled_at))
        elif duty is Duty.REMOVE:
            assert batch.batch_id is not None, "its output has expired"
            purge(self._database, plan_purge(self._database, batch_ids=[batch.batch_id]))
        else:
            return due_at
        return now + _AGAIN

    def _status(self, batch: ApiBatch) -> BatchStatus | None:
        if batch.batch_id is None:
            return None
        with self._database.read() as c, suppress(NotFoundError):
            return batch_status(c, batch.batch_id)
        return None

    def _validate(self, batch: ApiBatch, claim: BatchClaim) -> None:
        """Store the jobs of the batch's file, or say why not. What an earlier try has stored is not stored again."""
        try:
            batch_id = self._sealed(batch) or self._submit(batch, claim)
        except (InputError, NotFoundError) as error:
            errors = _errors_of(error)
            self._discard(batch)
            self._database.transact(lambda c: api_batches.close_failed(c, batch.id, errors, datetime.now(UTC)))
            return
        self._database.transact(lambda c: _accept(c, batch, batch_id, datetime.now(UTC)))

    def _submit(self, batch: ApiBatch, claim: BatchClaim) -> str:
        with self._database.read() as c:
            # As it was when the batch was asked for: it may have expired since.
            file = api_files.get_file(c, batch.owner, batch.input_file_id, batch.created_at)
        raw = StoredFile(self._database, file, claim.check)
        with closing(io.BufferedReader(raw, api_files.PART_BYTES)) as stream:
            if stream.peek(len(_GZIP)).startswith(_GZIP):
                # A small packed file may hold any number of lines, and HELIX_MAX_UPLOAD_MB would limit nothing.
                raise InputError("the file is compressed with gzip; upload its lines as they are")
            submission = submit_source(
                self._settings,
                lambda: self._database,
                cast("BinaryIO", stream),
                LineDefaults(SamplingParams()),
                name=_name(batch),
                idempotency_key=_key(batch),
                metadata={**batch.metadata, "helix_http_batch": batch.id, "helix_http_file": file.id},
                skip_invalid=False,
                rejects=None,
                on_invalid=None,
                on_progress=lambda _: claim.check(),
                on_stage=lambda _stage, _batch_id: None,
                endpoint=None if batch.endpoint == ANY_ENDPOINT else batch.endpoint,
            )
        return submission.batch_id

    def _sealed(self, batch: ApiBatch) -> str | None:
        """The batch of an earlier try that had stored every line, and could not say so any more."""
        with self._database.read() as c:
            found = find_by_idempotency_key(c, _key(batch))
        return None if found is None or found.total is None else found.id

    def _discard(self, batch: ApiBatch) -> None:
        """Remove lines that were stored before the batch was given up. They were never jobs."""
        with self._database.read() as c:
            found = find_by_idempotency_key(c, _key(batch))
        if found is not None and found.total is None:
            self._database.transact(lambda c: delete_batch(c, found.id), unlimited=True)

    def _withdraw(self, batch: ApiBatch, close: Callable[[Connection, str, datetime], None]) -> None:
        sealed = self._sealed(batch)
        if sealed is not None:  # it had been accepted before
            self._database.transact(lambda c: _accept(c, batch, sealed, datetime.now(UTC)))
            return
        self._discard(batch)
        self._database.transact(lambda c: close(c, batch.id, datetime.now(UTC)))


def _accept(c: Connection, batch: ApiBatch, batch_id: str, now: datetime) -> None:
    api_batches.accept(c, batch.id, batch_id, now)
    if api_batches.is_cancelling(c, batch.id):  # when its client asked, there were no jobs
        batch_changes.begin_cancel(c, batch_id, now=now)


def _expire(c: Connection, batch: ApiBatch, now: datetime) -> None:
    api_batches.expire(c, batch.id, now)
    batch_changes.begin_cancel(c, batch.batch_id or "", now=now)


def _key(batch: ApiBatch) -> str:
    """The idempotency key of the batch's jobs."""
    return f"api:{batch.id}"


def _name(batch: ApiBatch) -> str:
    """The name of the batch of its jobs: its file's where a person submitted it on the page, else its id."""
    name = batch.metadata.get("name") if batch.endpoint == ANY_ENDPOINT else None
    return name if isinstance(name, str) else batch.id


def _errors_of(error: HelixError) -> Sequence[dict[str, Any]]:
    """The members of OpenAI's ``errors.data``: one a bad line's fault, or one for the file as a whole.

    Reason and remedy stand apart as well: the page shows them in columns, as the command does.
    """
    if isinstance(error, InvalidInputError):
        return [
            {
                "code": "invalid_line",
                "message": f"{fault.reason}; {fault.remedy}",
                "param": fault.field,
                "line": fault.line,
                "reason": fault.reason,
                "remedy": fault.remedy,
            }
            for bad in error.bad_lines[:MAX_ERRORS]
            for fault in bad.faults
        ][:MAX_ERRORS]
    return [{"code": "invalid_file", "message": str(error), "param": None, "line": None}]
