"""The manifest of a batch: what was asked, and what answered it.

The workers stand in the batch's counters, so a manifest reads a few rows at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from helix_jobs.errors import NotFoundError
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.readable import fetch_all, readable_rows
from helix_jobs.storage.schema import BATCH_IS_THERE, batch_counters, batches, workers
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Connection

_NOT_WORKERS: Final = (counters.SUBMITTER, counters.PERSON)
_NO_ENDS: Final = (counters.STORED, JobState.CANCELLED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """A worker that ended jobs of a batch.

    Attributes:
        worker_id: Its id.
        jobs: The jobs that it ended, with an answer or an error.
        hostname: The machine; None, as what follows, if the worker's row is gone.
        device: In words.
        target_model: The model that answered.
        draft_model: What drafted; None also where nothing did.
        started_at: When the worker started.
        setup: What its answers depend on; None for a worker of an older version.
    """

    worker_id: str
    jobs: int
    hostname: str | None = None
    device: str | None = None
    target_model: str | None = None
    draft_model: str | None = None
    started_at: datetime | None = None
    setup: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made a batch's answers.

    Attributes:
        batch_id: The batch.
        name: What its submitter called it.
        source: The name of its file.
        created_at: When it was submitted.
        total: Its jobs; None while it is being submitted.
        content_digest: SHA-256 over the accepted lines with their seeds; None until all are stored.
        defaults: What held for lines that did not say otherwise.
        metadata: What its submitter noted.
        makers: The workers that computed its answers, whoever ended most jobs first.
        from_cache: Jobs whose answer had been stored, for another one.
    """

    batch_id: str
    name: str | None
    source: str | None
    created_at: datetime
    total: int | None
    content_digest: str | None
    defaults: Mapping[str, Any]
    metadata: Mapping[str, Any]
    makers: tuple[Maker, ...]
    from_cache: int = 0

    @property
    def table(self) -> Mapping[str, Any] | None:
        """What is known of the table that it was submitted from: rows and their digest; None where it was none."""
        table: Mapping[str, Any] | None = self.defaults.get("table")
        return table


def read_manifest(c: Connection, batch_id: str) -> Manifest:
    """The manifest of a batch, also while it runs.

    Raises:
        NotFoundError: No such batch.
        UnreadableRowError: A value of the batch cannot be read.
    """
    rows = fetch_all(c, select(batches).where(batches.c.id == batch_id, BATCH_IS_THERE))
    if not rows:
        raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")
    row = rows[0]
    ended = _ended_by(c, batch_id)
    taken = select(func.coalesce(func.sum(batch_counters.c.from_cache), 0)).where(batch_counters.c.batch_id == batch_id)
    return Manifest(
        batch_id=row.id,
        name=row.name,
        source=row.source,
        created_at=row.created_at,
        total=row.total,
        content_digest=row.content_digest,
        defaults=row.defaults,
        metadata=row.metadata,
        makers=_makers(c, ended),
        from_cache=int(c.execute(taken).scalar_one()),
    )


def _ended_by(c: Connection, batch_id: str) -> dict[str, int]:
    """Worker -> jobs of the batch that it ended."""
    counters.flush(c)
    ended = func.sum(batch_counters.c.jobs)
    query = (
        select(batch_counters.c.writer, ended.label("jobs"))
        .where(batch_counters.c.batch_id == batch_id, batch_counters.c.outcome.not_in(_NO_ENDS))
        .where(batch_counters.c.writer.not_in(_NOT_WORKERS))
        .group_by(batch_counters.c.writer)
        .having(ended > 0)
    )
    return {row.writer: int(row.jobs) for row in c.execute(query)}


def _makers(c: Connection, ended: Mapping[str, int]) -> tuple[Maker, ...]:
    # One unreadable row must not withhold the others: its worker is named without its facts.
    query = select(workers).where(workers.c.id.in_(ended))
    rows: Iterable[Any] = readable_rows(c, query, workers.c.id) if ended else ()
    known = {row.id: row for row in rows}
    makers = [
        Maker(worker_id=worker_id, jobs=count)
        if (row := known.get(worker_id)) is None
        else Maker(
            worker_id=worker_id,
            jobs=count,
            hostname=row.hostname,
            device=row.device,
            target_model=row.target_model,
            draft_model=row.draft_model,
            started_at=row.started_at,
            setup=row.setup,
        )
        for worker_id, count in ended.items()
    ]
    return tuple(sorted(makers, key=lambda maker: (-maker.jobs, maker.worker_id)))
