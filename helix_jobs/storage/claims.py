"""Claim, finish, refuse, release: the protocol that gives every job exactly one result.

The invariant: every claim raises the job's ``lease``, and every write of a worker carries the lease of its own claim
(``WHERE state = 'running' AND lease = :mine``). So at most one claim's write can ever match, however late the others
come. A write that matches no row is *fenced*: the worker counts and drops it.

Functions may run twice when the answer to a commit was lost: claim, finish and refuse recognise their own earlier write
by its ``now``.

An answer may be *refused* by the acceptance rule of its own job. The job then goes back to the queue and its ``tries``
rise; the last refusal ends the job as ``not_accepted`` and keeps its answer.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import String, bindparam, case, exists, literal_column, not_, select, text, update

from helix_jobs.errors import ErrorCode
from helix_jobs.storage import result_rows
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.answer_cache import NOTHING_TO_TAKE, AnswerSetup
from helix_jobs.storage.records import ClaimedJob, FinishedJob, ResultRow
from helix_jobs.storage.retries import AT_LAST_ATTEMPT
from helix_jobs.storage.schema import TAKES_JOBS, batches, jobs
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Select

MAX_ERROR_MESSAGE_CHARS: Final = 2000

# A literal condition: SQLite uses the partial index for no other.
_IS_RUNNING: Final = text("state = 'running'")

_CLAIMED: Final = (
    jobs.c.id,
    jobs.c.batch_id,
    jobs.c.line,
    jobs.c.request,
    jobs.c.lease,
    jobs.c.attempts,
    jobs.c.max_attempts,
    jobs.c.queued_at,
    jobs.c.claimed_at,
    jobs.c.tries,
    jobs.c.priority,
    # One request of a person who waits.
    select(batches.c.interactive).where(batches.c.id == jobs.c.batch_id).scalar_subquery().label("interactive"),
)
_CLAIM: Final = (
    update(jobs)
    .where(
        jobs.c.id == bindparam("job_id"),
        jobs.c.state == JobState.QUEUED.value,
        exists().where(batches.c.id == jobs.c.batch_id, TAKES_JOBS),
    )
    .values(
        state=JobState.RUNNING.value,
        worker_id=bindparam("claimer"),
        lease=jobs.c.lease + 1,
        # Count the attempt here, not at its end: a job that kills its worker must run out of attempts.
        attempts=jobs.c.attempts + 1,
        claimed_at=bindparam("now"),
    )
    .returning(*_CLAIMED)
)
_CLAIM_UNLESS_LAST: Final = _CLAIM.where(not_(AT_LAST_ATTEMPT))
# Where no stored answer could be taken instead, and no equal job runs.
_CLAIM_TO_ANSWER: Final = _CLAIM.where(NOTHING_TO_TAKE)
_CLAIM_TO_ANSWER_UNLESS_LAST: Final = _CLAIM_UNLESS_LAST.where(NOTHING_TO_TAKE)
_CLAIMED_BEFORE: Final = select(*_CLAIMED).where(
    jobs.c.id == bindparam("job_id"),
    jobs.c.state == JobState.RUNNING.value,
    jobs.c.worker_id == bindparam("claimer"),
    jobs.c.claimed_at == bindparam("now"),
)
# The fence: the condition that only the current holder's write meets.
_FENCE: Final = (
    jobs.c.id == bindparam("job_id"),
    jobs.c.state == JobState.RUNNING.value,
    jobs.c.lease == bindparam("held"),
    jobs.c.worker_id == bindparam("holder"),
)
_FINISH: Final = (
    update(jobs)
    .where(*_FENCE)
    .values(
        state=bindparam("new_state"),
        finished_at=bindparam("now"),
        setup_key=case((jobs.c.answer_key.is_not(None), bindparam("setup", type_=String)), else_=None),
        error_code=bindparam("code"),
        error_message=bindparam("message"),
    )
    .returning(jobs.c.batch_id, jobs.c.claimed_at)
)
_FINISH_NOT_ACCEPTED: Final = _FINISH.values(tries=jobs.c.tries + 1)
_FINISHED_BEFORE: Final[Select[Any]] = select(literal_column("1")).where(
    jobs.c.id == bindparam("job_id"),
    jobs.c.state == bindparam("new_state"),
    jobs.c.lease == bindparam("held"),
    jobs.c.worker_id == bindparam("holder"),
    # A reclaim at the attempt cap changes neither lease nor worker: only the time tells its failure from ours.
    jobs.c.finished_at == bindparam("now"),
)
_GIVE_BACK: Final = (
    update(jobs)
    .where(*_FENCE)
    .values(
        state=JobState.QUEUED.value,
        published_at=None,
        claimed_at=None,
        worker_id=None,
        queued_at=bindparam("now"),
    )
)
# After its last attempt a job does not wait for another one.
_GIVE_BACK_UNLESS_LAST: Final = _GIVE_BACK.where(jobs.c.attempts < jobs.c.max_attempts)
# Handing a job back in order is not a failed attempt.
_RELEASE: Final = _GIVE_BACK.values(attempts=jobs.c.attempts - 1)
# An answer came, so the job is not what killed earlier workers: its attempts begin anew.
_REFUSE: Final = _RELEASE.values(tries=jobs.c.tries + 1, attempts=0).returning(jobs.c.batch_id)
# The job may have been claimed again since, which raises its lease but leaves the time at which it was queued.
_REFUSED_BEFORE: Final[Select[Any]] = select(literal_column("1")).where(
    jobs.c.id == bindparam("job_id"),
    jobs.c.lease >= bindparam("held"),
    jobs.c.tries > 0,
    jobs.c.queued_at == bindparam("now"),
)
_LARGEST_LEASE: Final = 2_000_000_000
_FAIL_UNREADABLE: Final = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"), jobs.c.state == JobState.QUEUED.value)
    .values(
        state=JobState.FAILED.value,
        request={},
        queued_at=bindparam("now"),
        published_at=None,
        claimed_at=None,
        finished_at=bindparam("now"),
        worker_id=None,
        lease=case((jobs.c.lease.between(0, _LARGEST_LEASE), jobs.c.lease), else_=0),
        error_code=ErrorCode.INVALID_REQUEST.value,
        error_message=bindparam("message"),
    )
    .returning(jobs.c.batch_id)
)
_HELD: Final = select(jobs.c.id, jobs.c.lease).where(_IS_RUNNING, jobs.c.worker_id == bindparam("holder"))
_RESULT_FIELDS: Final = tuple(field.name for field in fields(ResultRow))
_TEXTS: Final = ("output_text", "reasoning_text")


def claim(
    c: Connection,
    job_id: int,
    *,
    worker_id: str,
    now: datetime,
    spare_last_attempt: bool = False,
    setup: AnswerSetup | None = None,
) -> ClaimedJob | None:
    """Take a queued job: one compare-and-set. None: it is finished, cancelled, unsealed or held by another worker.

    A second call with the same ``now`` returns the same claim, so it may be repeated after an uncertain commit.

    Args:
        c: A write transaction.
        job_id: The job.
        worker_id: The worker that takes it.
        now: The time written.
        spare_last_attempt: Leave the job if this would be its last attempt and the earlier ones died with their
            workers or servers; ``retries.awaits_last_attempt`` tells whether that was the reason.
        setup: Leave the job if ``answer_cache`` has an answer for this setup, or an equal job runs. None: take it.

    Raises:
        Exception: The stored row cannot be read; nothing is changed. Call ``fail_unreadable``.
    """
    parameters = {"job_id": job_id, "claimer": worker_id, "now": now}
    if setup is None:
        statement = _CLAIM_UNLESS_LAST if spare_last_attempt else _CLAIM
        row = c.execute(statement, parameters).first()
    else:
        statement = _CLAIM_TO_ANSWER_UNLESS_LAST if spare_last_attempt else _CLAIM_TO_ANSWER
        row = c.execute(statement, {**parameters, "low": setup.low, "high": setup.high}).first()
    row = row or c.execute(_CLAIMED_BEFORE, parameters).first()
    if row is not None and not isinstance(row.lease, int):  # SQLite goes on in floating point beyond 64 bits
        raise ValueError("the lease's number cannot be raised")
    return None if row is None else ClaimedJob(**row._mapping)  # noqa: SLF001  (SQLAlchemy's documented name)


def finish_succeeded(c: Connection, job: FinishedJob, answers: Sequence[ResultRow], now: datetime) -> bool:
    """Write a result row for each answer, and the final state. False: fenced, nothing was written."""
    parameters = _finish_parameters(job, JobState.SUCCEEDED, now)
    row = c.execute(_FINISH, parameters).first()
    if row is None:
        return _finished_before(c, parameters)
    _insert_answers(c, job, answers, now)
    counters.add(
        c,
        counters.Share(
            batch_id=row.batch_id,
            writer=job.worker_id,
            outcome=JobState.SUCCEEDED.value,
            jobs=1,
            **counters.sums_of(answers),
            started_at=row.claimed_at,
            finished_at=now,
        ),
    )
    return True


def finish_failed(c: Connection, job: FinishedJob, code: str, message: str, now: datetime) -> bool:
    """Write the failure and the final state. False: fenced, nothing was written."""
    parameters = _finish_parameters(job, JobState.FAILED, now, code, message)
    row = c.execute(_FINISH, parameters).first()
    if row is None:
        return _finished_before(c, parameters)
    counters.add(
        c,
        counters.Share(
            batch_id=row.batch_id,
            writer=job.worker_id,
            outcome=ErrorCode(code).value,
            jobs=1,
            started_at=row.claimed_at,
            finished_at=now,
        ),
    )
    return True


def refuse(c: Connection, job: FinishedJob, now: datetime) -> bool:
    """Put the job back into the queue, because its acceptance rule refused its answer. False: fenced.

    The next try has all attempts. The refused answer is not kept.
    """
    parameters = {"job_id": job.job_id, "held": job.lease, "holder": job.worker_id, "now": now}
    row = c.execute(_REFUSE, parameters).first()
    if row is None:
        return (
            c.execute(_REFUSED_BEFORE, {name: parameters[name] for name in ("job_id", "held", "now")}).first()
            is not None
        )
    counters.add(c, counters.refusals(row.batch_id, job.worker_id, 1))
    return True


def finish_not_accepted(
    c: Connection, job: FinishedJob, answers: Sequence[ResultRow], reason: str, now: datetime
) -> bool:
    """Fail the job, because its acceptance rule refused its last answer too, and keep that answer. False: fenced."""
    parameters = _finish_parameters(job, JobState.FAILED, now, ErrorCode.NOT_ACCEPTED, reason)
    row = c.execute(_FINISH_NOT_ACCEPTED, parameters).first()
    if row is None:
        return _finished_before(c, parameters)
    _insert_answers(c, job, answers, now)
    counters.add(
        c,
        counters.refusals(row.batch_id, job.worker_id, 1),
        counters.Share(
            batch_id=row.batch_id,
            writer=job.worker_id,
            outcome=ErrorCode.NOT_ACCEPTED.value,
            jobs=1,
            started_at=row.claimed_at,
            finished_at=now,
        ),
    )
    return True


def release(c: Connection, job_id: int, lease: int, worker_id: str, now: datetime) -> bool:
    """Hand a claimed job back to the queue without counting the attempt. False: fenced."""
    return c.execute(_RELEASE, {"job_id": job_id, "held": lease, "holder": worker_id, "now": now}).rowcount > 0


def give_back(c: Connection, job_id: int, lease: int, worker_id: str, now: datetime) -> bool:
    """Hand a claimed job back to the queue. Its attempt counts, as the engine may have failed on it.

    False: fenced, or this was its last attempt.
    """
    parameters = {"job_id": job_id, "held": lease, "holder": worker_id, "now": now}
    return c.execute(_GIVE_BACK_UNLESS_LAST, parameters).rowcount > 0


def fail_unreadable(c: Connection, job_id: int, reason: str, now: datetime) -> bool:
    """Fail a queued job whose row cannot be read, by its number alone, and make the row readable.

    An empty request replaces the unusable one. False: the job is no longer queued.
    """
    message = f"the stored job cannot be read ({reason}), someone changed its row; submit the line again"
    row = c.execute(_FAIL_UNREADABLE, {"job_id": job_id, "now": now, "message": message}).first()
    if row is None:
        return False
    counters.add(
        c,
        counters.Share(
            batch_id=row.batch_id,
            writer=counters.PERSON,
            outcome=ErrorCode.INVALID_REQUEST.value,
            jobs=1,
            finished_at=now,
        ),
    )
    return True


def held_leases(c: Connection, worker_id: str) -> dict[int, int]:
    """Job id -> lease of every job that this worker runs according to the database.

    Any other job that the worker runs was cancelled or taken away: abort it.
    """
    return {int(row.id): int(row.lease) for row in c.execute(_HELD, {"holder": worker_id})}


def storable(value: str) -> str:
    """The text without what Postgres cannot hold (NUL) and UTF-8 cannot spell (lone surrogates)."""
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _insert_answers(c: Connection, job: FinishedJob, answers: Sequence[ResultRow], now: datetime) -> None:
    for answer in answers:
        values = {name: getattr(answer, name) for name in _RESULT_FIELDS}
        for name in _TEXTS:
            if values[name] is not None:
                values[name] = storable(values[name])
        result_rows.add(c, {**values, "job_id": job.job_id, "worker_id": job.worker_id, "created_at": now})


def _finish_parameters(
    job: FinishedJob, state: JobState, now: datetime, code: str | None = None, message: str | None = None
) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "held": job.lease,
        "holder": job.worker_id,
        "new_state": state.value,
        "now": now,
        "setup": job.setup_key if state is JobState.SUCCEEDED else None,
        "code": None if code is None else ErrorCode(code).value,
        "message": None if message is None else storable(message)[:MAX_ERROR_MESSAGE_CHARS],
    }


def _finished_before(c: Connection, parameters: dict[str, Any]) -> bool:
    """Whether this write is already stored: the answer to its commit was lost and the caller repeats it."""
    keys = ("job_id", "new_state", "held", "holder", "now")
    return c.execute(_FINISHED_BEFORE, {key: parameters[key] for key in keys}).first() is not None
