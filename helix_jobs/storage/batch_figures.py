"""Figures of a batch for its report, added up in the database: only sums and a few rows leave it, at any size.

The batch is read in slices of lines, each in a transaction of its own: no statement takes long, no snapshot is held.
Trade-off: figures of a batch that runs are of slightly different moments.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BindParameter, ColumnElement, Double, Integer, bindparam, case, cast, extract, func, select, text

from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import jobs, results
from helix_jobs.storage.states import JobState
from helix_jobs.storage.utc_datetime import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection, Select

    from helix_jobs.storage.database import OpenRead

_SLICE: Final = 20_000
_TOP: Final = 5
# Lengths are exact up to here, and from here on in tens: a million different ones would help nobody.
_EXACT_LENGTH: Final = 500
_TEN: Final = 10
_DAY_SECONDS: Final = 86_400.0
# Seconds to the first token are counted between these.
TTFT_EDGES: Final = tuple(
    round(part * 10.0**power, 3) for power in range(-2, 3) for part in (1, 1.5, 2, 3, 5, 7)
)  # fmt: skip
_ANSWERED: Final = JobState.SUCCEEDED.value
_BEGUN: Final[BindParameter[Any]] = bindparam("begun", type_=UTCDateTime)
_WIDTH: Final[BindParameter[Any]] = bindparam("width", type_=Double)
# The column of the span in which an answer was stored. A cast cuts off on SQLite, and rounds on Postgres.
_COLUMN: Final[dict[str, ColumnElement[Any]]] = {
    "sqlite": cast((func.julianday(results.c.created_at) - func.julianday(_BEGUN)) * _DAY_SECONDS / _WIDTH, Integer),
    "postgresql": cast(func.floor(extract("epoch", results.c.created_at - _BEGUN) / _WIDTH), Integer),
}


@dataclass(slots=True)
class TokenSums:
    """Sums over answers; tokens are those that were computed for them.

    An answer from the cache counts as an answer alone.
    """

    answers: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """The time over which answers are counted, in columns of equal width.

    Attributes:
        begun: Its beginning.
        seconds: Its length.
        columns: The number of columns.
    """

    begun: datetime
    seconds: float
    columns: int

    @property
    def width(self) -> float:
        """Seconds of a column."""
        return max(self.seconds, 1e-3) / self.columns


@dataclass(frozen=True, slots=True)
class RankedJob:
    """A job that is among the slowest or the longest."""

    line: int
    custom_id: str | None
    total_seconds: float
    completion_tokens: int


@dataclass(slots=True)
class BatchFigures:
    """What is counted of a batch's answers.

    Attributes:
        over_time: Column of the span -> sums over the answers that were stored in it.
        lengths: Tokens of an answer -> answers; from 500 tokens on in tens, each under its first (``most_tokens``).
        ttft: Place in ``TTFT_EDGES`` of the first edge that is not exceeded (its length: none) -> answers.
        finish_reasons: Finish reason -> answers.
        attempts: Claims of a job -> jobs that have ended.
        tries: Refused answers of a job -> jobs.
        slowest: The jobs that took longest.
        longest: The jobs with the most tokens.
    """

    over_time: dict[int, TokenSums] = field(default_factory=dict)
    lengths: Counter[int] = field(default_factory=Counter)
    ttft: Counter[int] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    tries: Counter[int] = field(default_factory=Counter)
    slowest: list[RankedJob] = field(default_factory=list)
    longest: list[RankedJob] = field(default_factory=list)


def counted_length(tokens: int) -> int:
    """The length under which ``BatchFigures.lengths`` counts an answer."""
    return tokens if tokens < _EXACT_LENGTH else tokens - tokens % _TEN


def most_tokens(length: int) -> int:
    """The most tokens that answers have which ``BatchFigures.lengths`` counts under this length."""
    return length if length < _EXACT_LENGTH else length + _TEN - 1


def batch_figures(open_read: OpenRead, batch_id: str, span: Span) -> BatchFigures:
    """Count a batch's answers.

    Raises:
        UnreadableRowError: A value of a row cannot be read.
    """
    found = BatchFigures()
    for place in _slices(open_read, batch_id):
        with open_read() as c:
            _count_slice(c, place, span, found)
    return found


def _slices(open_read: OpenRead, batch_id: str) -> Iterator[dict[str, Any]]:
    """The slices: their lines, and their jobs' ids. By the ids a database finds the answers side by side."""
    after = 0
    while True:
        part = (
            select(jobs.c.id, jobs.c.line)
            .where(jobs.c.batch_id == batch_id, jobs.c.line > after)
            .order_by(jobs.c.line)
            .limit(_SLICE)
            .subquery()
        )
        with open_read() as c:
            row = c.execute(
                select(func.min(part.c.id).label("first"), func.max(part.c.id).label("last"), func.max(part.c.line))
            ).one()
        if row.first is None:
            return
        yield {"batch": batch_id, "after": after, "line": row[2], "first": row.first, "last": row.last}
        after = row[2]


_OF_SLICE: Final = (
    jobs.c.batch_id == bindparam("batch"),
    jobs.c.line > bindparam("after"),
    jobs.c.line <= bindparam("line"),
)
_WITH_ANSWERS: Final = (
    *_OF_SLICE,
    jobs.c.state == _ANSWERED,
    results.c.job_id.between(bindparam("first"), bindparam("last")),
)
_LENGTH: Final = case(
    (results.c.completion_tokens < _EXACT_LENGTH, results.c.completion_tokens),
    else_=results.c.completion_tokens - results.c.completion_tokens % _TEN,
)
_TTFT: Final = case(
    *((results.c.ttft_seconds <= edge, place) for place, edge in enumerate(TTFT_EDGES)), else_=len(TTFT_EDGES)
)


def _grouped(*keys: ColumnElement[Any], where: tuple[Any, ...] = ()) -> Select[Any]:
    named = [key.label(f"key{place}") for place, key in enumerate(keys)]
    joined = select(*named, func.count().label("answers")).join_from(jobs, results, results.c.job_id == jobs.c.id)
    return joined.where(*_WITH_ANSWERS, *where).group_by(*(text(f"key{place}") for place in range(len(keys))))


_LENGTHS: Final = _grouped(_LENGTH)
_FIRST_TOKENS: Final = _grouped(_TTFT, where=(results.c.ttft_seconds.is_not(None),))
_REASONS: Final = _grouped(results.c.finish_reason)
_REPEATED: Final = (
    select(jobs.c.attempts, jobs.c.tries, func.count().label("jobs"))
    .where(*_OF_SLICE, jobs.c.finished_at.is_not(None))
    .group_by(jobs.c.attempts, jobs.c.tries)
)
_SUMS: Final = tuple(TokenSums.__dataclass_fields__)[1:]


def _computed(tokens: ColumnElement[Any]) -> ColumnElement[Any]:
    """Tokens of an answer that was computed for its job; 0 of one from the cache."""
    return case((results.c.from_cache.is_(None), tokens), else_=0)


_OVER_TIME: Final = {
    dialect: select(place.label("key0"), func.count().label("answers"))
    .add_columns(*(func.coalesce(func.sum(_computed(results.c[name])), 0).label(name) for name in _SUMS))
    .join_from(jobs, results, results.c.job_id == jobs.c.id)
    .where(*_WITH_ANSWERS)
    .group_by(text("key0"))
    for dialect, place in _COLUMN.items()
}


def _ranked(by: ColumnElement[Any]) -> Select[Any]:
    return (
        select(jobs.c.line, jobs.c.custom_id, results.c.total_seconds, results.c.completion_tokens)
        .join_from(jobs, results, results.c.job_id == jobs.c.id)
        .where(*_WITH_ANSWERS, results.c.choice == 0)
        .order_by(by.desc(), jobs.c.line)
        .limit(_TOP)
    )


_SLOWEST: Final = _ranked(results.c.total_seconds)
_LONGEST: Final = _ranked(results.c.completion_tokens)


def _count_slice(c: Connection, place: dict[str, Any], span: Span, found: BatchFigures) -> None:
    times = {**place, "begun": span.begun, "width": span.width}
    for row in fetch_all(c, _OVER_TIME[c.dialect.name], times):
        sums = found.over_time.setdefault(min(max(int(row.key0), 0), span.columns - 1), TokenSums())
        sums.answers += row.answers
        for name in _SUMS:
            setattr(sums, name, getattr(sums, name) + int(getattr(row, name)))
    for query, counter in (
        (_LENGTHS, found.lengths),
        (_FIRST_TOKENS, found.ttft),
        (_REASONS, found.finish_reasons),
    ):
        for row in fetch_all(c, query, place):
            counter[row.key0] += row.answers
    for row in fetch_all(c, _REPEATED, place):
        found.attempts[row.attempts] += row.jobs
        found.tries[row.tries] += row.jobs
    found.slowest = _best(found.slowest, c, _SLOWEST, place, lambda job: job.total_seconds)
    found.longest = _best(found.longest, c, _LONGEST, place, lambda job: job.completion_tokens)


def _best(
    before: list[RankedJob],
    c: Connection,
    query: Select[Any],
    place: dict[str, Any],
    value: Callable[[RankedJob], float],
) -> list[RankedJob]:
    rows = [RankedJob(**row._mapping) for row in fetch_all(c, query, place)]  # noqa: SLF001  (SQLAlchemy's documented name)
    return sorted([*before, *rows], key=lambda job: (-value(job), job.line))[:_TOP]
