"""DatabaseClient: a client's database, opened when it is first used, and what it tells of batches and workers."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from helix_jobs.client.opened_database import OpenedDatabase
from helix_jobs.settings import Settings
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from helix_jobs.client.snapshot import Snapshot
    from helix_jobs.outlook.batch_outlook import BatchOutlook
    from helix_jobs.storage.batch_facts import BatchFacts
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.job_pairs import JobPair
    from helix_jobs.storage.manifests import Manifest
    from helix_jobs.storage.notices import ToldNotice
    from helix_jobs.storage.records import Worker


class DatabaseClient:
    """The base of ``HelixClient``, which says what its arguments are."""

    def __init__(self, settings: Settings | None = None, *, time_limits: TimeLimits = DEFAULT_TIME_LIMITS) -> None:
        self.settings = Settings.from_environment() if settings is None else settings
        self.time_limits = time_limits
        self._opened = OpenedDatabase(self.settings, time_limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the connections. The client opens new ones when it is used again."""
        self._opened.close()

    def manifest(self, batch_id: str) -> Manifest:
        """Return what made a batch's answers: what it was submitted with, and the workers with their models.

        Raises:
            NotFoundError: No such batch.
        """
        from helix_jobs.storage.manifests import read_manifest

        with self._database().read() as connection:
            return read_manifest(connection, batch_id)

    def facts(self, batch_id: str, *, samples: int = 12) -> BatchFacts:
        """Return what a report of a batch is made of: its sums by time and length, runs, errors and a sample.

        Raises:
            NotFoundError: No such batch.
        """
        from helix_jobs.storage.batch_facts import batch_facts

        return batch_facts(self._database().read, batch_id, samples)

    def outlook(self, batch_id: str) -> BatchOutlook | None:
        """Return when a batch will be done, from what has ended of it and from the workers' latest runs.

        None where it has ended or is held back, where nobody works, and where nothing was answered yet that could tell.

        Raises:
            NotFoundError: No such batch.
        """
        from helix_jobs.outlook.batch_outlook import batch_outlook
        from helix_jobs.storage.status import batch_status

        with self._database().read() as connection:
            return batch_outlook(
                connection, batch_status(connection, batch_id), datetime.now(UTC), self.time_limits.lease
            )

    def pairs(self, before: str, after: str) -> Iterator[JobPair]:
        """Yield the jobs of two batches of the same input in pairs: by ``custom_id``, or else by line.

        Jobs that only the second batch has come last. Each page is its own snapshot, as for ``results``.

        Raises:
            NotFoundError: No such batch.
        """
        from helix_jobs.storage.job_pairs import iter_pairs

        return iter_pairs(self._database().read, before, after)

    def backlog(self) -> int:
        """Return how many jobs are queued, over all batches."""
        from helix_jobs.storage import publishing

        with self._database().read() as connection:
            return publishing.backlog(connection)

    def live_workers(self) -> Sequence[Worker]:
        """Return the workers that have neither stopped nor been declared lost."""
        from helix_jobs.storage import workers

        with self._database().read() as connection:
            return workers.live_workers(connection)

    def snapshots(self, newest: int = 20) -> Callable[[], Snapshot]:
        """Return a function that reads what runs now: the workers, the newest batches, and those that run.

        It measures the pace from one call to the next. One thread at a time may call it.
        """
        from helix_jobs.client.snapshot import SnapshotReader

        reader = SnapshotReader(self.time_limits.lease, newest)

        def read() -> Snapshot:
            with self._database().read() as connection:
                return reader.read(connection, (), time.monotonic())

        return read

    def notices(self, limit: int = 20) -> Sequence[ToldNotice]:
        """Return what there was to tell of batches, the newest first, and whether it was delivered."""
        from helix_jobs.storage.notices import newest_notices

        with self._database().read() as connection:
            return newest_notices(connection, limit)

    def _database(self) -> Database:
        """The database; the first use checks its schema."""
        return self._opened.get()
