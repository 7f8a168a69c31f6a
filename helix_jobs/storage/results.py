"""Read results as a stream: pages by key, so a million rows are never in memory at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import Connection, Select, func, not_, null, or_, select, text, tuple_

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.records import JobResult, JobSummary
from helix_jobs.storage.schema import BATCH_IS_THERE, batches, jobs, results
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from sqlalchemy import Row

    from helix_jobs.storage.database import OpenRead

Order = Literal["line", "completion"]

_JOB_COLUMNS: Final = (
    jobs.c.id.label("job_id"),
    jobs.c.batch_id,
    jobs.c.line,
    jobs.c.custom_id,
    jobs.c.state,
    jobs.c.priority,
    jobs.c.attempts,
    jobs.c.tries,
    jobs.c.request,
    jobs.c.queued_at,
    jobs.c.claimed_at,
    jobs.c.finished_at,
    jobs.c.error_code,
    jobs.c.error_message,
)
_RESULT_COLUMNS: Final = tuple(
    column for column in results.c if column.name not in ("job_id", "choice", "created_at", "worker_id")
)
# A job without an answer has one row, too.
_CHOICE: Final = func.coalesce(results.c.choice, 0)
_COLUMNS: Final = (*_JOB_COLUMNS, _CHOICE.label("choice"), *_RESULT_COLUMNS, jobs.c.worker_id)
_QUERY: Final = select(*_COLUMNS).select_from(jobs.outerjoin(results, results.c.job_id == jobs.c.id))
# The partial index in completion order holds ended jobs only.
_ENDED: Final = text("jobs.finished_at IS NOT NULL")
_UNSUCCESSFUL: Final = text("jobs.state IN ('failed', 'cancelled')")
# Rows of the first page, and bytes of log probabilities in a later one: a row's may have megabytes.
_FIRST_ROWS: Final = 16
_PAGE_BYTES: Final = 1 << 25
_SUMMARY_COLUMNS: Final = (
    jobs.c.id.label("job_id"),
    jobs.c.line,
    jobs.c.custom_id,
    jobs.c.state,
    jobs.c.priority,
    jobs.c.attempts,
    jobs.c.tries,
    jobs.c.error_code,
)


def iter_results(
    c: Connection | OpenRead,
    batch_id: str,
    *,
    order: Order = "line",
    include_failed: bool = False,
    only_failed: bool = False,
    chunk: int = 1000,
    without: Collection[str] = (),
) -> Iterator[JobResult]:
    """Stream the answers of the batch's ended jobs, also while the batch runs; a job without an answer comes once.

    Args:
        c: A connection that stays open while the iterator is used, which gives one snapshot for all pages; or a
            function that opens a read transaction for each page, so that a slow reader holds no snapshot. Then a job
            that ends meanwhile may be included or not, and a job that is retried meanwhile may appear twice.
        batch_id: The batch.
        order: ``line``: in the order of the input. ``completion``: in the order in which jobs ended.
        include_failed: Include failed and cancelled jobs.
        only_failed: Failed and cancelled jobs only.
        chunk: Rows held at once at most; fewer where their log probabilities are large.
        without: Large columns that are not read: of ``request``, which is empty then, and ``logprobs`` and
            ``prompt_logprobs``, which are None.

    Raises:
        NotFoundError: No such batch; at a later page, the batch has been removed meanwhile.
    """
    _require_batch(c, batch_id)
    query = _QUERY.where(jobs.c.batch_id == batch_id, _ENDED)
    if without:
        query = query.with_only_columns(
            *(null().label(column.name) if column.name in without else column for column in _COLUMNS)
        )
    if only_failed:
        query = query.where(_UNSUCCESSFUL)
    elif not include_failed:
        query = query.where(jobs.c.state == JobState.SUCCEEDED.value)
    return _pages(c, batch_id, query, order, chunk)


def answers_of(c: Connection, job_id: int) -> list[JobResult]:
    """The answers of one ended job; a job without an answer comes once, and one that has not ended not at all.

    Raises:
        UnreadableRowError: A value of a row cannot be read as its column's type.
    """
    return list(_job_results(fetch_all(c, _QUERY.where(jobs.c.id == job_id, _ENDED).order_by(_CHOICE))))


def read_job(c: Connection, job_id: int, choice: int = 0) -> JobResult:
    """One job in any state, with one of its answers if there is one.

    Raises:
        NotFoundError: No such job, or it has no such answer.
        UnreadableRowError: A value of the row cannot be read as its column's type.
    """
    rows = fetch_all(c, _QUERY.where(jobs.c.id == job_id, _CHOICE.in_((choice,))))
    if not rows:
        raise NotFoundError(f"there is no job {job_id} with an answer {choice}")
    return next(_job_results(rows))


def iter_jobs(c: Connection | OpenRead, batch_id: str, state: JobState, *, chunk: int = 1000) -> Iterator[JobSummary]:
    """Stream the batch's jobs in ``state`` in the order of the input, without their requests and answers.

    ``c`` as for ``iter_results``.

    Raises:
        NotFoundError: No such batch.
    """
    _require_batch(c, batch_id)
    query = select(*_SUMMARY_COLUMNS).where(jobs.c.batch_id == batch_id, jobs.c.state == state.value)
    query = query.order_by(jobs.c.line).limit(chunk)

    def pages() -> Iterator[JobSummary]:
        last = 0
        while True:
            rows = _page(c, batch_id, query.where(jobs.c.line > last))
            for row in rows:
                yield JobSummary(**{**row._mapping, "state": state})  # noqa: SLF001  (SQLAlchemy's documented name)
            if len(rows) < chunk:
                return
            last = rows[-1].line

    return pages()


def iter_requests(c: Connection | OpenRead, batch_id: str, *, chunk: int = 1000) -> Iterator[Mapping[str, Any]]:
    """Stream the stored requests of all jobs of a batch in the order of the input; ``c`` as for ``iter_results``.

    Raises:
        NotFoundError: No such batch.
    """
    _require_batch(c, batch_id)
    query = select(jobs.c.line, jobs.c.request).where(jobs.c.batch_id == batch_id).order_by(jobs.c.line).limit(chunk)

    def pages() -> Iterator[Mapping[str, Any]]:
        last = 0
        while True:
            rows = _page(c, batch_id, query.where(jobs.c.line > last))
            yield from (row.request for row in rows if isinstance(row.request, dict))
            if len(rows) < chunk:
                return
            last = rows[-1].line

    return pages()


def _require_batch(c: Connection | OpenRead, batch_id: str) -> None:
    if not _rows(c, select(batches.c.id).where(batches.c.id == batch_id, BATCH_IS_THERE)):
        raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")


def _pages(
    c: Connection | OpenRead, batch_id: str, query: Select[Any], order: Order, chunk: int
) -> Iterator[JobResult]:
    by_line = order == "line"
    place = (jobs.c.line,) if by_line else (jobs.c.finished_at, jobs.c.id)
    query = query.order_by(*place, _CHOICE)
    page = query
    limit = min(chunk, _FIRST_ROWS)
    while True:
        rows = _page(c, batch_id, page.limit(limit))
        yield from _job_results(rows)
        if len(rows) < limit:
            return
        limit = _rows_that_fit(rows, chunk)
        last = rows[-1]
        # A page may end between two answers of a job. The first condition is the one that an index serves.
        if by_line:
            begun = jobs.c.line == last.line
            page = query.where(jobs.c.line >= last.line)
        else:
            begun = jobs.c.id == last.job_id
            page = query.where(tuple_(jobs.c.finished_at, jobs.c.id) >= tuple_(last.finished_at, last.job_id))
        page = page.where(or_(not_(begun), last.choice < _CHOICE))


def _rows_that_fit(rows: Sequence[Row[*tuple[Any, ...]]], chunk: int) -> int:
    """Rows of the next page, if their log probabilities are as large as those of the last."""
    num_bytes = sum(len(row.logprobs or b"") + len(row.prompt_logprobs or b"") for row in rows)
    return chunk if num_bytes == 0 else max(1, min(chunk, len(rows) * _PAGE_BYTES // num_bytes))


def _page(c: Connection | OpenRead, batch_id: str, page: Select[Any]) -> Sequence[Row[*tuple[Any, ...]]]:
    """The rows of a page. A batch purged between two pages must not look like a shorter one.

    Raises:
        NotFoundError: The batch has been purged.
    """
    if isinstance(c, Connection):
        return _rows(c, page)
    with c() as own:
        rows = _rows(own, page)
        try:
            _require_batch(own, batch_id)
        except NotFoundError:
            raise NotFoundError(f"batch {batch_id} was removed while it was read; what came is not all of it") from None
        return rows


def _rows(c: Connection | OpenRead, page: Select[Any]) -> Sequence[Row[*tuple[Any, ...]]]:
    """The rows of a page, in the caller's transaction or in a new one.

    Raises:
        UnreadableRowError: A value of a row cannot be read as its column's type.
    """
    if not isinstance(c, Connection):
        with c() as own:
            return _rows(own, page)
    return fetch_all(c, page)


def _job_results(rows: Sequence[Row[*tuple[Any, ...]]]) -> Iterator[JobResult]:
    if not rows:
        return
    # Interned, as the names of a function's arguments are: Python finds an argument's place by identity first. By
    # comparing characters it took twice as long as the rest of this loop.
    fields = [sys.intern(str(name)) for name in rows[0]._fields]
    for row in rows:
        values: dict[str, Any] = dict(zip(fields, row, strict=True))
        values["state"] = JobState(values["state"])
        if not isinstance(values["request"], dict):
            # An edit by hand left JSON that is not an object; readers of results look up its fields.
            values["request"] = {}
        yield JobResult(**values)
