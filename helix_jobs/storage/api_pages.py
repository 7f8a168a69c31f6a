"""A page of an owner's list, by key: the next page does not shift when entries come or go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, tuple_

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.readable import fetch_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row, Select, Table

    from helix_jobs.storage.api_records import Page


def read_page(
    c: Connection, table: Table, query: Select[Any], owner: str, page: Page
) -> Sequence[Row[*tuple[Any, ...]]]:
    """The rows of a page, and one more if there are more.

    Args:
        c: A connection.
        table: Has the columns id, owner and created_at.
        query: Selects from it.
        owner: Whose rows.
        page: Which of them.

    Raises:
        NotFoundError: The owner has no entry ``page.after``.
        UnreadableRowError: A value of a row cannot be read.
    """
    place = (table.c.created_at, table.c.id)
    query = query.where(table.c.owner == owner)
    if page.after is not None:
        mark = c.execute(select(*place).where(table.c.owner == owner, table.c.id == page.after)).first()
        if mark is None:
            raise NotFoundError("there is no entry with the id of after; give the last id of the page before")
        there = tuple_(*place)
        query = query.where(there < tuple_(*mark) if page.newest_first else there > tuple_(*mark))
    order = [column.desc() if page.newest_first else column.asc() for column in place]
    return fetch_all(c, query.order_by(*order).limit(page.limit + 1))
