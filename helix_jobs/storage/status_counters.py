"""status_counters: sums that let status read a few rows instead of counting a million.

Invariant: summed over writers, ``stored`` is the number of the batch's jobs, and each other outcome is the number of
its jobs in that final state. Tokens are those of succeeded jobs, without those whose answer came from another job:
nothing was computed for them, and ``from_cache`` counts them. ``refused`` is the sum of the jobs' ``tries``, and
stands under ``stored``, as a job in any state may have them. To keep the invariant, code that stores jobs, changes
their tries, or moves one into or out of a final state calls ``add`` in the same transaction. The connection sums the
additions and writes them once, right before the commit (``Database`` calls ``flush`` and ``discard``): a hundred jobs
finished in one transaction cost one counter update, and counter rows are locked last and briefly. ``recount`` states
the invariant as SQL; tests compare the two after every operation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, case, delete, func, select, text
from sqlalchemy.dialects import postgresql, sqlite

from helix_jobs.storage import result_rows
from helix_jobs.storage.schema import batch_counters, jobs, results
from helix_jobs.storage.states import JobState
from helix_jobs.token_counts import TokenCounts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Row

    from helix_jobs.storage.records import ResultRow

# The writers that are not workers.
SUBMITTER: Final = "submitter"
PERSON: Final = "person"

STORED: Final = "stored"
# The key in ``Connection.info`` of the additions that wait for the commit.
_PENDING: Final = "helix_batch_counters"
_SUMS: Final = (
    "jobs",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "draft_tokens",
    "accepted_tokens",
    "cut_off",
    "refused",
    "from_cache",
)
# The sums of what was computed, which are also columns of results.
OF_RESULTS: Final = tuple(TokenCounts().tokens())
# The columns of results that say what an answer adds to a share.
COUNTED_COLUMNS: Final = (*OF_RESULTS, "choice", "finish_reason", "from_cache")
_CUT: Final = "length"


def _sum_if(condition: ColumnElement[bool], value: Any) -> ColumnElement[int]:  # noqa: ANN401  (a column or a number)
    return func.coalesce(func.sum(case((condition, value), else_=0)), 0)


_CUT_OFF: Final = _sum_if(results.c.finish_reason == _CUT, 1)
_WAS_COMPUTED: Final = results.c.from_cache.is_(None)
_FROM_CACHE: Final = _sum_if(and_(results.c.from_cache.is_not(None), results.c.choice == 0), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one transaction adds to a batch's counters under one outcome."""

    batch_id: str
    writer: str
    outcome: str
    jobs: int
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    cut_off: int = 0
    refused: int = 0
    from_cache: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None


_COLUMNS: Final = tuple(field.name for field in fields(Share))


def refusals(batch_id: str, writer: str, count: int) -> Share:
    """What the refusal of ``count`` answers adds; a negative count takes refusals back."""
    return Share(batch_id=batch_id, writer=writer, outcome=STORED, jobs=0, refused=count)


def sums_of(answers: Sequence[ResultRow] | Sequence[Row[*tuple[Any, ...]]]) -> dict[str, int]:
    """What the answers of one job, to be stored or read back, add to a share."""
    sums = dict.fromkeys((*OF_RESULTS, "cut_off", "from_cache"), 0)
    for answer in answers:
        if answer.from_cache is None:
            for name in OF_RESULTS:
                sums[name] += getattr(answer, name)
        else:
            sums["from_cache"] += answer.choice == 0
        sums["cut_off"] += answer.finish_reason == _CUT
    return sums


def _upsert(insert: Any) -> Any:  # noqa: ANN401  (the two dialects' inserts share no type)
    statement = insert(batch_counters)
    old, new = batch_counters.c, statement.excluded
    # A comparison with NULL is not true, so `else` also serves the side that has no time yet.
    changes: dict[str, ColumnElement[Any]] = {name: old[name] + new[name] for name in _SUMS}
    changes["started_at"] = case(
        (new.started_at < old.started_at, new.started_at), else_=func.coalesce(old.started_at, new.started_at)
    )
    changes["finished_at"] = case(
        (new.finished_at > old.finished_at, new.finished_at), else_=func.coalesce(old.finished_at, new.finished_at)
    )
    return statement.on_conflict_do_update(index_elements=["batch_id", "writer", "outcome"], set_=changes)


_UPSERT: Final = {"sqlite": _upsert(sqlite.insert), "postgresql": _upsert(postgresql.insert)}


def add(c: Connection, *shares: Share) -> None:
    """Add to the counters in this transaction."""
    pending: dict[tuple[str, str, str], dict[str, Any]] = c.info.setdefault(_PENDING, {})
    for share in shares:
        key = (share.batch_id, share.writer, share.outcome)
        sums = pending.get(key)
        if sums is None:
            pending[key] = {name: getattr(share, name) for name in _COLUMNS}
        else:
            _merge(sums, share)


def flush(c: Connection) -> None:
    """Write the additions: before the commit, and before counters are read in the same transaction."""
    pending: dict[tuple[str, str, str], dict[str, Any]] = c.info.pop(_PENDING, {})
    # Sorted, so that two transactions which update the same rows do not deadlock.
    for key in sorted(pending):
        c.execute(_UPSERT[c.dialect.name], pending[key])


def discard(c: Connection) -> None:
    """Forget the additions; the transaction was rolled back."""
    c.info.pop(_PENDING, None)


def _merge(sums: dict[str, Any], share: Share) -> None:
    """Add a share to the sums so far, which change: this is done for every job."""
    for name in _SUMS:
        sums[name] += getattr(share, name)
    if share.started_at is not None and (sums["started_at"] is None or share.started_at < sums["started_at"]):
        sums["started_at"] = share.started_at
    if share.finished_at is not None and (sums["finished_at"] is None or share.finished_at > sums["finished_at"]):
        sums["finished_at"] = share.finished_at


def recount(c: Connection, batch_id: str) -> None:
    """Rebuild a batch's counters from its jobs, after rows were changed by hand; costs a scan of the batch.

    Each worker keeps a row for what it ended: the manifest names workers by their rows, and purge spares those.
    """
    flush(c)
    result_rows.flush(c)
    shares = _count(c, batch_id, times=True)
    c.execute(delete(batch_counters).where(batch_counters.c.batch_id == batch_id))
    add(c, *shares)


def counters_agree(c: Connection, batch_id: str) -> bool:
    """Whether the batch's counters agree with its jobs; costs a scan of the batch."""
    flush(c)
    result_rows.flush(c)
    sums = [func.sum(batch_counters.c[name]).label(name) for name in _SUMS]
    query = select(batch_counters.c.outcome, *sums).where(batch_counters.c.batch_id == batch_id)
    kept = {
        row.outcome: tuple(int(getattr(row, name)) for name in _SUMS)
        for row in c.execute(query.group_by(batch_counters.c.outcome))
    }
    counted: dict[str, tuple[int, ...]] = {}
    for share in _count(c, batch_id, times=False):
        before = counted.get(share.outcome, (0,) * len(_SUMS))
        counted[share.outcome] = tuple(had + int(getattr(share, name)) for had, name in zip(before, _SUMS, strict=True))
    return {k: v for k, v in kept.items() if any(v)} == {k: v for k, v in counted.items() if any(v)}


def _count(c: Connection, batch_id: str, *, times: bool) -> list[Share]:
    stored = c.execute(
        select(func.count().label("jobs"), func.coalesce(func.sum(jobs.c.tries), 0).label("refused"))
        .select_from(jobs)
        .where(jobs.c.batch_id == batch_id)
    ).one()
    outcome = case((jobs.c.state == JobState.FAILED.value, jobs.c.error_code), else_=jobs.c.state)
    # A cancel is a person's, whoever ran the job.
    writer = case((jobs.c.state == JobState.CANCELLED.value, PERSON), else_=func.coalesce(jobs.c.worker_id, PERSON))
    rows = c.execute(
        select(
            outcome.label("outcome"),
            writer.label("writer"),
            func.count(jobs.c.id.distinct()).label("jobs"),
            *(_sum_if(_WAS_COMPUTED, results.c[name]).label(name) for name in OF_RESULTS),
            _CUT_OFF.label("cut_off"),
            _FROM_CACHE.label("from_cache"),
            *((func.min(jobs.c.claimed_at).label("started_at"),) if times else ()),
            *((func.max(jobs.c.finished_at).label("finished_at"),) if times else ()),
        )
        .select_from(
            jobs.outerjoin(results, and_(results.c.job_id == jobs.c.id, jobs.c.state == JobState.SUCCEEDED.value))
        )
        .where(jobs.c.batch_id == batch_id, jobs.c.finished_at.is_not(None))
        .group_by(text("outcome"), text("writer"))
    )
    return [
        Share(batch_id=batch_id, writer=SUBMITTER, outcome=STORED, jobs=stored.jobs, refused=stored.refused),
        *(Share(batch_id=batch_id, **row._mapping) for row in rows),  # noqa: SLF001  (SQLAlchemy's documented name)
    ]
