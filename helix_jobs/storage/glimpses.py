"""Glimpses of jobs, evenly over a batch: what a forecast needs of a million jobs, in some hundred rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Text, and_, case, cast, func, select, text

from helix_jobs.storage.readable import fetch_all, readable_rows
from helix_jobs.storage.schema import TAKES_JOBS, batches, jobs, results, runs
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Connection, Select

_ENDED: Final = (JobState.SUCCEEDED.value, JobState.FAILED.value)
_RUNNING: Final = text("state = 'running'")
# Numbers in a stored request, as text: whatever somebody has made of it by hand, the query does not fail.
_SAMPLING: Final[Mapping[str, Mapping[str, ColumnElement[Any]]]] = {
    "sqlite": {
        name: cast(
            case((func.json_valid(jobs.c.request) == 1, func.json_extract(jobs.c.request, f"$.sampling.{name}"))), Text
        )
        for name in ("max_tokens", "n")
    },
    "postgresql": {name: func.json_extract_path_text(jobs.c.request, "sampling", name) for name in ("max_tokens", "n")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """One job, as a forecast sees it.

    Attributes:
        size: Characters of its stored request, which grow with its prompt.
        max_tokens: Of each of its answers; None where the request does not say.
        choices: Answers that it asks for.
        tokens: Of its first answer; None while there is none.
        computed_tokens: Prompt tokens that were computed for that answer.
        was_cut: Its first answer was cut off.
        total_seconds: Of its first answer, from its admission on.
    """

    id: int
    batch_id: str
    state: JobState
    priority: int
    size: int
    max_tokens: int | None
    choices: int
    claimed_at: datetime | None
    finished_at: datetime | None
    tokens: int | None
    computed_tokens: int | None
    was_cut: bool
    total_seconds: float | None

    @property
    def has_ended(self) -> bool:
        """Whether it has been worked at to its end."""
        return self.state.value in _ENDED


def glimpses(c: Connection, batch_id: str, most: int) -> list[Glimpse]:
    """Jobs of a batch, evenly over its lines and in their order: all of them, or about ``most``."""
    last = c.execute(select(func.max(jobs.c.line)).where(jobs.c.batch_id == batch_id)).scalar_one() or 0
    lines = range(1, last + 1) if last <= most else [1 + (last - 1) * turn // (most - 1) for turn in range(most)]
    return _read(c, _query(c).where(jobs.c.batch_id == batch_id, jobs.c.line.in_(lines)).order_by(jobs.c.id))


def running_glimpses(c: Connection) -> list[Glimpse]:
    """The jobs that run, of all batches."""
    return _read(c, _query(c).where(_RUNNING))


def recent_glimpses(c: Connection, target_model: str, most: int) -> list[Glimpse]:
    """Those that were answered last by a model, of all batches."""
    newest = (
        select(results.c.job_id)
        .where(results.c.target_model == target_model, results.c.choice == 0)
        .order_by(results.c.created_at.desc())
        .limit(most)
    )
    return _read(c, _query(c).where(jobs.c.id.in_(newest)))


def waiting_batches(c: Connection) -> list[str]:
    """Batches whose jobs may begin and of which some wait."""
    some = select(1).where(jobs.c.batch_id == batches.c.id, text("state = 'queued'")).limit(1).scalar_subquery()
    return list(c.execute(select(batches.c.id).where(TAKES_JOBS, some.is_not(None)).order_by(batches.c.id)).scalars())


def recent_step_costs(c: Connection, worker_ids: Iterable[str], most: int) -> list[Mapping[str, Any]]:
    """What steps cost in these workers' newest runs, the newest first."""
    query = (
        select(runs.c.id, runs.c.step_costs)
        .where(runs.c.worker_id.in_(list(worker_ids)), runs.c.step_costs.is_not(None))
        .order_by(runs.c.id.desc())
        .limit(most)
    )
    return [row.step_costs for row in readable_rows(c, query, runs.c.id)]


def _query(c: Connection) -> Select[*tuple[Any, ...]]:
    is_sqlite = c.dialect.name == "sqlite"
    size = func.length(jobs.c.request if is_sqlite else cast(jobs.c.request, Text))
    return select(
        jobs.c.id,
        jobs.c.batch_id,
        jobs.c.state,
        jobs.c.priority,
        size.label("size"),
        *(column.label(name) for name, column in _SAMPLING[c.dialect.name].items()),
        jobs.c.claimed_at,
        jobs.c.finished_at,
        results.c.completion_tokens,
        (results.c.prompt_tokens - results.c.cached_prompt_tokens).label("computed_tokens"),
        results.c.finish_reason,
        results.c.total_seconds,
    ).outerjoin(results, and_(results.c.job_id == jobs.c.id, results.c.choice == 0))


def _read(c: Connection, query: Select[*tuple[Any, ...]]) -> list[Glimpse]:
    return [
        Glimpse(
            id=row.id,
            batch_id=row.batch_id,
            state=JobState(row.state),
            priority=row.priority,
            size=row.size or 0,
            max_tokens=_whole(row.max_tokens),
            choices=_whole(row.n) or 1,
            claimed_at=row.claimed_at,
            finished_at=row.finished_at,
            tokens=row.completion_tokens,
            computed_tokens=row.computed_tokens,
            was_cut=row.finish_reason == "length",
            total_seconds=row.total_seconds,
        )
        for row in fetch_all(c, query)
    ]


def _whole(value: str | None) -> int | None:
    return int(value) if value is not None and value.isascii() and value.isdecimal() else None
