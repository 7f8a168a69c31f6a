"""One job of a batch, found by its line or its custom id, with one of its answers whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.results import read_job
from helix_jobs.storage.schema import BATCH_IS_THERE, batches, jobs, results

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from helix_jobs.storage.records import JobResult

_CHOICES: Final = select(
    results.c.choice, results.c.finish_reason, results.c.completion_tokens, results.c.is_valid
).order_by(results.c.choice)


@dataclass(frozen=True, slots=True)
class ChoiceHead:
    """An answer of the job without its texts."""

    choice: int
    finish_reason: str
    completion_tokens: int
    is_valid: bool | None


@dataclass(frozen=True, slots=True)
class OneAnswer:
    """A job with one of its answers.

    Attributes:
        result: The job, and the answer if there is one.
        choices: All answers of the job.
        previous_line: The line before it in the batch; None for the first.
        next_line: The line behind it; None for the last.
    """

    result: JobResult
    choices: tuple[ChoiceHead, ...]
    previous_line: int | None
    next_line: int | None


def read_answer(c: Connection, batch_id: str, line: int, choice: int = 0) -> OneAnswer:
    """A job in any state, with one of its answers. Use a read transaction.

    Raises:
        NotFoundError: The batch has no such line, or the job has no such answer.
        UnreadableRowError: A value of the row cannot be read as its column's type.
    """
    found = fetch_all(
        c, select(jobs.c.id).join(batches).where(jobs.c.batch_id == batch_id, jobs.c.line == line, BATCH_IS_THERE)
    )
    if not found:
        raise NotFoundError(f"batch {batch_id} has no line {line}; its list of answers shows those that there are")
    job_id = found[0].id
    choices = tuple(
        ChoiceHead(row.choice, row.finish_reason, row.completion_tokens, row.is_valid)
        for row in fetch_all(c, _CHOICES.where(results.c.job_id == job_id))
    )
    if choice and choice not in [one.choice for one in choices]:
        raise NotFoundError(f"line {line} has no answer {choice}; its first is answer 0")
    return OneAnswer(
        result=read_job(c, job_id, choice),
        choices=choices,
        previous_line=_neighbour(c, batch_id, line, forwards=False),
        next_line=_neighbour(c, batch_id, line, forwards=True),
    )


def line_of(c: Connection, batch_id: str, custom_id: str) -> int | None:
    """The line that has exactly this custom id; None if none has."""
    query = select(jobs.c.line).where(jobs.c.batch_id == batch_id, jobs.c.custom_id == custom_id)
    return c.execute(query).scalar_one_or_none()


def _neighbour(c: Connection, batch_id: str, line: int, *, forwards: bool) -> int | None:
    query = select(jobs.c.line).where(
        jobs.c.batch_id == batch_id, jobs.c.line > line if forwards else jobs.c.line < line
    )
    query = query.order_by(jobs.c.line if forwards else jobs.c.line.desc()).limit(1)
    return c.execute(query).scalar_one_or_none()
