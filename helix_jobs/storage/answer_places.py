"""Places in a batch's list of answers: the columns that order it, and how a place is written in an address."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import tuple_

from helix_jobs.errors import InvalidFieldError
from helix_jobs.storage.answer_records import AnswerOrder
from helix_jobs.storage.schema import jobs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column, ColumnElement

Place = tuple[Any, ...]

_COLUMNS: Final[Mapping[AnswerOrder, tuple[Column[Any], ...]]] = {
    AnswerOrder.LINE: (jobs.c.line,),
    AnswerOrder.NEWEST: (jobs.c.finished_at, jobs.c.id),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Beyond these no column of the databases goes.
_LARGEST: Final = (2**31 - 1, 2**53)
_DIGITS: Final = 20


def place_columns(order: AnswerOrder) -> tuple[Column[Any], ...]:
    """The columns by which the list is ordered; one index serves them."""
    return _COLUMNS[order]


def place_order(order: AnswerOrder, *, backwards: bool) -> list[ColumnElement[Any]]:
    """The columns of ORDER BY; ``backwards`` reads the list from its end."""
    descending = (order == AnswerOrder.NEWEST) != backwards
    return [column.desc() if descending else column.asc() for column in _COLUMNS[order]]


def beyond(order: AnswerOrder, place: Place, *, backwards: bool, including: bool = False) -> ColumnElement[bool]:
    """The condition of what comes behind a place, as the list is read."""
    columns = _COLUMNS[order]
    # A row value of one column is no row value to SQLite.
    here, there = (columns[0], place[0]) if len(columns) == 1 else (tuple_(*columns), tuple_(*place))
    if (order == AnswerOrder.NEWEST) != backwards:
        return here <= there if including else here < there
    return here >= there if including else here > there


def up_to(order: AnswerOrder, place: Place, *, backwards: bool) -> ColumnElement[bool]:
    """The condition of what comes up to a place and of the place itself, as the list is read."""
    return beyond(order, place, backwards=not backwards, including=True)


def write_place(place: Place) -> str:
    """A place as text for an address: a line, or microseconds since 1970 and a job's id."""
    return "-".join(str((part - _EPOCH) // _MICROSECOND if isinstance(part, datetime) else part) for part in place)


def read_place(order: AnswerOrder, name: str, value: str) -> Place:
    """Read the text of ``write_place``.

    Raises:
        InvalidFieldError: It names no place of this order.
    """
    parts = value.split("-")
    is_good = len(parts) == len(_COLUMNS[order]) and all(
        part.isascii() and part.isdecimal() and len(part) < _DIGITS for part in parts
    )
    if not is_good:
        raise InvalidFieldError(name, "names no place of this list", "begin at the first page")
    if order == AnswerOrder.LINE:
        return (min(int(parts[0]), _LARGEST[0]),)
    # Up to the year 2255, which both databases can compare.
    return (_EPOCH + min(int(parts[0]), _LARGEST[1]) * _MICROSECOND, min(int(parts[1]), _LARGEST[1]))
