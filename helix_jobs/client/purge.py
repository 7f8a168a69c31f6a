"""Purge: remove ended batches for good, in steps, so that a million rows delay no worker and no submission.

Batches with queued or running jobs are never touched. A purge that is killed half-way has already hidden its batch
(``storage/purging.py``); the next purge, of whatever batches, removes the rest.

Trade-off: on Postgres a step only marks its rows dead; autovacuum later frees their room for new rows, and the server's
files keep their size. ``sqlite_space.py`` shrinks SQLite's file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import NotEndedError, NotFoundError
from helix_jobs.storage import api_batches, api_files, kept_answers, purging, status
from helix_jobs.storage.sqlite_space import free_room, give_back, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.purging import Content, EndedBatch

ROWS: Final = 5000


class Outcome(StrEnum):
    """Outcomes of an ended batch; several may apply."""

    SUCCEEDED = "succeeded"  # every job of it
    FAILED = "failed"  # a job of it
    CANCELLED = "cancelled"  # a job of it
    UNFINISHED = "unfinished"  # its submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """The amounts that were removed, or would be.

    Attributes:
        bytes: Size of requests, error messages, and answers with their reasoning, calls, scores and log probabilities.
        runs: Rows of runs without remaining results.
        workers: Rows of stopped workers without remaining runs, and without jobs of a remaining batch.
        uploads: Files that were uploaded over HTTP.
        given_back: Bytes by which SQLite's file shrank.
        kept_free_bytes: Free bytes that stay in SQLite's file; set at the end.
    """

    batches: int = 0
    jobs: int = 0
    results: int = 0
    bytes: int = 0
    runs: int = 0
    workers: int = 0
    uploads: int = 0
    given_back: int = 0
    kept_free_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgePlan:
    """The rows that a purge is to remove.

    Attributes:
        batches: Ended batches, oldest first.
        begun: Ids of batches that an interrupted purge left half removed.
        before: Also remove runs and workers that ended before this time, files that were uploaded before, and batches
            over HTTP that ended before without jobs; None keeps them.
    """

    batches: tuple[EndedBatch, ...]
    begun: tuple[str, ...]
    before: datetime | None


def outcomes(batch: EndedBatch) -> frozenset[Outcome]:
    """The outcomes of the batch."""
    if batch.total is None:
        return frozenset({Outcome.UNFINISHED})
    found = {Outcome.FAILED: batch.failed > 0, Outcome.CANCELLED: batch.cancelled > 0}
    return frozenset(outcome for outcome, holds in found.items() if holds) or frozenset({Outcome.SUCCEEDED})


def plan_purge(
    database: Database,
    *,
    older_than: timedelta | None = None,
    batch_ids: Collection[str] = (),
    only: Collection[Outcome] = (),
    now: datetime | None = None,
) -> PurgePlan:
    """Choose what to remove, and change nothing.

    Args:
        database: The database.
        older_than: Remove batches that ended longer ago (for an unfinished submission: last grew). A submission that
            grew within the last half minute may still be running, and stays whatever the age. Without ``only``, also
            remove the rows of runs and workers that ended longer ago.
        batch_ids: Remove these batches.
        only: Of the batches of that age, those with one of these outcomes.
        now: The time from which ages are counted.

    Raises:
        NotFoundError: There is no batch with a given id.
        NotEndedError: A given batch has queued or running jobs, or is being submitted.
    """
    with database.read(unlimited=True) as c:
        ended = {batch.id: batch for batch in purging.ended_batches(c)}
        begun = tuple(purging.half_purged(c))
        known = set(status.batch_ids(c)) | set(begun)
    chosen = []
    for batch_id in dict.fromkeys(batch_ids):
        if batch_id not in known:
            raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")
        if batch_id not in begun:
            if batch_id not in ended or ended[batch_id].total is None:
                raise NotEndedError(f"batch {batch_id} has not ended; wait for it, or end it: helix cancel {batch_id}")
            chosen.append(ended[batch_id])
    before = None
    if older_than is not None:
        now = now or datetime.now(UTC)
        before = now - older_than
        spared = timedelta(seconds=database.time_limits.submitter_silence)
        old = [batch for batch in ended.values() if batch not in chosen and _is_old(batch, older_than, spared, now)]
        chosen += [batch for batch in old if not only or outcomes(batch) & set(only)]
    return PurgePlan(batches=tuple(chosen), begun=begun, before=None if only else before)


def _is_old(batch: EndedBatch, older_than: timedelta, spared: timedelta, now: datetime) -> bool:
    """Whether the batch ended long enough ago; a submission that grew within ``spared`` may still be running."""
    if batch.total is None:
        return batch.ended_at < now - max(older_than, spared)
    # An age of 0 means every ended batch, even one that a worker's fast clock ended in the future.
    return not older_than or batch.ended_at < now - older_than


def measure(database: Database, plan: PurgePlan) -> Purged:
    """The amounts the plan would remove, without runs and workers, which are only known once their results are gone.

    Reads every row that would go.
    """
    found = Purged()
    for batch_id in (*plan.begun, *(batch.id for batch in plan.batches)):
        found = replace(found, batches=found.batches + 1)
        for after, last in _steps(database, batch_id):
            with database.read() as c:
                found = _add(found, purging.measure_lines(c, batch_id, after, last))
    if plan.before is None:
        return found
    with database.read() as c:
        return replace(found, uploads=len(api_files.removable_files(c, datetime.now(UTC), plan.before)))


def purge(
    database: Database,
    plan: PurgePlan,
    on_step: Callable[[Purged], None] = lambda _: None,
    *,
    vacuum: bool = False,
    keep_bytes: int | None = None,
) -> Purged:
    """Remove the plan's rows, except batches that have changed since; returns the amounts removed.

    Args:
        database: The database.
        plan: The rows to remove.
        on_step: Called after each commit with the amounts removed so far.
        vacuum: Afterwards rewrite SQLite's file (``sqlite_space.rewrite``).
        keep_bytes: Keep answers that other jobs may take, and remove those not used for longest until all that are kept
            fit; None keeps none and removes none.

    Raises:
        DatabaseUnreachableError: The database does not answer, or is in use and cannot be rewritten; removed rows stay
            removed.
    """
    done, kept = Purged(), _KeptAnswers(database, keep_bytes)
    for batch_id in (*plan.begun, *_begin(database, plan.batches)):
        for after, last in _steps(database, batch_id):

            def remove(c: Connection, batch_id: str = batch_id, after: int = after, last: int = last) -> Content:
                kept.keep(c, batch_id, after, last)
                return purging.purge_lines(c, batch_id, after, last)

            done = _add(done, database.transact(remove))
            kept.fit()
            on_step(done)
            # Give pages back after each batch: SQLite searches its list of free pages, and a long list is slow.
            done = replace(done, given_back=done.given_back + give_back(database))
        if database.transact(lambda c, batch_id=batch_id: purging.end_purge(c, batch_id)):  # type: ignore[misc]
            done = replace(done, batches=done.batches + 1)
            on_step(done)
    kept.fit()
    before = plan.before
    if before is not None:
        while count := database.transact(lambda c: purging.purge_runs(c, before, ROWS)):
            done = replace(done, runs=done.runs + count)
        while count := database.transact(lambda c: purging.purge_workers(c, before, ROWS)):
            done = replace(done, workers=done.workers + count)
        done = _remove_uploads(database, before, done)
    done = replace(done, given_back=done.given_back + give_back(database))
    on_step(done)
    if vacuum:
        done = replace(done, given_back=done.given_back + rewrite(database))
    if database.sqlite_file is not None:
        with database.read() as c:
            done = replace(done, kept_free_bytes=free_room(c).bytes)
    on_step(done)
    return done


class _KeptAnswers:
    """Keeps answers of the lines that go, within a size.

    Args:
        database: The database.
        limit: Bytes of all kept answers; None leaves them alone.
    """

    def __init__(self, database: Database, limit: int | None) -> None:
        self._database = database
        self._limit = limit

    def keep(self, c: Connection, batch_id: str, after: int, last: int) -> None:
        """Keep what others may take of these lines, in the transaction that removes them."""
        if self._limit:
            kept_answers.keep_lines(c, batch_id, after, last, datetime.now(UTC))

    def fit(self) -> None:
        """Remove what was not used for longest, until all fits."""
        if self._limit is None:
            return
        with self._database.read() as c:
            over = kept_answers.kept_bytes(c) - self._limit
        while over > 0 and (freed := self._database.transact(lambda c, over=over: kept_answers.evict(c, over))):  # type: ignore[misc]
            over -= freed


def _remove_uploads(database: Database, before: datetime, done: Purged) -> Purged:
    """Remove old files that were uploaded, except those that a batch still reads."""
    database.transact(lambda c: api_batches.remove_closed(c, before))
    with database.read() as c:
        found = api_files.removable_files(c, datetime.now(UTC), before)
    for file_id in found:
        given_back = api_files.remove_file(database, file_id)
        done = replace(done, uploads=done.uploads + 1, given_back=done.given_back + given_back)
    return done


def _begin(database: Database, batches: Sequence[EndedBatch]) -> Iterator[str]:
    """Hide one batch after the other and yield its id; batches retried since are left alone."""
    for batch in batches:
        if database.transact(lambda c, batch=batch: purging.begin_purge(c, batch, datetime.now(UTC))):  # type: ignore[misc]
            yield batch.id


def _steps(database: Database, batch_id: str) -> Iterator[tuple[int, int]]:
    """The batch's lines, some thousand at a time, as (after, last)."""
    after = 0
    while True:
        with database.read() as c:
            last = purging.last_line(c, batch_id, after, ROWS)
        if last is None:
            return
        yield after, last
        after = last


def _add(purged: Purged, content: Content) -> Purged:
    return replace(
        purged,
        jobs=purged.jobs + content.jobs,
        results=purged.results + content.results,
        bytes=purged.bytes + content.bytes,
    )
