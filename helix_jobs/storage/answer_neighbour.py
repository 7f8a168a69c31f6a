"""neighbour: the line that a filtered list has before or behind one of its lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import select

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.answer_list import list_answers
from helix_jobs.storage.answer_places import place_columns, write_place
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import jobs

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from helix_jobs.storage.answer_records import AnswerOrder, AnswerQuery, Effort


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What was found.

    Attributes:
        line: The neighbour's line; None if there is none, or looking has taken long enough.
        go_on: The place from which to look on in the latter case.
    """

    line: int | None = None
    go_on: str | None = None


def neighbour(
    c: Connection, batch_id: str, line: int, query: AnswerQuery, effort: Effort, *, backwards: bool
) -> Neighbour:
    """Look for a line's neighbour. The line itself need not match. Use a read transaction.

    Args:
        c: The transaction.
        batch_id: The batch.
        line: The line.
        query: The filter and the order of the list; where its page begins has no meaning.
        effort: What looking may cost.
        backwards: Whether the line before is looked for, in place of the one behind.

    Raises:
        NotFoundError: No such batch or line.
        InvalidFieldError: As ``list_answers``.
    """
    place = _place_of(c, batch_id, line, query.order)
    if place is None:
        return Neighbour()
    page = list_answers(
        c,
        batch_id,
        replace(query, limit=1, after=None if backwards else place, before=place if backwards else None),
        effort,
    )
    if page.heads:
        return Neighbour(line=page.heads[0].line)
    stopped = page.before if backwards else page.after
    return Neighbour(go_on=stopped if page.looked_to is not None else None)


def _place_of(c: Connection, batch_id: str, line: int, order: AnswerOrder) -> str | None:
    """The line's place in the list; None if the list of this order does not have it."""
    columns = place_columns(order)
    found = fetch_all(c, select(*columns).where(jobs.c.batch_id == batch_id, jobs.c.line == line))
    if not found:
        raise NotFoundError(f"batch {batch_id} has no line {line}; its list of answers shows those that there are")
    return None if None in found[0] else write_place(tuple(found[0]))
