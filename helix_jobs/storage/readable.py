"""Find stored values that cannot be read, after an edit by hand or on a damaged disk, and make them readable.

A value is unreadable when fetching it as its column's type raises: invalid JSON, JSON nested too deep or with a number
of ten thousand digits, text that is not UTF-8, a malformed time. So is JSON that is not an object, as nearly every JSON
column holds an object; a column that holds a list says so. A readable value need not be sensible.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import JSON, LargeBinary, cast, null, select, tuple_, type_coerce, update
from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import UnreadableRowError
from helix_jobs.storage.faults import unreachable_reason
from helix_jobs.storage.utc_datetime import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Column, ColumnElement, Connection, Row, Select, Table

PAGE_ROWS: Final = 500
_NO_OBJECT: Final = "no JSON object"
_UNREADABLE: Final = (
    "a stored row cannot be read ({}): someone changed it, or the disk is damaged; `helix db check` names it, "
    "`helix db check --repair` makes it readable"
)

_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class UnreadableValue:
    """One value of one row that cannot be read.

    Attributes:
        table: The row's table.
        key: The row's primary key.
        column: The value's column.
        reason: The kind of error, without its text, which quotes the value.
    """

    table: Table
    key: _Key
    column: Column[Any]
    reason: str


def fetch_all(
    c: Connection, query: Select[*tuple[Any, ...]], parameters: Mapping[str, Any] | None = None
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Every row of a query.

    Raises:
        UnreadableRowError: A value of a row cannot be read as its column's type.
    """
    try:
        return c.execute(query, parameters).all()
    except DBAPIError as error:
        if unreachable_reason(error) is not None:
            raise
        raise UnreadableRowError(_UNREADABLE.format(type(error.orig).__name__)) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UnreadableRowError(_UNREADABLE.format(type(error).__name__)) from None


def unreadable_page(c: Connection, table: Table, after: _Key | None) -> tuple[list[UnreadableValue], _Key | None]:
    """Read a page of rows and name the values that cannot be read.

    Args:
        c: A read transaction.
        table: The table to read.
        after: The last key of the page before; None for the first page.

    Returns:
        The unreadable values, and the last key of this page; None when this was the last page.
    """
    keys = list(table.primary_key.columns)
    num_rows = int(table.info.get("page_rows", PAGE_ROWS))
    query = select(*keys).order_by(*keys).limit(num_rows)
    if after is not None:
        query = query.where(tuple_(*keys) > tuple_(*after) if len(keys) > 1 else keys[0] > after[0])
    page = [tuple(row) for row in c.execute(query)]
    if not page:
        return [], None
    whole = select(table).where(_between(keys, page[0], page[-1]))
    found = (
        []
        if unreadable_reason(c, whole) is None
        else [value for key in page for value in _unreadable_row(c, table, key)]
    )
    return found, page[-1] if len(page) == num_rows else None


def readable_rows(c: Connection, query: Select[Any], key: Column[Any]) -> list[Row[Any]]:
    """The rows of a query without unreadable ones: one such row must not withhold all others.

    Args:
        c: A transaction.
        query: A query for a few rows: once one cannot be read, each is read by itself.
        key: A readable column of the query's tables that tells its rows apart.
    """
    try:
        return list(c.execute(query))
    except (DBAPIError, ValueError, TypeError) as error:
        if isinstance(error, DBAPIError) and unreachable_reason(error) is not None:
            raise
    keys = c.execute(query.with_only_columns(key, maintain_column_froms=True)).scalars().all()
    single = [query.where(key == one) for one in keys]
    return [row for one in single if unreadable_reason(c, one) is None for row in c.execute(one)]


def make_readable(c: Connection, value: UnreadableValue) -> None:
    """Replace the value by a readable one.

    Text keeps its readable part. JSON of the wrong kind becomes ``{}`` or ``[]``: a job with this request fails for the
    fields it lacks. A time becomes NULL where the column allows it, otherwise now.
    """
    column = value.column
    new: Any = None if column.nullable else datetime.now(UTC)
    if not isinstance(column.type, UTCDateTime):
        text = _raw_text(c, value)
        new = _kept_or_empty(text, _holds(column)) if isinstance(column.type, JSON) else text
    c.execute(update(value.table).where(_is(value.table, value.key)).values({column: null() if new is None else new}))


def _unreadable_row(c: Connection, table: Table, key: _Key) -> Iterator[UnreadableValue]:
    for column in table.columns:
        reason = unreadable_reason(c, select(column).where(_is(table, key)))
        if reason is not None:
            yield UnreadableValue(table, key, column, reason)


def unreadable_reason(c: Connection, query: Any) -> str | None:  # noqa: ANN401  (selects of any row)
    """None if every value can be fetched, else the kind of error."""
    try:
        columns = list(query.selected_columns)
        for row in c.execute(query):
            if not all(map(_is_object_where_due, columns, row)):
                return _NO_OBJECT
    except DBAPIError as error:
        if unreachable_reason(error) is not None:
            raise
        return type(error.orig).__name__
    except Exception as error:  # noqa: BLE001  (whatever reads a value may raise what it likes)
        return type(error).__name__
    return None


def _is_object_where_due(column: ColumnElement[Any], value: object) -> bool:
    if not isinstance(column.type, JSON) or isinstance(value, _holds(column)):
        return True
    return value is None and bool(getattr(column, "nullable", True))


def _raw_text(c: Connection, value: UnreadableValue) -> str:
    """The value as text, with bytes that are not UTF-8 replaced."""
    if c.dialect.name == "sqlite":
        raw: ColumnElement[Any] = type_coerce(cast(value.column, LargeBinary), LargeBinary)
        found = c.execute(select(raw).where(_is(value.table, value.key))).scalar_one()
        return bytes(found).decode("utf-8", "replace").replace("\x00", "\ufffd")
    return "{}"  # Postgres lets nothing else in that is unreadable than JSON


def _kept_or_empty(text: str, holds: type[Any]) -> Any:  # noqa: ANN401  (an object or a list)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return holds()
    return found if isinstance(found, holds) else holds()


def _holds(column: ColumnElement[Any]) -> type[Any]:
    """What the JSON of this column is: an object, unless the schema says a list."""
    kind: type[Any] = getattr(column, "info", {}).get("holds", dict)
    return kind


def _is(table: Table, key: _Key) -> ColumnElement[bool]:
    keys = list(table.primary_key.columns)
    return tuple_(*keys) == tuple_(*key) if len(keys) > 1 else keys[0] == key[0]


def _between(keys: list[Column[Any]], first: _Key, last: _Key) -> ColumnElement[bool]:
    if len(keys) == 1:
        return keys[0].between(first[0], last[0])
    # Postgres guesses that a third of all rows lie behind any pair of values, and would read the whole table for each
    # page. The first values alone tell it how few they are.
    in_order = (tuple_(*keys) >= tuple_(*first)) & (tuple_(*keys) <= tuple_(*last))
    return keys[0].between(first[0], last[0]) & in_order
