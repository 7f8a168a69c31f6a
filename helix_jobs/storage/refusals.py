"""Refuse answers that are stored already, because a function of the person who submitted them does.

The worker's own refusals are in ``claims``. These here need no lease: an answer is named by its job and the time at
which the job ended, so an answer that came later is never refused in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, delete, or_, select, update

from helix_jobs.errors import ErrorCode
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.batch_changes import reopen
from helix_jobs.storage.schema import batches, jobs, results
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Row

_SUCCEEDED: Final = JobState.SUCCEEDED.value
_ANSWERS: Final = select(*(results.c[name] for name in counters.COUNTED_COLUMNS))


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer that a job had when it ended at this time."""

    job_id: int
    finished_at: datetime


def refuse_stored(
    c: Connection, batch_id: str, answers: Sequence[StoredAnswer], *, max_tries: int, reason: str, now: datetime
) -> int:
    """Refuse answers of succeeded jobs; returns how many were.

    Jobs with tries left go back to the queue, and the refused answer goes. The others end as ``not_accepted`` and keep
    it. In a batch that is cancelled or removed nothing is refused: its jobs would never run again. A second call with
    the same ``now`` changes nothing and returns the same number, so it may be repeated after an uncertain commit.

    Args:
        c: A write transaction.
        batch_id: The batch.
        answers: Answers of its jobs, some hundred at most.
        max_tries: Most answers of a job, the first included.
        reason: Why the last answer was refused, for the job's error message.
        now: The time written.
    """
    # Cancel, retry and purge wait meanwhile, as they lock the same row.
    takes_jobs = and_(batches.c.total.is_not(None), batches.c.cancelled_at.is_(None))
    batch = select(batches.c.id).where(batches.c.id == batch_id, takes_jobs).with_for_update(key_share=True)
    if c.execute(batch).first() is None:
        return 0
    final = {
        "state": JobState.FAILED.value,
        "finished_at": now,
        "error_code": ErrorCode.NOT_ACCEPTED.value,
        "error_message": reason,
    }
    return sum(_refuse(c, batch_id, answer, max_tries, final) for answer in answers)


def _refuse(c: Connection, batch_id: str, answer: StoredAnswer, max_tries: int, final: dict[str, Any]) -> bool:
    """Refuse one answer; ``final`` is what becomes of a job without tries left."""
    now: datetime = final["finished_at"]
    this_job = and_(jobs.c.id == answer.job_id, jobs.c.batch_id == batch_id)
    this_answer = _named_answer(this_job, answer)
    job = c.execute(select(jobs.c.tries).where(this_answer).with_for_update()).first()
    if job is None:
        return _refused_before(c, this_job, now)
    lost = counters.sums_of(c.execute(_ANSWERS.where(results.c.job_id == answer.job_id)).all())
    ends = job.tries + 1 >= max_tries
    c.execute(update(jobs).where(this_answer).values(tries=jobs.c.tries + 1, **(final if ends else _queued(now))))
    if ends:
        counters.add(c, _share(batch_id, ErrorCode.NOT_ACCEPTED.value, 1, finished_at=now))
    else:
        c.execute(delete(results).where(results.c.job_id == answer.job_id))
        reopen(c, batch_id)
    counters.add(
        c,
        counters.refusals(batch_id, counters.PERSON, 1),
        _share(batch_id, _SUCCEEDED, -1, **{name: -count for name, count in lost.items()}),
    )
    return True


def _share(batch_id: str, outcome: str, number: int, **more: Any) -> counters.Share:  # noqa: ANN401  (other sums)
    return counters.Share(batch_id=batch_id, writer=counters.PERSON, outcome=outcome, jobs=number, **more)


def _named_answer(this_job: ColumnElement[bool], answer: StoredAnswer) -> ColumnElement[bool]:
    """The fence: the condition that only the answer that was looked at meets."""
    return and_(this_job, jobs.c.state == _SUCCEEDED, jobs.c.finished_at == answer.finished_at)


def _queued(now: datetime) -> dict[str, Any]:
    return {
        "state": JobState.QUEUED.value,
        "attempts": 0,
        "worker_id": None,
        "queued_at": now,
        "published_at": None,
        "claimed_at": None,
        "finished_at": None,
    }


def _refused_before(c: Connection, this_job: ColumnElement[bool], now: datetime) -> bool:
    """Whether this refusal is already stored: the answer to its commit was lost and the caller repeats it."""
    then = or_(jobs.c.queued_at == now, jobs.c.finished_at == now)
    row: Row[Any] | None = c.execute(select(jobs.c.id).where(this_job, jobs.c.tries > 0, then)).first()
    return row is not None
