"""A few jobs of a batch to read: a sample of its answers, examples of each error, and jobs by their ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select, text

from helix_jobs.storage.answer_sample import spaced_lines
from helix_jobs.storage.readable import readable_rows
from helix_jobs.storage.schema import jobs, results
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Select

# In the words of its partial index.
_UNSUCCESSFUL: Final = text("jobs.state IN ('failed', 'cancelled')")
# Lines that are looked at for each that is shown: some have no answer.
_SPARE: Final = 4
_QUERY: Final = (
    select(
        jobs.c.line,
        jobs.c.custom_id,
        jobs.c.request,
        jobs.c.error_code,
        jobs.c.error_message,
        func.substr(results.c.output_text, 1, 4001).label("output_text"),
        func.substr(results.c.reasoning_text, 1, 4001).label("reasoning_text"),
        results.c.tool_calls,
        results.c.finish_reason,
        results.c.completion_tokens,
        results.c.total_seconds,
    )
    .select_from(jobs.outerjoin(results, (results.c.job_id == jobs.c.id) & (results.c.choice == 0)))
    .order_by(jobs.c.line)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleJob:
    """A job with the beginning of its first answer; what the answer would have is None without one."""

    line: int
    custom_id: str | None
    request: Mapping[str, Any]
    error_code: str | None
    error_message: str | None
    output_text: str | None
    reasoning_text: str | None
    tool_calls: Sequence[Mapping[str, Any]] | None
    finish_reason: str | None
    completion_tokens: int | None
    total_seconds: float | None


def sample_of_answers(c: Connection, batch_id: str, count: int) -> list[ExampleJob]:
    """Answered jobs from lines that are evenly spaced over the batch; unreadable ones are left out."""
    last = c.execute(select(func.max(jobs.c.line)).where(jobs.c.batch_id == batch_id)).scalar_one()
    if last is None or not count:
        return []
    lines = spaced_lines(last, count * _SPARE)
    answered = (jobs.c.line.in_(list(lines)), jobs.c.state == JobState.SUCCEEDED.value)
    query = select(jobs.c.id).where(jobs.c.batch_id == batch_id, *answered).order_by(jobs.c.line)
    ids = c.execute(query).scalars().all()
    # Chosen before they are read: a request may be large, and most of the lines that were looked at are not shown.
    if len(ids) > count:
        ids = [ids[(2 * place + 1) * len(ids) // (2 * count)] for place in range(count)]
    return _examples(c, _QUERY.where(jobs.c.id.in_(ids)))


def examples_of_error(c: Connection, batch_id: str, code: str, count: int) -> list[ExampleJob]:
    """The first jobs of a batch that failed with this code; unreadable ones are left out."""
    failed = (jobs.c.state == JobState.FAILED.value, jobs.c.error_code == code)
    return _examples(c, _QUERY.where(jobs.c.batch_id == batch_id, _UNSUCCESSFUL, *failed).limit(count))


def _examples(c: Connection, query: Select[Any]) -> list[ExampleJob]:
    return [
        ExampleJob(**{**row._mapping, "request": row.request if isinstance(row.request, dict) else {}})  # noqa: SLF001  (SQLAlchemy's documented name)
        for row in readable_rows(c, query, jobs.c.id)
    ]
