"""A page of a batch's answers: by key, filtered and searched, at any size of the batch, and bounded in time.

An index finds the rows of a list in its order, and of failed, cancelled and running jobs no others. Whatever else a
filter or a search asks is asked row by row, in slices. When a page has taken long enough it ends early, and says how
far it looked and where to go on: a search through a million answers is many short reads, none of which holds a
connection or a snapshot for long.

Trade-off: an index for each filter, and one over all texts, would find rare rows at once. Each would be written with
each answer, by a worker at its work, for a list that a person looks at now and then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, cast, select, text

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.answer_conditions import conditions_of
from helix_jobs.storage.answer_heads import read_heads
from helix_jobs.storage.answer_places import (
    Place,
    beyond,
    place_columns,
    place_order,
    read_place,
    up_to,
    write_place,
)
from helix_jobs.storage.answer_records import AnswerOrder, AnswerPage, Effort
from helix_jobs.storage.answer_text import TextSearch
from helix_jobs.storage.readable import fetch_all, readable_rows
from helix_jobs.storage.schema import BATCH_IS_THERE, batches, jobs, results

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, Row, Select

    from helix_jobs.storage.answer_records import AnswerQuery

_USUAL_EFFORT: Final = Effort()
_TEXTS: Final = (
    jobs.c.custom_id,
    cast(jobs.c.request, Text).label("request"),
    jobs.c.error_message,
    results.c.output_text,
    results.c.reasoning_text,
    cast(results.c.tool_calls, Text).label("tool_calls"),
)
# Rows come in the order of an index, each with its answers by their key, and reading stops where the page is full.
# While a new batch's tables have no statistics, Postgres expects few rows behind a place, gathers all of them (a
# bitmap) and sorts, for each slice. And it expects many in a slice, and reads all answers of all batches to join them.
# It may do neither, up to the transaction's end.
_BY_INDEX: Final = text(
    "SELECT "
    + ", ".join(
        f"set_config('{name}', '{value}', true)"
        for name, value in {
            "enable_bitmapscan": "off",
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "max_parallel_workers_per_gather": "0",
        }.items()
    )
)
# A slice is to take this part of the time that a page may take.
_SLICE_SHARE: Final = 0.1
_GROWTH: Final = 4.0


def list_answers(c: Connection, batch_id: str, query: AnswerQuery, effort: Effort = _USUAL_EFFORT) -> AnswerPage:
    """A page of a batch's list. Use a read transaction: then its rows are of one moment.

    Raises:
        NotFoundError: No such batch.
        InvalidFieldError: A place of the query is none, or its filter can match nothing in its order.
    """
    if c.execute(select(batches.c.id).where(batches.c.id == batch_id, BATCH_IS_THERE)).first() is None:
        raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")
    if c.dialect.name == "postgresql":
        c.execute(_BY_INDEX)
    reading = _Reading(c, batch_id, query, effort)
    found, stopped = reading.rows()
    has_more = len(found) > query.limit
    found = found[: query.limit]
    places = [reading.place_of(row) for row in found]
    ahead = places[-1] if has_more else stopped
    behind = places[0] if places and reading.has_any_behind(places[0]) else None
    if reading.backwards:
        found.reverse()
        ahead, behind = behind, ahead
    return AnswerPage(
        heads=read_heads(c, [row.id for row in found]),
        after=None if ahead is None else write_place(ahead),
        before=None if behind is None else write_place(behind),
        looked_to=None if stopped is None or has_more else reading.line_at(stopped),
    )


class _Reading:
    """Reads the rows of one page, from ``start`` on in the page's direction."""

    def __init__(self, c: Connection, batch_id: str, query: AnswerQuery, effort: Effort) -> None:
        self._c = c
        self._batch_id = batch_id
        self._order = query.order
        self._limit = query.limit + 1  # one more tells whether there are more
        self._effort = effort
        self._conditions = conditions_of(batch_id, query.which, query.order)
        self._search = TextSearch(query.which.text) if query.which.text else None
        self.backwards = query.before is not None
        name, value = ("before", query.before) if self.backwards else ("after", query.after)
        self.start: Place | None = None if value is None else read_place(query.order, name, value)

    def rows(self) -> tuple[list[Row[Any]], Place | None]:
        """The ids and places of rows that match, and where looking stopped before the list's end, if it did."""
        if self._search is None and not self._conditions.asked:
            return list(fetch_all(self._c, self._ordered(self._keys(), self.start, None).limit(self._limit))), None
        found: list[Row[Any]] = []
        began = time.perf_counter()
        start = self.start
        span = self._effort.first_slice if self._search is None else self._effort.first_texts
        while (end := self._end_of_slice(start, span)) is not None:
            slice_began = time.perf_counter()
            missing = self._limit - len(found)
            if self._search is None:
                rows, most = self._matches(start, end, missing), self._effort.largest_slice
            else:
                rows, most = self._texts_with(self._search, start, end, missing)
            found += rows
            if len(found) == self._limit:
                return found, None
            start = end
            now = time.perf_counter()
            if now - began >= self._effort.seconds:
                return found, (end if self._end_of_slice(end, 1) is not None else None)
            wanted = _SLICE_SHARE * self._effort.seconds / max(now - slice_began, 1e-6)
            span = max(1, min(int(span * min(_GROWTH, wanted)), most))
        return found, None

    def place_of(self, row: Row[Any]) -> Place:
        """Where a row stands in the list."""
        return tuple(getattr(row, column.name) for column in place_columns(self._order))

    def has_any_behind(self, place: Place) -> bool:
        """Whether the list has rows before ``place``, as it is read."""
        query = select(jobs.c.id).where(
            *self._conditions.found, beyond(self._order, place, backwards=not self.backwards)
        )
        query = query.order_by(*place_order(self._order, backwards=not self.backwards))
        return self._c.execute(query.limit(1)).first() is not None

    def line_at(self, place: Place) -> int:
        """The line of the job at a place."""
        if self._order == AnswerOrder.LINE:
            return int(place[0])
        line = self._c.execute(select(jobs.c.line).where(jobs.c.id == place[-1])).scalar_one_or_none()
        return 0 if line is None else int(line)

    def _keys(self) -> Select[Any]:
        return select(jobs.c.id, *(column for column in place_columns(self._order) if column is not jobs.c.id)).where(
            *self._conditions.found
        )

    def _ordered(self, query: Select[Any], start: Place | None, end: Place | None) -> Select[Any]:
        """The query in the page's direction, behind ``start`` and up to ``end``."""
        if start is not None:
            query = query.where(beyond(self._order, start, backwards=self.backwards))
        if end is not None:
            query = query.where(up_to(self._order, end, backwards=self.backwards))
        return query.order_by(*place_order(self._order, backwards=self.backwards))

    def _end_of_slice(self, start: Place | None, span: int) -> Place | None:
        """The place of the last of the next ``span`` rows, or of fewer at the end; None if there are none."""
        rows = self._ordered(self._keys(), start, None).limit(span).subquery()
        columns = [rows.c[column.name] for column in place_columns(self._order)]
        descending = (self._order == AnswerOrder.NEWEST) == self.backwards
        last = select(*columns).order_by(*(column.desc() if descending else column.asc() for column in columns))
        found = fetch_all(self._c, last.limit(1))
        return tuple(found[0]) if found else None

    def _matches(self, start: Place | None, end: Place, limit: int) -> Sequence[Row[Any]]:
        query = self._ordered(self._keys().where(*self._conditions.asked), start, end)
        return fetch_all(self._c, query.limit(limit))

    def _texts_with(
        self, search: TextSearch, start: Place | None, end: Place, limit: int
    ) -> tuple[list[Row[Any]], int]:
        """The matching rows of a slice, and how many rows the next slice may have for its texts' size."""
        query = self._keys().add_columns(*_TEXTS).where(*self._conditions.asked)
        query = query.select_from(jobs.outerjoin(results, results.c.job_id == jobs.c.id))
        rows = readable_rows(self._c, self._ordered(query, start, end), jobs.c.id)
        found: dict[int, Row[Any]] = {}
        for row in rows:
            if row.id not in found and _is_in(search, row):
                found[row.id] = row
                if len(found) == limit:
                    break
        size = sum(map(_size, rows))
        num_jobs = len({row.id for row in rows})
        most = num_jobs * self._effort.slice_bytes // size if size else self._effort.largest_slice
        return list(found.values()), min(most, self._effort.largest_slice)


def _is_in(search: TextSearch, row: Row[Any]) -> bool:
    return (
        search.is_in(row.output_text)
        or search.is_in_request(row.request)
        or search.is_in(row.custom_id)
        or search.is_in(row.reasoning_text)
        or search.is_in_json(row.tool_calls)
        or search.is_in(row.error_message)
    )


def _size(row: Row[Any]) -> int:
    return sum(len(value) for value in _values(row))


def _values(row: Row[Any]) -> Iterator[str]:
    return (value for value in (row.request, row.output_text, row.reasoning_text) if value is not None)
