"""A sample of a batch's answers, to draw by: the same few thousand rows are read whatever the batch's size.

The lines are evenly spaced over the file, so the sample is of all of it. Trade-off: a plot of a million answers is
right to a few percent, and takes milliseconds; to read every answer would take seconds each time somebody looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BindParameter, bindparam, select

from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import jobs, results

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

MOST_LINES: Final = 4000
_LINES: Final[BindParameter[Any]] = bindparam("lines", expanding=True)
# The index over batch and line holds the job's id, so no job's row is read: its prompt may be large.
_SAMPLE: Final = (
    select(results.c.created_at, results.c.completion_tokens)
    .join_from(jobs, results, results.c.job_id == jobs.c.id)
    .where(jobs.c.batch_id == bindparam("batch"), jobs.c.line.in_(_LINES))
)


def spaced_lines(last: int, most: int) -> range:
    """At most so many of the lines from 1 to ``last``, evenly spaced over all of them."""
    step = max(1, -(-last // most))
    # From the middle of each stretch, so that neither end of the file counts twice.
    return range((step + 1) // 2, last + 1, step)


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """What is drawn of an answer.

    Attributes:
        created_at: When it was stored.
        tokens: Its tokens.
    """

    created_at: datetime
    tokens: int


@dataclass(frozen=True, slots=True)
class AnswerSample:
    """Answers of evenly spaced lines.

    Attributes:
        answers: Those that are there, in the order of their ends.
        step: The lines that each stands for.
    """

    answers: Sequence[SampledAnswer]
    step: int


def answer_sample(c: Connection, batch_id: str, total: int, most: int = MOST_LINES) -> AnswerSample:
    """A sample of the batch's answers so far.

    Args:
        c: A connection.
        batch_id: The batch.
        total: Its lines.
        most: The most lines to look at.

    Raises:
        UnreadableRowError: A value of a row cannot be read.
    """
    lines = spaced_lines(total, most)
    rows = fetch_all(c, _SAMPLE, {"batch": batch_id, "lines": list(lines)})
    found = sorted((SampledAnswer(row.created_at, row.completion_tokens) for row in rows), key=lambda a: a.created_at)
    return AnswerSample(found, lines.step)
