"""StoredAnswers: a batch's answers in the database, as a joined table reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_jobs.storage import results

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from helix_jobs.storage.database import OpenRead
    from helix_jobs.storage.records import JobResult


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """The answers of one batch, read page by page.

    Attributes:
        read: Opens a transaction that reads.
        batch_id: The batch.
        chunk: Rows held at once at most.
    """

    read: OpenRead
    batch_id: str
    chunk: int

    def results(self, without: Collection[str]) -> Iterator[JobResult]:
        """The results in the order of lines, failed ones included, without some large columns."""
        return results.iter_results(self.read, self.batch_id, include_failed=True, chunk=self.chunk, without=without)

    def requests(self) -> Iterator[Mapping[str, Any]]:
        """The stored requests of all jobs."""
        return results.iter_requests(self.read, self.batch_id, chunk=self.chunk)
