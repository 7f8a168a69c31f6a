"""Check a whole database for rows that the protocol never writes, and repair them.

Edits by hand, half restored backups and damaged disks leave rows that cannot be read, running jobs that no worker
holds, and wrong counters. The worker survives each of them, but a batch may wait for ever.

Workers may run meanwhile. Trade-off: they wait during each repair, as no other write may come in between.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from helix_jobs.storage import impossible, readable, status
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.database import POSTGRES
from helix_jobs.storage.impossible import IMPOSSIBLE
from helix_jobs.storage.schema import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.readable import UnreadableValue

_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of fault.

    Attributes:
        what: The fault in words.
        count: How many rows have it.
        examples: The keys of the first five.
        done: The repair in words; None if nothing was changed.
    """

    what: str
    count: int
    examples: tuple[str, ...]
    done: str | None

    def __str__(self) -> str:
        which = ", ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")
        return f"{self.what}: {self.count} ({which}){'' if self.done is None else f'; {self.done}'}"


def check_rows(database: Database, *, repair: bool) -> list[Finding]:
    """Check every row, and with ``repair`` correct what is wrong; an empty list means no faults.

    Reads the whole database: a million jobs take minutes.

    Raises:
        DatabaseUnreachableError: The database does not answer; earlier repairs stay.
    """
    return [*_check_readable(database, repair=repair), *_check_impossible(database, repair=repair)]


def _check_readable(database: Database, *, repair: bool) -> list[Finding]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for value in _unreadable(database):
        place = (value.table.name, value.column.name)
        counts[place] += 1
        shown = examples.setdefault(place, [])
        if len(shown) < _EXAMPLES:
            shown.append("/".join(map(str, value.key)))
        if repair:
            database.transact(lambda c, value=value: readable.make_readable(c, value), unlimited=True)  # type: ignore[misc]
    done = "made readable" if repair else None
    return [
        Finding(
            what=f"values of {table}.{column} that cannot be read",
            count=count,
            examples=tuple(examples[table, column]),
            done=done,
        )
        for (table, column), count in counts.items()
    ]


def _unreadable(database: Database) -> Iterator[UnreadableValue]:
    """Every unreadable value, with a transaction for each page: no long snapshot, and no lock."""
    for table in metadata.sorted_tables:
        after: tuple[object, ...] | None = None
        while True:
            with database.read(unlimited=True) as c:
                found, after = readable.unreadable_page(c, table, after)
            yield from found
            if after is None:
                break


def _check_impossible(database: Database, *, repair: bool) -> list[Finding]:
    if not repair:
        with database.read(unlimited=True) as c:
            return [*_impossible(c, None), *_counters(c, repair=False)]

    def put_right(c: Connection) -> list[Finding]:
        if database.dialect == POSTGRES:
            c.execute(text("LOCK TABLE jobs, results, batch_counters IN SHARE ROW EXCLUSIVE MODE"))
        return [*_impossible(c, datetime.now(UTC)), *_counters(c, repair=True)]

    return database.transact(put_right, unlimited=True)


def _impossible(c: Connection, now: datetime | None) -> Iterator[Finding]:
    for kind in IMPOSSIBLE:
        count, examples = impossible.count_impossible(c, kind)
        if count:
            if now is not None:
                impossible.repair_impossible(c, kind, now)
            done = None if now is None else kind.done
            yield Finding(what=kind.what, count=count, examples=tuple(examples), done=done)


def _counters(c: Connection, *, repair: bool) -> list[Finding]:
    wrong = [batch_id for batch_id in status.batch_ids(c) if not counters.counters_agree(c, batch_id)]
    if repair:
        for batch_id in wrong:
            counters.recount(c, batch_id)
    if not wrong:
        return []
    what = "batches whose counters differ from their jobs"
    return [
        Finding(what=what, count=len(wrong), examples=tuple(wrong[:_EXAMPLES]), done="counted anew" if repair else None)
    ]
