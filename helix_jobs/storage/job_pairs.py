"""Pairs of jobs of two batches of the same input, page by page: memory stays flat at any size.

Jobs belong together by their ``custom_id``; without one, by their line. The other job is looked up by an index, so no
order of texts matters: databases order them by their own rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BindParameter, bindparam, case, select

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import BATCH_IS_THERE, batches, jobs, results
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from helix_jobs.storage.database import OpenRead

# Rows held at once: answers may be long. Where only keys are read there may be more.
_PAGE: Final = 250
_KEYS_PAGE: Final = 4000
_OTHER: Final = jobs.alias("other")
_BY_ID: Final = select(_OTHER.c.id).where(
    _OTHER.c.batch_id == bindparam("other"), _OTHER.c.custom_id == jobs.c.custom_id
)
_BY_LINE: Final = select(_OTHER.c.id).where(
    _OTHER.c.batch_id == bindparam("other"), _OTHER.c.line == jobs.c.line, _OTHER.c.custom_id.is_(None)
)
# Subqueries, not a join: Postgres without statistics might read the whole other batch for each page.
_PARTNER: Final = case(
    (jobs.c.custom_id.is_not(None), _BY_ID.correlate(jobs).scalar_subquery()),
    else_=_BY_LINE.correlate(jobs).scalar_subquery(),
)
_KEYS: Final = (
    select(jobs.c.id, jobs.c.line, _PARTNER.label("partner"))
    .where(jobs.c.batch_id == bindparam("batch"), jobs.c.line > bindparam("after"))
    .order_by(jobs.c.line)
    .limit(bindparam("rows"))
)
_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_JOBS: Final = select(
    jobs.c.id, jobs.c.line, jobs.c.custom_id, jobs.c.state, jobs.c.error_code, jobs.c.error_message
).where(jobs.c.id.in_(_IDS))
_ANSWERS: Final = (
    select(
        results.c.job_id,
        results.c.choice,
        results.c.output_text,
        results.c.tool_calls,
        results.c.finish_reason,
        results.c.prompt_tokens,
        results.c.completion_tokens,
        results.c.total_seconds,
        results.c.draft_tokens,
        results.c.accepted_tokens,
    )
    .where(results.c.job_id.in_(_IDS))
    .order_by(results.c.job_id, results.c.choice)
)
_REQUESTS: Final = select(jobs.c.id, jobs.c.request).where(jobs.c.id.in_(_IDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedAnswer:
    """One answer of a job, as far as two batches are compared by it."""

    choice: int
    output_text: str
    tool_calls: Sequence[Mapping[str, Any]] | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    total_seconds: float
    draft_tokens: int
    accepted_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedJob:
    """One of the two jobs.

    Attributes:
        answers: Of a succeeded job; empty for any other.
        request: The stored request; None where the two jobs came to the same.
    """

    job_id: int
    line: int
    custom_id: str | None
    state: JobState
    error_code: str | None
    error_message: str | None
    answers: tuple[PairedAnswer, ...]
    request: Mapping[str, Any] | None = None

    @property
    def said(self) -> tuple[Any, ...]:
        """What it came to: its answers, or else its state."""
        return (self.state, *((answer.output_text, answer.tool_calls) for answer in self.answers))


@dataclass(frozen=True, slots=True)
class JobPair:
    """A job of the first batch and its partner in the second; one of them may be missing."""

    before: PairedJob | None
    after: PairedJob | None


def iter_pairs(open_read: OpenRead, before: str, after: str) -> Iterator[JobPair]:
    """The pairs of two batches: those of the first in its order, then what only the second has.

    Args:
        open_read: Opens a read transaction; each page has its own.
        before: The first batch.
        after: The second batch.

    Raises:
        NotFoundError: No such batch; later, one has been removed meanwhile.
    """
    with open_read() as c:
        _require(c, before, after)
    return _pairs(open_read, before, after)


def _pairs(open_read: OpenRead, before: str, after: str) -> Iterator[JobPair]:
    place = 0
    while True:
        with open_read() as c:
            keys = fetch_all(c, _KEYS, {"batch": before, "other": after, "after": place, "rows": _PAGE})
            found = _jobs(c, [key.id for key in keys] + [key.partner for key in keys if key.partner is not None])
            pairs = [(found[key.id], found.get(key.partner)) for key in keys if key.id in found]
            pairs = _with_requests(c, pairs)
            _require(c, before, after)
        yield from (JobPair(*pair) for pair in pairs)
        if len(keys) < _PAGE:
            break
        place = keys[-1].line
    yield from _only_after(open_read, before, after)


def _only_after(open_read: OpenRead, before: str, after: str) -> Iterator[JobPair]:
    place = 0
    while True:
        with open_read() as c:
            keys = fetch_all(c, _KEYS, {"batch": after, "other": before, "after": place, "rows": _KEYS_PAGE})
            _require(c, before, after)
        alone = [key.id for key in keys if key.partner is None]
        for start in range(0, len(alone), _PAGE):
            with open_read() as c:
                found = _jobs(c, alone[start : start + _PAGE])
            yield from (JobPair(None, job) for job in sorted(found.values(), key=lambda job: job.line))
        if len(keys) < _KEYS_PAGE:
            return
        place = keys[-1].line


def _jobs(c: Connection, ids: Sequence[int]) -> dict[int, PairedJob]:
    answers: dict[int, list[PairedAnswer]] = {}
    for row in fetch_all(c, _ANSWERS, {"ids": ids}):
        values = dict(row._mapping)  # noqa: SLF001  (SQLAlchemy's documented name)
        answers.setdefault(values.pop("job_id"), []).append(PairedAnswer(**values))
    return {
        row.id: PairedJob(
            job_id=row.id,
            line=row.line,
            custom_id=row.custom_id,
            state=JobState(row.state),
            error_code=row.error_code,
            error_message=row.error_message,
            answers=tuple(answers.get(row.id, ())) if row.state == JobState.SUCCEEDED else (),
        )
        for row in fetch_all(c, _JOBS, {"ids": ids})
    }


def _with_requests(
    c: Connection, pairs: Sequence[tuple[PairedJob, PairedJob | None]]
) -> list[tuple[PairedJob, PairedJob | None]]:
    """The pairs, with the requests of those that came to different things."""
    ids = [job.job_id for a, b in pairs if b is not None and a.said != b.said for job in (a, b)]
    if not ids:
        return list(pairs)
    asked = {row.id: row.request for row in fetch_all(c, _REQUESTS, {"ids": ids})}
    return [
        (a, b) if b is None or a.job_id not in asked else (
            replace(a, request=asked[a.job_id]), replace(b, request=asked.get(b.job_id))
        )
        for a, b in pairs
    ]  # fmt: skip


def _require(c: Connection, *batch_ids: str) -> None:
    there = set(c.execute(select(batches.c.id).where(batches.c.id.in_(batch_ids), BATCH_IS_THERE)).scalars())
    for batch_id in batch_ids:
        if batch_id not in there:
            raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")
