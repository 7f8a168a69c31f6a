"""The rows of a list of answers: each job with the beginnings of its texts, however long they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, and_, cast, func, select

from helix_jobs.errors import UnreadableRowError
from helix_jobs.storage.answer_records import AnswerHead
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import jobs, results
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

# Characters of a text that a row shows at most, and one more, which tells that there are more.
TEXT_HEAD: Final = 400
# Of the stored request, whose prompt is somewhere in it. A longer one is JSON that is cut off.
REQUEST_HEAD: Final = 16_384


_CHOICE: Final = results.alias("a_choice")
_NUM_CHOICES: Final = select(func.count()).where(_CHOICE.c.job_id == jobs.c.id).scalar_subquery()
_QUERY: Final = select(
    jobs.c.id.label("job_id"),
    jobs.c.line,
    jobs.c.state,
    jobs.c.custom_id,
    jobs.c.attempts,
    jobs.c.tries,
    jobs.c.error_code,
    func.substr(jobs.c.error_message, 1, TEXT_HEAD + 1).label("error_message"),
    jobs.c.finished_at,
    func.substr(cast(jobs.c.request, Text), 1, REQUEST_HEAD + 1).label("request"),
    _NUM_CHOICES.label("choices"),
    func.substr(results.c.output_text, 1, TEXT_HEAD + 1).label("output_text"),
    func.substr(results.c.reasoning_text, 1, TEXT_HEAD + 1).label("reasoning_text"),
    results.c.tool_calls.is_not(None).label("called_tools"),
    results.c.finish_reason,
    results.c.is_valid,
    results.c.completion_tokens,
    results.c.total_seconds,
).select_from(jobs.outerjoin(results, and_(results.c.job_id == jobs.c.id, results.c.choice == 0)))
# What can be read of any row.
_PLACE: Final = select(jobs.c.id.label("job_id"), jobs.c.line)


def read_heads(c: Connection, job_ids: Sequence[int]) -> tuple[AnswerHead, ...]:
    """The rows of these jobs, in their order. One that cannot be read has its line alone."""
    try:
        rows = fetch_all(c, _QUERY.where(jobs.c.id.in_(job_ids)))
    except UnreadableRowError:
        return tuple(head for job_id in job_ids for head in _one(c, job_id))
    heads = {row.job_id: _answer_head(row) for row in rows}
    return tuple(heads[job_id] for job_id in job_ids if job_id in heads)


def _one(c: Connection, job_id: int) -> list[AnswerHead]:
    try:
        return [_answer_head(row) for row in fetch_all(c, _QUERY.where(jobs.c.id == job_id))]
    except UnreadableRowError:
        rows = fetch_all(c, _PLACE.where(jobs.c.id == job_id))
        return [AnswerHead(job_id=row.job_id, line=row.line, state=None) for row in rows]


def _answer_head(row: Row[Any]) -> AnswerHead:
    values = dict(row._mapping)  # noqa: SLF001  (SQLAlchemy's documented name)
    return AnswerHead(**{**values, "state": JobState(values["state"]), "called_tools": bool(values["called_tools"])})
