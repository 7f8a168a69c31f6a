"""Purge: removing ended batches for good, in steps, so that a million rows hold up no worker and no submission.

What waits or runs is never touched. A purge that is killed half-way has already taken its batch out of sight
(``storage/purging.py``); the next one, whatever it is asked for, removes the rest.

Trade-off: on Postgres each step's rows are only marked; autovacuum makes their room free for new ones some time later,
and the server's files keep their size. SQLite's file is cut down by ``sqlite_space.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import NotEndedError, NotFoundError
from helix_jobs.storage import purging, status
from helix_jobs.storage.sqlite_space import free_room, give_back, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.purging import Content, EndedBatch

ROWS: Final = 5000


class Outcome(StrEnum):
    """What may be said of an ended batch; several may hold."""

    SUCCEEDED = "succeeded"  # every job of it
    FAILED = "failed"  # a job of it
    CANCELLED = "cancelled"  # a job of it
    UNFINISHED = "unfinished"  # its submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What was removed, or would be.

    Attributes:
        bytes: Of prompts, answers and error messages.
        runs: Rows of runs that no result is left of.
        workers: Rows of workers that stopped and have no run left.
        given_back: Bytes by which SQLite's file has become smaller.
        kept_free_bytes: What of that file is free and stays in it; told at the end.
    """

    batches: int = 0
    jobs: int = 0
    results: int = 0
    bytes: int = 0
    runs: int = 0
    workers: int = 0
    given_back: int = 0
    kept_free_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgePlan:
    """What a purge is to remove.

    Attributes:
        batches: Ended ones, oldest first.
        begun: Ids of batches that an interrupted purge has left half removed.
        before: Runs and workers that ended before this go too; None leaves them.
    """

    batches: tuple[EndedBatch, ...]
    begun: tuple[str, ...]
    before: datetime | None


def outcomes(batch: EndedBatch) -> frozenset[Outcome]:
    """What became of the batch."""
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
    """Choose what to remove; nothing is changed.

    Args:
        database: Where.
        older_than: Batches that ended (of an unfinished submission: grew) longer ago. A submission that grew within the
            last half minute may go on, and stays whatever the age. Without ``only`` also the rows of runs and workers
            that ended longer ago.
        batch_ids: These batches.
        only: Of the batches of that age, those with one of these outcomes.
        now: The moment that ages are counted from.

    Raises:
        NotFoundError: There is no batch of a given id.
        NotEndedError: A given batch waits, runs or is being submitted.
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
        spared = timedelta(seconds=database.timing.submitter_silence)
        old = [batch for batch in ended.values() if batch not in chosen and _is_old(batch, older_than, spared, now)]
        chosen += [batch for batch in old if not only or outcomes(batch) & set(only)]
    return PurgePlan(batches=tuple(chosen), begun=begun, before=None if only else before)


def _is_old(batch: EndedBatch, older_than: timedelta, spared: timedelta, now: datetime) -> bool:
    """Whether it ended long enough ago; a submission that grew within ``spared`` may go on."""
    if batch.total is None:
        return batch.ended_at < now - max(older_than, spared)
    # Without an age whatever has ended is meant, also by a worker's clock that is ahead.
    return not older_than or batch.ended_at < now - older_than


def measure(database: Database, plan: PurgePlan) -> Purged:
    """What the plan would remove, as far as it can be told before: runs and workers come with their results' removal.

    It reads every row that would go.
    """
    found = Purged()
    for batch_id in (*plan.begun, *(batch.id for batch in plan.batches)):
        found = replace(found, batches=found.batches + 1)
        for after, last in _steps(database, batch_id):
            with database.read() as c:
                found = _add(found, purging.measure_lines(c, batch_id, after, last))
    return found


def purge(
    database: Database,
    plan: PurgePlan,
    on_step: Callable[[Purged], None] = lambda _: None,
    *,
    vacuum: bool = False,
) -> Purged:
    """Remove what the plan names, as far as it is still as it was; returns what was removed.

    Args:
        database: Where.
        plan: What.
        on_step: Told what is gone so far, after each commit.
        vacuum: Then rewrite SQLite's file (``sqlite_space.rewrite``).

    Raises:
        DatabaseUnreachableError: The database does not answer, or others use it and it cannot be rewritten; what was
            removed stays so.
    """
    done = Purged()
    for batch_id in (*plan.begun, *_begin(database, plan.batches)):
        for after, last in _steps(database, batch_id):

            def remove(c: Connection, batch_id: str = batch_id, after: int = after, last: int = last) -> Content:
                return purging.purge_lines(c, batch_id, after, last)

            done = _add(done, database.transact(remove))
            on_step(done)
            # At once: the list of free pages stays short, and what is long to search is slow to give back.
            done = replace(done, given_back=done.given_back + give_back(database))
        if database.transact(lambda c, batch_id=batch_id: purging.end_purge(c, batch_id)):  # type: ignore[misc]
            done = replace(done, batches=done.batches + 1)
            on_step(done)
    before = plan.before
    if before is not None:
        while count := database.transact(lambda c: purging.purge_runs(c, before, ROWS)):
            done = replace(done, runs=done.runs + count)
        while count := database.transact(lambda c: purging.purge_workers(c, before, ROWS)):
            done = replace(done, workers=done.workers + count)
    done = replace(done, given_back=done.given_back + give_back(database))
    on_step(done)
    if vacuum:
        done = replace(done, given_back=done.given_back + rewrite(database))
    if database.sqlite_file is not None:
        with database.read() as c:
            done = replace(done, kept_free_bytes=free_room(c).bytes)
    on_step(done)
    return done


def _begin(database: Database, batches: Sequence[EndedBatch]) -> Iterator[str]:
    """Take one batch after the other out of sight; those that somebody has retried since are left alone."""
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
