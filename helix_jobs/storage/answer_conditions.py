"""A filter of a batch's list of answers as SQL: what an index finds, and what each row is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import false, func, select, text

from helix_jobs.errors import InvalidFieldError
from helix_jobs.storage.answer_records import AnswerMark, AnswerOrder
from helix_jobs.storage.schema import jobs, results
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement

    from helix_jobs.storage.answer_records import AnswerFilter

# The conditions of partial indexes, in the indexes' own words: else SQLite does not use them.
_ENDED: Final = text("jobs.finished_at IS NOT NULL")
_UNSUCCESSFUL: Final = text("jobs.state IN ('failed', 'cancelled')")
_RUNNING: Final = text("jobs.state = 'running'")
_OF_JOBS: Final[Mapping[AnswerMark, ColumnElement[bool]]] = {
    AnswerMark.REFUSED: jobs.c.tries > 0,
    AnswerMark.RETAKEN: jobs.c.attempts > 1,
}
# A name of its own: the query around may have the answers' table as well.
_ANSWER: Final = results.alias("answer")
_OF_ANSWERS: Final[Mapping[AnswerMark, ColumnElement[bool]]] = {
    AnswerMark.THOUGHT: _ANSWER.c.reasoning_text.is_not(None),
    AnswerMark.CALLED_TOOLS: _ANSWER.c.tool_calls.is_not(None),
    AnswerMark.BROKEN_FORM: _ANSWER.c.is_valid == false(),
}


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a list.

    Attributes:
        found: An index finds these rows in the order of the list.
        asked: Each of those rows is asked these.
    """

    found: tuple[Any, ...]
    asked: tuple[ColumnElement[bool], ...]


def conditions_of(batch_id: str, which: AnswerFilter, order: AnswerOrder) -> Conditions:
    """The conditions of a filter, without its text.

    Raises:
        InvalidFieldError: Nothing can match: what has not ended stands in no list of what ended last.
    """
    state = which.state
    if state is None and which.error_code is not None:
        state = JobState.FAILED
    found, asked = _of_state(batch_id, state, order)
    if which.error_code is not None:
        asked.append(jobs.c.error_code == which.error_code)
    if which.mark is not None and which.mark in _OF_JOBS:
        asked.append(_OF_JOBS[which.mark])
    of_answers = []
    if which.finish_reason is not None:
        of_answers.append(_ANSWER.c.finish_reason == which.finish_reason)
    if which.mark is not None and which.mark in _OF_ANSWERS:
        of_answers.append(_OF_ANSWERS[which.mark])
    if of_answers:
        # Counted, as Postgres might join an EXISTS by a walk over all results.
        there = select(func.count()).where(_ANSWER.c.job_id == jobs.c.id, *of_answers)
        asked.append(there.scalar_subquery() > 0)
    return Conditions(tuple(found), tuple(asked))


def _of_state(batch_id: str, state: JobState | None, order: AnswerOrder) -> tuple[list[Any], list[ColumnElement[bool]]]:
    of_batch = jobs.c.batch_id == batch_id
    in_state = [] if state is None else [jobs.c.state == state.value]
    if order == AnswerOrder.NEWEST:
        if state in (JobState.QUEUED, JobState.RUNNING):
            raise InvalidFieldError("order", f"newest has no jobs that are {state.value}", "list them by line")
        return [of_batch, _ENDED], in_state
    if state in (JobState.FAILED, JobState.CANCELLED):
        # True of every line. It says that the lines of this index are wanted: without it SQLite may walk the batch.
        return [of_batch, _UNSUCCESSFUL, *in_state, jobs.c.line > 0], []
    if state == JobState.RUNNING:
        # As many rows as workers have slots, which are sorted. Concatenation hides the column's other indexes: see
        # ``status.py``.
        return [_RUNNING, jobs.c.batch_id.concat("") == batch_id], []
    return [of_batch], in_state
