"""Which jobs the broker should carry. Messages are hints: a duplicate is harmless, a lost one is sent again."""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Integer, String, bindparam, case, exists, func, or_, select, text, update

from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.answer_cache import TWIN_UNDER_WAY
from helix_jobs.storage.readable import unreadable_reason
from helix_jobs.storage.records import PublishableJob
from helix_jobs.storage.retries import AT_LAST_ATTEMPT
from helix_jobs.storage.schema import TAKES_JOBS, batch_counters, batches, jobs
from helix_jobs.storage.states import JobState
from helix_jobs.storage.utc_datetime import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

# Literal conditions: SQLite uses a partial index only for a query that repeats its condition word for word.
_PUBLISHED_QUEUED: Final = text("state = 'queued' AND published_at IS NOT NULL")
_RUNNING: Final = text("state = 'running'")

# Parameters of one statement; SQLite allows 32,766.
_CHUNK: Final = 5_000

# Each row is one priority of one sealed batch that has jobs to publish. A scalar subquery with LIMIT 1 instead of
# EXISTS, which planners may turn into a join over every waiting job.
_LANES: Final = text("""
    WITH priorities (priority) AS (VALUES (9), (8), (7), (6), (5), (4), (3), (2), (1), (0)),
    waiting AS (
        SELECT b.id FROM batches b
        WHERE b.total IS NOT NULL AND b.cancelled_at IS NULL AND b.paused_at IS NULL
          AND (SELECT 1 FROM jobs j WHERE j.batch_id = b.id AND j.state = 'queued' AND j.published_at IS NULL
               LIMIT 1) IS NOT NULL
    )
    SELECT w.id AS batch_id, p.priority FROM waiting w CROSS JOIN priorities p
    WHERE (SELECT 1 FROM jobs j WHERE j.batch_id = w.id AND j.priority = p.priority AND j.state = 'queued'
           AND j.published_at IS NULL LIMIT 1) IS NOT NULL
    ORDER BY p.priority DESC, w.id
""").columns(batch_id=String, priority=Integer)
_LANE_PAGE: Final = text("""
    SELECT id FROM jobs
    WHERE batch_id = :batch_id AND priority = :priority AND state = 'queued' AND published_at IS NULL AND id > :after
    ORDER BY id LIMIT :limit
""").columns(id=BigInteger)

# The same, with the keys of answers, and whether the job's answer is under way for another one.
_LANE_PAGE_OF_TWINS: Final = text(f"""
    SELECT j.id, CASE WHEN j.tries = 0 THEN j.answer_key END AS answer_key,
           CASE WHEN j.answer_key IS NULL OR j.tries > 0 THEN 0 WHEN EXISTS ({TWIN_UNDER_WAY}) THEN 1 ELSE 0 END AS late
    FROM jobs j
    WHERE j.batch_id = :batch_id AND j.priority = :priority AND j.state = 'queued' AND j.published_at IS NULL
      AND j.id > :after
    ORDER BY j.id LIMIT :limit
""").columns(id=BigInteger, answer_key=String, late=Integer)  # noqa: S608  (constants)
# Twins that one look passes over. Trade-off: jobs behind more of them wait until the first of those is answered, but
# a million equal lines cost no more than these each second.
_MOST_TWINS: Final = 20_000

_NOW: Final = bindparam("now", type_=UTCDateTime)
# Postgres: a row that another transaction holds is being claimed and needs no mark; waiting for it could deadlock.
_MARK: Final = {
    "sqlite": text("""
        UPDATE jobs SET published_at = :now
        WHERE id IN (SELECT value FROM json_each(:ids)) AND state = 'queued'
    """).bindparams(_NOW),
    "postgresql": text("""
        UPDATE jobs SET published_at = :now
        WHERE id IN (SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS bigint[])) AND state = 'queued'
                     FOR UPDATE SKIP LOCKED)
    """).bindparams(_NOW),
}


def publishable(c: Connection, limit: int, *, without_twins: bool = False) -> list[PublishableJob]:
    """Queued jobs of sealed batches without a message, highest priority first, then oldest; at most ``limit``.

    Args:
        c: A connection.
        limit: How many.
        without_twins: Leave jobs out whose equal is under way, or among those returned (``answer_cache``).
    """
    found: list[PublishableJob] = []
    twins = _Twins() if without_twins else None
    lanes = c.execute(_LANES).all()
    for priority, group in groupby(lanes, key=lambda lane: int(lane.priority)):
        wanted = limit - len(found)
        if wanted <= 0:
            break
        names = [str(lane.batch_id) for lane in group]
        page = max(64, -(-wanted // len(names)))
        rows = heapq.merge(*(_lane(c, batch_id, priority, min(page, wanted), twins) for batch_id in names))
        ids = (job_id for job_id, key in rows if twins is None or twins.is_first(key))
        found.extend(PublishableJob(job_id, priority) for job_id in islice(ids, wanted))
    return found


def mark_published(c: Connection, ids: Sequence[int], now: datetime) -> int:
    """Mark these jobs as having a message in the broker; jobs claimed meanwhile are left alone."""
    if not ids:
        return 0
    return c.execute(_MARK[c.dialect.name], {"ids": _id_list(c, ids), "now": now}).rowcount


def unmark_published(c: Connection, ids: Sequence[int]) -> int:
    """Unmark these jobs: the broker did not take their messages."""
    if not ids:
        return 0
    return c.execute(_MARK[c.dialect.name], {"ids": _id_list(c, ids), "now": None}).rowcount


def unmark_missing(c: Connection, ids: Sequence[int]) -> int:
    """Unmark these jobs: the broker lacks their messages. Returns how many are at their last attempt.

    The message of such a job may rightly be missing: a worker that could not run the job alone put it off.
    """
    wanted = [jobs.c.id.in_(ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK)]
    at_last = sum(
        c.execute(select(func.count()).select_from(jobs).where(_PUBLISHED_QUEUED, AT_LAST_ATTEMPT, some)).scalar_one()
        for some in wanted
    )
    unmark_published(c, ids)
    return at_last


def unmark_unreadable(c: Connection) -> int:
    """Unmark queued jobs whose ``published_at`` is not a time, after an edit by hand. Returns how many."""
    query = select(jobs.c.published_at)
    ids = c.execute(select(jobs.c.id).where(_PUBLISHED_QUEUED)).scalars().all()
    return unmark_published(c, [job_id for job_id in ids if unreadable_reason(c, query.where(jobs.c.id == job_id))])


def republish_unseen(c: Connection, published_before: datetime) -> int:
    """Unmark queued jobs published before ``published_before``: their messages seem lost. Returns how many."""
    return c.execute(
        update(jobs).where(_PUBLISHED_QUEUED, jobs.c.published_at < published_before).values(published_at=None)
    ).rowcount


def republish_last_attempts(c: Connection, published_before: datetime) -> int:
    """Like ``republish_unseen``, but only for jobs at their last attempt, which a worker may have put off."""
    return c.execute(
        update(jobs)
        .where(_PUBLISHED_QUEUED, jobs.c.published_at < published_before, AT_LAST_ATTEMPT)
        .values(published_at=None)
    ).rowcount


def republish_all(c: Connection) -> int:
    """Unmark every queued job: it is unknown which messages the broker holds. Returns how many.

    No time limits it, as the publisher's clock may be ahead.
    """
    return c.execute(update(jobs).where(_PUBLISHED_QUEUED).values(published_at=None)).rowcount


def published_queued(c: Connection) -> dict[int, datetime]:
    """Job id -> time of publication, for every queued job that should have a message; some 10,000 at most."""
    rows = c.execute(select(jobs.c.id, jobs.c.published_at).where(_PUBLISHED_QUEUED))
    return {int(row.id): row.published_at for row in rows}


def wanted_among(c: Connection, ids: Sequence[int]) -> set[int]:
    """The ids among these, some hundred, whose messages are needed: the jobs are queued, and their batch not paused.

    A resume has every job of its batch sent anew.
    """
    wanted = select(jobs.c.id).join_from(jobs, batches).where(batches.c.paused_at.is_(None))
    return set(c.execute(wanted.where(jobs.c.id.in_(ids), jobs.c.state == JobState.QUEUED.value)).scalars())


def latest_published_at(c: Connection) -> datetime | None:
    """When the newest published job that is still queued was published; None if none is."""
    return c.execute(select(func.max(jobs.c.published_at)).where(_PUBLISHED_QUEUED)).scalar_one_or_none()


def deliveries_are_moot(c: Connection) -> bool:
    """Whether no message delivered so far matters any more: no job runs, and none is queued with a message.

    A job queued later gets its own message.
    """
    running, waiting = (exists(select(jobs.c.id).where(condition)) for condition in (_RUNNING, _PUBLISHED_QUEUED))
    return not c.execute(select(or_(running, waiting))).scalar_one()


def backlog(c: Connection) -> int:
    """Count the queued jobs of sealed batches, published or not. Read from counters: cheap at any size."""
    counters.flush(c)
    signed = case((batch_counters.c.outcome == counters.STORED, batch_counters.c.jobs), else_=-batch_counters.c.jobs)
    sealed = batches.c.total.is_not(None)
    unfinished = c.execute(
        select(func.coalesce(func.sum(signed), 0)).join_from(batch_counters, batches).where(sealed)
    ).scalar_one()
    running = c.execute(select(func.count()).select_from(jobs).where(_RUNNING)).scalar_one()
    return max(0, int(unfinished) - running)


def any_waits(c: Connection) -> bool:
    """Whether a worker may take some queued job. Reads the rows: edits by hand do not change the counters."""
    takable = exists().where(batches.c.id == jobs.c.batch_id, TAKES_JOBS)
    published = select(jobs.c.id).where(_PUBLISHED_QUEUED, takable).limit(1)
    # A job that waits for its twin's answer is not to be taken.
    return c.execute(published).first() is not None or bool(publishable(c, 1, without_twins=True))


@dataclass(slots=True)
class _Twins:
    """Whose answers one look has met, and how many jobs it has passed over for that."""

    keys: set[str] = field(default_factory=set)
    passed: int = 0

    def is_first(self, key: str | None) -> bool:
        """Whether no earlier job has this key; None is of no other job."""
        if key is None:
            return True
        if key in self.keys:
            self.passed += 1
            return False
        self.keys.add(key)
        return True


def _lane(
    c: Connection, batch_id: str, priority: int, page: int, twins: _Twins | None
) -> Iterator[tuple[int, str | None]]:
    """Ids in their order, with the keys of their answers where twins are of interest."""
    after = 0
    while True:
        place = {"batch_id": batch_id, "priority": priority, "after": after, "limit": page}
        rows = c.execute(_LANE_PAGE if twins is None else _LANE_PAGE_OF_TWINS, place).all()
        for row in rows:
            if twins is None:
                yield row.id, None
            elif row.late:
                twins.passed += 1
            else:
                yield row.id, row.answer_key
        if len(rows) < page or (twins is not None and twins.passed >= _MOST_TWINS):
            return
        after = rows[-1].id


def _id_list(c: Connection, ids: Sequence[int]) -> str | list[int]:
    """Many ids as one parameter: a JSON array on SQLite, an array on Postgres."""
    return json.dumps(list(ids)) if c.dialect.name == "sqlite" else list(ids)
